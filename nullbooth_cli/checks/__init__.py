"""The checks of `nullbooth doctor`: everything that can stop a run and can be known before it.

A check returns what it found as one sentence, or a `Doubt`; or None if the run does without what it looks at. It raises the
error that the run would raise. What it learns it leaves in the `Patient`, for the checks that name it among their needs. Imports
wait, so that a package that is broken stops only the checks that use it.
"""

from collections.abc import Callable

from nullbooth_cli.checks import surroundings, trial
from nullbooth_cli.checks.patient import Doubt, Patient

__all__ = ["CHECKS", "Check", "Doubt", "Patient"]

Check = Callable[[Patient], str | Doubt | None]
# In order: each with the checks that it needs.
CHECKS: dict[str, tuple[Check, tuple[str, ...]]] = {
    "packages": (surroundings.packages, ()),
    "config": (surroundings.config, ()),
    "prompts": (surroundings.prompts, ("config",)),
    "images": (surroundings.images, ("prompts",)),
    "held-out prompts": (surroundings.heldout, ("config",)),
    "device": (surroundings.device, ()),
    "store": (surroundings.store, ("config",)),
    "write access": (surroundings.write_access, ("store",)),
    "lock": (surroundings.lock, ("write access",)),
    "stages": (surroundings.stages, ("prompts", "held-out prompts", "store")),
    "stale": (surroundings.stale, ("stages",)),
    "schedule": (trial.schedule, ("config",)),
    "model": (trial.model, ("config", "device")),
    "layers": (trial.layers, ("model",)),
    "attention maps": (trial.attention_maps, ("prompts", "model")),
    "tokenizer": (trial.tokenizer, ("model", "prompts")),
    "probe": (trial.probe, ("layers", "schedule", "prompts", "images")),
    "projectors": (trial.projectors, ("probe",)),
    "batch": (trial.batch, ("probe", "stages")),
    "memory": (trial.memory, ("probe", "stages")),
    "disk": (trial.disk, ("probe", "stages")),
    "time": (trial.time, ("batch",)),
}
