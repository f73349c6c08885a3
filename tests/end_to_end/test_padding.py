"""Padding of the text is no part of what is recorded, where texts are as long as their prompts, or masks have other names."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import StageError
from nullbooth_cli.model import load
from nullbooth_cli.model.denoise import use_schedule
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.scheduler import build_scheduler
from nullbooth_cli.settings.config import Config, build_config
from nullbooth_cli.store import Store
from tests.support.builders import execute, vectors_at
from tests.support.tiny import UNEQUAL_TEXTS, saved

# diffusers' own Chroma says this of itself.
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
PROMPTS = ["a cat", "a dog with a hat", "a red star"]  # the first is the shortest, the second the longest
NUM_STEPS, SIZE = 2, 32
# Of each site with text, the tokens of a prompt that the model attends to, by its own tokenizer.
IMAGE_TOKENS = {"chroma": (SIZE // 4) ** 2, "qwen_image": (SIZE // 16) ** 2}


@pytest.fixture(scope="module", params=UNEQUAL_TEXTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, saved(request.param, tmp_path_factory.mktemp(request.param))


def config_of(model: Path, folder: Path, prompts: list[str], **changes: Any) -> Config:
    size = {"height": SIZE, "width": SIZE, "guidance_scale": 1.0}
    settings = {"keep": "moments", "feature_dtype": "float32", **size, **changes}
    return build_config(
        {
            "model": str(model),
            "store": str(folder / f"{settings['keep']}{settings.get('batch_size', '')}.zarr"),
            "original_knowledge_prompts": prompts,
            "schedule": {"num_denoising_steps": NUM_STEPS, "sampler_strategy": "model"},
            "collect": settings,
        }
    )


def collected(model: Path, folder: Path, **changes: Any) -> Store:
    return execute(config_of(model, folder, PROMPTS, **changes), "schedule", "collect", "covariance")


def attended_tokens(name: str, pipe: Any, text: str) -> int:
    if name == "chroma":  # the end mark, and one token of padding that the model asks for
        return len(pipe.tokenizer(text).input_ids) + 1
    return len(pipe.tokenizer(pipe.prompt_template_encode.format(text)).input_ids) - pipe.prompt_template_encode_start_idx


def of_text(store: Store) -> list[Site]:
    return [site for site in store.sites if site.masked]


def seen_alone(name: str, folder: Path, store: Store) -> dict[tuple[str, int], list[np.ndarray]]:
    """What plain hooks see of each site and step, without padding: `[n, D]` of each prompt, which runs alone."""
    pipe = load.freeze(diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32))
    use_schedule(pipe, build_scheduler("model", pipe.scheduler), store.schedule())
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
    for site in of_text(store):
        denoiser.get_submodule(site.weights[-1].removesuffix(".weight")).register_forward_pre_hook(keep(site))
    for row, text in enumerate(PROMPTS):
        step = -1
        size = {"height": SIZE, "width": SIZE, "guidance_scale": 1.0}
        noise = [torch.Generator("cpu").manual_seed(row)]
        pipe([text], num_inference_steps=NUM_STEPS, generator=noise, output_type="latent", **size)
    return seen


def test_moments_are_those_of_single_prompts_without_padding(model: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = model
    stores = [collected(folder, tmp_path, batch_size=size) for size in (1, 2)]
    sites = of_text(stores[0])
    assert {site.feature for site in sites} == {"add_q", "add_out", *(["q"] if name == "chroma" else [])}
    seen = seen_alone(name, folder, stores[0])
    for store in stores:
        for site in sites:
            for t in range(NUM_STEPS):
                x = np.concatenate(seen[site.name, t])
                sum_xxt, sum_x, number = store.moments.read_one(site, t)
                assert number == len(x)
                np.testing.assert_allclose(sum_xxt, x.T @ x, rtol=0, atol=1e-4 * np.abs(sum_xxt).max())
                np.testing.assert_allclose(sum_x, x.sum(0), rtol=0, atol=1e-4 * np.abs(x).sum(0).max())


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_features_are_those_of_single_prompts_and_then_nan(model: tuple[str, Path], tmp_path: Path, batch_size: int) -> None:
    """A site has room for the longest prompt, whatever it shares a batch with."""
    name, folder = model
    store = collected(folder, tmp_path, keep="both", batch_size=batch_size)
    seen = seen_alone(name, folder, store)
    for site in of_text(store):
        longest = max(len(x) for x in seen[site.name, 0])
        assert site.num_tokens >= longest
        if name == "qwen_image":
            assert site.num_tokens == longest
        for t in range(NUM_STEPS):
            stored = vectors_at(store, site, t)
            for vectors, expected in zip(stored, seen[site.name, t], strict=False):
                np.testing.assert_allclose(vectors[: len(expected)], expected, rtol=1e-4, atol=1e-4)
                assert np.isnan(vectors[len(expected) :]).all()
            assert store.moments.read_one(site, t).count == sum(map(len, seen[site.name, t]))


def test_a_longer_prompt_that_comes_later(tmp_path: Path) -> None:
    """Moments take it; the arrays of features have no room for it, and one that is as long as those fits."""
    folder, longer = saved("qwen_image", tmp_path), "a dog with a hat and a coat"
    collected(folder, tmp_path, keep="moments")
    moments = execute(config_of(folder, tmp_path, [*PROMPTS, longer]), "collect", "covariance")
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    lengths = [attended_tokens("qwen_image", pipe, text) for text in (*PROMPTS, longer)]
    for site in of_text(moments):
        assert moments.moments.read_one(site, 0).count == sum(lengths)
    collected(folder, tmp_path, keep="both")
    prompts = [*PROMPTS, "a dot with a hat"]
    execute(config_of(folder, tmp_path, prompts, keep="both"), "collect")
    with pytest.raises(StageError, match=rf"a prompt is longer .* has {lengths[3]} tokens, and {lengths[1]} fit") as caught:
        execute(config_of(folder, tmp_path, [*prompts, longer], keep="both"), "collect")
    assert caught.value.rerun is not None
    assert (caught.value.rerun.stage, caught.value.rerun.force) == ("collect", True)
