"""The configs of real models: they load, they are right about the model, and what stands at their top is what a dry run says."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nullbooth_cli.cli import app
from nullbooth_cli.formatting import operations, size
from nullbooth_cli.model.scheduler import is_flow_matching
from nullbooth_cli.settings.config import load_config
from tests.support.builders import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import architectures

# Parameters of the denoiser in millions, as published; LCM is Stable Diffusion 1.5 with a projection of 256 x 320.
PUBLISHED = {
    "sd14": 859.5,
    "sd15": 859.5,
    "sd21": 865.9,
    "sdxl": 2567,
    "lcm": 859.6,
    "pixart": 610,
    "sd3": 2240,
    "flux": 11900,
}


def nullbooth(*arguments: str) -> Any:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    return result


def test_every_architecture_has_a_config_and_every_config_a_header() -> None:
    written = {path.stem for path in (ROOT / "configs").glob("*.yaml")} - {"nullbooth"}
    kept = {path.name for path in (ROOT / "tests/architectures").iterdir() if path.is_dir()}
    assert written == kept == set(architectures.NAMES) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_is_valid_and_names_the_model_whose_shapes_are_kept(name: str) -> None:
    config = load_config(ROOT / f"configs/{name}.yaml")
    assert f"| {name} | {config.model} |" in (ROOT / "tests/architectures/README.md").read_text()
    assert config.store == f"runs/{name}.zarr"
    assert config.original_knowledge_prompts == "nullbooth:knowledge_1000.txt"
    assert config.collect.keep == "moments"  # what is stored does not grow with the prompts


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_the_published_number_of_parameters(name: str) -> None:
    assert architectures.num_parameters(name) / 1e6 == pytest.approx(PUBLISHED[name], rel=2e-3)


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_the_top_of_a_config_is_what_a_dry_run_says(name: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(f"picture {number}" for number in range(1000)))
    config = ROOT / f"configs/{name}.yaml"
    settings = (
        f"model={ROOT / 'tests/architectures' / name}",
        f"original_knowledge_prompts={tmp_path / 'prompts.txt'}",
        f"store={tmp_path / 'run.zarr'}",
    )
    arguments = ("run", "-c", str(config), *(part for setting in settings for part in ("--set", setting)), "--dry-run")
    stages = json.loads(nullbooth(*arguments, "--json").stdout)["stages"]
    top = config.read_text().split("\n\n")[0]
    for stage in ("collect", "covariance", "project"):
        assert f"{stage} {size(stages[stage]['bytes_needed'])}" in top
    assert f"{operations(stages['collect']['operations'])} of the denoiser" in top
    assert not (tmp_path / "run.zarr").exists()


def test_flow_matching_models_are_the_ones_whose_schedule_is_the_pipelines() -> None:
    looked = {name: architectures.looked(name) for name in ("sd15", "flux")}
    assert {name: is_flow_matching(shapes.pipe.scheduler) for name, (_, _, shapes, _) in looked.items()} == {
        "sd15": False,
        "flux": True,
    }
    # Flux shifts its sigmas by the number of image tokens: mu is 1.15 at 4096 (1024 x 1024 pixels), and sigma_1 of 8 is 7/8.
    steps = looked["flux"][1]
    assert steps[1].sigma == pytest.approx(2.718281828**1.15 / (2.718281828**1.15 + 1 / (7 / 8) - 1), rel=1e-5)
