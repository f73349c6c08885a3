"""The same model under another name, and another model under the same name."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from nullbooth_cli.cli import app
from nullbooth_cli.errors import StageError
from nullbooth_cli.model import load as load_module
from nullbooth_cli.pipeline.differences import model_renamed
from nullbooth_cli.pipeline.doctor.examination import Examination
from nullbooth_cli.pipeline.doctor.examine import examine
from nullbooth_cli.store import Store
from tests.support.builders import execute, small_config, states_of
from tests.support.model_files import copy_folder, save_single_file, weights_file
from tests.support.stages import TINY, events


class TestIdentity:
    """What makes a model another one, and what does not."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> tuple[Any, Path]:
        folder = copy_folder(tmp_path / "model")
        return small_config(tmp_path / "run.zarr", model=str(folder), **TINY), folder

    def notes(self, config: Any) -> list[str]:
        return [each.text for each in self.events(config) if hasattr(each, "text")]

    def events(self, config: Any) -> list[Any]:
        return events(config, Store.open(config.store, write=True), "collect")

    @pytest.mark.parametrize("limit", [1, None], ids=["begun", "finished"])
    def test_a_moved_folder_is_the_same_model(self, run: Any, tmp_path: Path, limit: int | None) -> None:
        config, folder = run
        execute(config, "collect", limit=limit)
        moved = config.model_copy(update={"model": str(folder.rename(tmp_path / "moved"))})
        assert [str(name) for name in model_renamed(moved, Store.open(config.store))] == [f"model: {folder} -> {moved.model}"]
        assert f"the same model by its weights: model: {folder} -> {moved.model}" in self.notes(moved)
        store = Store.open(config.store)
        assert states_of(moved)["collect"] == "complete"
        assert model_renamed(moved, store) == ()
        assert store.config["model"] == moved.model

    def test_a_single_file_of_the_same_weights_is_the_same_model(self, run: Any, pipe: Any, tmp_path: Path) -> None:
        config, folder = run
        execute(config, "collect")
        file = str(save_single_file(pipe, tmp_path / "one.safetensors"))
        moved = config.model_copy(update={"model": file, "pipeline_config": str(folder)})
        assert f"the same model by its weights: model: {folder} -> {file}" in self.notes(moved)
        assert Store.open(config.store).config == moved.model_dump(exclude={"storage_options"})

    def test_a_known_name_loads_nothing(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        config, _ = run
        execute(config, "collect")
        monkeypatch.setattr(load_module, "load_pipeline", lambda *_, **__: pytest.fail("the model was loaded"))
        assert len(self.notes(config)) == 1

    @pytest.mark.parametrize("limit", [1, None], ids=["begun", "finished"])
    def test_other_weights_under_another_name_are_refused(self, run: Any, tmp_path: Path, limit: int | None) -> None:
        config, folder = run
        execute(config, "collect", limit=limit)
        other = copy_folder(tmp_path / "other")
        tensors = load_file(weights_file(other, "text_encoder"))
        tensors["final_layer_norm.bias" if "final_layer_norm.bias" in tensors else next(iter(tensors))] += 0.01
        save_file(tensors, weights_file(other, "text_encoder"), metadata={"format": "pt"})
        with pytest.raises(StageError, match=r"not the one this collection was started with\n  weights \w+ -> \w+"):
            self.events(config.model_copy(update={"model": str(other)}))
        assert Store.open(config.store).config["model"] == str(folder)

    @pytest.mark.parametrize("limit", [1, None], ids=["begun", "finished"])
    def test_another_noise_schedule_is_refused(self, run: Any, tmp_path: Path, limit: int | None) -> None:
        config, _ = run
        execute(config, "collect", limit=limit)
        other = copy_folder(tmp_path / "other")
        file = other / "scheduler/scheduler_config.json"
        file.write_text(file.read_text().replace("v_prediction", "epsilon"))
        with pytest.raises(StageError, match=r"was made with another scheduler than that of the model") as caught:
            self.events(config.model_copy(update={"model": str(other)}))
        assert caught.value.rerun is not None
        assert (caught.value.rerun.stage, caught.value.rerun.force) == ("schedule", True)

    def test_a_schedule_of_another_model_is_not_collected_along(self, run: Any, tmp_path: Path) -> None:
        config, folder = run
        execute(config, "schedule")
        file = folder / "scheduler/scheduler_config.json"
        file.write_text(file.read_text().replace("v_prediction", "epsilon"))
        with pytest.raises(StageError, match="another scheduler than that of the model"):
            execute(config, "collect")

    def test_doctor_compares_as_well(self, run: Any, tmp_path: Path) -> None:
        config, _ = run
        execute(config, "collect")
        other = copy_folder(tmp_path / "other")
        named = config.model_copy(update={"model": str(other)})
        found = {finding.check: finding for finding in examine(Examination(lambda: (named, "c.yaml", None), "cpu"))}
        assert found["probe"].verdict == "ok"
        tensors = load_file(weights_file(other, "unet"))
        save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, weights_file(other, "unet"))
        found = {finding.check: finding for finding in examine(Examination(lambda: (named, "c.yaml", None), "cpu"))}
        assert found["stale"].verdict == "ok"
        assert found["probe"].verdict == "error"
        assert "is not the one this collection was started with" in found["probe"].text

    def test_status_says_it_and_loads_nothing(self, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config, _ = run
        execute(config, "collect")
        monkeypatch.setattr(load_module, "load_pipeline", lambda *_, **__: pytest.fail("the model was loaded"))
        result = CliRunner().invoke(app, ["status", "-s", config.store, "--set", "model=./gone"])
        assert "-> ./gone, the same model or another: collect compares the weights" in result.stdout
        answer = CliRunner().invoke(app, ["status", "-s", config.store, "--set", "model=./gone", "--json"]).stdout
        assert json.loads(answer)["renamed"] == [{"field": "model", "old": config.model, "new": "./gone"}]
        assert json.loads(answer)["stages"]["collect"]["state"] == "complete"


def test_a_changed_weight_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(tmp_path / "run.zarr", **TINY)
    store = execute(config, "collect", limit=1)
    monkeypatch.setattr("nullbooth_cli.model.load.weights_digest", lambda pipe, **_: "another")
    with pytest.raises(StageError, match=r"weights .* -> another"):
        events(config, store, "collect")
