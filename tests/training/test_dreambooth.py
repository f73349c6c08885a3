"""nullbooth train: what trains and what stays, under a constraint and without, and the files that it writes."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from nullbooth_cli import toy
from nullbooth_cli.datatypes import split_weight
from nullbooth_cli.errors import DataError
from nullbooth_cli.progress import Interrupts, Note, Progress
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.schema import load_settings
from nullbooth_cli.store import Store
from nullbooth_cli.training import checkpoint_files, dreambooth, setup
from nullbooth_cli.training.record import OtherSettings
from tests.support.builders import ROOT, execute, small_config
from tests.support.cli import start_nullbooth
from tests.support.phone_pictures import write_phone_pictures
from tests.support.tiny import saved
from tests.support.tiny_dreambooth import CLASS_PROMPTS, DISTILLED, EMBEDDING, TEXT_ENCODER, changed, recipe, run, weights


@pytest.mark.parametrize("features", [["k", "v"], ["q", "out"]])
def test_only_the_named_projections_train(tmp_path: Path, features: list[str]) -> None:
    document = run(recipe(tmp_path, features=features))
    names = changed(document["output"])
    assert len(names) == document["trained"] == 10 * len(features)
    assert {(layer.rpartition(".")[2], feature) for layer, feature in map(split_weight, names)} == {
        ("attn2", feature) for feature in features
    }
    assert document["drift"] is None


def test_a_store_limits_the_drift(
    free_run: dict[str, Any], constrained_run: dict[str, Any], finished: tuple[Config, Store]
) -> None:
    """The same recipe, with a store and without: its outputs on the collected inputs move far less. Compared in plain numpy."""
    assert constrained_run["largest_drift"] == max(constrained_run["drift"].values())
    store = finished[1]
    [site] = [site for site in store.sites if site.feature == "k"]
    moment = sum(store.moments.read_one(site, t)[0] for t in range(site.num_recorded(4)))
    before, drifts = weights(toy.FOLDER), {}
    for name, document in (("free", free_run), ("constrained", constrained_run)):
        after = weights(document["output"])
        drifts[name] = {}
        for weight in site.weights:
            w0 = before[weight].double().numpy()
            change = after[weight].double().numpy() - w0
            assert np.abs(change).max() > 1e-4
            drifts[name][weight] = np.sqrt(np.trace(change @ moment @ change.T) / np.trace(w0 @ moment @ w0.T))
    for weight in site.weights:
        np.testing.assert_allclose(drifts["constrained"][weight], constrained_run["drift"][weight], rtol=1e-2)
        assert drifts["constrained"][weight] < 0.6 * drifts["free"][weight]


def test_the_result_is_an_ordinary_pipeline(constrained_run: dict[str, Any]) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(constrained_run["output"], dtype=torch.float32)
    assert not any("parametrizations" in name for name in pipe.unet.state_dict())
    assert set(weights(constrained_run["output"])) == set(weights(toy.FOLDER))


@pytest.mark.parametrize("with_store", [False, True], ids=["free", "constrained"])
def test_a_lora_is_an_ordinary_lora(tmp_path: Path, finished: tuple[Config, Store], with_store: bool) -> None:
    store = str(finished[1].path) if with_store else None
    document = run(recipe(tmp_path, method="lora", rank=2, store=store))
    [file] = Path(document["output"]).glob("*.safetensors")
    tensors = load_file(file)
    assert len(tensors) == 2 * 20
    assert {min(tensor.shape) for tensor in tensors.values()} == {2}
    pipe = StableDiffusionPipeline.from_pretrained(toy.FOLDER, dtype=torch.float32)
    before = pipe.unet(torch.ones(1, 8, 8, 8), 500, torch.ones(1, 16, 96)).sample
    pipe.load_lora_weights(document["output"])
    after = pipe.unet(torch.ones(1, 8, 8, 8), 500, torch.ones(1, 16, 96)).sample
    assert not torch.equal(before, after)
    assert (document["largest_drift"] is not None) == with_store


def test_two_processes_train_together(tmp_path: Path, finished: tuple[Config, Store]) -> None:
    """Every step is a checkpoint: one process must not remove files that the other is writing. Pictures are in two buckets."""
    made = recipe(tmp_path / "out", store=str(finished[1].path), word="sks", max_train_steps=6, checkpointing_steps=1)
    made = made.model_copy(update={"checkpoints_total_limit": 1})
    made = made.model_copy(update={"class_prompts": CLASS_PROMPTS, "class_images": 2, **DISTILLED})
    write_phone_pictures(tmp_path / "phone")
    pictures = {"instance_images": str(tmp_path / "phone"), "instance_prompt": "a sks circle", "resize": "buckets"}
    made = made.model_copy(update={**pictures, "gradient_accumulation_steps": 2})
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(made.model_dump()))
    command = "torch.distributed.run --standalone --nproc_per_node 2 -m nullbooth_cli train --device cpu --json -c"
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), str(tmp_path / "train.yaml")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not any(words in done.stderr for words in ("Writing model shards", "kept in float32")), "diffusers is silent"
    document = json.loads(done.stdout)
    assert document["steps"] == 6
    assert len(document["drift"]) == 20
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-000006"]
    assert len(list((tmp_path / "out/checkpoint-000006").glob("random_states_*.pkl"))) == 2
    before, after = (load_file(folder / TEXT_ENCODER)[EMBEDDING] for folder in (toy.FOLDER, Path(document["output"])))
    assert (before.float() != after.float()).any(1).sum() == 1


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_the_recipe_for_stable_diffusion_runs_on_its_architecture(tmp_path: Path, name: str) -> None:
    """configs/train/sd15.yaml as it is, on pipelines of the same classes that fit here; fp16 needs a GPU, bf16 does not."""
    folder = saved(name, tmp_path)
    config = small_config(
        tmp_path / "run.zarr",
        model=str(folder),
        collect__cross_attention_layers="all",
        collect__collect_features={"q_features": False, "out_features": False},
    )
    execute(config, "schedule", "collect", "covariance", "project")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(3):
        Image.new("RGB", (16, 16), (80 * i, 20, 200)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text("not used")
    made = load_settings(Recipe, ROOT / "configs/train/sd15.yaml").model_copy(
        update={
            "model": str(folder),
            "store": config.store,
            "output": str(tmp_path / "out"),
            "instance_images": str(pictures),
            "instance_prompt": "a photo of x dog",  # this tokenizer knows letters only
            "word": "x",
            "mixed_precision": "bf16",
            "max_train_steps": 2,
            "validation_inference_steps": 2,
        }
    )
    document = run(made)
    assert document["trained"] == 2 * len({weight.rpartition(".to_")[0] for weight in document["drift"]})
    assert (tmp_path / "out/validation/000002_1.png").exists()
    pipe = StableDiffusionPipeline.from_pretrained(document["output"], dtype=torch.float32)
    before = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    moved = {name for name, tensor in pipe.unet.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(document["drift"])


def test_it_changes_what_is_learned(tmp_path: Path, free_run: dict[str, Any]) -> None:
    document = run(recipe(tmp_path, class_prompts=CLASS_PROMPTS, class_images=2))
    one, other = weights(free_run["output"]), weights(document["output"])
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_loss_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dreambooth, "denoising_errors", lambda *_, **__: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(DataError, match="the loss is nan at step 1") as caught:
        run(recipe(tmp_path))
    assert "learning_rate" in caught.value.hint


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the step that broke them is finite, and the last step has no other after it."""

    def loss(denoiser: torch.nn.Module, *_: Any, **__: Any) -> torch.Tensor:
        total = torch.stack([parameter.sum() for parameter in denoiser.parameters() if parameter.requires_grad]).sum()
        return (0 * total).sqrt()  # 0, with the gradient 0 / 0

    monkeypatch.setattr(dreambooth, "denoising_errors", loss)
    with pytest.raises(DataError, match=r"attn2.to_k.weight is not finite after step 1"):
        run(recipe(tmp_path, max_train_steps=1))
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_an_interrupt_finishes_the_step_and_loses_nothing(tmp_path: Path) -> None:
    """A checkpoint of that step, without pictures; the run that resumes it is the uninterrupted one to the bit."""
    made = recipe(tmp_path / "stopped", checkpointing_steps=100, validation_prompts=["a sks circle"])
    interrupts, events = Interrupts(), []
    stopped = dreambooth.train(setup.set_up(made, "cpu"), interrupts)
    events.append(next(stopped))
    assert interrupts.unwritten
    interrupts.requested = True  # in the middle of the next step
    events.append(next(stopped))
    with pytest.raises(KeyboardInterrupt):
        next(stopped)
    assert not interrupts.unwritten
    assert [event.done for event in events] == [1, 2]
    assert {path.name for path in (tmp_path / "stopped").iterdir()} == {"checkpoint-000002", "train.jsonl"}
    one, other = (weights(run(recipe(tmp_path / name))["output"]) for name in ("whole", "stopped"))
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


