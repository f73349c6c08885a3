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
from tests.support.tiny_dreambooth import CLASS_PROMPTS, DISTILLED, EMBEDDING, TEXT_ENCODER, recipe, run, weights

PRODIGY = {"optimizer": "prodigy", "learning_rate": 1.0, "word_learning_rate": 1.0}


@pytest.mark.parametrize(
    ("changes", "is_constrained"),
    [
        ({}, True),
        ({"method": "lora", "class_prompts": CLASS_PROMPTS, "ema_decay": 0.9}, False),
        ({"word": "sks", "class_prompts": CLASS_PROMPTS, **DISTILLED, "gradient_accumulation_steps": 2}, False),
        ({"word": "sks", "ema_decay": 0.9}, True),
        ({"method": "lora", "word": "sks", **PRODIGY}, True),
        ({"method": "lora", "optimizer": "adamw8bit"}, True),
        ({"dtype": "bfloat16", "mixed_precision": "bf16"}, True),
    ],
    ids=["full", "lora, averaged", "word", "word, averaged", "prodigy", "8bit", "bfloat16"],
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    tmp_path: Path, finished: tuple[Config, Store], changes: dict[str, Any], is_constrained: bool
) -> None:
    if changes.get("optimizer") == "adamw8bit":
        pytest.importorskip("bitsandbytes", reason="diffusers then imports it in every command: not among [dev]")
    store = str(finished[1].path) if is_constrained else None
    changes = {"lr_scheduler": "cosine", "class_images": 2, "store": store, **changes}
    whole = run(recipe(tmp_path / "whole", **changes))
    run(recipe(tmp_path / "stopped", **changes), stop_after=3)
    ready = setup.set_up(recipe(tmp_path / "stopped", **changes), "cpu")
    events = list(dreambooth.train(ready))
    assert events[0].text == "resumes from step 2"
    assert [event.done for event in events[1:]] == [3, 4]
    result = dreambooth.finish(ready)
    assert result is not None
    for place in ("checkpoint-000004", Path(whole["output"]).name):
        files = sorted((tmp_path / "whole" / place).rglob("*.safetensors"))
        assert files
        for file in files:
            one, other = load_file(file), load_file(tmp_path / "stopped" / file.relative_to(tmp_path / "whole"))
            assert one.keys() == other.keys()
            assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_checkpoint_has_only_what_trains(tmp_path: Path, method: str) -> None:
    run(recipe(tmp_path, method=method, word="sks", ema_decay=0.5), stop_after=2)
    folder = tmp_path / "checkpoint-000002"
    ready = setup.set_up(recipe(tmp_path, method=method, word="sks", ema_decay=0.5), "cpu")
    expected = {f"denoiser.{name}" for name in ready.trained} | {"word.rows.clip_l"}
    assert set(load_file(folder / "parameters.safetensors")) == set(load_file(folder / "averages.safetensors")) == expected
    assert {path.name for path in folder.glob("*.safetensors")} == {"parameters.safetensors", "averages.safetensors"}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_averages_are_what_a_run_leaves(tmp_path: Path, method: str) -> None:
    """The result, the trained files and the validation pictures; training itself continues from the last values."""
    plain, averaged = (
        run(recipe(tmp_path / name, method=method, word="sks", ema_decay=decay, validation_prompts=["a sks circle"]))
        for name, decay in (("plain", None), ("averaged", 0.9))
    )
    file = "checkpoint-000004/parameters.safetensors"
    last, same = (load_file(tmp_path / name / file) for name in ("plain", "averaged"))
    assert all(torch.equal(same[name], tensor) for name, tensor in last.items())
    average = load_file(tmp_path / "averaged/checkpoint-000004/averages.safetensors")
    (trained,) = load_file(tmp_path / "averaged/checkpoint-000004/trained/learned_embeds.safetensors").values()
    assert torch.equal(trained[0], average["word.rows.clip_l"])
    assert not torch.equal(trained[0], last["word.rows.clip_l"])
    pictures = [(tmp_path / name / "validation/000004_0.png").read_bytes() for name in ("plain", "averaged")]
    assert pictures[0] != pictures[1]
    if method == "full":
        written = load_file(tmp_path / "averaged/checkpoint-000004/trained/denoiser.safetensors")
        result = weights(averaged["output"])
        for name, tensor in written.items():
            assert torch.equal(tensor, average[f"denoiser.{name}"])
            assert torch.equal(tensor, result[name])
        assert not torch.equal(result[name], weights(plain["output"])[name])
    else:
        one, other = (load_file(Path(each["output"]) / "pytorch_lora_weights.safetensors") for each in (plain, averaged))
        assert not any(torch.equal(other[name], tensor) for name, tensor in one.items() if "lora_B" in name)
        assert sorted(map(float, (tensor.norm() for tensor in other.values()))) == pytest.approx(
            sorted(float(tensor.norm()) for name, tensor in average.items() if name != "word.rows.clip_l"), rel=1e-5
        )


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
    before = load_file(tmp_path / "checkpoint-000002/parameters.safetensors")
    ready = setup.set_up(recipe(tmp_path, learning_rate=1e-12), "cpu", changes=("learning_rate",))
    texts = [getattr(event, "text", None) for event in dreambooth.train(ready)]
    assert texts == ["resumes from step 2", "learning_rate: 0.01 -> 1e-12", None, None]
    after = load_file(tmp_path / "checkpoint-000004/parameters.safetensors")
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
        accelerator=SimpleNamespace(
            is_main_process=True,
            wait_for_everyone=lambda: None,
            save_state=save_state,
            register_save_state_pre_hook=lambda _: SimpleNamespace(remove=lambda: None),
        ),
        averages=None,
        denoiser=torch.nn.Module(),
        word=None,
        trained=(),
        subject=SimpleNamespace(captions=["a sks circle"]),
        earlier=None,
        recipe=recipe(folder, checkpoints_total_limit=1),
        record=RunRecord(decides={}, steps=6),
        steps_done=steps_done,
    )
