"""A word's embedding goes into the row of the token that prompts have."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.words import WORD_FILE, WordFile, has_word, with_token
from tests.support.edited_models import toy
from tests.support.tiny import flux
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
        ({"a": torch.ones(1, 8)}, "has a row of 8 numbers for 'a', and this base has rows of 96"),
        ({"a": torch.full((1, 96), float("nan"))}, "a is not finite"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, pipe: Any, tensors: dict[str, torch.Tensor], message: str) -> None:
    save_file(tensors, tmp_path / WORD_FILE)
    with pytest.raises(ConfigError, match=message):
        WordFile.read(tmp_path / WORD_FILE).load_into(pipe)


def rows_of(pipe: Any) -> dict[str, torch.Tensor]:
    return {part: getattr(pipe, part).get_input_embeddings().weight.detach() for part in ("text_encoder", "text_encoder_2")}


def test_each_text_encoder_gets_its_own(tmp_path: Path) -> None:
    base, pipe = (flux() for _ in range(2))
    save_file({"t5": torch.full((1, 24), 2.0), "clip_l": torch.full((1, 24), 3.0)}, tmp_path / WORD_FILE)
    WordFile.read(tmp_path / WORD_FILE, "wuffel").load_into(pipe)
    before, after = rows_of(base), rows_of(pipe)
    # T5 has rows to spare, as the real one has: the token takes the first of them.
    assert [len(rows) for rows in after.values()] == [len(before["text_encoder"]) + 1, len(before["text_encoder_2"])]
    for tokenizer, part, value in (("tokenizer", "text_encoder", 3.0), ("tokenizer_2", "text_encoder_2", 2.0)):
        token = getattr(pipe, tokenizer).convert_tokens_to_ids("wuffel")
        assert token in getattr(pipe, tokenizer)("a wuffel circle").input_ids
        assert after[part][token].tolist() == [value] * 24


@pytest.mark.parametrize(
    ("tensors", "token", "message"),
    [
        ({"t5": torch.ones(1, 24), "clip_l": torch.ones(1, 24)}, None, r"it has clip_l \[1, 24\], t5 \[1, 24\]"),
        ({"t5": torch.ones(1, 24), "other": torch.ones(1, 24)}, "sks", r"it has other \[1, 24\], t5 \[1, 24\]"),
        ({"t5": torch.ones(1, 24), "clip_g": torch.ones(1, 24)}, "sks", "for 'sks', and this base has no text encoder clip_g"),
        (
            {"t5": torch.ones(1, 8), "clip_l": torch.ones(1, 24)},
            "sks",
            "has a row of 8 numbers for 'sks', and this base has rows of 24",
        ),
        ({"t5": torch.full((1, 24), torch.inf), "clip_l": torch.ones(1, 24)}, "sks", "sks is not finite"),
    ],
)
def test_what_does_not_fit_several(tmp_path: Path, tensors: dict[str, torch.Tensor], token: str | None, message: str) -> None:
    save_file(tensors, tmp_path / WORD_FILE)
    with pytest.raises(ConfigError, match=message):
        WordFile.read(tmp_path / WORD_FILE, token).load_into(flux())


@pytest.mark.parametrize(
    ("text", "word", "found"),
    [
        ("a photo of SKS dog", "sks", True),
        ("the sks's dog", "sks", True),
        ("sks-dog", "sks", True),
        ("she asks", "sks", False),
        ("sks2", "sks", False),
        ("a <sks> dog", "sks", False),
        ("a <sks> dog", "<sks>", True),
        ("a sks.dog", "s.s", False),
    ],
)
def test_a_word_is_found_by_itself_and_not_inside_another(text: str, word: str, found: bool) -> None:
    assert has_word(text, word) is found
    assert (with_token(text, word, "NEW") != text) is found
