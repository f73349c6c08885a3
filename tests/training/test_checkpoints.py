"""A run that was stopped resumes as if it had not been."""

import contextlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nullbooth_cli import toy
from nullbooth_cli.errors import ConfigError, ResourceError, StoreError
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from nullbooth_cli.training import checkpoint_files, checkpoints, dreambooth, output, setup
from nullbooth_cli.training.record import RunRecord
from tests.support.tiny_dreambooth import CLASS_PROMPTS, EMBEDDING, TEXT_ENCODER, recipe, run


@pytest.mark.parametrize(
    "changes",
    [{}, {"method": "lora"}, {"gradient_accumulation_steps": 2}, {"word": "sks"}],
    ids=["full", "lora", "accumulated", "word"],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, finished: tuple[Config, Store], changes: dict[str, Any]) -> None:
    changes = {"store": str(finished[1].path), "lr_scheduler": "linear", **changes}
    whole = run(recipe(tmp_path / "whole", **changes))
    run(recipe(tmp_path / "stopped", **changes), stop_after=3)
    ready = setup.set_up(recipe(tmp_path / "stopped", **changes), "cpu")
    events = list(dreambooth.train(ready))
    assert events[0].text == "resumes from step 2"
    assert [event.done for event in events[1:]] == [3, 4]
    result = dreambooth.finish(ready)
    assert result is not None
    resumed = result.document()
    ending = "pytorch_lora_weights.safetensors" if "method" in changes else "unet/diffusion_pytorch_model.safetensors"
    one, other = (load_file(Path(document["output"]) / ending) for document in (whole, resumed))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6)
    if "word" in changes:
        one, other = (load_file(Path(document["output"]) / TEXT_ENCODER) for document in (whole, resumed))
        torch.testing.assert_close(other[EMBEDDING], one[EMBEDDING], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "lora", "class_prompts": CLASS_PROMPTS},
        {"word": "sks", "class_prompts": CLASS_PROMPTS, "prior": "distill", "gradient_accumulation_steps": 2},
    ],
    ids=["full", "lora", "word"],
)
def test_without_a_constraint_it_is_the_same_to_the_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = {"lr_scheduler": "cosine", "class_images": 2, **changes}
    results = []
    for name in ("whole", "stopped"):
        if name == "stopped":
            run(recipe(tmp_path / name, **changes), stop_after=3)
        results.append(run(recipe(tmp_path / name, **changes)))
    for file in sorted(Path(results[0]["output"]).rglob("*.safetensors")):
        one, other = load_file(file), load_file(Path(results[1]["output"]) / file.relative_to(results[0]["output"]))
        assert one.keys() == other.keys()
        assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


def test_more_steps_resume_and_other_settings_do_not(tmp_path: Path) -> None:
    run(recipe(tmp_path))
    ready = setup.set_up(recipe(tmp_path, max_train_steps=5), "cpu")
    texts = [getattr(event, "text", None) for event in dreambooth.train(ready)]
    assert texts == ["resumes from step 4", "max_train_steps: 4 -> 5", None]
    with pytest.raises(ConfigError, match=r"made with other settings or inputs\n  learning_rate: 0\.01 -> 0\.02") as caught:
        setup.set_up(recipe(tmp_path, max_train_steps=6, learning_rate=2e-2), "cpu")
    assert "another output" in caught.value.hint
    with pytest.raises(ConfigError, match="has done 5 steps, more than max_train_steps: 4"):
        setup.set_up(recipe(tmp_path), "cpu")


def test_another_learning_rate_by_saying_so(tmp_path: Path) -> None:
    """It is in force from the first step: with hardly any, no weight moves."""
    run(recipe(tmp_path), stop_after=2)
    before = load_file(tmp_path / "checkpoint-000002/model.safetensors")
    ready = setup.set_up(recipe(tmp_path, learning_rate=1e-12), "cpu", changes=("learning_rate",))
    texts = [getattr(event, "text", None) for event in dreambooth.train(ready)]
    assert texts == ["resumes from step 2", "learning_rate: 0.01 -> 1e-12", None, None]
    after = load_file(tmp_path / "checkpoint-000004/model.safetensors")
    assert max(float((after[name] - tensor).abs().max()) for name, tensor in before.items()) < 1e-9
    found = checkpoint_files.find(str(tmp_path))
    assert found is not None
    assert found.record.history == ({"step": 2, "learning_rate": [1e-2, 1e-12]},)
    with pytest.raises(ConfigError, match=r"there is no run in .* that could resume with another learning_rate"):
        setup.set_up(recipe(tmp_path / "new"), "cpu", changes=("learning_rate",))
    with pytest.raises(ConfigError, match="method cannot change"):
        setup.set_up(recipe(tmp_path), "cpu", changes=("method",))


