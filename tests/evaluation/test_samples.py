"""Pictures to look at: what a user of diffusers would draw, with every model from the same noise."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nullbooth_cli.errors import ConfigError, DataError
from nullbooth_cli.evaluation import samples
from nullbooth_cli.evaluation.samples import SampleRequest, Samples, draw_samples
from nullbooth_cli.progress import Event, Note, Progress
from nullbooth_cli.settings.config import Config
from nullbooth_cli.tensors import generators
from tests.support.edited_models import save_lora, toy
from tests.support.trained_folders import full_files, lora_files, training_output, write_base

PROMPTS = ("a red circle on a white background", "a sks circle")


def drawn(**changes: Any) -> tuple[Samples, list[Event]]:
    events = draw_samples(
        SampleRequest(**{"prompts": PROMPTS, "seeds": (3, 4), "num_inference_steps": 2, "device": "cpu", **changes})
    )
    seen = []
    while True:
        try:
            seen.append(next(events))
        except StopIteration as ended:
            return ended.value, seen


def notes(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note) and not event.text.startswith("loading ")]


def test_pictures_are_those_of_plain_diffusers() -> None:
    found, events = drawn(models=("toy",), guidance_scale=3.0)
    pipe = toy()
    [model] = found.models
    assert (model.name, model.images.shape, model.num_inference_steps, model.guidance_scale) == ("toy", (2, 2, 32, 32, 3), 2, 3.0)
    for row, prompt in enumerate(PROMPTS):
        for column, seed in enumerate((3, 4)):
            [expected] = pipe(
                [prompt], num_inference_steps=2, guidance_scale=3.0, generator=generators([seed]), output_type="np"
            ).images
            np.testing.assert_allclose(model.images[row, column] / 255, expected, atol=0.6 / 255 + 1e-3)
    assert [(event.done, event.total) for event in events if isinstance(event, Progress)] == [(4, 4)]
    assert notes(events) == []


def test_steps_guidance_and_scheduler_are_the_pipelines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def call(pipe: Any, prompt: list[str], **settings: Any) -> Any:
        seen.update(settings, scheduler=type(pipe.scheduler).__name__)
        return (np.zeros((len(prompt), 32, 32, 3)),)

    pipe = toy()
    monkeypatch.setattr(samples, "load_edited", lambda *_: pipe)
    own = type(pipe.scheduler).__name__
    call.__signature__ = inspect.signature(type(pipe).__call__)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(pipe), "__call__", call)
    found, _ = drawn(models=("toy",), num_inference_steps=None)
    assert (seen["num_inference_steps"], seen["guidance_scale"], seen["scheduler"]) == (50, 7.5, own)
    assert (found.models[0].num_inference_steps, found.models[0].guidance_scale) == (50, 7.5)
    drawn(models=("toy",), strategy="Euler")
    assert (seen["num_inference_steps"], seen["scheduler"]) == (2, "EulerDiscreteScheduler")


FORMS: dict[str, Callable[[Path], Path]] = {
    "a LoRA with its word": lambda folder: lora_files(folder, "sks"),
    "trained weights": full_files,
    "an output": lambda folder: training_output(folder, "full"),
    "a checkpoint": lambda folder: training_output(folder, "full", 200, result=False) / "checkpoint-000200",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_model_beside_its_own_base(tmp_path: Path, form: str) -> None:
    place = str(FORMS[form](tmp_path / "run"))
    found, events = drawn(models=(place,), with_base=True)
    base, model = found.models
    assert (base.name, model.name) == ("base: toy", place)
    assert (base.base, model.base, model.tokens) == (None, "toy", ("sks",))
    alone, _ = drawn(models=("toy",))
    assert np.array_equal(base.images, alone.models[0].images)
    assert (base.images[1] != model.images[1]).any(), "the prompt with the word"
    assert notes(events) == []


def test_several_models_have_one_base(tmp_path: Path) -> None:
    one, other = (str(full_files(tmp_path / name, scale=scale)) for name, scale in (("one", 0.05), ("other", 0.1)))
    found, events = drawn(models=(one, other), with_base=True)
    assert [model.name for model in found.models] == ["base: toy", one, other]
    assert [event.done for event in events if isinstance(event, Progress)] == [4, 8, 12]


def test_a_word_that_no_prompt_has(tmp_path: Path) -> None:
    output = training_output(tmp_path, "lora", 100, result=False, token="<sks>")
    _, events = drawn(models=(str(output),))
    assert notes(events) == [
        f"{output} has no result yet: this is its newest checkpoint, after 100 steps",
        f"{output}: no prompt has the word that was taught: write <sks>",
    ]


def test_a_lora_that_names_no_base(tmp_path: Path) -> None:
    save_lora(tmp_path)
    with pytest.raises(ConfigError, match="do not name the model that they belong to"):
        drawn(models=(str(tmp_path),))
    found, _ = drawn(models=(str(tmp_path),), base="toy", with_base=True)
    assert [model.name for model in found.models] == ["base: toy", str(tmp_path)]


def never(*_: object) -> None:
    raise AssertionError("a model is loaded")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ("nowhere",)}, "no model folder at nowhere"),
        ({"models": ("toy",), "with_base": True}, "toy is a model of its own, whose files name no base"),
        ({"models": ("toy", "toy")}, "a model is named twice: toy"),
        ({"models": ("toy",), "prompts": ("a", "b", "a")}, "a prompt is named twice: a"),
        ({"models": ("toy",), "prompts": ()}, "no prompt is named"),
        ({"models": ("toy",), "prompts": (" ",)}, "the prompt ' ' is empty"),
        ({"models": ("toy",), "prompts": ("a\0",)}, "has a NUL"),
        ({"models": ("toy",), "seeds": (2**32,)}, "seeds are 4294967296 to 4294967296"),
        ({"models": ("toy",), "strategy": "Heun"}, "no scheduler is named 'Heun'"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(samples, "load_model", never)
    monkeypatch.setattr(samples, "load_edited", never)
    with pytest.raises(ConfigError, match=message):
        drawn(**changes)


def test_another_base_than_that_of_the_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was trained on owner/name, and the base here is toy"):
        drawn(models=(str(lora_files(tmp_path, model="owner/name")),), base="toy")
    assert write_base(tmp_path, token="<sks>")  # of toy, as before
    drawn(models=(str(tmp_path),), base="toy")


def test_a_picture_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = toy()
    pipe.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    monkeypatch.setattr(samples, "load_edited", lambda *_: pipe)
    with pytest.raises(DataError, match="a picture of toy is not finite"):
        drawn(models=("toy",))


def test_more_steps_than_the_model_has() -> None:
    with pytest.raises(ConfigError, match="2000 denoising steps are more than the 1000 timesteps of toy"):
        drawn(models=("toy",), num_inference_steps=2000)


def test_the_config_says_how_models_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(samples, "load_edited", lambda config, *_: found.append(config) or toy())
    drawn(models=("toy",), config=Config(dtype="bfloat16", allow_pickle=True))
    assert [(config.dtype, config.allow_pickle) for config in found] == [("bfloat16", True)]
    assert torch.float32 == toy().unet.dtype
