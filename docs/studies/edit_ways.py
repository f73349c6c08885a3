"""The ways of the study of many edits: at once or one by one, and what an edit is told of those before it.

All begin with the same store of the texts that are preserved, and have two numbers that are searched for.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from docs.studies.cuts import PROMPTS, collect
from docs.studies.edit_pairs import Edit, ToyWorld
from nullbooth_cli.api import OpenStore
from nullbooth_cli.datatypes import Site, Sums
from nullbooth_cli.editing.edit import edit, plan_edit, text_sites
from nullbooth_cli.editing.report import EditReport
from nullbooth_cli.editing.solve import Rows
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.decompose import eigh
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.pooling import add_up, moment_of, pooled, second_moment
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.nullspace.usable import check_model
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store

THRESHOLD = "threshold"  # of the null space; all other numbers are settings of `edit`
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
OF_NULL_SPACE = {THRESHOLD: ToyWorld.thresholds, "ridge": RIDGES}
OF_BALANCE = {"preserve": (1.0, 10.0, 100.0, 1000.0), "ridge": RIDGES}
START = {"ridge": 1e-2}
DRAWN = 20  # preserved prompts that speed and ace run


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to make N edits.

    `after`: None makes all at once. One by one, the earlier edits are "soft" (the term C), "hard" (their inputs are preserved
    prompts, and the null space shrinks), or "nothing" to the next one. `axes` are the values that are searched, of one number
    after the other; the second is first `START`, and a world has thresholds of its own. `like` is the way whose search it uses.
    With two `wordings` an edit has a second prompt.
    """

    name: str
    method: Literal["alphaedit", "uce", "speed", "ace"]
    after: Literal["soft", "hard", "nothing"] | None = None
    axes: Mapping[str, Sequence[float]] = field(default_factory=lambda: OF_NULL_SPACE)
    like: str | None = None
    tokens: Literal["subject", "all"] = "subject"
    wordings: int = 1

    def settings(self, numbers: Mapping[str, float]) -> dict[str, Any]:
        """What `edit` is given, of numbers that were searched for."""
        given: dict[str, Any] = {name: value for name, value in numbers.items() if name != THRESHOLD}
        drawn = {"prompts": DRAWN} if self.method in ("speed", "ace") else {}
        return given | {"method": self.method, "tokens": self.tokens} | drawn


WAYS = (
    Way(name="alphaedit, at once", method="alphaedit"),
    Way(name="alphaedit, one by one, with C", method="alphaedit", after="soft"),
    Way(name="alphaedit, one by one, without C", method="alphaedit", after="nothing"),
    Way(name="alphaedit, one by one, hard", method="alphaedit", after="hard", like="alphaedit, one by one, with C"),
    Way(name="uce, at once", method="uce", axes=OF_BALANCE),
    Way(name="uce, one by one, with C", method="uce", after="soft", axes=OF_BALANCE),
    Way(name="speed, at once", method="speed"),
    Way(name="ace, at once", method="ace"),
    Way(
        name="alphaedit, one by one, without C, set as with it",
        method="alphaedit",
        after="nothing",
        like="alphaedit, one by one, with C",
    ),
    Way(name="alphaedit, at once, tokens: all", method="alphaedit", like="alphaedit, at once", tokens="all"),
    Way(name="alphaedit, at once, two wordings", method="alphaedit", like="alphaedit, at once", wordings=2),
    Way(name="uce, one by one, with C, set as at once", method="uce", after="soft", axes=OF_BALANCE, like="uce, at once"),
)


