"""A pipeline without weights has the shapes, the sharing and the schedule of the one with weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nullbooth_cli.collect import find_sites, open_model, without_weights
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError, StageError
from nullbooth_cli.model import load
from nullbooth_cli.model import projections as projections_module
from nullbooth_cli.model import scheduler as scheduler_module
from nullbooth_cli.model.denoise import DenoisingPath, begin_denoising
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.nullspace import moments
from nullbooth_cli.pipeline.plan import plan
from nullbooth_cli.report.inspection import inspect_store
from nullbooth_cli.settings.config import STAGES, Config
from nullbooth_cli.store import Store
from tests.support import tiny
from tests.support.builders import execute, prompts_of, small_config, states_of

SIZES = {"pixart": {"height": 256, "width": 256}}  # the smallest that it knows
FLOW = ("sd3", "flux")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tiny.saved(name, tmp_path_factory.mktemp("models")) for name in tiny.PIPELINES}


def path(name: str, guidance: float = 4.0, **size: int) -> DenoisingPath:
    size = SIZES.get(name, {}) | size
    height, width = size.get("height"), size.get("width")
    return DenoisingPath(num_inference_steps=3, steps=(), guidance_scale=guidance, height=height, width=width, seed=0)


def loaded(folder: Path) -> Any:
    device = torch.device("cpu")
    where = {"revision": None, "variant": None, "local_files_only": True}
    return load.load_pipeline(str(folder), dtype="float32", device=device, **where)


def built(folder: Path) -> Any:
    return without_weights.build_pipeline(str(folder), scheduler_module.model_scheduler(str(folder)))


def config_of(folder: Path, store: Path, **changes: Any) -> Config:
    changes = {"schedule__num_denoising_steps": 3, "schedule__sampler_strategy": "model", "collect__keep": "moments"} | changes
    size = {f"collect__{key}": value for key, value in SIZES.get(folder.name, {}).items()}
    return small_config(store, model=str(folder), original_knowledge_prompts=["a cat", "two dogs on a hill"], **size, **changes)


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_shapes_are_those_that_a_run_of_the_model_shows(folders: dict[str, Path], name: str) -> None:
    pipes = loaded(folders[name]), built(folders[name])
    # Self-attention is asked for where it has a name of its own; joint attention is all there is in SD3 and Flux.
    choices: list[Any] = [("all", ())] if name in FLOW else [("all", ()), (["*attn?"], ()), (["*attn1"], ())]
    looks = [("input", "both", 4.0, None), ("output", "cond", 4.0, 5), ("input", "both", 1.0, None)]
    for layers, linear in (*choices, ("all", ("all",))):
        real, bare = (
            projections_module.find_projections(denoiser_of(pipe), ("q", "k", "v", "out"), layers, linear) for pipe in pipes
        )
        for side, branches, guidance, tokens in looks:
            along = path(name, guidance)
            choice: Any = {"side": side, "branches": branches, "tokens_per_prompt": tokens}
            expected = find_sites.find_sites(pipes[0], along, real, prompts=[Prompt("a cat")], **choice)
            found = without_weights.find_shapes(pipes[1], along, bare, **choice)
            assert found.sites == expected.sites
            assert found.arguments == expected.arguments
            assert [(str(p), site) for p, site in found.site_of.items()] == [
                (str(p), site) for p, site in expected.site_of.items()
            ]


def test_another_size_is_another_number_of_tokens(folders: dict[str, Path]) -> None:
    pipe = built(folders["sd1"])
    projections = projections_module.find_projections(pipe.unet, ("q",), [0])
    tokens = [
        without_weights.find_shapes(pipe, path("sd1", height=height, width=32), projections, side="input", branches="cond")
        .sites[0]
        .num_tokens
        for height in (32, 64)
    ]
    assert tokens == [16 * 16, 32 * 16]


class TestDependence:
    def test_what_is_computed_from_a_tensor_depends_on_it(self) -> None:
        with without_weights.DependenceTracker() as changing:
            start, other = torch.empty(2, 3, device="meta"), torch.empty(2, 3, device="meta")
            changing.mark([start, {"beside": 1}])
            assert changing.is_marked(torch.cat([other, start])[:1].mean())
            assert not changing.is_marked(other @ other.T)

    def test_what_is_written_to_depends_on_what_was_written_however_it_is_seen(self) -> None:
        with without_weights.DependenceTracker() as changing:
            start, target = torch.empty(3, device="meta"), torch.empty(2, 3, device="meta")
            changing.mark(start)
            target[1].copy_(start)
            assert changing.is_marked(target)


@pytest.mark.parametrize("name", FLOW)
@pytest.mark.parametrize("asked", [{"n": 3}, {"n": 5, "height": 32, "width": 48}], ids=["default size", "another size"])
@pytest.mark.parametrize("how", ["shell", "loaded"])
def test_the_schedule_of_a_flow_is_the_one_its_pipeline_walks(
    folders: dict[str, Path], name: str, asked: dict[str, int], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = {key: value for key, value in asked.items() if key != "n"}
    pipe = loaded(folders[name])
    pipe("a cat", num_inference_steps=asked["n"], output_type="latent", guidance_scale=4.0, **size)
    changes = {f"collect__{key}": value for key, value in size.items()}
    config = config_of(folders[name], Path("never"), schedule__num_denoising_steps=asked["n"], **changes)
    if how == "loaded":
        monkeypatch.setattr(without_weights, "TEXT_SHAPES", {})
    _, steps = open_model.compute_steps(config, 1, "cpu")
    assert [step.timestep for step in steps] == pipe.scheduler.timesteps.tolist()
    assert [step.sigma for step in steps] == pipe.scheduler.sigmas[:-1].tolist()


@pytest.fixture(scope="module")
def flux_run(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Store]:
    config = config_of(folders["flux"], tmp_path_factory.mktemp("flux") / "run.zarr")
    return config, execute(config, "schedule", "collect", "covariance", "project")


@pytest.mark.parametrize("name", [name for name in tiny.PIPELINES if name != "flux"])
def test_what_is_planned_is_what_is_collected(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    config = config_of(folders[name], tmp_path / "run.zarr", schedule__num_denoising_steps=2)
    planned = {p.stage: p for p in plan(STAGES, config, prompts_of(config), None, device="cpu")}
    store = execute(config, *STAGES)
    assert set(states_of(config).values()) == {"complete"}
    for stage, folder in (("covariance", "moments"), ("project", "projectors")):
        # Metadata, checksums and counts come on top.
        assert 0 <= store.nbytes(folder) - planned[stage].bytes_needed < 0.35 * planned[stage].bytes_needed + 60_000


def test_flux_runs_through(flux_run: tuple[Config, Store]) -> None:
    report = inspect_store(*flux_run)
    assert report.totals.weights == 11
    # The two streams of the double block keep q, k and v apart, the single block has one for both.
    weights = [{weight.split(".")[-2] for weight in site.weights} for site in report.sites]
    assert weights.count({"to_q", "to_k", "to_v"}) == 2
    assert {"add_q_proj", "add_k_proj", "add_v_proj"} in weights


def test_another_size_makes_the_schedule_of_a_flow_stale_and_collect_refuses_it(flux_run: tuple[Config, Store]) -> None:
    config, _ = flux_run
    other = config.model_copy(update={"collect": config.collect.model_copy(update={"height": 32, "width": 32})})
    assert set(states_of(other).values()) == {"stale"}
    with pytest.raises(StageError, match=r"schedule in .* is stale\n  collect\.height: None -> 32"):
        execute(other, "collect")
    assert set(states_of(config).values()) == {"complete"}


def test_a_plan_reads_no_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    bare = tmp_path / "sdxl"
    shutil.copytree(folders["sdxl"], bare, ignore=shutil.ignore_patterns("*.safetensors"))
    config = config_of(bare, tmp_path / "run.zarr")
    planned = plan(("collect",), config, prompts_of(config), None, device="cpu")[0]
    pipe = loaded(folders["sdxl"])
    projections = projections_module.find_projections(pipe.unet, ("q", "k", "v", "out"), "all")
    found = find_sites.find_sites(pipe, path("sdxl"), projections, side="input", branches="both", prompts=[Prompt("a cat")])
    assert planned.bytes_needed == 2 * moments.sums_nbytes(found.sites, 3)
    # On the CPU torch counts what attention does only where it is written out as products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        begin_denoising(pipe, path("sdxl"), Prompt("a cat"), num_forwards=1)
    one_forward = sum(counter.get_flop_counts()["UNet2DConditionModel"].values())
    assert planned.operations == 2 * 3 * one_forward  # two prompts, three steps


def test_a_model_whose_config_does_not_say_is_loaded_and_that_is_said(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(folders["sd3"], tmp_path / "run.zarr")
    said: list[str] = []
    expected = plan(("collect",), config, prompts_of(config), None, device="cpu", on_note=said.append)
    assert not said
    monkeypatch.delitem(without_weights.TEXT_SHAPES, "StableDiffusion3Pipeline")
    found = plan(("collect",), config, prompts_of(config), None, device="cpu", on_note=said.append)
    assert [p.bytes_needed for p in found] == [p.bytes_needed for p in expected]
    assert found[0].operations is None
    assert said == [f"the shapes of {config.model} cannot be found without its weights: loading it"]
    with pytest.raises(ConfigError, match="the shapes of StableDiffusion3Pipeline cannot be found without its weights"):
        built(folders["sd3"])


def test_configs_that_cannot_be_read_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in ("model_index.json", "unet/config.json", "vae/config.json", "tokenizer/tokenizer_config.json"):
        target = tmp_path / file
        target.parent.mkdir(exist_ok=True)
        target.write_text((folders["sd1"] / file).read_text())
    scheduler = scheduler_module.model_scheduler(str(folders["sd1"]))
    without_weights.build_pipeline(str(tmp_path), scheduler)
    (tmp_path / "tokenizer/tokenizer_config.json").write_text(json.dumps({}))
    with pytest.raises(ConfigError, match=r"cannot read the configs in .*: 'model_max_length'"):
        without_weights.build_pipeline(str(tmp_path), scheduler)
    (tmp_path / "unet/config.json").unlink()
    with pytest.raises(ConfigError, match="cannot read the configs in"):
        without_weights.build_pipeline(str(tmp_path), scheduler)


def test_a_size_that_the_pipeline_refuses_is_an_error_in_the_config(folders: dict[str, Path]) -> None:
    pipe = built(folders["sd1"])
    with pytest.raises(ConfigError, match=r"StableDiffusionPipeline refuses this: `height` and `width`.* 33") as caught:
        without_weights.count_operations(pipe, path("sd1", height=33, width=32))
    assert "collect.height" in caught.value.hint


def test_guidance_is_twice_the_work(folders: dict[str, Path]) -> None:
    pipe = built(folders["sd1"])
    assert (
        without_weights.count_operations(pipe, path("sd1", 4.0))
        == 2 * without_weights.count_operations(pipe, path("sd1", 1.0))
        > 0
    )
