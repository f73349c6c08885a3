"""The ways of the study of evidence: how each teaches a subject, and the settings that are searched for each.

All train k and v of the layers that attend to text, on the same twenty pictures in batches of eight, by the recipe's defaults for
all else. Every way gets the same search: the same learning rates and numbers of steps.
"""

from dataclasses import dataclass
from typing import Literal

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
LENGTHS = (100, 200, 300, 400, 600)  # optimizer steps


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to teach.

    What trains: the weights; a LoRA of a `rank`; `orthogonal`: a rotation of their inputs in blocks of 32; `word`: the embedding
    of the subject's word as well; without `weights`, that alone.

    What keeps the rest: `cut`: a constraint at this relative threshold, or, if `soft`, every direction scaled by t / (t + its
    eigenvalue / the largest). `prior`: pictures beside those of the subject, with their noise as target: `pictures` that the
    model drew, or true `drawings` of the world. `distilled`: the untrained model's predictions are the target, by `weight`,
    on `own`: pictures that it drew of the preserved prompts and of the empty one, with their captions; `class`: those of the
    subject, with the word left out of the caption (DOP); `empty`: those, with the empty caption; `class or empty`: those,
    each with one of these two captions, at random in every step. `pull`: times the squared change of the weights; `fisher`:
    the same, each weighted by its share of the diagonal Fisher information on pictures as for `own` (EWC).

    What is done afterwards: `scale` times the change; `refit`: solved again with this m.
    """

    name: str
    weights: bool = True
    rank: int | None = None
    orthogonal: bool = False
    word: bool = True
    cut: float | None = None
    soft: bool = False
    prior: Literal["pictures", "drawings"] | None = None
    distilled: Literal["own", "class", "empty", "class or empty"] | None = None
    weight: float = 1.0
    pull: float = 0.0
    fisher: float = 0.0
    scale: float = 1.0
    refit: float | None = None

    @property
    def is_cut(self) -> bool:
        """Whether a projector constrains it, not a soft one."""
        return self.cut is not None and not self.soft

    @property
    def parts(self) -> tuple[bool, bool, bool]:
        """What models in one batch have in common: the kind of their parameters, and whether a step has two forwards."""
        return self.rank is not None, self.orthogonal, self.extra is not None

    @property
    def has_two_captions(self) -> bool:
        """Whether the second forward takes one of two captions for each picture, at random."""
        return self.distilled == "class or empty"

    @property
    def extra(self) -> str | None:
        """The pictures of the second forward of a step: `pictures`, `drawings`, or `instance` for those of the subject."""
        if self.distilled is not None:
            return "pictures" if self.distilled == "own" else "instance"
        return self.prior


def _ladder(values: tuple[float, ...], name: str, key: str, **settings: object) -> tuple[Way, ...]:
    return tuple(Way(name=name.format(f"{value:g}"), **{key: value, **settings}) for value in values)  # type: ignore[arg-type]


def short(number: float) -> str:
    """A threshold or learning rate as names and tables write it: 1e-4."""
    return f"{number:.0e}".replace("e-0", "e-")


WAYS = (
    Way(name="free"),
    Way(name="free, no word", word=False),
    Way(name="word alone", weights=False),
    *(Way(name=f"LoRA {rank}", rank=rank) for rank in (2, 4, 8, 16)),
    Way(name="LoRA 8, no word", rank=8, word=False),
    Way(name="orthogonal", orthogonal=True),
    # Scaled or solved again after training.
    *_ladder((0.25, 0.5, 0.75), "free, times {}", "scale"),
    *_ladder((0.5, 0.75), "LoRA 8, times {}", "scale", rank=8),
    *_ladder((1.0, 10.0, 30.0), "LoRA 4, refitted, m = {}", "refit", rank=4),
    Way(name="free, refitted, m = 10", refit=10.0),
    # Kept by pictures.
    Way(name="prior pictures", prior="pictures"),
    Way(name="prior drawings", prior="drawings"),
    *_ladder((1.0, 10.0, 100.0), "distilled x{}", "weight", distilled="own"),
    *_ladder((1.0, 10.0, 100.0), "DOP x{}", "weight", distilled="class"),
    *_ladder((1.0, 10.0, 100.0), "empty caption x{}", "weight", distilled="empty"),
    *_ladder((1.0, 10.0, 100.0), "DOP and empty x{}", "weight", distilled="class or empty"),
    *_ladder((1.0, 10.0, 100.0, 1000.0), "LoRA 4, distilled x{}", "weight", distilled="own", rank=4),
    *(Way(name=f"LoRA {rank}, distilled x100", distilled="own", weight=100.0, rank=rank) for rank in (2, 8, 16)),
    # Kept by a penalty.
    *_ladder((1e-4, 1e-3, 1e-2, 1e-1), "L2 x{}", "pull"),
    *_ladder((1e-3, 1e-2, 1e-1, 1.0), "EWC x{}", "fisher"),
    # Kept by the constraint.
    *(Way(name=f"constrained {short(at)}", cut=at) for at in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)),
    *(Way(name=f"constrained {short(at)}, no word", cut=at, word=False) for at in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)),
    *(Way(name=f"soft {short(at)}", cut=at, soft=True) for at in (1e-5, 1e-4, 1e-3)),
    *(Way(name=f"LoRA {rank}, constrained {short(1e-4)}", rank=rank, cut=1e-4) for rank in (2, 4, 8, 16)),
    *(Way(name=f"LoRA 8, constrained {short(at)}", rank=8, cut=at) for at in (1e-5, 1e-3)),
    # By both.
    *(Way(name=f"constrained {short(at)}, distilled x10", cut=at, distilled="own", weight=10.0) for at in (1e-5, 1e-4, 1e-3)),
    Way(name="LoRA 4, constrained 1e-4, distilled x100", cut=1e-4, distilled="own", weight=100.0, rank=4),
)
UNTOUCHED = Way(name="untouched", weights=False, word=False)
BY_NAME = {way.name: way for way in WAYS}
# These are reported; of all others the search tells enough.
MAIN = (
    *("free", "free, no word", "LoRA 4", "LoRA 8", "LoRA 4, refitted, m = 10", "prior pictures", "prior drawings"),
    *("distilled x1", "distilled x10", "distilled x100", "DOP x10", "L2 x0.0001", "EWC x0.001", "EWC x0.01"),
    *("LoRA 4, distilled x10", "LoRA 4, distilled x100", "LoRA 16, distilled x100"),
    *("constrained 1e-5", "constrained 1e-4", "constrained 1e-3", "constrained 1e-2", "soft 1e-4"),
    *(f"constrained {at}, no word" for at in ("1e-5", "1e-4", "1e-3", "1e-2")),
    *("LoRA 4, constrained 1e-4", "LoRA 8, constrained 1e-4", "LoRA 4, constrained 1e-4, distilled x100"),
    *("constrained 1e-5, distilled x10", "constrained 1e-4, distilled x10", "constrained 1e-3, distilled x10"),
)
