"""Null-space projectors for fine-tuning text-to-image models without forgetting."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nullbooth_cli.api import Moment, OpenStore, open_store
    from nullbooth_cli.datatypes import Site
    from nullbooth_cli.errors import NullboothError
    from nullbooth_cli.nullspace.projector import Projector
    from nullbooth_cli.training.constraint import Constraint, constrain
    from nullbooth_cli.training.edit import EditReport, edit

__version__ = "0.1.0"
__all__ = [
    "Constraint",
    "EditReport",
    "Moment",
    "NullboothError",
    "OpenStore",
    "Projector",
    "Site",
    "constrain",
    "edit",
    "open_store",
]
_HOMES = {
    "Constraint": "training.constraint",
    "EditReport": "training.edit",
    "Moment": "api",
    "NullboothError": "errors",
    "OpenStore": "api",
    "Projector": "nullspace.projector",
    "Site": "datatypes",
    "constrain": "training.constraint",
    "edit": "training.edit",
    "open_store": "api",
}


def __getattr__(name: str) -> Any:
    # When asked for: `nullbooth --help` needs none of it, and none of it needs torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
