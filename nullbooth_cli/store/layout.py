"""What a collection consists of and how it is kept: recordings, their stored dtypes, units."""

from dataclasses import dataclass
from typing import Any

# bfloat16 has no Zarr data type: its bits are stored, and a chunk that was never written reads as its NaN.
STORED_DTYPES: dict[str, tuple[str, Any]] = {"float16": ("f2", "NaN"), "float32": ("f4", "NaN"), "bfloat16": ("u2", 0x7FC0)}


@dataclass(frozen=True)
class Site:
    """One recording: the tensor that enters (or leaves) one projection, or several that always share it.

    `layer` and `feature` are the first of the projections that share it, `weights` the parameters of all of them.
    """

    layer: str
    feature: str
    side: str
    weights: tuple[str, ...]
    timestep_free: bool
    num_tokens: int  # per prompt, over the recorded branches of guidance
    dim: int

    @property
    def name(self) -> str:
        return f"{self.layer}.{self.feature}"

    def num_recorded(self, num_steps: int) -> int:
        """How many timesteps are stored of a schedule of `num_steps`."""
        return 1 if self.timestep_free else num_steps


@dataclass(frozen=True)
class Layout:
    """How a collection is kept: what (features, moments, both), prompts per unit, torch dtype and compression of features."""

    keep: str
    batch_size: int
    dtype: str
    compression: str | None = None

    @property
    def features(self) -> bool:
        return self.keep != "moments"

    @property
    def moments(self) -> bool:
        return self.keep != "features"
