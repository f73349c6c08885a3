"""Padding of the text is no part of the moments, in pipelines whose mask has another name than PixArt's, in every batch size."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from nullbooth_cli.errors import ModelError
from nullbooth_cli.model import load
from nullbooth_cli.model.denoise import use_schedule
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.scheduler import build_scheduler
from nullbooth_cli.settings.config import build_config
from nullbooth_cli.store import Store
from tests.support.builders import execute
from tests.support.tiny import UNEQUAL_TEXTS, saved

# diffusers' own Chroma says this of itself.
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
PROMPTS = ["a cat", "a dog with a hat", "a red star"]  # the first is the shortest
NUM_STEPS, SIZE = 2, 32
# Of each site with text, the tokens of a prompt that the model attends to, by its own tokenizer.
IMAGE_TOKENS = {"chroma": (SIZE // 4) ** 2, "qwen_image": (SIZE // 16) ** 2}


@pytest.fixture(scope="module", params=UNEQUAL_TEXTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, saved(request.param, tmp_path_factory.mktemp(request.param))


def collected(model: Path, folder: Path, **changes: Any) -> Store:
    settings = {"keep": "moments", "height": SIZE, "width": SIZE, "guidance_scale": 1.0, **changes}
    config = build_config(
        {
            "model": str(model),
            "store": str(folder / f"{settings['keep']}{settings.get('batch_size', '')}.zarr"),
            "original_knowledge_prompts": PROMPTS,
            "schedule": {"num_denoising_steps": NUM_STEPS, "sampler_strategy": "model"},
            "collect": settings,
        }
    )
    return execute(config, "schedule", "collect", "covariance")


def attended_tokens(name: str, pipe: Any, text: str) -> int:
    if name == "chroma":  # the end mark, and one token of padding that the model asks for
        return len(pipe.tokenizer(text).input_ids) + 1
    return len(pipe.tokenizer(pipe.prompt_template_encode.format(text)).input_ids) - pipe.prompt_template_encode_start_idx


def test_moments_are_those_of_single_prompts_without_padding(model: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = model
    stores = [collected(folder, tmp_path, batch_size=size) for size in (1, 2)]
    sites = stores[0].sites
    of_text = [site for site in sites if site.masked]
    assert {site.feature for site in of_text} == {"add_q", "add_out", *(["q"] if name == "chroma" else [])}
    pipe = load.freeze(diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32))
    use_schedule(pipe, build_scheduler("model", pipe.scheduler), stores[0].schedule())
    denoiser, seen, step = denoiser_of(pipe), dict[tuple[str, int], list[np.ndarray]](), -1

    def count(*_: Any) -> None:
        nonlocal step
        step += 1

    def keep(site: Any) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor]) -> None:
            x, real = inputs[0][0].double().numpy(), attended_tokens(name, pipe, text)
            image = IMAGE_TOKENS[name] if site.feature == "q" else 0  # blocks of both have the text first
            seen.setdefault((site.name, step), []).append(np.concatenate([x[:real], x[len(x) - image :]]))

        return hook

    denoiser.register_forward_pre_hook(count)
    for site in of_text:
        denoiser.get_submodule(site.weights[-1].removesuffix(".weight")).register_forward_pre_hook(keep(site))
    for row, text in enumerate(PROMPTS):
        step = -1
        generator = [torch.Generator("cpu").manual_seed(row)]
        pipe(
            [text],
            num_inference_steps=NUM_STEPS,
            guidance_scale=1.0,
            generator=generator,
            output_type="latent",
            height=SIZE,
            width=SIZE,
        )
    for store in stores:
        for site in of_text:
            for t in range(NUM_STEPS):
                x = np.concatenate(seen[site.name, t])
                sum_xxt, sum_x, number = store.moments.read_one(site, t)
                assert number == len(x)
                np.testing.assert_allclose(sum_xxt, x.T @ x, rtol=0, atol=1e-4 * np.abs(sum_xxt).max())
                np.testing.assert_allclose(sum_x, x.sum(0), rtol=0, atol=1e-4 * np.abs(x).sum(0).max())


def test_features_of_unequal_length_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"add_q has \d+ tokens for these prompts, and \d+ for the first one") as caught:
        collected(saved("qwen_image", tmp_path), tmp_path, keep="features", batch_size=1)
    assert caught.value.hint.startswith("set collect.keep to moments")


def test_features_of_texts_that_are_padded_to_one_length(tmp_path: Path) -> None:
    """Chroma pads every text to 512 tokens: its vectors fit one array, and padding is NaN there."""
    made = saved("chroma", tmp_path)
    both, moments = (collected(made, tmp_path, keep=keep, batch_size=2) for keep in ("both", "moments"))
    for site in both.sites:
        for t in range(NUM_STEPS):
            assert both.moments.read_one(site, t).count == moments.moments.read_one(site, t).count
