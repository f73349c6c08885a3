"""The tokenizer and the networks of the embedded model."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from nullbooth_cli.toy import FOLDER, world
from nullbooth_cli.toy.parts import PatchCode, build_autoencoder, build_text_encoder, build_tokenizer, build_unet, tokenize


def test_older_transformers_find_vocabulary_and_merges() -> None:
    vocabulary = json.loads((FOLDER / "tokenizer/vocab.json").read_text())
    assert all(f"{word}</w>" in vocabulary for word in world.WORDS)
    assert (FOLDER / "tokenizer/merges.txt").read_text().startswith("#version")


def test_every_word_of_the_world_is_one_token(pipe: Any) -> None:
    for word in world.WORDS:
        assert pipe.tokenizer.tokenize(word) == [f"{word}</w>"]
    assert len(pipe.tokenizer.tokenize("zorble")) > 1


def test_a_text_fills_sixteen_tokens() -> None:
    tokenizer = build_tokenizer()
    ids = tokenize(tokenizer, ["a red circle", "zorble " * 20])
    assert ids.shape == (2, 16)
    assert tokenizer.convert_ids_to_tokens(ids[0].tolist())[:5] == [
        "<|startoftext|>",
        "a</w>",
        "red</w>",
        "circle</w>",
        "<|endoftext|>",
    ]
    assert ids[1, -1] == tokenizer.eos_token_id, "a long text is cut, and still ends"


@pytest.mark.parametrize(
    ("build", "thousands"),
    [(build_unet, 2280), (build_autoencoder, 656), (lambda: build_text_encoder(build_tokenizer()), 171)],
    ids=["unet", "autoencoder", "text encoder"],
)
def test_networks_have_the_documented_size(build: Callable[[], torch.nn.Module], thousands: int) -> None:
    assert sum(parameter.numel() for parameter in build().parameters()) / 1000 == pytest.approx(thousands, rel=0.005)


def test_the_code_of_patches_is_of_unit_scale_and_keeps_what_it_spans() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([world.draw(world.sample(triple, rng)) for triple in world.triples()])
    pictures = torch.from_numpy(drawn).permute(0, 3, 1, 2) * 2 - 1
    code = PatchCode.fit(pictures)
    torch.testing.assert_close(code.basis.T @ code.basis, torch.eye(8), rtol=0, atol=1e-5)
    latents = code.encode(pictures)
    assert latents.shape == (354, 8, 8, 8)
    assert latents.square().mean().sqrt() == pytest.approx(1, rel=0.01)
    torch.testing.assert_close(code.encode(code.decode(latents)), latents, rtol=1e-3, atol=1e-3)
    assert (code.decode(latents) - pictures).square().mean() < 0.1 * pictures.var()
