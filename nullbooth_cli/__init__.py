"""Null-space projectors for fine-tuning text-to-image models without forgetting."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nullbooth_cli.api import Moment, OpenStore, open_store
    from nullbooth_cli.constraint import Constraint, constrain
    from nullbooth_cli.editing import EditReport, edit
    from nullbooth_cli.errors import NullboothError
    from nullbooth_cli.nullspace import Projector
    from nullbooth_cli.store import Site

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
    "Constraint": "constraint",
    "EditReport": "editing",
    "Moment": "api",
    "NullboothError": "errors",
    "OpenStore": "api",
    "Projector": "nullspace",
    "Site": "store",
    "constrain": "constraint",
    "edit": "editing",
    "open_store": "api",
}


def __getattr__(name: str) -> Any:
    # When asked for: `nullbooth --help` needs none of it, and none of it needs torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