def test_another_model_of_the_same_name(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(toy.FOLDER, model)
    run(recipe(tmp_path / "out", model=str(model)), stop_after=2)
    file = model / TEXT_ENCODER
    tensors = load_file(file)
    save_file({name: tensor + 1e-3 if name == EMBEDDING else tensor for name, tensor in tensors.items()}, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"weights of the model: [0-9a-f]{16} -> [0-9a-f]{16}"):
        setup.set_up(recipe(tmp_path / "out", model=str(model)), "cpu")


def test_another_constraint(tmp_path: Path, finished: tuple[Config, Store], exact: Store) -> None:
    """The same projectors under another name are the same constraint; those of other prompts are not."""
    run(recipe(tmp_path / "out", store=str(finished[1].path)), stop_after=2)
    shutil.copytree(finished[1].path, tmp_path / "moved.zarr")
    assert setup.set_up(recipe(tmp_path / "out", store=str(tmp_path / "moved.zarr")), "cpu").checkpoint is not None
    for other in (None, str(exact.path)):
        with pytest.raises(ConfigError, match=r"projectors: 40 weights, digest [0-9a-f]{16} -> "):
            setup.set_up(recipe(tmp_path / "out", store=other), "cpu")


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second checkpoint meets it, in the middle of its files; then the result does; then there is room again."""
    ready = setup.set_up(recipe(tmp_path), "cpu")
    save_state, full = ready.accelerator.save_state, SafetensorError("I/O error: No space left on device (os error 28)")

    def save(folder: str) -> None:
        save_state(folder)
        if ready.steps_done == 4:
            raise full

    monkeypatch.setattr(ready.accelerator, "save_state", save)
    with pytest.raises(ResourceError, match="No space left on device"):
        list(dreambooth.train(ready))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-000002", "train.jsonl"}
    ready = setup.set_up(recipe(tmp_path), "cpu")
    assert ready.checkpoint is not None
    ready.checkpoint.require_whole()
    list(dreambooth.train(ready))

    def refuse(folder: Path) -> None:
        folder.mkdir()
        raise full

    with monkeypatch.context() as patched:
        patched.setattr(ready.pipe, "save_pretrained", refuse)
        with pytest.raises(ResourceError, match="No space left on device") as caught:
            dreambooth.finish(ready)
    assert "resumes from the last checkpoint" in caught.value.hint
    there = {"checkpoint-000002", "checkpoint-000004", "train.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == there
    document = run(recipe(tmp_path))
    assert document["steps"] == 4
    assert {path.name for path in tmp_path.iterdir()} == {*there, "pipeline", "train.json", "README.md"}


def test_all_of_a_small_model_stay_and_fewer_if_asked_for(tmp_path: Path) -> None:
    run(recipe(tmp_path / "all", checkpointing_steps=1))
    assert checkpoint_files.steps(str(tmp_path / "all")) == [1, 2, 3, 4]
    run(recipe(tmp_path / "two", checkpointing_steps=1, checkpoints_total_limit=2))
    assert checkpoint_files.steps(str(tmp_path / "two")) == [3, 4]


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "validation").write_text("a file in its place")
    with pytest.raises(ResourceError, match=r"cannot write to .*validation"):
        run(recipe(tmp_path, validation_prompts=["a sks circle"]))
    assert (tmp_path / "checkpoint-000002").is_dir()


def test_a_damaged_checkpoint(tmp_path: Path) -> None:
    run(recipe(tmp_path), stop_after=2)
    (tmp_path / "checkpoint-000002/optimizer.bin").write_bytes(b"")
    with pytest.raises(StoreError, match=r"checkpoint-000002/optimizer\.bin is damaged: it has 0 of [0-9,]+ bytes"):
        setup.set_up(recipe(tmp_path), "cpu")


def test_killed_at_any_operation_it_finds_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flush, rename and removal of a save is once the one that does not happen any more."""
    operations = [(os, "fsync"), (Path, "rename"), (Path, "unlink"), (os, "unlink"), (os, "rmdir")]
    real = {(place, name): getattr(place, name) for place, name in operations}
    left = 0

    def stopping(operation: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return operation(*arguments, **options)

        return call

    for place, name in operations:
        monkeypatch.setattr(place, name, stopping(real[place, name]))
    found = []
    for count in range(100):
        folder = tmp_path / str(count)
        left = 1000
        checkpoints.save(fake_run(folder, 2))
        left = count
        with contextlib.suppress(Killed):
            checkpoints.save(fake_run(folder, 4))
        newest = checkpoint_files.find(str(folder))
        assert newest is not None
        newest.require_whole()
        assert (newest.folder / "model.safetensors").read_text() == f"after {newest.step} steps"
        found.append(newest.step)
        if left >= 0:
            break
        left = 1000
        with output.locked(str(folder)):
            checkpoints.save(fake_run(folder, 6))
        assert {path.name for path in folder.iterdir()} == {"checkpoint-000006", "train.lock"}, "what it left is removed"
    assert found == sorted(found)
    assert set(found) == {2, 4}
    assert len(found) > 10


class Killed(BaseException):
    """The process is gone."""


def fake_run(folder: Path, steps_done: int) -> Any:
    """A run as `save` uses it, whose state is two small files."""

    def save_state(place: str) -> None:
        Path(place).mkdir()
        for name in ("model.safetensors", "optimizer.bin"):
            (Path(place) / name).write_text(f"after {steps_done} steps")

    return SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, save_state=save_state),
        denoiser=torch.nn.Module(),
        word=None,
        trained=(),
        subject=SimpleNamespace(captions=["a sks circle"]),
        recipe=recipe(folder, checkpoints_total_limit=1),
        record=RunRecord(decides={}, steps=6),
        steps_done=steps_done,
    )
