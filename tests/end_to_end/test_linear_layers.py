"""Every linear map that a LoRA usually touches is recorded, in each architecture: moments, sharing, and any batch size.

Moments are compared with those of hooks of the test's own, one on every module, summed in float64.
"""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nullbooth_cli as nb
from nullbooth_cli.model import load
from nullbooth_cli.model.denoise import use_schedule
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.scheduler import build_scheduler
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, execute, small_config
from tests.support.cli import nullbooth
from tests.support.tiny import saved

NUM_STEPS, NUM_PROMPTS = 2, 2
STRATEGY = {"sd1": "DDIM", "sd2": "DDIM", "sdxl": "Euler", "pixart": "UniPC"}  # the others know their own only
# Sites whose weights share one tensor: the number of weights by the end of the first weight's name.
SHARED = {
    "sd1": {"attn1.to_q": 3, "attn2.to_k": 8},
    "sd2": {"attn1.to_q": 3, "attn2.to_k": 8},
    "sdxl": {"attn1.to_q": 3, "attn2.to_k": 16},
    "pixart": {"attn1.to_q": 3, "attn2.to_k": 4},
    "sd35": {"attn.to_q": 3, "attn.add_q_proj": 3, "attn2.to_q": 3},
    "flux": {"attn.to_q": 3, "attn.add_q_proj": 3, "proj_mlp": 4},
}


def config_of(folder: Path, name: str, store: str = "run.zarr", **changes: Any) -> Config:
    """All linear maps of the blocks, of two prompts and steps."""
    made = folder / name if (folder / name).is_dir() else saved(name, folder)
    return small_config(
        folder / store,
        **{
            "model": str(made),
            "original_knowledge_prompts": PROMPTS[:NUM_PROMPTS],
            "schedule__num_denoising_steps": NUM_STEPS,
            "schedule__sampler_strategy": STRATEGY.get(name, "model"),
            "collect__linear_layers": ["all"],
            "collect__keep": "moments",
            "collect__height": 16,
            "collect__width": 16,
            **changes,
        },
    )


@pytest.fixture(scope="module", params=SHARED)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Config, Store]:
    config = config_of(tmp_path_factory.mktemp(request.param), request.param)
    return request.param, config, execute(config, "schedule", "collect", "covariance", "project")


def test_what_is_shared(ran: Any) -> None:
    name, _, store = ran
    found = {site.weights[0].removesuffix(".weight"): len(site.weights) for site in store.sites if len(site.weights) > 1}
    assert found
    for first, count in found.items():
        assert count == next(number for ending, number in SHARED[name].items() if first.endswith(ending)), first
    assert {ending for ending in SHARED[name] if any(first.endswith(ending) for first in found)} == set(SHARED[name])


def _tokens(module: nn.Module, x: torch.Tensor) -> np.ndarray:
    """The vectors that a module multiplies by its weight, one a row."""
    if isinstance(module, nn.Conv2d):
        x = x.permute(0, 2, 3, 1)
    return x.reshape(-1, x.shape[-1]).numpy().astype(np.float64)


def test_moments_are_those_of_hooks_of_our_own(ran: Any) -> None:
    _, config, store = ran
    pipe = load.freeze(diffusers.DiffusionPipeline.from_pretrained(config.model, dtype=torch.float32))
    use_schedule(pipe, build_scheduler(config.schedule.sampler_strategy, pipe.scheduler), store.schedule())
    denoiser = denoiser_of(pipe)
    seen: dict[tuple[str, int], list[np.ndarray]] = {}
    step, mask = -1, None

    def count(_: Any, __: Any, arguments: dict[str, Any]) -> None:
        nonlocal step, mask
        step, mask = step + 1, arguments.get("encoder_attention_mask")

    def keep(weight: str, masked: bool) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            x = inputs[0]
            seen.setdefault((weight, step), []).append(_tokens(module, x[mask.bool()] if masked and mask is not None else x))

        return hook

    denoiser.register_forward_pre_hook(count, with_kwargs=True)
    weights = [(weight, site) for site in store.sites for weight in site.weights]
    for weight, site in weights:
        denoiser.get_submodule(weight.removesuffix(".weight")).register_forward_pre_hook(keep(weight, site.masked))
    for row, text in enumerate(PROMPTS[:NUM_PROMPTS]):
        step = -1
        pipe(
            prompt=[text],
            num_inference_steps=NUM_STEPS,
            guidance_scale=config.collect.guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(row)],
            output_type="latent",
            height=16,
            width=16,
        )
    modules = dict(denoiser.named_parameters())
    assert {site.dim for site in store.sites} == {modules[weight].shape[1] for weight, _ in weights}
    for weight, site in weights:
        for t in range(site.num_recorded(NUM_STEPS)):
            x = np.concatenate(seen[weight, t])
            sum_xxt, sum_x, tokens = store.moments.read_one(site, t)
            assert tokens == len(x), weight
            np.testing.assert_allclose(sum_xxt, x.T @ x, rtol=0, atol=1e-4 * np.abs(sum_xxt).max())
            np.testing.assert_allclose(sum_x, x.sum(0), rtol=0, atol=1e-4 * np.abs(x).sum(0).max())


