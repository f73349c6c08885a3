"""The answers of init, export and edit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nullbooth_cli.report.json_document import OPTIONAL, Document

if TYPE_CHECKING:
    from nullbooth_cli.training.edit import EditedWeight


@dataclass(frozen=True, kw_only=True)
class InitAnswer(Document):
    """The files that were written, for a model; `config` names the shipped config that they are from."""

    folder: str
    model: str
    config: str
    files: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class ExtensionAnswer(Document):
    """The files of an extension that were written into another trainer's folder."""

    folder: str
    files: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class ExportAnswer(Document):
    """The contents of the file at `path`: the `weights` of a safetensors file, or the `sites` of a stack of projectors."""

    store: str
    format: str
    path: str
    weights: Sequence[str] | None = field(default=None, metadata=OPTIONAL)
    sites: Sequence[str] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class EditAnswer(Document):
    """An edit that was saved to `output`; `missing` and `drift` are the largest of all weights."""

    store: str
    output: str
    method: str
    pairs: Mapping[str, str]
    weights: "Mapping[str, EditedWeight]"
    missing: float
    drift: float
