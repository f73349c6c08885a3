"""The command `nullbooth train`, from a file to a pipeline."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from nullbooth_cli.cli import app
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.tiny_dreambooth import recipe


class TestTheCommand:
    @pytest.fixture
    def file(self, tmp_path: Path) -> str:
        settings = recipe(tmp_path / "out", validation_prompts=["a sks circle on a red background"]).model_dump()
        (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings))
        return str(tmp_path / "train.yaml")

    def train(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["train", "--device", "cpu", *arguments])

    def test_from_a_file_to_a_pipeline(self, file: str, tmp_path: Path) -> None:
        done = self.train("-c", file, "--json", "--set", "tensorboard=true")
        assert done.exit_code == 0, done.stderr
        document = json.loads(done.stdout)
        assert {"schema_version", "output", "steps", "trained", "constrained_by", "largest_drift", "drift"} == set(document)
        assert document["steps"] == 4
        out = tmp_path / "out"
        assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-000004"]
        assert {path.name for path in (out / "validation").iterdir()} == {"000002_0.png", "000004_0.png"}
        with Image.open(out / "validation/000004_0.png") as picture:
            assert picture.size == (32, 32)
        assert list((out / "logs").rglob("events*"))
        assert json.loads((out / "train.json").read_text())["recipe"]["learning_rate"] == 1e-2

    def test_its_messages(self, file: str, finished: tuple[Config, Store]) -> None:
        done = self.train("-c", file, "-s", str(finished[1].path), "--set", "max_train_steps=2", "-v")
        assert done.exit_code == 0, done.stderr
        assert f"recipe {file}, into" in done.stderr
        assert f"trains 20 weights, constrained by {finished[1].path}" in done.stderr
        assert "outputs on the preserved prompts moved by" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("-c", "nowhere.yaml"), "no file at nowhere.yaml"),
            (("-c", "FILE", "--set", "learning_rat=1"), "did you mean 'learning_rate'?"),
            (("-c", "FILE", "--set", "store=nowhere.zarr"), "no store at nowhere.zarr"),
            (("-c", "FILE", "--set", "instance_images=nowhere"), "nowhere"),
        ],
    )
    def test_mistakes(self, file: str, arguments: tuple[str, ...], said: str) -> None:
        done = self.train(*(file if part == "FILE" else part for part in arguments))
        assert done.exit_code in (2, 4)
        assert said in done.stderr
        assert "hint:" in done.stderr
