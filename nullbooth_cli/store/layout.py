"""What a collection consists of and how it is kept: recordings, their stored dtypes, units, chunks."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from nullbooth_cli.errors import ConfigError

# bfloat16 has no Zarr data type: its bits are stored, and a chunk that was never written reads as its NaN.
STORED_DTYPES: dict[str, tuple[str, Any]] = {"float16": ("f2", "NaN"), "float32": ("f4", "NaN"), "bfloat16": ("u2", 0x7FC0)}


# The feature that each linear map of an attention layer is, by diffusers' names. `add_` ones are of the text stream that joint
# attention (SD3, Flux) keeps beside that of the image.
FEATURES = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "out",
    "add_q_proj": "add_q",
    "add_k_proj": "add_k",
    "add_v_proj": "add_v",
    "to_add_out": "add_out",
}


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
    masked: bool = False  # tokens that pad a prompt are NaN in the features, and no part of the moments

    @property
    def name(self) -> str:
        return f"{self.layer}.{self.feature}"

    @property
    def projections(self) -> tuple[tuple[str, str], ...]:
        """(layer, feature) of every projection that this feeds, in the order of `weights`."""
        return tuple(split_weight(weight) for weight in self.weights)

    def feeds(self, layer: str | None, feature: str | None) -> bool:
        """Whether it feeds a projection of this layer (a name, a part of it or a glob pattern) and feature; None for any."""
        return any(
            (layer is None or fnmatchcase(name, layer) or fnmatchcase(name, f"*{layer}*")) and (feature is None or of == feature)
            for name, of in self.projections
        )

    def num_recorded(self, num_steps: int) -> int:
        """How many timesteps are stored of a schedule of `num_steps`."""
        return 1 if self.timestep_free else num_steps


def split_weight(weight: str) -> tuple[str, str]:
    """(layer, feature) of the parameter of a projection."""
    path = weight.removesuffix(".weight")
    projection = next(name for name in FEATURES if path.endswith(f".{name}"))
    return path.removesuffix(f".{projection}"), FEATURES[projection]


def choose_sites(sites: Sequence[Site], layer: str | None, feature: str | None, name: str | None = None) -> list[Site]:
    """The sites that feed this layer and feature and have this name (or match it, a glob). Raises ConfigError if none does."""
    found = [site for site in sites if site.feeds(layer, feature) and (name is None or fnmatchcase(site.name, name))]
    if not found and name is not None:
        listed = "\n  ".join(site.name for site in sites)
        raise ConfigError(f"no site {name}", f"--site takes a name or a glob pattern; the sites are\n  {listed}")
    if not found:
        layers = "\n  ".join(dict.fromkeys(site.layer for site in sites))
        raise ConfigError("no site passes the filters", f"--layer takes a name or a glob pattern; the sites are on\n  {layers}")
    return found


CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class Layout:
    """How a collection is kept: what (features, moments, both), prompts per unit, torch dtype and compression of features.

    Timesteps whose features and moments are small share a chunk of up to `chunk_bytes`: a file costs about a millisecond, however
    little is in it.
    """

    keep: str
    batch_size: int
    dtype: str
    compression: str | None = None
    chunk_bytes: int = CHUNK_BYTES

    def blocks(self, site: Site, num_steps: int) -> list[range]:
        """The recorded timesteps that share a chunk, in features as in moments: all of one length, but for the last."""
        recorded = site.num_recorded(num_steps)
        step_bytes = 8 * site.dim * site.dim
        if self.features:
            item = np.dtype(STORED_DTYPES[self.dtype][0]).itemsize
            step_bytes = max(step_bytes, self.batch_size * site.num_tokens * site.dim * item)
        num_blocks = -(-recorded // max(1, self.chunk_bytes // step_bytes))
        length = -(-recorded // num_blocks)  # alike, because the last chunk is as long on disk as the others
        return [range(first, min(first + length, recorded)) for first in range(0, recorded, length)]

    @property
    def features(self) -> bool:
        return self.keep != "moments"

    @property
    def moments(self) -> bool:
        return self.keep != "features"
