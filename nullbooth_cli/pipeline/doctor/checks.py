"""The checks of `nullbooth doctor`: everything that can stop a run and can be known before it.

A check returns its finding as one sentence, or a `Caution`, or None if it does not apply to the run. It raises the error that
the run would raise. It stores its results in the `Examination`, for the checks that need them. Packages are imported inside the
checks, so that a broken package stops only those that use it.
"""

from collections.abc import Callable

from nullbooth_cli.pipeline.doctor import before_loading, on_the_model
from nullbooth_cli.pipeline.doctor.examination import Caution, Examination

Check = Callable[[Examination], str | Caution | None]
# In order, each with the checks that it needs.
CHECKS: dict[str, tuple[Check, tuple[str, ...]]] = {
    "packages": (before_loading.packages, ()),
    "config": (before_loading.config, ()),
    "prompts": (before_loading.prompts, ("config",)),
    "images": (before_loading.images, ("prompts",)),
    "held-out prompts": (before_loading.heldout, ("config",)),
    "device": (before_loading.device, ()),
    "store": (before_loading.store, ("config",)),
    "write access": (before_loading.write_access, ("store",)),
    "lock": (before_loading.lock, ("write access",)),
    "tasks": (before_loading.tasks, ("store",)),
    "stages": (before_loading.stages, ("prompts", "held-out prompts", "store")),
    "stale": (before_loading.stale, ("stages",)),
    "schedule": (on_the_model.schedule, ("config",)),
    "model": (on_the_model.model, ("config", "device")),
    "layers": (on_the_model.layers, ("model",)),
    "attention maps": (on_the_model.attention_maps, ("prompts", "model")),
    "tokenizer": (on_the_model.tokenizer, ("model", "prompts")),
    "probe": (on_the_model.probe, ("layers", "schedule", "prompts", "images")),
    "projectors": (on_the_model.projectors, ("probe",)),
    "batch": (on_the_model.batch, ("probe", "stages")),
    "memory": (on_the_model.memory, ("probe", "stages")),
    "disk": (on_the_model.disk, ("probe", "stages")),
    "time": (on_the_model.time, ("batch",)),
}