def test_an_interrupt_after_the_last_step_stops_before_the_result(tmp_path: Path) -> None:
    interrupts = Interrupts()
    training = dreambooth.train(setup.set_up(recipe(tmp_path), "cpu"), interrupts)
    for event in training:
        if event.done == 4:
            break
    interrupts.requested = True
    with pytest.raises(KeyboardInterrupt):
        next(training)
    assert (tmp_path / "checkpoint-000004").is_dir()


def test_pictures_can_be_left_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one process alone draws them, everything is on disk."""
    interrupts, seen = Interrupts(), []
    monkeypatch.setattr(dreambooth.checkpoints, "draw_validation", lambda _: seen.append(interrupts.unwritten))
    list(dreambooth.train(setup.set_up(recipe(tmp_path), "cpu"), interrupts))
    assert seen == [False, False]


def test_all_processes_stop_at_the_same_step(tmp_path: Path) -> None:
    """The signal reaches one of two processes; the other learns of it."""
    made = recipe(tmp_path / "out", max_train_steps=100_000, checkpointing_steps=100_000)
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(made.model_dump()))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    environment = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    command = ("train", "--device", "cpu", "-c", str(tmp_path / "train.yaml"))
    with (
        start_nullbooth(*command, env={**os.environ, **environment, **ranks[0]}, stderr=subprocess.PIPE, cwd=ROOT) as first,
        start_nullbooth(*command, env={**os.environ, **environment, **ranks[1]}, stderr=subprocess.PIPE, cwd=ROOT) as second,
    ):
        assert first.stderr is not None
        while not (line := first.stderr.readline()).startswith("train "):
            assert first.poll() is None, line
        second.send_signal(signal.SIGTERM)
        assert second.wait(60) == 143
        assert first.wait(60) == 130
    found = checkpoint_files.find(str(tmp_path / "out"))
    assert found is not None
    found.require_whole()
    assert {"random_states_0.pkl", "random_states_1.pkl"} <= set(found.files)
    assert 0 < found.step < 100_000
    with pytest.raises(OtherSettings, match="processes: 2 -> 1"):
        setup.set_up(made, "cpu")


def test_weights_in_captions_are_reported_once(tmp_path: Path) -> None:
    ready = setup.set_up(recipe(tmp_path / "out", instance_prompt="a (sks:1.3) circle"), "cpu")
    steps = dreambooth.train(ready)
    assert next(steps) == Note(
        "warning: 1 prompt has syntax for weights, which diffusers does not read: it takes '(sks:1.3)' as text, such as in "
        "'a (sks:1.3) circle'"
    )
    assert isinstance(next(steps), Progress)
