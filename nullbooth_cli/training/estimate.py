"""Will the subject be learned under the constraint? An estimate before the first step, from what a run has encoded already.

The text projections, to_k and to_v, read the tokens of a caption, and a constrained weight changes its outputs only by the part
of them in the null space. So the captions of the subject are compared with prompts that are to stay: their share of energy there,
norm(P K)^2 / norm(K)^2 over all their tokens K. Padding counts as in the store's moments: Stable Diffusion masks none of it.

Measured on six subjects of the embedded model under four thresholds (docs/explanation/forgetting.md), where learned means in half
of the pictures. These are numbers and no promise: no number that is known before training predicts what is learned.

- Without a trained word 14 of 21 pairs of subject and threshold were learned at a ratio of 2 and more. Below 2 was one subject, a
  style, under three thresholds: never learned, nor by free training.
- With a trained word 18 of 24 were, and the ratio has a rank correlation of 0.2 with what was learned, because the word moves. It
  needs dimensions: 16 of 96 were enough for five of six subjects, 1 for none.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch

from nullbooth_cli.datatypes import Site
from nullbooth_cli.formatting import percent
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.projector import Projector, leakage_on

SMALL_RATIO = 2.0
FEW_DIMENSIONS = 16
# (learned, tried) pairs of the study, at `SMALL_RATIO` and more; tests/studies/test_evidence.py counts them again.
WITHOUT_WORD, WITH_WORD = (14, 21), (18, 24)


class Moments(Protocol):
    """A store, as an estimate reads it."""

    def sites(self) -> Sequence[Site]:
        """Every site, with the weights that read it."""

    def moment(self, site: Site) -> Moment:
        """The second moment of all inputs that were collected at a site."""

    def heldout_moment(self, site: Site) -> Moment | None:
        """The same of the held-out prompts; None without any."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The share of energy in the null space of the subject's captions, `subject`, and of the prompts to preserve, `preserved`.

    `measured_on` names those prompts: the held-out ones, or the collected ones of a store without. The null space has `null_dim`
    of `dim` dimensions. `trains_word`: whether the embedding of a word trains as well.
    """

    subject: float
    preserved: float
    measured_on: str
    null_dim: int
    dim: int
    trains_word: bool

    @property
    def ratio(self) -> float | None:
        """How many times the share of the preserved prompts the subject has; None if they have nothing in the null space."""
        return self.subject / self.preserved if self.preserved > 0 else None

    @property
    def text(self) -> str:
        """One line with all numbers."""
        times = "" if self.ratio is None else f", {self.ratio:.3g} times as much as"
        return (
            f"the null space has {self.null_dim} of {self.dim} dimensions and {percent(self.subject)} of the energy of the "
            f"subject's captions{times or ';'} {percent(self.preserved)} of {self.measured_on}"
        )

    @property
    def warning(self) -> str | None:
        """One line on what stands against learning; None if nothing is known to."""
        if not self.trains_word and (self.null_dim == 0 or (self.ratio is not None and self.ratio < SMALL_RATIO)):
            times = math.floor((self.ratio or 0.0) * 100) / 100  # never rounded up to the limit
            why = f"{times:g} times is less than {SMALL_RATIO:g}" if self.ratio is not None else "there is no null space"
            return f"the subject will probably not be learned: {why}, and no word trains; set word, or loosen the threshold"
        if self.null_dim < FEW_DIMENSIONS:
            few = f"{self.null_dim} of {self.dim} dimensions may be too few, even with a trained word"
            return f"{few}: on the embedded model 16 of 96 were enough for five of six subjects, 1 for none; loosen the threshold"
        return None

    @property
    def answer(self) -> str:
        """One line on whether the subject will be learned: the warning, or how many others were."""
        if self.warning is not None:
            return self.warning
        learned, tried = WITH_WORD if self.trains_word else WITHOUT_WORD
        which = "with a trained word" if self.trains_word else f"without a trained word and at {SMALL_RATIO:g} times or more"
        return (
            f"the subject may be learned: {which}, {learned} of {tried} pairs of subject and threshold were on the embedded model"
        )

    @property
    def lines(self) -> tuple[str, ...]:
        """The numbers, and the answer to which they lead."""
        return (self.text, self.answer)

    def document(self) -> dict[str, Any]:
        """The estimate as JSON."""
        return {**asdict(self), "ratio": self.ratio, "warning": self.warning}


def estimate_learning(
    store: Moments, projectors: Mapping[str, Projector], texts: torch.Tensor, *, trains_word: bool
) -> Estimate | None:
    """The estimate for captions `[N, L, D]` that enter the weights which these projectors constrain; None without any.

    Of several sites it is the one with the smallest ratio. Cost: 8 D^2 bytes and 4 (N L + D) D F operations for each.
    """
    rows = texts.detach().flatten(0, 1).double().cpu().numpy()
    found = []
    for site in store.sites():
        if of_site := [projectors[weight] for weight in site.weights if weight in projectors]:
            heldout = store.heldout_moment(site)
            moment = store.moment(site) if heldout is None else heldout
            found.append(
                Estimate(
                    subject=float(np.square(of_site[0].apply(rows)).sum() / np.square(rows).sum()),
                    preserved=leakage_on(of_site[0], moment) ** 2,
                    measured_on="collected prompts" if heldout is None else "held-out prompts",
                    null_dim=of_site[0].null_dim,
                    dim=of_site[0].dim,
                    trains_word=trains_word,
                )
            )
    return min(found, key=lambda each: float("inf") if each.ratio is None else each.ratio, default=None)