# The pixels of a convolution, the tokens of a feed-forward, and one vector of the timestep.
WANTED = ["mid_block*.proj_in", "mid_block*.ff.net.0.proj", "mid_block*.ff.net.2", "mid_block*.0.time_emb_proj"]


def moments_of(folder: Path, **changes: Any) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    """The sums of each site and step, by `<layer>.<feature> <step>`, of a collection of four prompts."""
    off = {f"collect__collect_features__{feature}_features": False for feature in ("q", "k", "v", "out")}
    changes = {"original_knowledge_prompts": PROMPTS[:4], "collect__linear_layers": WANTED} | off | changes
    config = config_of(folder, "sd1", f"{len([*folder.iterdir()])}.zarr", **changes)
    found = execute(config, "schedule", "collect", "covariance")
    return {f"{site.name} {t}": found.moments.read_one(site, t) for site in found.sites for t in range(NUM_STEPS)}


@pytest.fixture(scope="module")
def sd1_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sd1")


@pytest.fixture(scope="module")
def whole(sd1_folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    return moments_of(sd1_folder, collect__batch_size=4)


@settings(max_examples=4, deadline=None)
@given(batch_size=st.integers(1, 5), keep=st.sampled_from(["features", "moments", "both"]))
def test_any_batch_and_any_keep_gives_the_same_moments(sd1_folder: Path, whole: Any, batch_size: int, keep: str) -> None:
    found = moments_of(sd1_folder, collect__batch_size=batch_size, collect__keep=keep)
    assert {name.partition(" ")[0].rpartition(".")[2] for name in whole} == {"proj_in", "ff_in", "ff_out", "linear"}
    assert found.keys() == whole.keys()
    for name, (sum_xxt, sum_x, count) in whole.items():
        assert found[name][2] == count
        np.testing.assert_allclose(found[name][0], sum_xxt, rtol=0, atol=1e-5 * np.abs(sum_xxt).max())
        np.testing.assert_allclose(found[name][1], sum_x, rtol=0, atol=1e-4 * np.abs(sum_x).max())


def test_a_sample_of_pixels_is_one_of_the_image(sd1_folder: Path) -> None:
    found = moments_of(sd1_folder, collect__tokens_per_prompt=3)
    # Of two branches; the embedding of the timestep is one vector of each.
    assert {name.partition(" ")[0].rpartition(".")[2]: sums[2] for name, sums in found.items()} == {
        "proj_in": 4 * 3,
        "ff_in": 4 * 3,
        "ff_out": 4 * 3,
        "linear": 4 * 2,
    }


def test_exported_moments_of_every_feature_come_back_with_their_weights(tmp_path: Path) -> None:
    config = config_of(tmp_path, "flux", collect__linear_layers=["all", "x_embedder"])
    store = execute(config, "schedule", "collect", "covariance")
    made = nullbooth("export", str(tmp_path / "files"), "-s", str(store.path), "--only-covariance")
    assert made.exit_code == 0, made.stderr
    run = next((tmp_path / "files").iterdir())
    back = str(tmp_path / "back.zarr")
    assert nullbooth("import", str(run), "-s", back).exit_code == 0
    weights = {weight for site in store.sites for weight in site.weights}
    assert {
        "x_embedder.weight",
        "single_transformer_blocks.0.proj_mlp.weight",
        "transformer_blocks.0.norm1.linear.weight",
    } <= weights
    assert {weight for site in nb.open_store(back).sites() for weight in site.weights} == weights
