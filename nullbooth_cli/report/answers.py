"""The answers of init, export, edit, remember and refit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nullbooth_cli.report.json_document import OPTIONAL, Document

if TYPE_CHECKING:
    from nullbooth_cli.editing.contexts import InContext
    from nullbooth_cli.editing.reach import EditRung
    from nullbooth_cli.editing.report import EditedWeight, Targets
    from nullbooth_cli.editing.verdict import EditVerdict
    from nullbooth_cli.nullspace.budget import TaskBudget
    from nullbooth_cli.training.refit import RefitReport, RefittedWeight
    from nullbooth_cli.training.refit_solution import Rung


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
    """An edit, saved to `output`; null if nothing was written. `missing`, `drift` and `heldout` are the largest of all weights.

    `by_pair` is the share that is missing of each pair alone, by its source, `in_context` that in other prompts that have what is
    edited. `ladder` is the edit under other thresholds, where a dry run looked for one that reaches its targets.
    """

    store: str
    output: str | None
    after: str | None
    remembered: Sequence[str]
    method: str
    tokens: str
    settings: Mapping[str, float | str]
    pairs: "Mapping[str, Targets]"
    verdicts: "Sequence[EditVerdict]"
    by_pair: Mapping[str, float]
    in_context: "Sequence[InContext]"
    missing: float
    drift: float
    heldout: float | None
    weights: "Mapping[str, EditedWeight]"
    ladder: "Sequence[EditRung] | None" = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class RememberAnswer(Document):
    """The `task` that a store remembers now, and the budget of all its `tasks`."""

    store: str
    task: str
    kind: str
    weight: int
    prompts: Sequence[str]
    tasks: "Sequence[TaskBudget]"


@dataclass(frozen=True, kw_only=True)
class RememberPlan(Document):
    """A dry run of remembering a `task`: `state` is new, unfinished, damaged or remembered, where nothing would be done."""

    dry_run: bool = True
    store: str
    task: str
    kind: str
    weight: int
    prompts: Sequence[str]
    state: str


@dataclass(frozen=True, kw_only=True)
class ForgetAnswer(Document):
    """The `task` that a store remembers no longer, and the budget of those that are left."""

    store: str
    task: str
    tasks: "Sequence[TaskBudget]"


@dataclass(frozen=True, kw_only=True)
class RefitAnswer(Document):
    """A refit, as its report has it; `output` is null if nothing was written."""

    file: str
    store: str
    output: str | None
    prompts: Sequence[str]
    m: float
    chosen: "Rung"
    drift_before: float
    largest_drift_before: float
    ladder: "Sequence[Rung]"
    weights: "Mapping[str, RefittedWeight]"
    outside: Sequence[str]
    text_encoders: Sequence[str]
    dropped: bool
    notes: Sequence[str]

    @classmethod
    def of(cls, report: "RefitReport") -> "RefitAnswer":
        """The answer of a report."""
        return cls(**vars(report))
