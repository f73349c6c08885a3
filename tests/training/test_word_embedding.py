"""The embedding of one word trains, and no other row of the text encoder's table; files of it are read by plain diffusers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from nullbooth_cli import toy
from nullbooth_cli.collect.edited_model import load_edited, read_place
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model import load
from nullbooth_cli.model.conditioning import capture
from nullbooth_cli.model.families import family_of
from nullbooth_cli.model.load import load_tokenizers
from nullbooth_cli.model.protocols import Tokenizer
from nullbooth_cli.model.sources import Source
from nullbooth_cli.model.words import WordFile
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from nullbooth_cli.tensors import generators
from nullbooth_cli.training import dreambooth, setup
from nullbooth_cli.training.word_embedding import Word, WordEmbedding, WordToken
from tests.support.tiny import saved, t5_tokenizer
from tests.support.tiny_dreambooth import EMBEDDING, TEXT_ENCODER, recipe, run, weights

FILE = "learned_embeds.safetensors"
LORA = "pytorch_lora_weights.safetensors"


def opened(folder: Path | str) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, prompt: str) -> Any:
    return pipe([prompt] * 2, num_inference_steps=3, generator=generators([0, 1]), output_type="np").images


LIMIT = {"clip_l": 77}


def tokenizer() -> Tokenizer:
    return tokenizers()["clip_l"]


def tokenizers() -> dict[str, Tokenizer]:
    return load_tokenizers(Source("toy"))


def test_its_embedding_is_trained_and_nothing_else_of_the_text_encoder(
    tmp_path: Path, finished: tuple[Config, Store], constrained_run: dict[str, Any]
) -> None:
    document = run(recipe(tmp_path, store=str(finished[1].path), word="sks"))
    before, after = (load_file(folder / TEXT_ENCODER) for folder in (toy.FOLDER, Path(document["output"])))
    pipe = opened(document["output"])
    [token] = pipe.tokenizer("sks", add_special_tokens=False).input_ids
    rows = (before.pop(EMBEDDING).float() != after.pop(EMBEDDING).float()).any(1).nonzero().flatten().tolist()
    assert rows == [token]
    assert all(torch.equal(tensor.float(), after[name].float()) for name, tensor in before.items())
    assert any(
        not torch.equal(tensor, weights(constrained_run["output"])[name]) for name, tensor in weights(document["output"]).items()
    )
    assert document["token"] == "sks"


def test_its_learning_rate_is_its_own(tmp_path: Path) -> None:
    moved = []
    for rate in (1e-3, 1e-2):
        document = run(recipe(tmp_path / f"{rate}", word="sks", word_learning_rate=rate, max_train_steps=1))
        before, after = (load_file(folder / TEXT_ENCODER)[EMBEDDING] for folder in (toy.FOLDER, Path(document["output"])))
        moved.append(float((after.float() - before.float()).abs().max()))
    # The first step of Adam has the size of the learning rate.
    assert moved == pytest.approx([1e-3, 1e-2], rel=1e-2)


class TestTheToken:
    @pytest.mark.parametrize(
        ("word", "beside", "name", "is_new"),
        [
            ("sks", False, "sks", False),
            ("sks", True, "<sks>", True),
            ("wuffel", False, "wuffel", True),
            ("wuffel", True, "wuffel", True),
            ("<dog>", True, "<dog>", True),
            ("shap", False, "<shap>", True),  # the vocabulary has it as the beginning of another word
        ],
    )
    def test_its_name(self, word: str, beside: bool, name: str, is_new: bool) -> None:
        word_found = Word.of(tokenizers(), word, beside=beside)
        [found] = word_found.tokens.values()
        assert (word_found.name, found.name, found.is_new) == (name, name, is_new)
        unknown = tokenizer().unk_token_id  # it stands for < and >
        assert found.pieces == tuple(id for id in tokenizer()(word, add_special_tokens=False).input_ids if id != unknown)

    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("", "word is '', which is not one word"),
            ("sks circle", "word is 'sks circle', which is not one word"),
            ("Ü", "'Ü' has no character that this model knows"),
        ],
    )
    def test_what_is_no_word(self, word: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            Word.of(tokenizers(), word, beside=False)

    def test_a_name_that_is_taken(self) -> None:
        taken = tokenizer()
        taken.add_tokens("<sks>")
        with pytest.raises(ConfigError, match="the vocabulary of this model has '<sks>' already"):
            Word.of({"clip_l": taken}, "sks", beside=True)

    @pytest.mark.parametrize(
        ("caption", "written"),
        [
            ("a sks circle", "a <sks> circle"),
            ("SKS, and sks.", "<sks>, and <sks>."),
            ("a sksy <sks> circle", "a sksy <sks> circle"),
            ("nothing", "nothing"),
        ],
    )
    def test_captions_are_written_with_it(self, caption: str, written: str) -> None:
        assert Word.of(tokenizers(), "sks", beside=True).written(caption) == written
        assert Word.of(tokenizers(), "sks", beside=False).written(caption) == caption.replace("SKS", "sks")

    @given(words=st.lists(st.sampled_from(["sks", "a", "circle", "<sks>", "wuffel", "sksy"]), max_size=8))
    @settings(max_examples=30, deadline=None)
    def test_only_the_word_itself_is_replaced_and_once(self, words: list[str]) -> None:
        token = Word(word="sks", name="<sks>", tokens={"clip_l": WordToken(name="<sks>", pieces=(1,), is_new=True)})
        written = token.written(" ".join(words))
        assert written.split() == ["<sks>" if word == "sks" else word for word in words]
        assert token.written(written) == written

    def test_a_preserved_prompt_has_a_new_token_inside_a_word(self) -> None:
        token = Word.of(tokenizers(), "wuf", beside=False)
        token.require_trainable(tokenizers(), LIMIT, captions=["a wuf circle"], preserved=["a waffle", "a sks circle"])
        with pytest.raises(ConfigError, match="the word 'wuf' is in 1 preserved prompt, such as 'a Wuffel'"):
            token.require_trainable(tokenizers(), LIMIT, captions=["a wuf circle"], preserved=["a circle", "a Wuffel"])
        with pytest.raises(ConfigError, match="no caption has the word 'wuf'"):
            token.require_trainable(tokenizers(), LIMIT, captions=["a wf circle"], preserved=[])

    def test_a_new_token_leaves_prompts_with_the_old_word_alone(self) -> None:
        token = Word.of(tokenizers(), "circle", beside=True)
        token.require_trainable(tokenizers(), LIMIT, captions=["a <circle>"], preserved=["a red circle"])
        with pytest.raises(ConfigError, match="the word '<circle>' is in 1 preserved prompt"):
            token.require_trainable(tokenizers(), LIMIT, captions=["a <circle>"], preserved=["a red <circle>"])


class TestOfSeveralTextEncoders:
    def test_one_token_in_one_and_several_in_another(self) -> None:
        both = {**tokenizers(), "t5": t5_tokenizer()}
        found = Word.of(both, "sks", beside=False)
        assert (found.name, {key: token.is_new for key, token in found.tokens.items()}) == ("sks", {"clip_l": False, "t5": True})
        assert found.tokens["t5"].pieces == tuple(both["t5"].convert_tokens_to_ids(piece) for piece in "▁sks")
        assert found.written("a SKS circle") == "a sks circle"  # T5 minds capitals

    @pytest.mark.parametrize(("word", "beside"), [("sks", True), ("k", False)])
    def test_all_have_a_new_one_of_another_name_if_one_needs_it(self, word: str, beside: bool) -> None:
        """Of a LoRA, and where one vocabulary has the name as a part of words."""
        found = Word.of({**tokenizers(), "t5": t5_tokenizer()}, word, beside=beside)
        assert {token.name for token in found.tokens.values()} == {found.name} == {f"<{word}>"}
        assert all(token.is_new for token in found.tokens.values())

    def test_preserved_prompts_have_it_in_none(self) -> None:
        both, limits = {**tokenizers(), "t5": t5_tokenizer()}, {**LIMIT, "t5": 300}
        found = Word.of(both, "sks", beside=False)
        preserved = ["a sksy circle"]  # one word for CLIP; in T5 a new token is found inside of it
        found.require_trainable(tokenizers(), limits, captions=["a sks circle"], preserved=preserved)
        with pytest.raises(ConfigError, match="the word 'sks' is in 1 preserved prompt, such as 'a sksy circle'"):
            found.require_trainable(both, limits, captions=["a sks circle"], preserved=preserved)

    def test_each_reads_it_in_its_own_part_of_a_caption(self) -> None:
        both = {**tokenizers(), "t5": t5_tokenizer()}
        found = Word.of(both, "sks", beside=False)
        found.require_trainable(both, {**LIMIT, "t5": 30}, captions=["a circle, red, sks"], preserved=[])
        with pytest.raises(ConfigError, match="no caption has the word 'sks'"):
            found.require_trainable(both, {**LIMIT, "t5": 10}, captions=["a circle, red, sks"], preserved=[])


def trained(output: Path, **changes: Any) -> tuple[Any, dict[str, Any], list[str]]:
    """A finished run, as it is in memory, its result and its notes on the word."""
    ready = setup.set_up(recipe(output, **changes), "cpu")
    list(dreambooth.train(ready))
    result = dreambooth.finish(ready)
    assert result is not None
    return ready, result.document(), [note for note in ready.notes if "the word" in note]


def draw_trained(ready: Any, prompt: str) -> Any:
    """The pictures of a run that has just trained; the method full has merged its word already."""
    ready.pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return drawn(ready.pipe, prompt)


def test_a_word_of_several_tokens_becomes_one(tmp_path: Path) -> None:
    prompt = "a wuffel circle on a red background"
    ready, document, notes = trained(tmp_path, word="wuffel", instance_prompt="a wuffel circle")
    assert (document["token"], notes) == ("wuffel", [])
    pipe, base = opened(document["output"]), opened(toy.FOLDER)
    [token] = pipe.tokenizer("Wuffel", add_special_tokens=False).input_ids
    before, after = (each.text_encoder.get_input_embeddings().weight for each in (base, pipe))
    assert (token, after.shape) == (len(before), (len(before) + 1, before.shape[1]))
    assert torch.equal(after[:-1], before)
    start = before[base.tokenizer("wuffel", add_special_tokens=False).input_ids].mean(0)
    assert 0 < (after[-1] - start).abs().max() < 4 * 1.1e-2  # four steps of Adam
    np.testing.assert_allclose(drawn(pipe, prompt), draw_trained(ready, prompt), atol=1e-5)


@pytest.mark.parametrize(
    ("word", "token", "says"),
    [("sks", "<sks>", ["the word trains as a new token: write <sks> in prompts"]), ("wuffel", "wuffel", [])],
)
def test_plain_diffusers_reads_a_lora_and_its_word(tmp_path: Path, word: str, token: str, says: list[str]) -> None:
    changes = {"method": "lora", "word": word, "instance_prompt": f"a {word} circle", "word_learning_rate": 0.1}
    ready, document, notes = trained(tmp_path, **changes)
    assert (document["token"], notes) == (token, says)
    folder = document["output"]
    assert sorted(path.name for path in Path(folder).iterdir() if path.suffix == ".safetensors") == [FILE, LORA]
    prompt = f"a {token} circle on a red background"
    pipe = opened(toy.FOLDER)
    before = drawn(pipe, prompt)
    pipe.load_lora_weights(folder)
    pipe.load_textual_inversion(f"{folder}/{FILE}")
    after = drawn(pipe, prompt)
    np.testing.assert_allclose(after, draw_trained(ready, prompt), atol=1e-5)
    assert np.abs(after - before).max() > 0.01
    [row] = load_file(f"{folder}/{FILE}").values()
    assert row.shape == (1, 96)


def test_a_resumed_lora_has_the_word_of_an_uninterrupted_one(tmp_path: Path) -> None:
    changes = {"method": "lora", "word": "sks", "validation_prompts": ["a sks circle"]}
    whole = run(recipe(tmp_path / "whole", **changes))
    run(recipe(tmp_path / "stopped", **changes), stop_after=3)
    resumed = run(recipe(tmp_path / "stopped", **changes))
    one, other = (Path(document["output"]) for document in (whole, resumed))
    for name in (FILE, LORA):
        expected, found = load_file(one / name), load_file(other / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    pictures = [path.read_bytes() for path in sorted((tmp_path / "stopped/validation").iterdir())]
    assert pictures == [path.read_bytes() for path in sorted((tmp_path / "whole/validation").iterdir())]
    assert len(set(pictures)) == len(pictures) == 2


def test_validation_prompts_are_written_with_the_token(tmp_path: Path) -> None:
    prompts = ["a sks circle", "a red circle"]
    ready = setup.set_up(recipe(tmp_path, method="lora", word="sks", validation_prompts=prompts), "cpu")
    assert ready.validation_prompts == ("a <sks> circle", "a red circle")
    assert all("<sks>" in caption for caption in ready.subject.captions)


def test_finding_the_token_loads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("nullbooth_cli.model.load.load_pipeline", never)
    read: Callable[..., Any] = setup.read_inputs
    found = read(recipe(tmp_path, method="lora", word="sks", instance_prompt="a SKS circle"), ["a red sks"])
    assert set(found.captions) == {"a <sks> circle"}


@pytest.mark.parametrize(
    ("method", "word", "token"), [("lora", "sks", "<sks>"), ("full", "sks", "sks"), ("full", "wuffel", "wuffel")]
)
def test_what_a_run_wrote_is_the_model_that_it_trained(tmp_path: Path, method: str, word: str, token: str) -> None:
    """By the name of the output, of its result and of its last checkpoint; an earlier checkpoint is an earlier model."""
    changes = {"method": method, "word": word, "instance_prompt": f"a {word} circle", "word_learning_rate": 0.1}
    ready, document, _ = trained(tmp_path, **changes)
    prompt = f"a {token} circle on a red background"
    expected = draw_trained(ready, prompt)
    for place in (str(tmp_path), document["output"], str(tmp_path / "checkpoint-000004")):
        np.testing.assert_allclose(drawn(load_edited(Config(), place, "cpu"), prompt), expected, atol=1e-4, err_msg=place)
        assert read_place(Config(), place).tokens == (token,), place
    earlier = drawn(load_edited(Config(), str(tmp_path / "checkpoint-000002"), "cpu"), prompt)
    assert np.abs(earlier - expected).max() > 0.01


ENCODERS = {
    "sd1": {"clip_l": "text_encoder"},
    "sdxl": {"clip_l": "text_encoder", "clip_g": "text_encoder_2"},
    "sd3": {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3"},
    "flux": {"clip_l": "text_encoder", "t5": "text_encoder_2"},
    "pixart": {"t5": "text_encoder"},
}


def word_in(name: str, folder: Path, word: str = "sks", keys: tuple[str, ...] = ()) -> tuple[Any, WordEmbedding]:
    """A tiny pipeline, with a word in its text encoders (or in some of them) that is attached."""
    place = str(saved(name, folder))
    pipe = diffusers.DiffusionPipeline.from_pretrained(place, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    tokenizers = load_tokenizers(Source(place))
    assert tokenizers.keys() == ENCODERS[name].keys()
    chosen = {key: tokenizers[key] for key in keys or tokenizers}
    embedding = WordEmbedding(load.freeze(pipe), Word.of(chosen, word, beside=True))
    embedding.attach(embedding)
    return pipe, embedding


def encoded(pipe: Any, prompt: str) -> list[torch.Tensor]:
    """What the denoiser of a pipeline receives of a prompt, as training captures it."""
    found = capture(pipe, [prompt], size=(256, 256), guidance=family_of(type(pipe).__name__).guidance)
    return [value for value in found.by_row.values() if value.is_floating_point() and value.ndim > 1]


@pytest.mark.parametrize("name", ENCODERS)
class TestInEachTextEncoder:
    def test_a_gradient_reaches_its_row(self, name: str, tmp_path: Path) -> None:
        pipe, embedding = word_in(name, tmp_path)
        assert all(row.dtype == torch.float32 and row.requires_grad for row in embedding.rows.values())
        tables = [getattr(pipe, part).get_input_embeddings().weight for part in ENCODERS[name].values()]
        sizes = [np.sqrt(np.mean(np.square(table.double().numpy()))) for table in tables]
        np.testing.assert_allclose(embedding.scales, sizes, rtol=0.02)  # a new row is not in it
        sum(each.square().sum() for each in encoded(pipe, "a photo of sks dog")).backward()  # type: ignore[union-attr]
        assert {key: bool(row.grad.abs().max() > 0) for key, row in embedding.rows.items()} == dict.fromkeys(ENCODERS[name], True)

    def test_other_prompts_stay_and_its_own_change(self, name: str, tmp_path: Path) -> None:
        pipe, embedding = word_in(name, tmp_path)
        before = [encoded(pipe, prompt) for prompt in ("a photo of a dog", "a photo of sks dog")]
        with torch.no_grad():
            for row in embedding.rows.values():
                row.add_(1.0)
        other, own = (encoded(pipe, prompt) for prompt in ("a photo of a dog", "a photo of sks dog"))
        assert all(torch.equal(old, new) for old, new in zip(before[0], other, strict=True))
        assert any(not torch.equal(old, new) for old, new in zip(before[1], own, strict=True))

    def test_merged_and_written_it_is_the_same(self, name: str, tmp_path: Path) -> None:
        """In the pipeline's tables, in a pipeline folder, from the file by nullbooth, and from the file by diffusers."""
        pipe, embedding = word_in(name, tmp_path)
        with torch.no_grad():
            for number, row in enumerate(embedding.rows.values(), start=1):
                row.add_(number)
        expected = encoded(pipe, "a photo of sks dog")
        file = embedding.save(tmp_path)
        embedding.merge()
        pipe.save_pretrained(tmp_path / "merged")
        opened, read, theirs = (
            load.freeze(diffusers.DiffusionPipeline.from_pretrained(tmp_path / folder, local_files_only=True))
            for folder in ("merged", name, name)
        )
        WordFile.read(file, "sks").load_into(read)
        load_by_diffusers(theirs, file, ENCODERS[name])
        for found in (pipe, opened, read, theirs):
            for one, other in zip(expected, encoded(found, "a photo of sks dog"), strict=True):
                torch.testing.assert_close(other, one, rtol=0, atol=1e-6)


