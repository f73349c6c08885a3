"""How a collection is stored: its dtypes, units, and chunks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nullbooth_cli.datatypes import Site

# bfloat16 has no Zarr data type: its bits are stored, and a chunk that was never written reads as its NaN.
STORED_DTYPES: dict[str, tuple[str, float | str]] = {
    "float16": ("f2", "NaN"),
    "float32": ("f4", "NaN"),
    "bfloat16": ("u2", 0x7FC0),
}
TARGET_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class Layout:
    """How a collection is stored: `keep` (features, moments, both), prompts per unit, torch dtype and compression of features.

    Timesteps whose features and moments are small share a chunk of up to `chunk_bytes`: each file costs about a millisecond,
    whatever its size.
    """

    keep: str
    batch_size: int
    dtype: str
    compression: str | None = None
    chunk_bytes: int = TARGET_CHUNK_BYTES

    def blocks(self, site: Site, num_steps: int) -> list[range]:
        """The recorded timesteps that share a chunk, in features and in moments: ranges of equal length, except for the last."""
        recorded = site.num_recorded(num_steps)
        step_bytes = 8 * site.dim * site.dim
        if self.keeps_features:
            item = np.dtype(STORED_DTYPES[self.dtype][0]).itemsize
            step_bytes = max(step_bytes, self.batch_size * site.num_tokens * site.dim * item)
        num_blocks = -(-recorded // max(1, self.chunk_bytes // step_bytes))
        length = -(-recorded // num_blocks)  # equal lengths, because the last chunk is as long on disk as the others
        return [range(first, min(first + length, recorded)) for first in range(0, recorded, length)]

    def num_units(self, num_rows: int) -> int:
        """The number of units of collect that these rows make."""
        return -(-num_rows // self.batch_size)

    @property
    def keeps_features(self) -> bool:
        """Whether features are stored."""
        return self.keep != "moments"

    @property
    def keeps_moments(self) -> bool:
        """Whether moments are folded while the model runs."""
        return self.keep != "features"


def covariance_units(sites: Sequence[Site], num_steps: int, layout: Layout) -> list[tuple[Site, range]]:
    """The units of stage covariance, in order: one per site and block of timesteps."""
    return [(site, block) for site in sites for block in layout.blocks(site, num_steps)]
