"""Attention maps: they are what the model attends to, and they sit where the words are."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from nullbooth_cli.cli import app
from nullbooth_cli.collect import attention_maps
from nullbooth_cli.collect.attention_maps import find_attention, record, words_of
from nullbooth_cli.collect.open_model import load_path
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model.denoise import DenoisingPath
from nullbooth_cli.model.projections import find_projections
from nullbooth_cli.report.plots.attention import word_maps
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support import tiny
from tests.support.builders import CIRCLES, TEXT_ONLY, execute, small_config

LAYER = "up_blocks.2.attentions.1.transformer_blocks.0.attn2"


@pytest.fixture(scope="module")
def circles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Store]:
    config = small_config(
        tmp_path_factory.mktemp("circles") / "run.zarr",
        **TEXT_ONLY,
        original_knowledge_prompts=CIRCLES,
        schedule__num_denoising_steps=20,
        collect__guidance_scale=7.5,
        collect__visual_attention_map=True,
        collect__attention_prompts=2,
    )
    return config, execute(config, "collect", "covariance", "project")


def object_mask(image: np.ndarray) -> np.ndarray:
    """Which pixels are not background, by their distance from the colour of the border."""
    picture = image / 255.0
    border = np.median(np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]), axis=0)
    return np.linalg.norm(picture - border, axis=-1) > 0.4


@pytest.mark.parametrize("text", CIRCLES[:2])
def test_the_word_circle_looks_at_the_circle(circles: Any, text: str) -> None:
    maps = circles[1].attention.read(Prompt(text))
    mask = object_mask(maps.image)
    assert 0.15 < mask.mean() < 0.6
    heat = word_maps(maps)[..., maps.words.index("circle")]
    blocks = mask.reshape(heat.shape[1], mask.shape[0] // heat.shape[1], heat.shape[2], -1).mean(axis=(1, 3))
    share = (heat * blocks).sum() / heat.sum()
    assert share > 1.2 * mask.mean(), f"{share:.2f} of the attention on {mask.mean():.2f} of the area"
    of_background = word_maps(maps)[..., maps.words.index("background")]
    assert (of_background * blocks).sum() / of_background.sum() < mask.mean()


def test_maps_are_the_softmax_of_what_the_projections_give(pipe: Any) -> None:
    """Against q k^T / sqrt(d), head by head, written out in float64."""
    config = small_config(Path("unused"))
    from nullbooth_cli.collect.open_model import compute_steps

    _, steps = compute_steps(config, 1)
    pipe, path = load_path(config, steps, "cpu")
    attention = pipe.unet.get_submodule(LAYER)
    seen: dict[str, list[torch.Tensor]] = {"q": [], "k": []}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: seen[name].append(output.double()))
        for name, module in (("q", attention.to_q), ("k", attention.to_k))
    ]
    prompt = Prompt(CIRCLES[0])
    maps = record(pipe, path, 3, prompt, projections=find_projections(pipe.unet, ("q", "k"), [LAYER]), steps=[0, 2])
    for hook in hooks:
        hook.remove()
    assert list(maps.layers) == [LAYER]
    num_words = len(maps.words)
    for i, step in enumerate(maps.steps):
        query, key = (
            seen[name][step][1].numpy().reshape(-1, attention.heads, attention.inner_dim // attention.heads) for name in "qk"
        )
        logits = np.einsum("qhd,khd->hqk", query, key) / np.sqrt(query.shape[-1])
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        expected = (weights / weights.sum(axis=-1, keepdims=True)).mean(axis=0)[:, :num_words]
        np.testing.assert_allclose(maps.layers[LAYER][i].reshape(-1, num_words), expected, atol=1e-3)
    generator = torch.Generator("cpu").manual_seed(3)
    image = pipe([prompt.text], num_inference_steps=4, guidance_scale=4.0, generator=[generator], output_type="np").images[0]
    np.testing.assert_array_equal(maps.image, (image * 255).round().astype(np.uint8))


def test_words_are_the_tokens_with_their_marks(pipe: Any) -> None:
    assert words_of(pipe, Prompt("a red circle")) == ("<|startoftext|>", "a", "red", "circle", "<|endoftext|>")
    many = words_of(pipe, Prompt("circle " * 100))
    assert len(many) == pipe.tokenizer.model_max_length


class TestDrawing:
    def test_panels_are_drawn(self, circles: Any, tmp_path: Path) -> None:
        store = circles[1]
        shown = CliRunner().invoke(
            app, ["inspect", str(store.path), "--attention", CIRCLES[0], "--plots", str(tmp_path), "--format", "svg", "--json"]
        )
        assert shown.exit_code == 0, shown.stderr
        picture = tmp_path / f"attention-{Prompt(CIRCLES[0]).id}.svg"
        assert picture.read_text().count("<image") == 7 * 8  # seven words; image, mean, and six timesteps

    def test_without_maps_it_says_how_to_get_them(self, finished: Any) -> None:
        shown = CliRunner().invoke(app, ["inspect", str(finished[1].path), "--attention", "x"])
        assert shown.exit_code == 2
        assert re.search(r"has no attention maps\n\nhint: .*visual_attention_map=true", shown.stderr)


def test_there_are_words_only_for_what_the_pipeline_takes() -> None:
    """PixArt takes 300 tokens of its T5, whose tokenizer has no limit."""
    words = words_of(tiny.pixart(), Prompt("x" * 310))
    assert (len(words), words[1], words[-1]) == (300, "x", "</s>")


@pytest.mark.parametrize(
    ("name", "layers", "reason"),
    [
        ("flux", "all", "transformer_blocks.0.attn attends to image and text at once"),
        ("pixart", ["*.attn1"], "transformer_blocks.0.attn1 attends to no text"),
    ],
)
def test_layers_without_a_map_of_words_are_refused(name: str, layers: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"{re.escape(reason)}: it has no map of words alone"):
        find_attention(tiny.PIPELINES[name]().transformer, layers)


def test_attention_that_scores_in_its_own_way_is_refused() -> None:
    """HunyuanDiT turns queries by their place."""
    made = diffusers.HunyuanDiT2DModel(
        num_layers=1, in_channels=4, hidden_size=32, attention_head_dim=16, num_attention_heads=2, patch_size=2
    )
    with pytest.raises(ConfigError, match=r"blocks\.0\.attn2 scores in its own way \(HunyuanAttnProcessor2_0\)"):
        find_attention(made, "all")


def test_guidance_in_two_forwards_and_frames_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny.sd1()
    path = DenoisingPath(num_inference_steps=1, steps=(), guidance_scale=1.0, height=16, width=16, seed=0)
    projections = find_attention(pipe.unet, ["mid"])
    run = partial(record, pipe, path, 0, Prompt("a cat"), projections=projections, steps=[0])
    monkeypatch.setattr(attention_maps, "denoise", lambda *_, **__: np.zeros((1, 3, 16, 16, 3)))
    with pytest.raises(ModelError, match="StableDiffusionPipeline draws frames, and attention maps are of one image"):
        run()

    def twice(*_: Any, **__: Any) -> Any:
        for _ in range(2):
            pipe.unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 77, tiny.TEXT))

    monkeypatch.setattr(attention_maps, "denoise", twice)
    with pytest.raises(ModelError, match="runs its denoiser several times in a step, and attention maps take one run"):
        run()
