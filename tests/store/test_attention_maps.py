"""Attention maps come back as they were written, each prompt's by itself."""

import numpy as np
import pytest

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import Rerun, StoreError
from nullbooth_cli.store import AttentionMaps, Store


def maps(seed: int) -> AttentionMaps:
    draw = np.random.default_rng(seed)
    layers = {f"layer_{size}": draw.random((2, size, size, 3)).astype(np.float16) for size in (2, 4)}
    image = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return AttentionMaps(words=("<s>", "dog", "</s>"), steps=(0, 9), layers=layers, image=image)


def test_maps_come_back_and_new_ones_replace_them(store: Store) -> None:
    one, other = Prompt("one"), Prompt("other")
    store.attention.write(one, maps(0))
    store.attention.write(other, maps(1))
    store.attention.write(one, maps(2))
    for prompt, seed in ((one, 2), (other, 1)):
        found, expected = store.attention.read(prompt), maps(seed)
        assert (found.words, found.steps, list(found.layers)) == (expected.words, expected.steps, list(expected.layers))
        np.testing.assert_array_equal(found.image, expected.image)
        for layer, values in expected.layers.items():
            np.testing.assert_array_equal(found.layers[layer], values)


def test_a_prompt_without_maps_is_an_error(store: Store) -> None:
    with pytest.raises(StoreError, match="has no array attention/") as caught:
        store.attention.read(Prompt("none"))
    assert caught.value.rerun == Rerun("collect", repair=True, store=store.url)
