"""Attention maps in a store: `attention/<prompt id>`, a group for each prompt that has maps, which one process writes whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Prompt, is_file_name
from nullbooth_cli.errors import StoreError
from nullbooth_cli.store.arrays import ArrayGroup


@dataclass(frozen=True)
class AttentionMaps:
    """Where each word of one prompt attends in the picture.

    `words` has the K tokens of the prompt, begin and end mark included; `steps` the indices of S steps of the schedule.
    `layers` gives each layer's `[S, H, W, K]` float16, the mean over its heads: over all tokens of the text, padding included, it
    sums to 1. `image` is the model's picture, `[h, w, 3]` uint8.
    """

    words: tuple[str, ...]
    steps: tuple[int, ...]
    layers: Mapping[str, NDArray[np.float16]]
    image: NDArray[np.uint8]


class AttentionMapArrays:
    """The attention maps of an open store."""

    def __init__(self, arrays: ArrayGroup) -> None:
        self._arrays = arrays

    def write(self, prompt: Prompt, maps: AttentionMaps) -> None:
        """Write the maps of a prompt, in the place of earlier ones; `progress/attention` is marked by the caller."""
        name = f"attention/{prompt.id}"
        self._arrays.delete(name)
        for layer, values in maps.layers.items():
            self._write_whole(f"{name}/{layer}", values)
        attributes = {"words": list(maps.words), "steps": list(maps.steps), "layers": list(maps.layers)}
        self._write_whole(f"{name}/image", maps.image, attributes)

    def read(self, prompt: Prompt) -> AttentionMaps:
        """The maps of a prompt. Raises StoreError if they are missing or damaged."""
        name = f"attention/{prompt.id}"
        attributes = self._arrays.array(f"{name}/image").attributes
        if wrong := next((layer for layer in attributes["layers"] if not is_file_name(layer)), None):
            raise StoreError(f"{name} has a layer with the name {wrong!r}, which is a path", "use a store that nullbooth made")
        return AttentionMaps(
            words=tuple(attributes["words"]),
            steps=tuple(attributes["steps"]),
            layers={layer: self._read_whole(f"{name}/{layer}") for layer in attributes["layers"]},
            image=self._read_whole(f"{name}/image"),
        )

    def _write_whole(self, name: str, values: NDArray[Any], attributes: Mapping[str, object] | None = None) -> None:
        fill: float | str = "NaN" if values.dtype.kind == "f" else 0
        self._arrays.create(name, shape=values.shape, chunks=values.shape, dtype=values.dtype, fill=fill, attributes=attributes)
        self._arrays.write_chunk(name, (0,) * values.ndim, values)

    def _read_whole(self, name: str) -> NDArray[Any]:
        return self._arrays.read_chunk(name, (0,) * len(self._arrays.array(name).shape))
