"""nullbooth train: what is trained, what stays, what holds it, and that a run that was stopped goes on as if it had not been."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import Result
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from nullbooth_cli import toy
from nullbooth_cli.cli import app
from nullbooth_cli.datatypes import FEATURES
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings import captions
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.schema import load_settings
from nullbooth_cli.store import Store
from nullbooth_cli.training import dreambooth, setup
from tests.support.builders import ROOT, execute, small_config
from tests.support.tiny import saved

INSTANCES = ROOT / "dataset/instances/toy"
TEXT_ENCODER, EMBEDDING = "text_encoder/model.safetensors", "embeddings.token_embedding.weight"


def recipe(output: Path, **changes: Any) -> Recipe:
    """Four steps of two pictures, a checkpoint after the second and the last."""
    settings = {
        "output": str(output),
        "instance_images": str(INSTANCES),
        "max_train_steps": 4,
        "checkpointing_steps": 2,
        "train_batch_size": 2,
        "validation_inference_steps": 2,
        "learning_rate": 1e-2,
    }
    return Recipe(**{**settings, **changes})


def run(made: Recipe, stop_after: int | None = None) -> dict[str, Any]:
    ready = setup.set_up(made, "cpu")
    for done, _ in enumerate(dreambooth.train(ready), start=1):
        if done == stop_after:
            return {}
    return dreambooth.finish(ready)


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "unet/diffusion_pytorch_model.safetensors")


def changed(folder: Path | str) -> set[str]:
    """The parameters of a saved U-Net that are not those of the embedded model; the saved one is float32."""
    before = weights(toy.FOLDER)
    return {name for name, tensor in weights(folder).items() if not torch.equal(tensor, before[name].float())}


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(recipe(tmp_path_factory.mktemp("free")))


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory, finished: tuple[Config, Store]) -> dict[str, Any]:
    return run(recipe(tmp_path_factory.mktemp("held"), store=str(finished[1].path)))


@pytest.mark.parametrize("features", [["k", "v"], ["q", "out"]])
def test_what_is_named_is_trained_and_nothing_else(tmp_path: Path, features: list[str]) -> None:
    document = run(recipe(tmp_path, features=features))
    names = changed(document["output"])
    projections = {feature: f".attn2.{projection}.weight" for projection, feature in FEATURES.items()}
    assert len(names) == document["trained"] == 10 * len(features)
    assert all(name.endswith(tuple(projections[feature] for feature in features)) for name in names)
    assert document["drift"] is None


def test_a_store_holds_what_it_protects(free: dict[str, Any], held: dict[str, Any], finished: tuple[Config, Store]) -> None:
    """The same recipe, with a store and without: on what was collected the outputs move far less. Compared in plain numpy."""
    assert held["largest_drift"] == max(held["drift"].values())
    store = finished[1]
    [site] = [site for site in store.sites if site.feature == "k"]
    moment = sum(store.moments.read_one(site, t)[0] for t in range(site.num_recorded(4)))
    before, drifts = weights(toy.FOLDER), {}
    for name, document in (("free", free), ("held", held)):
        after = weights(document["output"])
        drifts[name] = {}
        for weight in site.weights:
            w0 = before[weight].double().numpy()
            change = after[weight].double().numpy() - w0
            assert np.abs(change).max() > 1e-4
            drifts[name][weight] = np.sqrt(np.trace(change @ moment @ change.T) / np.trace(w0 @ moment @ w0.T))
    for weight in site.weights:
        np.testing.assert_allclose(drifts["held"][weight], held["drift"][weight], rtol=1e-2)
        assert drifts["held"][weight] < 0.6 * drifts["free"][weight]


def test_the_result_is_an_ordinary_pipeline(held: dict[str, Any]) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(held["output"], dtype=torch.float32)
    assert not any("parametrizations" in name for name in pipe.unet.state_dict())
    assert set(weights(held["output"])) == set(weights(toy.FOLDER))


@pytest.mark.parametrize("with_store", [False, True], ids=["free", "held"])
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


@pytest.mark.parametrize(
    "changes",
    [{}, {"method": "lora"}, {"gradient_accumulation_steps": 2}, {"word": "sks"}],
    ids=["full", "lora", "accumulated", "word"],
)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, finished: tuple[Config, Store], changes: dict[str, Any]
) -> None:
    changes = {"store": str(finished[1].path), "lr_scheduler": "linear", **changes}
    whole = run(recipe(tmp_path / "whole", **changes))
    run(recipe(tmp_path / "stopped", **changes), stop_after=3)
    ready = setup.set_up(recipe(tmp_path / "stopped", **changes), "cpu")
    events = list(dreambooth.train(ready))
    assert events[0].text == "goes on from step 2"
    assert [event.done for event in events[1:]] == [3, 4]
    resumed = dreambooth.finish(ready)
    ending = "pytorch_lora_weights.safetensors" if "method" in changes else "unet/diffusion_pytorch_model.safetensors"
    one, other = (load_file(Path(document["output"]) / ending) for document in (whole, resumed))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6)
    if "word" in changes:
        one, other = (load_file(Path(document["output"]) / TEXT_ENCODER) for document in (whole, resumed))
        torch.testing.assert_close(other[EMBEDDING], one[EMBEDDING], rtol=1e-4, atol=1e-6)


def test_more_steps_go_on_and_other_settings_do_not(tmp_path: Path) -> None:
    run(recipe(tmp_path))
    ready = setup.set_up(recipe(tmp_path, max_train_steps=5), "cpu")
    assert [getattr(event, "done", None) for event in dreambooth.train(ready)] == [None, 5]
    with pytest.raises(ConfigError, match=r"was made with other settings\n  learning_rate: 0\.01 -> 0\.02") as caught:
        run(recipe(tmp_path, learning_rate=2e-2))
    assert "another output" in caught.value.hint


class TestWord:
    def test_its_embedding_is_trained_and_nothing_else_of_the_text_encoder(
        self, tmp_path: Path, finished: tuple[Config, Store], held: dict[str, Any]
    ) -> None:
        document = run(recipe(tmp_path, store=str(finished[1].path), word="sks"))
        before, after = (load_file(folder / TEXT_ENCODER) for folder in (toy.FOLDER, Path(document["output"])))
        pipe = StableDiffusionPipeline.from_pretrained(document["output"], dtype=torch.float32)
        [token] = pipe.tokenizer("sks", add_special_tokens=False).input_ids
        rows = (before.pop(EMBEDDING).float() != after.pop(EMBEDDING).float()).any(1).nonzero().flatten().tolist()
        assert rows == [token]
        assert all(torch.equal(tensor.float(), after[name].float()) for name, tensor in before.items())
        assert any(not torch.equal(tensor, weights(held["output"])[name]) for name, tensor in weights(document["output"]).items())

    def test_its_learning_rate_is_its_own(self, tmp_path: Path) -> None:
        moved = []
        for rate in (1e-3, 1e-2):
            document = run(recipe(tmp_path / f"{rate}", word="sks", word_learning_rate=rate, max_train_steps=1))
            before, after = (load_file(folder / TEXT_ENCODER)[EMBEDDING] for folder in (toy.FOLDER, Path(document["output"])))
            moved.append(float((after.float() - before.float()).abs().max()))
        # The first step of Adam has the size of the learning rate.
        assert moved == pytest.approx([1e-3, 1e-2], rel=1e-2)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"word": "qfj"}, "no caption has the word 'qfj'"),
            ({"word": "sks circle"}, "'sks circle' is 2 tokens to this model"),
            ({"word": "circle", "class_prompts": ["a red circle on a white background"], "class_images": 1}, "1 prompts to keep"),
        ],
    )
    def test_a_word_that_cannot_train(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            setup.set_up(recipe(tmp_path, **changes), "cpu")

    def test_a_word_that_the_store_keeps(self, tmp_path: Path, finished: tuple[Config, Store]) -> None:
        with pytest.raises(ConfigError, match=r"prompts to keep have the word 'circle', such as '.*circle"):
            setup.set_up(recipe(tmp_path, word="circle", store=str(finished[1].path)), "cpu")

    def test_a_lora_has_no_place_for_it(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="a LoRA file has no place"):
            recipe(tmp_path, method="lora", word="sks")


class TestPriorPreservation:
    CLASS = ["a red circle on a white background", "a blue circle on a gray background"]

    def test_class_pictures_are_those_that_the_model_draws(self, tmp_path: Path) -> None:
        made = recipe(tmp_path, class_prompts=self.CLASS, class_images=3, validation_inference_steps=5)
        first, again = (setup.set_up(made, "cpu").prior for _ in range(2))
        assert first.latents.shape == (3, 8, 8, 8)
        assert torch.equal(first.latents, again.latents)
        assert torch.equal(first.texts[0], first.texts[2])

    def test_distilling_costs_nothing_before_anything_is_learned(self, tmp_path: Path) -> None:
        from diffusers import DDPMScheduler

        made = recipe(tmp_path, class_prompts=self.CLASS, class_images=2, prior="distill")
        ready = setup.set_up(made, "cpu")
        noising = DDPMScheduler.from_config(ready.pipe.scheduler.config)
        losses = [
            dreambooth._loss(
                ready.denoiser, noising, ready.prior.latents, ready.prior.texts, torch.Generator().manual_seed(0), teacher
            )
            for teacher in (ready.teacher, None)
        ]
        assert losses[0] == 0
        assert losses[1] > 0

    def test_it_changes_what_is_learned(self, tmp_path: Path, free: dict[str, Any]) -> None:
        document = run(recipe(tmp_path, class_prompts=self.CLASS, class_images=2))
        one, other = weights(free["output"]), weights(document["output"])
        assert any(not torch.equal(one[name], other[name]) for name in one)


def test_two_processes_train_together(tmp_path: Path, finished: tuple[Config, Store]) -> None:
    """Every step is a checkpoint: what one process clears away, the other must not be writing."""
    made = recipe(tmp_path / "out", store=str(finished[1].path), word="sks", max_train_steps=6, checkpointing_steps=1)
    made = made.model_copy(update={"class_prompts": TestPriorPreservation.CLASS, "class_images": 2, "prior": "distill"})
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(made.model_dump()))
    command = "torch.distributed.run --standalone --nproc_per_node 2 -m nullbooth_cli train --device cpu --json -c"
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), str(tmp_path / "train.yaml")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["steps"] == 6
    assert len(document["drift"]) == 20
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-000006"]
    assert len(list((tmp_path / "out/checkpoint-000006").glob("random_states_*.pkl"))) == 2
    before, after = (load_file(folder / TEXT_ENCODER)[EMBEDDING] for folder in (toy.FOLDER, Path(document["output"])))
    assert (before.float() != after.float()).any(1).sum() == 1


class TestBadInput:
    def test_pictures_of_another_size(self, tmp_path: Path) -> None:
        Image.new("RGB", (48, 32)).save(tmp_path / "wide.png")
        (tmp_path / "wide.txt").write_text("a sks circle")
        with pytest.raises(ConfigError, match=r"wide\.png is 48 x 32 pixels, the model draws 32 x 32"):
            setup.set_up(recipe(tmp_path / "out", instance_images=str(tmp_path)), "cpu")

    def test_a_model_that_wants_more_than_a_caption(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="needs more than a caption") as caught:
            setup.set_up(recipe(tmp_path / "out", model=str(saved("sdxl", tmp_path))), "cpu")
        assert "nb.constrain" in caught.value.hint

    def test_a_loss_that_is_not_finite(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="the loss is nan at step") as caught:
            run(recipe(tmp_path, learning_rate=1e30))
        assert "learning_rate" in caught.value.hint

    def test_a_feature_named_twice(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="names each projection once"):
            recipe(tmp_path, features=["k", "k"])


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

    def test_what_it_says(self, file: str, finished: tuple[Config, Store]) -> None:
        done = self.train("-c", file, "-s", str(finished[1].path), "--set", "max_train_steps=2", "-v")
        assert done.exit_code == 0, done.stderr
        assert f"recipe {file}, into" in done.stderr
        assert f"trains 20 weights, held by {finished[1].path}" in done.stderr
        assert "the outputs on what is kept moved by" in done.stdout

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


@pytest.mark.parametrize("path", sorted((ROOT / "configs/train").glob("*.yaml")), ids=lambda path: path.name)
def test_the_shipped_recipes_are_valid(path: Path) -> None:
    made = load_settings(Recipe, path)
    assert made.store == {"toy": "runs/words.zarr", "sd15": "runs/sd15-words.zarr"}[path.stem]
    if path.stem == "toy":
        assert len(captions.load_captions(str(ROOT / made.instance_images))) == 20


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
    for i in range(3):
        Image.new("RGB", (16, 16), (80 * i, 20, 200)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("not used")
    made = load_settings(Recipe, ROOT / "configs/train/sd15.yaml").model_copy(
        update={
            "model": str(folder),
            "store": config.store,
            "output": str(tmp_path / "out"),
            "instance_images": str(tmp_path),
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