def load_by_diffusers(pipe: Any, file: Path, parts: Mapping[str, str]) -> None:
    """As docs/reference/train.md does it."""
    rows = load_file(file)
    for key, part in parts.items():
        row = rows["sks"] if len(rows) == 1 else rows[key]
        encoder, tokenizer = getattr(pipe, part), getattr(pipe, part.replace("text_encoder", "tokenizer"))
        if hasattr(pipe, "load_textual_inversion"):
            pipe.load_textual_inversion(row, token="sks", text_encoder=encoder, tokenizer=tokenizer)
        else:
            tokenizer.add_tokens("sks")
            encoder.resize_token_embeddings(len(tokenizer))
            encoder.get_input_embeddings().weight.data[tokenizer.convert_tokens_to_ids("sks")] = row[0]


@pytest.mark.parametrize(
    ("name", "chosen", "keys", "says"),
    [
        ("sdxl", "clip", {"clip_l", "clip_g"}, None),
        ("sd3", "clip", {"clip_l", "clip_g"}, None),
        ("sd3", "all", {"clip_l", "clip_g", "t5"}, None),
        (
            "flux",
            "clip",
            {"clip_l"},
            "the word trains in CLIP, which gives this model one vector for a whole prompt: set word_encoders",
        ),
        ("flux", "all", {"clip_l", "t5"}, None),
        ("pixart", "clip", {"t5"}, "the word trains in T5: this model has no CLIP"),
        ("pixart", "all", {"t5"}, None),
    ],
)
def test_a_recipe_chooses_its_text_encoders(tmp_path: Path, name: str, chosen: str, keys: set[str], says: str | None) -> None:
    settings = {"word": "sks", "word_encoders": chosen, "instance_prompt": "a sks circle", "model": str(saved(name, tmp_path))}
    inputs = setup.read_inputs(recipe(tmp_path / "out", **settings), ["a dog"])
    assert inputs.word is not None
    assert set(inputs.word.tokens) == keys
    notes = [note for note in inputs.notes if "the word trains in" in note]
    assert [note[: len(says or "")] for note in notes] == ([] if says is None else [says])
