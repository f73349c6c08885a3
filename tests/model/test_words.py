"""A word's embedding goes into the row of the token that prompts have."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.words import WORD_FILE, WordFile
from tests.support.edited_models import toy
from tests.support.trained_folders import ROW, write_word


def loaded(folder: Path, token: str) -> Any:
    pipe = toy()
    WordFile.read(write_word(folder, token) / WORD_FILE).load_into(pipe)
    return pipe


def test_a_token_of_the_vocabulary_gets_its_row(tmp_path: Path) -> None:
    pipe, base = loaded(tmp_path, "sks"), toy()
    [token] = base.tokenizer("sks", add_special_tokens=False).input_ids
    after, before = (each.text_encoder.get_input_embeddings().weight for each in (pipe, base))
    assert after.shape == before.shape
    assert torch.equal(after[token], ROW)
    assert (after != before).any(1).nonzero().flatten().tolist() == [token]


@pytest.mark.parametrize("token", ["<sks>", "wuffel", "Wuffel"])
def test_a_new_token_is_added(tmp_path: Path, token: str) -> None:
    pipe, base = loaded(tmp_path, token), toy()
    after, before = (each.text_encoder.get_input_embeddings().weight for each in (pipe, base))
    assert torch.equal(after, torch.cat([before, ROW[None]]))
    assert len(before) in pipe.tokenizer(f"a {token} circle").input_ids
    assert not after.requires_grad
    assert pipe.text_encoder.config.vocab_size == len(after)


def test_it_can_be_loaded_again(tmp_path: Path) -> None:
    pipe = loaded(tmp_path, "wuffel")
    WordFile.read(write_word(tmp_path, "wuffel", 2 * ROW) / WORD_FILE).load_into(pipe)
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[-1], 2 * ROW)
    assert len(pipe.text_encoder.get_input_embeddings().weight) == len(toy().tokenizer) + 1


def test_diffusers_reads_the_same(tmp_path: Path) -> None:
    pipe, theirs = loaded(tmp_path, "wuffel"), toy()
    theirs.load_textual_inversion(str(tmp_path / WORD_FILE))
    one, other = (each.encode_prompt("my Wuffel, a wuffel", "cpu", 1, False)[0] for each in (pipe, theirs))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "is not the embedding of one word: it has nothing"),
        ({"a": ROW[None], "b": ROW[None].clone()}, r"it has a \[1, 96\], b \[1, 96\]"),
        ({"a": torch.ones(2, 96)}, r"it has a \[2, 96\]"),
        ({"a": ROW}, r"it has a \[96\]"),
        ({"a": torch.ones(1, 8)}, "has a row of 8 numbers for 'a', and this base rows of 96"),
        ({"a": torch.full((1, 96), float("nan"))}, "a is not finite"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, pipe: Any, tensors: dict[str, torch.Tensor], message: str) -> None:
    save_file(tensors, tmp_path / WORD_FILE)
    with pytest.raises(ConfigError, match=message):
        WordFile.read(tmp_path / WORD_FILE).load_into(pipe)
