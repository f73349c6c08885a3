"""Every checkpoint of a training run, evaluated, and the best of them.

The best is the least forgotten of those that learned well; if none did, the one that learned most. It is chosen on pictures from
one noise, and its verdicts are then measured on pictures from another: of many checkpoints, the one that looks best on some
pictures is partly the luckiest on these.
"""

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.evaluation.answer import ModelAnswer
from nullbooth_cli.evaluation.evaluate import evaluation_events
from nullbooth_cli.evaluation.request import EvaluationRequest
from nullbooth_cli.evaluation.verdict import Verdict
from nullbooth_cli.model.trained_files import trained_checkpoints
from nullbooth_cli.progress import Event, Note
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store

SCHEMA_VERSION = 1
LEAST_FORGOTTEN = "the least forgotten of those that learned well"
MOST_LEARNED = "none learned well: the one that learned most"
NOISE = "verdicts on other noise than the choice"


@dataclass(frozen=True, kw_only=True)
class CheckpointScore:
    """One checkpoint: its step, its place, the verdicts on it, and the largest drift of a protected weight (None if unknown)."""

    step: int
    place: str
    verdicts: tuple[Verdict, ...]
    drift: float | None

    def value(self, question: str) -> float | None:
        """The value of a verdict; None if it was not measured."""
        return next((verdict.value for verdict in self.verdicts if verdict.question == question), None)


@dataclass(frozen=True, kw_only=True)
class BestCheckpoint(CheckpointScore):
    """The best checkpoint, by which `rule`; its verdicts are measured on other pictures than it was chosen on (`noise`)."""

    rule: str
    noise: str = NOISE


@dataclass(frozen=True, kw_only=True)
class CheckpointsReport:
    """The checkpoints of a run, by their steps, and the best (None where it was not measured what they learned)."""

    schema_version: int = SCHEMA_VERSION
    store: str
    base: str
    run: str
    checkpoints: tuple[CheckpointScore, ...]
    best: BestCheckpoint | None
    not_measured: Mapping[str, str]


def checkpoint_places(run: str) -> dict[str, int]:
    """The step of every checkpoint of a training output that can be evaluated, by its place, in their order.

    Raises ConfigError if there is none.
    """
    found = trained_checkpoints(Path(run).expanduser())
    if not found:
        raise ConfigError(f"{run} has no checkpoint to evaluate", "name the output of a training run")
    return {str(path): step for step, path in sorted(found.items())}


def best_of(scores: Sequence[CheckpointScore]) -> tuple[CheckpointScore, str] | None:
    """The best checkpoint and the rule that chose it; None if `learned` was not measured. Of equal ones the first."""
    measured = [score for score in scores if score.value("learned") is not None]
    well = [s for s in measured if any(v.question == "learned" and v.is_good for v in s.verdicts)]
    if well:
        return min(well, key=_forgotten), LEAST_FORGOTTEN
    if measured:
        return max(measured, key=_learned), MOST_LEARNED
    return None


def _learned(score: CheckpointScore) -> float:
    """For an order: of pictures that are not finite, the least."""
    value = score.value("learned")
    return -math.inf if value is None or math.isnan(value) else value


def _forgotten(score: CheckpointScore) -> float:
    """For an order: the larger of `forgotten` and `earlier`; of pictures that are not finite, the most."""
    values = [verdict.value for verdict in score.verdicts if verdict.is_distance]
    return max((math.inf if math.isnan(value) else value for value in values), default=0.0)


def checkpoint_events(
    config: Config, store: Store, request: EvaluationRequest, run: str
) -> Generator[Event, None, CheckpointsReport]:
    """Evaluate every checkpoint of a run; `request` has none of them yet.

    Raises ConfigError if there is none, and as `evaluation_events` does. Cost: that of all checkpoints side by side, and then
    that of the best again.
    """
    steps = checkpoint_places(run)
    found = yield from evaluation_events(config, store, replace(request, edited=tuple(steps)))
    report = found.report
    scores = tuple(_score(model, steps[model.edited]) for model in report.models)
    best = None
    if (chosen := best_of(scores)) is not None:
        score, rule = chosen
        yield Note(f"the checkpoint of step {score.step} is chosen: it is measured again, from other noise")
        again = yield from evaluation_events(config, store, replace(request, edited=(score.place,), series=request.series + 1))
        best = BestCheckpoint(**vars(_score(again.report.models[0], score.step)), rule=rule)
    return CheckpointsReport(
        store=report.store,
        base=report.base,
        run=run,
        checkpoints=scores,
        best=best,
        not_measured=report.not_measured,
    )


def _score(model: ModelAnswer, step: int) -> CheckpointScore:
    drift = None if model.drift is None else model.drift.largest
    return CheckpointScore(step=step, place=model.edited, verdicts=model.verdicts, drift=drift)
