"""The world of names: what its names denote, what is edited and preserved, and that its training saves a pipeline."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from docs.studies import names_world
from docs.studies.edit_pairs import MOST, SEARCH_SEED, Edit
from docs.studies.names_world import COUNT, PRESERVED, SEARCHED, WIDER, Captions, NamesWorld, build, names, scores
from docs.studies.refit import fresh
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.toy import FOLDER, train, world
from nullbooth_cli.toy.parts import WIDTH, PatchCode, build_text_encoder, build_tokenizer

PAIRS = set(product(world.COLOURS, world.SHAPES))


def test_100_names_denote_every_pair() -> None:
    assert len(names()) == COUNT == 100
    assert set(names().values()) == PAIRS
    assert not set(names()) & set(world.WORDS)
    tokenizer = build_tokenizer((*world.WORDS, *names()))
    assert all(len(tokenizer(word).input_ids) == 3 for word in (*world.WORDS, *names()))  # one between start and end


@pytest.mark.parametrize("seed", [0, 1, SEARCH_SEED])
def test_a_seed_edits_names_and_preserves_others(seed: int) -> None:
    made, preserved = NamesWorld().edits(seed), NamesWorld().preserved(seed)
    assert len({each.word for each in made}) == len(made) == (SEARCHED if seed == SEARCH_SEED else MOST)
    assert all((each.colour, each.shape) != names()[each.word] and each.colour != each.background for each in made)
    assert made[0].source == f"a {made[0].word} on a {made[0].background} background"
    words = {text: set(text.split()) for text in preserved}
    of_names = {word for found in words.values() for word in found & set(names())}
    assert len(of_names) == PRESERVED
    assert not of_names & {each.word for each in made}
    assert {prompt.text for prompt in load_prompts("nullbooth:toy.txt")} <= set(preserved)
    asked = NamesWorld().names(seed)
    assert {word for text, _ in asked["preserved"] for word in text.split() if word in names()} == of_names
    others = {word for text, _ in asked["other"] for word in text.split() if word in names()}
    assert len(others) == COUNT - PRESERVED - len(made)
    assert not others & (of_names | {each.word for each in made})
    for text, (shape, colour, background) in (*asked["preserved"], *asked["other"]):
        [name] = set(text.split()) & set(names())
        assert names()[name] == (colour, shape)
        assert world.named(text) == {"background": background} != {"background": colour}
        assert text not in preserved


def test_the_search_shares_no_edited_name_with_the_seeds() -> None:
    searched, *others = ({each.word for each in NamesWorld().edits(seed)} for seed in (SEARCH_SEED, 0, 1, 2))
    assert not searched & set.union(*others)
    assert len(set.union(*others)) > MOST


def test_a_caption_with_a_name_means_the_plain_one() -> None:
    rng = np.random.default_rng(0)
    drawings = [world.sample(triple, rng) for triple in world.triples()]
    texts, plain = Captions(rng).draw(drawings)
    named = 0
    for text, other, drawing in zip(texts, plain, drawings, strict=True):
        if name := set(text.split()) & set(names()):
            assert text.replace(*name, f"{drawing.colour} {drawing.shape}") == other
            assert names()[name.pop()] == (drawing.colour, drawing.shape)
            named += 1
        else:
            assert text == other
    assert 0.4 < named / len(texts) < 0.6


def test_the_widened_unet_reads_what_the_embedded_one_reads() -> None:
    rng = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 8, 8, 8, generator=rng), torch.randn(2, 16, WIDER, generator=rng)
    old = UNet2DConditionModel.from_pretrained(FOLDER / "unet")
    with torch.no_grad():
        torch.testing.assert_close(
            names_world.widened()(latents, 500, text).sample, old(latents, 500, text[..., :WIDTH]).sample, rtol=1e-4, atol=1e-5
        )


def test_reading_brings_a_name_nearer_to_its_pair(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_world, "CHECKED_EVERY", 1)
    torch.manual_seed(0)
    tokenizer = build_tokenizer((*world.WORDS, *names()))
    names_world.train_reading(build_text_encoder(tokenizer, WIDER), tokenizer, np.random.default_rng(0), 12)
    losses = [float(line.split()[3]) for line in capsys.readouterr().err.splitlines() if line.startswith("reading")]
    assert losses[-1] < 0.9 * losses[0]


def test_a_few_steps_make_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "NUM_PICTURES", 64)
    monkeypatch.setattr(names_world, "scores", lambda *_: (0.0, 0.0))
    build(tmp_path, reading_steps=2, drawing_steps=2)
    pipe = fresh(str(tmp_path))
    assert pipe.unet.config.cross_attention_dim == pipe.text_encoder.config.hidden_size == WIDER
    assert pipe("a mita", num_inference_steps=2, output_type="np").images.shape == (1, 32, 32, 3)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 8_000_000


def test_scores_are_of_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(_: object, __: object, texts: list[str]) -> list[world.Reading]:
        """What each caption says; every name as if it denoted a red star."""
        said = [{"colour": "red", "shape": "star"} | world.named(text) for text in texts]
        return [world.Reading(**each, overlap=1.0) for each in said]

    monkeypatch.setattr(train, "draw_quickly", draw)
    monkeypatch.setattr(world, "read", lambda picture: picture)
    code = PatchCode(torch.zeros(48), torch.zeros(48, 8), torch.zeros(8))
    plain, named = scores((None, None, None), code)  # type: ignore[arg-type]
    assert plain == 1.0
    assert named == sum(pair == ("red", "star") for pair in names().values()) / COUNT


def test_an_edit_of_a_name_asks_for_colour_and_shape() -> None:
    edit = Edit("mita", "star", "red", "white", name=True)
    assert (edit.source, edit.target) == ("a mita on a white background", "a red star on a white background")
    text, triple = edit.paraphrase(1)
    assert text == f"on a {triple[2]} background a mita"
    assert edit.pairs(1) == {edit.source: edit.target}
    assert edit.pairs(2) == edit.pairs(1) | {
        "on a white background a mita": "on a white background a red star",
    }
