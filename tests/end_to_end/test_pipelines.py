"""Seven architectures, each from schedule to inspect with the same commands: what is found, what is shared, and that it is right.

Wherever moments are compared, the features come from hooks of the test's own, on modules that the test names itself.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from nullbooth_cli.cli import app
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model import load
from nullbooth_cli.model.denoise import use_schedule
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.projections import find_projections
from nullbooth_cli.model.scheduler import build_scheduler
from nullbooth_cli.settings.config import build_config
from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, execute
from tests.support.tiny import PIPELINES, TEXT, WIDTH, saved

NUM_PROMPTS, NUM_STEPS = 3, 2
TEXT_TOKENS = 77


@dataclass(frozen=True)
class Expected:
    """What a test states of an architecture: (tokens a prompt, width, weights) of sites by their name without the layer's path.

    `shared` are the sites that no timestep changes, `masked` those whose padding is left out.
    """

    strategy: str | None
    sites: dict[str, tuple[int, int, int]]
    shared: set[str] = field(default_factory=set)
    masked: set[str] = field(default_factory=set)


def unet_sites(prefix: str, tokens: int, dim: int) -> dict[str, tuple[int, int, int]]:
    return {f"{prefix}.q": (tokens, dim, 1), f"{prefix}.out": (tokens, dim, 1)}


def sd_sites(branches: int) -> dict[str, tuple[int, int, int]]:
    """Two levels of 8 x 8 and 4 x 4 places; one layer down, one in the middle, two up; one text for all eight k and v."""
    return {
        **unet_sites("down_blocks.0.attentions.0.transformer_blocks.0.attn2", branches * 64, WIDTH),
        **unet_sites("mid_block.attentions.0.transformer_blocks.0.attn2", branches * 16, 2 * WIDTH),
        **unet_sites("up_blocks.1.attentions.0.transformer_blocks.0.attn2", branches * 64, WIDTH),
        **unet_sites("up_blocks.1.attentions.1.transformer_blocks.0.attn2", branches * 64, WIDTH),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.k": (branches * TEXT_TOKENS, TEXT, 8),
    }


DOWN_K = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.k"
SDXL_LAYERS = [
    f"{block}.attentions.{i}.transformer_blocks.{j}.attn2"
    for block, number in (("down_blocks.1", 1), ("mid_block", 1), ("up_blocks.0", 2))
    for i in range(number)
    for j in range(2)
]
EXPECTED = {
    "sd1": Expected("DPM++ 2M Karras", sd_sites(2), {DOWN_K}),
    "sd2": Expected("DDIM", sd_sites(2), {DOWN_K}),
    "lcm": Expected("LCM", sd_sites(1), {DOWN_K}),
    "sdxl": Expected(
        "Euler",
        {
            **{k: v for layer in SDXL_LAYERS for k, v in unet_sites(layer, 2 * 16, 2 * WIDTH).items()},
            f"{SDXL_LAYERS[0]}.k": (2 * TEXT_TOKENS, 2 * TEXT, 2 * len(SDXL_LAYERS)),
        },
        {f"{SDXL_LAYERS[0]}.k"},
    ),
    "pixart": Expected(
        "UniPC",
        {
            **{k: v for i in range(2) for k, v in unet_sites(f"transformer_blocks.{i}.attn2", 2 * 256, 32).items()},
            "transformer_blocks.0.attn2.k": (2 * 300, 32, 4),
        },
        {"transformer_blocks.0.attn2.k"},
        {"transformer_blocks.0.attn2.k"},
    ),
    "sd3": Expected(
        "model",
        {
            **{f"transformer_blocks.{i}.attn.q": (2 * 16, 32, 3) for i in range(2)},
            **{f"transformer_blocks.{i}.attn.out": (2 * 16, 32, 1) for i in range(2)},
            **{f"transformer_blocks.{i}.attn.add_q": (2 * (TEXT_TOKENS + 256), 32, 3) for i in range(2)},
            # The last block ends the text stream.
            "transformer_blocks.0.attn.add_out": (2 * (TEXT_TOKENS + 256), 32, 1),
        },
    ),
    "flux": Expected(
        "model",
        {
            # Four latents a token; guidance is a number that goes in, not a second branch.
            "transformer_blocks.0.attn.q": (16, 32, 3),
            "transformer_blocks.0.attn.out": (16, 32, 1),
            "transformer_blocks.0.attn.add_q": (512, 32, 3),
            "transformer_blocks.0.attn.add_out": (512, 32, 1),
            # Single blocks attend to text and image as one sequence, and have no to_out.
            "single_transformer_blocks.0.attn.q": (512 + 16, 32, 3),
        },
    ),
}


@pytest.fixture(scope="module", params=EXPECTED)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Store, dict[str, Any], Path]:
    """(architecture, its finished store, what inspect answers, its folder), by the commands alone."""
    folder = tmp_path_factory.mktemp(request.param)
    made = saved(request.param, folder)
    (folder / "c.yaml").write_text(
        yaml.safe_dump(
            {
                "model": str(made),
                "store": str(folder / "run.zarr"),
                "original_knowledge_prompts": PROMPTS[:NUM_PROMPTS],
                "schedule": {"num_denoising_steps": NUM_STEPS, "sampler_strategy": EXPECTED[request.param].strategy},
                "collect": {"batch_size": 2, "keep": "both", "feature_dtype": "float32", "height": 16, "width": 16},
                "project": {"relative_threshold": 0.05},
            }
        )
    )
    for command in ("schedule", "collect", "covariance", "project", "inspect"):
        answer = CliRunner().invoke(app, [command, "-c", str(folder / "c.yaml"), "--json"])
        assert answer.exit_code == 0, answer.stderr
    return request.param, Store.open(folder / "run.zarr"), json.loads(answer.stdout), made


def test_the_sites_and_what_is_shared(ran: Any) -> None:
    name, store, document, _ = ran
    expected = EXPECTED[name]
    assert {site.name: (site.num_tokens, site.dim, len(site.weights)) for site in store.sites} == expected.sites
    assert {site.name for site in store.sites if site.timestep_free} == expected.shared
    assert {site.name for site in store.sites if site.masked} == expected.masked
    parameters = dict(denoiser_of(PIPELINES[name]()).named_parameters())
    for site in document["sites"]:
        assert {parameters[weight].shape[1] for weight in site["weights"]} == {site["dim"]}


def test_moments_are_those_of_hooks_of_our_own(ran: Any) -> None:
    """One prompt after the other through the pipeline; a hook on one module of each site keeps what it receives."""
    name, store, _, folder = ran
    pipe = load.freeze(diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32))
    use_schedule(pipe, build_scheduler(EXPECTED[name].strategy, pipe.scheduler), store.schedule())
    denoiser = denoiser_of(pipe)
    seen: dict[tuple[str, int], list[np.ndarray]] = {}
    step, masks = -1, []

    def count(_: Any, __: Any, arguments: dict[str, Any]) -> None:
        nonlocal step
        step += 1
        masks.append(arguments.get("encoder_attention_mask"))

    def keep(site: Any) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor]) -> None:
            if not site.timestep_free or step == 0:
                x = inputs[0]
                seen.setdefault((site.name, step), []).append((x[masks[-1].bool()] if site.masked else x.flatten(0, 1)).numpy())

        return hook

    denoiser.register_forward_pre_hook(count, with_kwargs=True)
    for site in store.sites:
        denoiser.get_submodule(site.weights[-1].removesuffix(".weight")).register_forward_pre_hook(keep(site))
    for row, text in enumerate(PROMPTS[:NUM_PROMPTS]):
        step = -1
        pipe(
            prompt=[text],
            num_inference_steps=NUM_STEPS,
            guidance_scale=7.5,
            generator=[torch.Generator("cpu").manual_seed(row)],
            output_type="latent",
            height=16,
            width=16,
        )
    assert {key[1] for key in seen} == set(range(NUM_STEPS))
    for site in store.sites:
        for t in range(site.num_recorded(NUM_STEPS)):
            x = np.concatenate(seen[site.name, t]).astype(np.float64)
            sum_xxt, sum_x, count_ = store.moments.read_one(site, t)
            assert count_ == len(x)
            np.testing.assert_allclose(sum_xxt, x.T @ x, rtol=0, atol=1e-4 * np.abs(sum_xxt).max())
            np.testing.assert_allclose(sum_x, x.sum(0), rtol=0, atol=1e-4 * np.abs(x).sum(0).max())


@pytest.mark.parametrize("num_steps", [1, 8])
def test_lcm_with_few_steps(tmp_path: Path, num_steps: int) -> None:
    config = build_config(
        {
            "model": str(saved("lcm", tmp_path)),
            "store": str(tmp_path / "run.zarr"),
            "original_knowledge_prompts": PROMPTS[:2],
            "schedule": {"num_denoising_steps": num_steps, "sampler_strategy": "LCM", "timestep_mode": "all_steps"},
        }
    )
    store = execute(config, "schedule", "collect", "covariance")
    assert len(store.schedule()) == num_steps
    query, text = (next(site for site in store.sites if site.feature == feature) for feature in ("q", "k"))
    assert (query.num_tokens, text.num_tokens) == (64, TEXT_TOKENS), "guidance is not doubled"
    assert store.moments.counts(query).tolist() == [2 * 64] * num_steps


@pytest.mark.parametrize("strategy", [None, "DPM++ 2M", "Euler", "LCM"])
def test_a_flow_matching_model_knows_only_its_own_scheduler(strategy: str | None) -> None:
    with pytest.raises(ConfigError, match="the FlowMatchEulerDiscreteScheduler of this model has none") as caught:
        build_scheduler(strategy, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert "set schedule.sampler_strategy to model, the only strategy" in caught.value.hint


class TestLayers:
    def layers(self, name: str, wanted: Any, features: tuple[str, ...] = ("q",)) -> list[str]:
        denoiser = denoiser_of(PIPELINES[name]())
        return list(dict.fromkeys(p.layer for p in find_projections(denoiser, features, wanted)))

    @pytest.mark.parametrize(
        ("wanted", "found"),
        [
            (["down"], SDXL_LAYERS[:2]),
            (["mid"], SDXL_LAYERS[2:4]),
            (["up"], SDXL_LAYERS[4:]),
            (["mid", 0], [SDXL_LAYERS[0], *SDXL_LAYERS[2:4]]),
            (["*transformer_blocks.1.attn2"], SDXL_LAYERS[1::2]),
            (["mid_block*attn1"], [layer.replace("attn2", "attn1") for layer in SDXL_LAYERS[2:4]]),
            (["mid_block*"], SDXL_LAYERS[2:4]),
        ],
        ids=str,
    )
    def test_blocks_patterns_indices_and_self_attention(self, wanted: Any, found: list[str]) -> None:
        assert sorted(self.layers("sdxl", wanted)) == sorted(found)

    def test_all_means_those_that_attend_to_text(self) -> None:
        assert set(self.layers("sd1", "all")) == {name.rpartition(".")[0] for name in sd_sites(2)}
        assert self.layers("sd3", "all") == ["transformer_blocks.0.attn", "transformer_blocks.1.attn"]
        assert self.layers("flux", "all") == ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"]

    def test_a_block_that_a_model_lacks(self) -> None:
        with pytest.raises(ConfigError, match="'down' matches none of the 2 layers"):
            self.layers("sd3", ["down"])

    def test_self_attention_is_recorded_like_any_other(self, tmp_path: Path) -> None:
        config = build_config(
            {
                "model": str(saved("sd1", tmp_path)),
                "store": str(tmp_path / "run.zarr"),
                "original_knowledge_prompts": PROMPTS[:2],
                "schedule": {"num_denoising_steps": 2},
                "collect": {"cross_attention_layers": ["mid_block*attn1"], "tokens_per_prompt": 5},
            }
        )
        store = execute(config, "collect", "covariance")
        # One tensor enters q, k and v of self-attention; its tokens are those of the image, so they are sampled.
        assert {(site.feature, len(site.weights), site.num_tokens) for site in store.sites} == {("q", 3, 5), ("out", 1, 5)}


@pytest.mark.parametrize("name", ["sd1", "sdxl", "pixart", "sd3", "flux"])
def test_fused_projections_are_refused_with_the_call_that_mends_it(name: str) -> None:
    pipe = PIPELINES[name]()
    denoiser = denoiser_of(pipe)
    denoiser.fuse_qkv_projections()
    with pytest.raises(ModelError, match="are fused") as caught:
        find_projections(denoiser, ("q",), "all")
    assert "unfuse_qkv_projections()" in caught.value.hint
    denoiser.unfuse_qkv_projections()
    assert find_projections(denoiser, ("q",), "all")


def test_no_maps_of_words_where_words_and_image_are_looked_at_together() -> None:
    from nullbooth_cli.collect.attention_maps import find_attention

    assert len(find_attention(denoiser_of(PIPELINES["pixart"]()), "all")) == 4
    with pytest.raises(ConfigError, match="attends to image and text at once"):
        find_attention(denoiser_of(PIPELINES["sd3"]()), "all")
