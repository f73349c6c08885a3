"""Each family of models: collected, trained under the constraint, saved, loaded by diffusers, and measured against the base.

Sites whose inputs fill their space are frozen, so what trains has a null space that is exact but for rounding.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from nullbooth_cli.collect.edited_model import load_edited
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.nullspace.pooling import pooled, second_moment
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.store import Store
from nullbooth_cli.training import dreambooth, setup
from tests.support import tiny
from tests.support.builders import execute, small_config
from tests.support.launched import train_in_processes
from tests.support.pictures import photos
from tests.support.tiny_dreambooth import DISTILLED

METHODS = ("full", "lora")
THRESHOLD = 1e-12
BOUND = 1e-5  # the root of the threshold, 1e-6, and the rounding of float32, times the size of the change


@dataclass(frozen=True)
class Case:
    """A tiny pipeline: pixels of its pictures, and settings that make it and its store small."""

    resolution: int
    changes: dict[str, Any] = field(default_factory=dict)
    tokens: int | None = None  # of the CLIP text: fewer than its dimensions leave a null space


CASES = {
    "sdxl": Case(resolution=8, tokens=8),
    "sd3": Case(resolution=8),
    "flux": Case(resolution=8),
    "pixart": Case(resolution=32),
    "pixart_alpha": Case(resolution=32),
}


@dataclass(frozen=True)
class Collected:
    """A base in a folder, its store, and the config of both."""

    base: Path
    config: Config
    store: Store


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The store of each base, made once."""

    @cache
    def made(name: str) -> Collected:
        folder, case = tmp_path_factory.mktemp(name), CASES[name]
        torch.manual_seed(0)
        pipe = tiny.PIPELINES[name]()
        if case.tokens is not None:
            for part in ("tokenizer", "tokenizer_2"):
                getattr(pipe, part).model_max_length = case.tokens
        if name in ("sd3", "flux"):
            pipe.vae.register_to_config(shift_factor=0.1)  # as their own have, and their pipelines draw with
        pipe.save_pretrained(folder / "base")
        config = small_config(
            folder / "run.zarr",
            model=str(folder / "base"),
            original_knowledge_prompts=["a b", "a c"],
            schedule__num_denoising_steps=2,
            schedule__sampler_strategy="model",
            collect__tokens_per_prompt=2,
            collect__height=case.resolution,
            collect__width=case.resolution,
            collect__collect_features={"q_features": False, "out_features": False},
            project__relative_threshold=THRESHOLD,
            project__empty="freeze",
        )
        return Collected(folder / "base", config, execute(config, "schedule", "collect", "covariance", "project"))

    return made


def recipe_of(name: str, source: Collected, output: Path, **changes: Any) -> Recipe:
    pictures = output.parent / "pictures"
    if not pictures.exists():
        photos(pictures, ["a sks", "a sks b"])
    settings = {
        "model": str(source.base),
        "output": str(output),
        "store": str(source.store.path),
        "instance_images": str(pictures),
        "resolution": CASES[name].resolution,
        "max_train_steps": 4,
        "checkpointing_steps": 2,
        "train_batch_size": 2,
        "learning_rate": 3e-2,
        "rank": 4,
    }
    return Recipe(**{**settings, **changes})


def trained(made: Recipe, stop_after: int | None = None) -> Any:
    ready = setup.set_up(made, "cpu")
    for done, _ in enumerate(dreambooth.train(ready), start=1):
        if done == stop_after:
            return None
    return dreambooth.finish(ready)


def drifts(source: Collected, denoiser: Any) -> dict[str, float]:
    """norm(dW K) / norm(W K) of each protected weight, from the second moments of the store."""
    base = denoiser_of(type_of(source.base).from_pretrained(source.base)).state_dict()
    found = {}
    for site in source.store.sites:
        moment = second_moment(pooled(source.store, site))
        for name in site.weights:
            weight = base[name].double().numpy().reshape(-1, site.dim)
            delta = denoiser.state_dict()[name].double().numpy().reshape(-1, site.dim) - weight
            found[name] = np.sqrt(np.trace(delta @ moment @ delta.T) / np.trace(weight @ moment @ weight.T))
    return found


def type_of(folder: Path) -> Any:
    return getattr(diffusers, diffusers.DiffusionPipeline.load_config(folder)["_class_name"])


