"""Null-space projectors for fine-tuning text-to-image models without forgetting.

    import nullbooth_cli as nb

    store = nb.run("configs/nullbooth.yaml")
    constraint = nb.constrain(pipe.unet, store)

docs/reference/python.md describes every public name. Each is imported when it is first used: `import nullbooth_cli` needs neither
torch nor zarr.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nullbooth_cli.api import OpenStore, open_store, run
    from nullbooth_cli.datatypes import Site, Step
    from nullbooth_cli.editing.edit import edit, plan_edit
    from nullbooth_cli.editing.remember import forget, remember
    from nullbooth_cli.editing.report import EditPlan, EditReport
    from nullbooth_cli.errors import (
        ConfigError,
        DataError,
        ModelError,
        NullboothError,
        Rerun,
        ResourceError,
        StageError,
        StoreError,
    )
    from nullbooth_cli.evaluation.answer import EvaluationReport
    from nullbooth_cli.evaluation.evaluate import Evaluation, evaluate
    from nullbooth_cli.evaluation.lora_drift import LoraDrift, ModuleDrift
    from nullbooth_cli.nullspace.moment import Moment
    from nullbooth_cli.nullspace.projector import Projector
    from nullbooth_cli.progress import Begin, Event, Note, Progress
    from nullbooth_cli.settings.config import Config, load_config
    from nullbooth_cli.teaching.teach import TeachReport, teach
    from nullbooth_cli.training.constraint import Constraint, ConstraintReport, constrain
    from nullbooth_cli.training.estimate import Estimate
    from nullbooth_cli.training.refit import RefitReport, refit

__version__ = "0.1.0"
__all__ = [
    "Begin",
    "Config",
    "ConfigError",
    "Constraint",
    "ConstraintReport",
    "DataError",
    "EditPlan",
    "EditReport",
    "Estimate",
    "Evaluation",
    "EvaluationReport",
    "Event",
    "LoraDrift",
    "ModelError",
    "ModuleDrift",
    "Moment",
    "Note",
    "NullboothError",
    "OpenStore",
    "Progress",
    "Projector",
    "RefitReport",
    "Rerun",
    "ResourceError",
    "Site",
    "StageError",
    "Step",
    "StoreError",
    "TeachReport",
    "constrain",
    "edit",
    "evaluate",
    "forget",
    "load_config",
    "open_store",
    "plan_edit",
    "refit",
    "remember",
    "run",
    "teach",
]
_MODULES = {
    "api": ("OpenStore", "open_store", "run"),
    "datatypes": ("Site", "Step"),
    "errors": ("ConfigError", "DataError", "ModelError", "NullboothError", "Rerun", "ResourceError", "StageError", "StoreError"),
    "evaluation.answer": ("EvaluationReport",),
    "evaluation.evaluate": ("Evaluation", "evaluate"),
    "evaluation.lora_drift": ("LoraDrift", "ModuleDrift"),
    "nullspace.moment": ("Moment",),
    "nullspace.projector": ("Projector",),
    "progress": ("Begin", "Event", "Note", "Progress"),
    "settings.config": ("Config", "load_config"),
    "teaching.teach": ("TeachReport", "teach"),
    "training.constraint": ("Constraint", "ConstraintReport", "constrain"),
    "training.estimate": ("Estimate",),
    "editing.edit": ("edit", "plan_edit"),
    "editing.remember": ("forget", "remember"),
    "editing.report": ("EditPlan", "EditReport"),
    "training.refit": ("RefitReport", "refit"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Imported on first use: `nullbooth --help` needs none of it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
