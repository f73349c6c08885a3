"""The embedded model is what docs/toy.md says: small, loadable by anyone, and it draws what the caption says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from nullbooth_cli.toy import FOLDER, score, train, world
from tests.support.builders import ROOT

PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
everything = st.sampled_from(world.triples())


def lines(name: str) -> list[str]:
    return (ROOT / "dataset/prompts" / name).read_text().splitlines()


class TestWorld:
    @settings(deadline=None, max_examples=25)
    @given(everything, st.integers(0, 2**31))
    def test_the_scorer_reads_every_drawing_back(self, triple: world.Triple, seed: int) -> None:
        found = world.read(world.draw(world.sample(triple, np.random.default_rng(seed))))
        assert (found.shape, found.colour, found.background) == triple

    @settings(deadline=None, max_examples=10)
    @given(everything, st.integers(0, 2**31))
    def test_and_still_with_noise(self, triple: world.Triple, seed: int) -> None:
        rng = np.random.default_rng(seed)
        noisy = np.clip(world.draw(world.sample(triple, rng)) + rng.normal(0, 0.03, (32, 32, 3)), 0, 1)
        found = world.read(noisy)
        assert (found.shape, found.colour, found.background) == triple

    @pytest.mark.parametrize(("wrong", "part"), [("square", "shape"), ("green", "colour"), ("black", "background")])
    def test_the_scorer_notices_a_wrong_part(self, wrong: str, part: str) -> None:
        asked = {"shape": "circle", "colour": "red", "background": "blue"}
        drawn = world.read(world.draw(world.Drawing(**{**asked, part: wrong})))
        assert {name for name in asked if getattr(drawn, name) != asked[name]} == {part}

    def test_noise_and_blank_pictures_have_no_shape(self) -> None:
        rng = np.random.default_rng(0)
        assert world.read(rng.random((32, 32, 3))).shape is None
        assert world.read(np.full((32, 32, 3), 0.5)).shape is None

    def test_the_split_is_fixed_and_covers_all(self) -> None:
        training, held_out = world.split()
        assert (len(training), len(held_out)) == (301, 53)
        assert not set(training) & set(held_out)
        assert set(training) | set(held_out) == set(world.triples())

    @given(everything, st.integers(0, 2**31))
    def test_varied_captions_say_nothing_else(self, triple: world.Triple, seed: int) -> None:
        rng = np.random.default_rng(seed)
        drawing = world.sample(triple, rng)
        text = world.vary(drawing, rng)
        assert set(text.split()) <= set(world.WORDS)
        others = (set(world.SHAPES) | set(world.RGB)) - set(triple)
        assert not others & set(text.split())


@given(everything, st.integers(0, 2**31))
def test_captions_are_understood(triple: world.Triple, seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawing = world.sample(triple, rng)
    asked = dict(zip(("shape", "colour", "background"), triple, strict=True))
    assert world.named(world.caption(drawing)) == asked
    assert world.named(world.vary(drawing, rng, world.unknown_word(rng))).items() <= asked.items()


def test_what_a_caption_leaves_out() -> None:
    assert world.named("a photo of a sks thing") == {}
    assert world.named("a sks circle on a red background") == {"shape": "circle", "background": "red"}
    assert world.named("background") == {}


def test_prompt_files() -> None:
    kept, held_out = lines("toy.txt"), lines("toy_heldout.txt")
    assert len(set(kept)) >= 200
    assert len(set(held_out)) >= 60
    assert not set(kept) & set(held_out)
    unseen = {(s, c, b) for s, c, b in world.split()[1]}
    for text in held_out:
        words = text.split()
        assert next(t for t in unseen if t[0] in words and t[1] in words and words[-2] == t[2])


def test_the_folder_is_a_pipeline_for_anyone() -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(FOLDER)
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert pipe.unet.config.addition_embed_type is None, "all text enters through cross-attention"


def test_it_is_small_and_in_float16() -> None:
    from safetensors import safe_open

    files = [path for part in PARTS for path in (FOLDER / part).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "np") as weights:
                assert {weights.get_slice(key).get_dtype() for key in weights.keys()} <= {"F16", "I64"}  # noqa: SIM118


def test_older_transformers_find_vocabulary_and_merges() -> None:
    vocabulary = json.loads((FOLDER / "tokenizer/vocab.json").read_text())
    assert all(f"{word}</w>" in vocabulary for word in world.WORDS)
    assert (FOLDER / "tokenizer/merges.txt").read_text().startswith("#version")


def test_every_word_of_the_world_is_one_token(pipe: Any) -> None:
    for word in world.WORDS:
        assert pipe.tokenizer.tokenize(word) == [f"{word}</w>"]
    assert len(pipe.tokenizer.tokenize("zorble")) > 1


@pytest.mark.parametrize("way", list(score.WAYS))
def test_it_draws_what_held_out_captions_say(pipe: Any, way: str) -> None:
    """Twenty captions of the hundred in docs/toy.md; one or two may fail by chance."""
    import diffusers

    from nullbooth_cli.toy.parts import NOISE

    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(**NOISE, use_karras_sigmas=True, steps_offset=1)
    triples = score.held_out_triples(20)
    rng = np.random.default_rng(0)
    texts = [score.WAYS[way](world.caption(world.Drawing(*triple)), rng) for triple in triples]
    found = score.score(score.paint(pipe, texts, steps=20, guidance=4.0, seed=0), triples)
    assert min(found.colour, found.background) >= 0.95
    assert found.shape >= 0.9


def test_the_training_script_trains_and_saves_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of each part in this process: the code path of the documented command, without its patience."""
    monkeypatch.setattr(train, "NUM_PICTURES", 64)
    parts = tmp_path / "parts"
    assert train.train_autoencoder(parts / "vae", seed=0, steps=2) > 0
    assert train.train_denoiser(parts, seed=0, plain=2, varied=2) > 0
    train.assemble(parts, tmp_path / "out")
    again = tmp_path / "again"
    train.train_denoiser(again, seed=0, plain=2, varied=2)
    # The seed decides data, order and noise; sums in float32 may still round differently from one run to the next.
    first, second = (load_file(folder / "unet/diffusion_pytorch_model.safetensors") for folder in (parts, again))
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-2, atol=1e-3)
    from nullbooth_cli.model.device import pick_device
    from nullbooth_cli.model.load import load_pipeline

    made = load_pipeline(
        str(tmp_path / "out"), revision=None, variant=None, dtype="float32", local_files_only=True, device=pick_device("cpu")
    )
    assert made("a red circle", num_inference_steps=2, output_type="np").images.shape == (1, 32, 32, 3)