def loaded(source: Collected, method: str, output: Path) -> Any:
    """The result, as a user loads it with diffusers and PEFT."""
    if method == "full":
        return denoiser_of(type_of(source.base).from_pretrained(output / "pipeline"))
    pipe = type_of(source.base).from_pretrained(source.base)
    if hasattr(pipe, "load_lora_weights"):
        pipe.load_lora_weights(str(output / "lora"))
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        return denoiser_of(pipe)
    from peft import PeftModel

    return PeftModel.from_pretrained(pipe.transformer, output / "lora").merge_and_unload()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_what_is_preserved_stays_and_the_rest_changes(tmp_path: Path, collected: Any, name: str, method: str) -> None:
    source = collected(name)
    result = trained(recipe_of(name, source, tmp_path / "held", method=method))
    assert result.pipeline == type_of(source.base).__name__
    held = loaded(source, method, tmp_path / "held")
    found, base = drifts(source, held), denoiser_of(type_of(source.base).from_pretrained(source.base)).state_dict()
    assert max(found.values()) <= BOUND
    assert max(result.drift.values()) <= BOUND
    changed = [weight for weight in found if (held.state_dict()[weight] - base[weight]).norm() > 1e-2 * base[weight].norm()]
    assert changed, "some weight has a null space, and moves in it"
    others = {key: value for key, value in held.state_dict().items() if key not in found}
    assert all(torch.equal(value, base[key]) for key, value in others.items())
    # nullbooth loads the same.
    again = denoiser_of(load_edited(source.config, str(tmp_path / "held"), "cpu")).state_dict()
    for weight in found:
        torch.testing.assert_close(again[weight], held.state_dict()[weight], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_without_the_constraint_it_moves(tmp_path: Path, collected: Any, name: str, method: str) -> None:
    source = collected(name)
    trained(recipe_of(name, source, tmp_path / "free", store=None, method=method))
    assert max(drifts(source, loaded(source, method, tmp_path / "free")).values()) > 1e-2


@pytest.mark.parametrize(
    ("name", "method"), [("sdxl", "full"), ("sd3", "lora"), ("flux", "lora"), ("pixart", "lora"), ("pixart_alpha", "full")]
)
def test_a_run_resumes_as_if_it_had_not_stopped(tmp_path: Path, collected: Any, name: str, method: str) -> None:
    source = collected(name)
    whole, parts = (recipe_of(name, source, tmp_path / place, method=method) for place in ("whole", "parts"))
    trained(whole)
    trained(parts, stop_after=2)
    checkpoint = load_edited(source.config, str(tmp_path / "parts"), "cpu")
    trained(parts)
    one, other = (loaded(source, method, tmp_path / place).state_dict() for place in ("whole", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(not torch.equal(one[key], tensor) for key, tensor in denoiser_of(checkpoint).state_dict().items())


@pytest.mark.parametrize("name", ["flux", "pixart"])
def test_class_and_validation_pictures(tmp_path: Path, collected: Any, name: str) -> None:
    """Flux packs the latents that it draws, and PixArt would draw a size that it knows."""
    source = collected(name)
    settings = {**DISTILLED, "class_prompts": ["a b"], "class_images": 2, "validation_prompts": ["a sks"]}
    steps = {"max_train_steps": 1, "checkpointing_steps": 1, "validation_inference_steps": 2}
    ready = setup.set_up(recipe_of(name, source, tmp_path / "out", **settings, **steps), "cpu")
    assert ready.distillation is not None
    assert ready.distillation.pictures is not None
    assert {each.shape for each in ready.distillation.pictures.latents} == {each.shape for each in ready.subject.latents}
    for _ in dreambooth.train(ready):
        pass
    assert (tmp_path / "out/validation/000001_0.png").exists()


def test_two_processes_train_one_model(tmp_path: Path, collected: Any) -> None:
    """Of each family; the same two processes train one after the other."""
    sources = {name: collected(name) for name in CASES}
    together, alone = (
        {
            name: recipe_of(name, source, tmp_path / place / name, method="lora", max_train_steps=2)
            for name, source in sources.items()
        }
        for place in ("together", "alone")
    )
    train_in_processes([*together.values()], 2)
    for name, source in sources.items():
        of_two = loaded(source, "lora", tmp_path / "together" / name)
        assert max(drifts(source, of_two).values()) <= BOUND
        trained(alone[name])
        one, two = loaded(source, "lora", tmp_path / "alone" / name).state_dict(), of_two.state_dict()
        assert any(not torch.equal(one[key], two[key]) for key in one), "each process has draws of its own"
