"""One process writes an output, and a finished run is not trained again."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nullbooth_cli import toy
from nullbooth_cli.errors import ConfigError, ResourceError, StoreError
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.training import checkpoint_files, durable, output
from nullbooth_cli.training.record import OtherSettings
from tests.support.tiny_dreambooth import recipe, run, weights


def remove_checkpoints(made: Recipe) -> None:
    for step in checkpoint_files.steps(made.output):
        shutil.rmtree(checkpoint_files.folder_of(made.output, step))


class TestLock:
    def test_a_second_run_is_refused(self, tmp_path: Path) -> None:
        with (
            output.locked(str(tmp_path / "out")),
            pytest.raises(StoreError, match=f"in use by process {os.getpid()}"),
            output.locked(str(tmp_path / "out")),
        ):
            pytest.fail("two writers")
        with output.locked(str(tmp_path / "out")):
            pass

    @pytest.mark.parametrize("way", ["link", "relative", "dots"])
    def test_it_is_one_output_by_any_path(self, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "link").symlink_to("out")
        monkeypatch.chdir(tmp_path)
        other = {"link": str(tmp_path / "link"), "relative": "out", "dots": "link/../out"}[way]
        with output.locked(str(tmp_path / "out")), pytest.raises(StoreError, match="in use"), output.locked(other):
            pytest.fail("two writers")

    def test_other_processes_of_a_launch_hold_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with output.locked(str(tmp_path / "out")):
            monkeypatch.setenv("RANK", "1")
            assert not output.is_first_process()
            with output.locked(str(tmp_path / "out")):
                pass

    def test_unfinished_checkpoints_are_removed_and_nothing_else(self, tmp_path: Path) -> None:
        for name in ("checkpoint-000004.partial", "checkpoint-best", "checkpoint-000002"):
            (tmp_path / "out" / name).mkdir(parents=True)
            (tmp_path / "out" / name / "file").write_text("")
        with output.locked(str(tmp_path / "out")):
            assert {path.name for path in (tmp_path / "out").iterdir()} == {"checkpoint-best", "checkpoint-000002", "train.lock"}

    def test_a_place_that_cannot_be_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises((ResourceError, StoreError)), output.locked(str(tmp_path / "file/out")):
            pytest.fail("it is no folder")

    def test_a_url(self) -> None:
        with pytest.raises(ConfigError, match="output is s3://bucket/out"), output.locked("s3://bucket/out"):
            pytest.fail("it is no folder")


class TestFinished:
    @pytest.fixture
    def made(self, tmp_path: Path, free_run: dict[str, Any]) -> Recipe:
        shutil.copytree(Path(free_run["output"]).parent, tmp_path / "out")
        return recipe(tmp_path / "out")

    def test_nothing_is_there(self, tmp_path: Path) -> None:
        assert output.finished(recipe(tmp_path)) is None

    def test_its_result(self, made: Recipe, free_run: dict[str, Any]) -> None:
        """In the place where it is now: the folder was moved."""
        result = output.finished(made)
        assert result is not None
        assert result.document() == {**free_run, "output": f"{made.output}/pipeline"}

    def test_another_model_is_compared_by_its_weights(self, made: Recipe, tmp_path: Path) -> None:
        """It was called complete, whatever the model was."""
        shutil.copytree(toy.FOLDER, tmp_path / "model", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        moved = made.model_copy(update={"model": str(tmp_path / "model")})
        assert output.finished(moved) is None
        before = weights(tmp_path / "out/pipeline")
        assert run(moved)["steps"] == 4
        assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path / "out/pipeline").items())
        file = tmp_path / "model/unet/diffusion_pytorch_model.safetensors"
        save_file({name: tensor + 1 if name == "conv_out.bias" else tensor for name, tensor in load_file(file).items()}, file)
        with pytest.raises(OtherSettings, match="weights of the model"):
            run(made.model_copy(update={"model": str(tmp_path / "model/") + "/"}))
        remove_checkpoints(made)
        with pytest.raises(OtherSettings, match="model: "):
            output.finished(made.model_copy(update={"model": "another/model"}))

    def test_fewer_steps(self, made: Recipe) -> None:
        with pytest.raises(ConfigError, match="has done 4 steps, more than max_train_steps: 3") as caught:
            output.finished(made.model_copy(update={"max_train_steps": 3}))
        assert caught.value.hint == "set max_train_steps to 4 or more, or set another output"

    def test_more_steps(self, made: Recipe) -> None:
        more = made.model_copy(update={"max_train_steps": 5})
        assert output.finished(more) is None
        remove_checkpoints(made)
        with pytest.raises(ConfigError, match="has done 4 steps, and has no checkpoint to resume from"):
            output.finished(more)
        assert output.finished(made) is not None
        with pytest.raises(ConfigError, match="has done 4 steps, more than max_train_steps: 3"):
            output.finished(made.model_copy(update={"max_train_steps": 3}))

    def test_other_settings(self, made: Recipe) -> None:
        with pytest.raises(OtherSettings, match=r"learning_rate: 0\.01 -> 0\.02"):
            output.finished(made.model_copy(update={"learning_rate": 2e-2}))

    def test_the_weights_are_gone(self, made: Recipe) -> None:
        shutil.rmtree(f"{made.output}/pipeline")
        assert output.finished(made) is None

    def test_one_of_another_version(self, made: Recipe) -> None:
        path = Path(made.output, "train.json")
        written = json.loads(path.read_text())
        del written["checksum"]
        path.write_text(durable.record_text({**written, "schema_version": 1}))
        with pytest.raises(StoreError, match=r"train\.json was made by another version of nullbooth") as caught:
            output.finished(made)
        assert "it is written again from the last checkpoint" in caught.value.hint

    def test_a_changed_result(self, made: Recipe) -> None:
        path = Path(made.output, "train.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "steps": 400}))
        with pytest.raises(StoreError, match=r"train\.json is damaged: its checksum is wrong") as caught:
            output.finished(made)
        assert "it is written again from the last checkpoint" in caught.value.hint
