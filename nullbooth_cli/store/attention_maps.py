"""Attention maps in a store: for each prompt that has some, a group of its own that one process writes whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.store.arrays import ArrayGroup


@dataclass(frozen=True)
class AttentionMaps:
    """Where the words of one prompt look.

    `words` has the K tokens of the prompt, begin and end mark included; `steps` the S steps of the schedule that were kept.
    `layers` gives each layer's `[S, H, W, K]` float16, the mean over its heads: over all tokens of the text, padding included, it
    sums to 1. `image` is what the model drew, `[h, w, 3]` uint8.
    """

    words: tuple[str, ...]
    steps: tuple[int, ...]
    layers: Mapping[str, NDArray[np.float16]]
    image: NDArray[np.uint8]


class AttentionMapArrays:
    """The attention maps of an open store."""

    def __init__(self, arrays: ArrayGroup) -> None:
        self.arrays = arrays

    def write(self, prompt: Prompt, maps: AttentionMaps) -> None:
        name = f"attention/{prompt.id}"
        self.arrays.delete(name)
        for layer, values in maps.layers.items():
            self._write_whole(f"{name}/{layer}", values)
        words: dict[str, Any] = {"words": list(maps.words), "steps": list(maps.steps), "layers": list(maps.layers)}
        self._write_whole(f"{name}/image", maps.image, words)

    def read(self, prompt: Prompt) -> AttentionMaps:
        """Raises StoreError for what is missing or damaged; `progress/attention` says whose are there."""
        name = f"attention/{prompt.id}"
        attributes: dict[str, Any] = self.arrays.array(f"{name}/image").attrs.asdict()
        return AttentionMaps(
            tuple(attributes["words"]),
            tuple(attributes["steps"]),
            {layer: self._read_whole(f"{name}/{layer}") for layer in attributes["layers"]},
            self._read_whole(f"{name}/image"),
        )

    def _write_whole(self, name: str, values: NDArray[Any], attributes: dict[str, Any] | None = None) -> None:
        fill = "NaN" if values.dtype.kind == "f" else 0
        self.arrays.create(name, values.shape, values.shape, values.dtype, fill, attributes)
        self.arrays.write_chunk(name, (0,) * values.ndim, values)

    def _read_whole(self, name: str) -> NDArray[Any]:
        return self.arrays.read_chunk(name, (0,) * len(self.arrays.array(name).shape))