class Preserved(OpenStore):
    """The store of the study under a threshold, with edits that were made since as `hard` ones.

    `hard` has their inputs K1^T `[N, D]` by site. They count one for one, as if they had been collected: what a store gives that
    remembers them so.
    """

    def __init__(self, store: Store, threshold: float, hard: Sequence[Mapping[str, Rows]] = ()) -> None:
        super().__init__(store)
        self._threshold, self._hard = threshold, hard

    @property
    def config(self) -> Config:
        """As in the store, with this threshold."""
        own = super().config
        return own.model_copy(update={"project": own.project.model_copy(update={"relative_threshold": self._threshold})})

    def moment(self, site: Site | str, step: int | None = None) -> Moment:
        """Of the preserved prompts and the hard edits."""
        return moment_of(self._sums(site))

    def projector(self, site: Site | str, step: int | None = None) -> Projector:
        """Cut anew."""
        [(values, vectors)] = eigh([second_moment(self._sums(site))])
        return Projector.of(vectors, spectrum.null_dim(values, "relative_threshold", self._threshold))

    def projectors(self, model: Any = None) -> dict[str, Projector]:
        """The projector of each weight, cut anew. Raises ConfigError for another model, as a store does."""
        if model is not None:
            check_model(self.store, model.state_dict())
        return {weight: projector for site in self.sites() for projector in [self.projector(site)] for weight in site.weights}

    def _sums(self, site: Site | str) -> Sums:
        found = site if isinstance(site, Site) else next(each for each in self.sites() if each.name == site)
        rows = [keys[found.name] for keys in self._hard]
        total = add_up([pooled(self.store, found), *(Sums(each.T @ each, each.sum(0), len(each)) for each in rows)])
        assert isinstance(total, Sums)
        return total


def open_texts(place: Path, prompts: str | Sequence[str] = str(PROMPTS), model: str = "toy") -> Store:
    """The store of the texts of preserved prompts of a model, collected the first time."""
    features = {f"collect.collect_features.{name}": False for name in ("q_features", "out_features")}
    collect(place, prompts, None, features | {"model": model})
    return Store.open(place)


class Asked(NamedTuple):
    """What an edit asks: K1^T and (K* - K1)^T `[N, D]`, from the last token of its subject on."""

    keys: Rows
    wanted: Rows


@dataclass(frozen=True, kw_only=True)
class Made:
    """A model after some edits, the reports of what was done, and the store that the next edit would be made with."""

    count: int
    reports: Sequence[EditReport]
    store: Preserved


class Bench:
    """A model that is edited and put back, and its store."""

    def __init__(self, pipe: Any, store: Store) -> None:
        self.pipe, self.store = pipe, store
        [self.site] = text_sites(OpenStore(store))
        self._untouched = {name: self._weight(name).detach().clone() for name in self.site.weights}

    def reset(self) -> None:
        """Put the weights back."""
        for name, weight in self._untouched.items():
            self._weight(name).data.copy_(weight)

    def play(self, way: Way, numbers: Mapping[str, float], made: Sequence[Edit], counts: Sequence[int]) -> Iterator[Made]:
        """Yields after the first N edits, for each of `counts`; the model is then as they left it."""
        threshold, settings = numbers.get(THRESHOLD, 1.0), way.settings(numbers)
        if way.after is None:
            for count in counts:
                self.reset()
                store = Preserved(self.store, threshold)
                pairs = {source: target for each in made[:count] for source, target in each.pairs(way.wordings).items()}
                yield Made(count=count, reports=[edit(self.pipe, store, pairs, **settings)], store=store)
            return
        self.reset()
        reports: list[EditReport] = []
        for count, each in enumerate(made[: max(counts)], start=1):
            store = Preserved(self.store, threshold, [report.keys for report in reports] if way.after == "hard" else ())
            # Without its rows a report says which model is edited, and adds nothing to C.
            earlier = reports if way.after == "soft" else [replace(report, keys={}) for report in reports]
            reports.append(edit(self.pipe, store, each.pairs(way.wordings), earlier=earlier, **settings))
            if count in counts:
                yield Made(count=count, reports=reports, store=store)

    def rows(self, made: Sequence[Edit]) -> list[Asked]:
        """What each edit asks of the untouched model, which is put back. Cost: the beginning of two forwards for each."""
        self.reset()
        plans = [plan_edit(self.pipe, OpenStore(self.store), {each.source: each.target}, tokens="subject") for each in made]
        return [Asked(plan.report.keys[self.site.name], plan.wanted[self.site.name]) for plan in plans]

    def missing(self, asked: Sequence[Asked], changed: Collection[str]) -> float:
        """What is missing of edits in the model as it is, over all `changed` weights together; 0 for none."""
        keys, wanted = (np.concatenate([each[i] for each in asked]) for i in (0, 1))
        left, whole = 0.0, 0.0
        for name in changed:
            weight, now = (each.detach().double().numpy() for each in (self._untouched[name], self._weight(name)))
            change = wanted @ weight.T
            left += float(np.square(keys @ (now - weight).T - change).sum())
            whole += float(np.square(change).sum())
        return float(np.sqrt(left / whole))

    def _weight(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self.pipe.unet.get_parameter(name)
        return found
