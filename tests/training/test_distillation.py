"""Distillation keeps predictions for captions that do not train: the loss is zero before training, and small after it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.denoising_loss import denoising_errors, predict
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.schema import validate
from nullbooth_cli.training import dreambooth, setup
from nullbooth_cli.training.before_loading import read_inputs
from nullbooth_cli.training.distillation import Teacher, captions_by_picture
from tests.support.pictures import photos
from tests.support.tiny_dreambooth import CLASS_PROMPTS, DISTILLED, INSTANCES, recipe, run, weights
from tests.support.tiny_training import fresh_unet

pytestmark = pytest.mark.usefixtures("one_thread")

WAYS: dict[str, dict[str, Any]] = {
    "class words": {"distill_captions": "class", "trigger": "sks", "class_word": "red"},
    "blank prompt": {"distill_captions": "empty"},
    "a list": {"distill_captions": ["a red ring", "a blue star on a gray background"]},
    "class pictures": {**DISTILLED, "class_prompts": CLASS_PROMPTS, "class_images": 2},
}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("way", WAYS)
def test_before_training_it_is_zero_and_after_it_is_smaller(tmp_path: Path, way: str, method: str) -> None:
    """Measured on the same draws, after training with the loss of distillation and after training without."""
    losses = {}
    for name, weight in (("kept", 300.0), ("free", 0.0)):
        made = recipe(tmp_path / name, method=method, max_train_steps=12, **WAYS[way], distill_weight=weight)
        ready = setup.set_up(made, "cpu")
        assert ready.prior is None
        before = kept_errors(ready)
        assert (before == 0).all()
        for _ in dreambooth.train(ready):
            pass
        losses[name] = float(kept_errors(ready).mean())
    assert losses["kept"] < losses["free"] / 2, losses


def kept_errors(ready: Any) -> torch.Tensor:
    """The errors of eight pictures, at fixed noise."""
    distillation, generator = ready.distillation, torch.Generator().manual_seed(5)
    batch = (distillation.pictures or ready.subject).batch(generator, 8)
    captions = distillation.choose(batch.captions, generator)
    with torch.no_grad():
        return denoising_errors(
            ready.denoiser,
            ready.process,
            latents=batch.latents,
            conditioning=batch.conditioning(ready.texts, captions),
            noising=ready.process.draw(batch.latents, generator),
            teacher=distillation.teacher,
        )


def test_the_loss_of_a_step_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    """A step's loss, against the same forwards written out here: pictures, noise and timesteps are those of training."""
    made = recipe(tmp_path, distill_captions="empty", distill_weight=7.0, train_batch_size=3)
    ready = setup.set_up(made, "cpu")
    with torch.no_grad():
        for parameter in ready.denoiser.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    loop = dreambooth._prepared(ready)
    found = loop._loss(torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    batch = ready.subject.batch(generator, 3)
    noising = ready.process.draw(batch.latents, generator)
    noisy = ready.process.noised(batch.latents, noising)
    told, blank = (batch.conditioning(ready.texts, captions) for captions in (batch.captions, [""] * 3))
    given = {"noisy": noisy, "timesteps": noising.timesteps}
    error = predict(ready.denoiser, ready.process, **given, conditioning=told) - ready.process.target(batch.latents, noising)
    now = predict(ready.denoiser, ready.process, **given, conditioning=blank)
    then = predict(fresh_unet(), ready.process, **given, conditioning=blank)
    torch.testing.assert_close(found, error.square().mean() + 7.0 * (now - then).square().mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_teacher_is_the_model_before_training(kind: str) -> None:
    model, untrained = fresh_unet().eval(), fresh_unet().eval()
    model.requires_grad_(kind == "full")
    if kind == "lora":
        model.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"]))
    teacher = Teacher(model)
    moved = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in moved:
            parameter += 0.1
    given = torch.ones(1, 8, 8, 8), 500, torch.ones(1, 16, 96)
    told = teacher(*given, return_dict=False)[0]
    assert torch.equal(told, untrained(*given, return_dict=False)[0])
    assert not told.requires_grad
    assert not torch.equal(told, model(*given, return_dict=False)[0]), "the model itself has its own weights again"


def test_pictures_that_are_given(tmp_path: Path) -> None:
    kept = photos(tmp_path / "kept", ["a red square", "a green ring"])
    made = recipe(tmp_path / "out", distill_captions="own", distill_pictures=str(kept), max_train_steps=2)
    ready = setup.set_up(made, "cpu")
    assert list(ready.distillation.pictures.captions) == ["a red square", "a green ring"]
    assert ready.distillation.choose(["a green ring"], torch.Generator()) == ["a green ring"]
    document = run(made)
    plain = run(recipe(tmp_path / "plain", max_train_steps=2))
    one, other = weights(document["output"]), weights(plain["output"])
    assert any(not torch.equal(one[name], other[name]) for name in one), "the second step has it: the loss of the first is zero"
    photos(tmp_path / "kept", ["a red square", "a blue ring"])
    with pytest.raises(ConfigError, match="pictures for distillation"):
        setup.set_up(made.model_copy(update={"max_train_steps": 3}), "cpu")


def test_it_goes_with_a_constraint_and_a_word(tmp_path: Path, finished: Any) -> None:
    words = {"word": "sks", "distill_captions": "class", "class_word": "red"}
    documents = []
    for weight in (0.0, 100.0):
        made = recipe(tmp_path / str(weight), store=str(finished[1].path), **words, distill_weight=weight)
        documents.append(run(made.model_copy(update={"gradient_accumulation_steps": 2})))
    alone, both = documents
    assert set(both["drift"]) == set(alone["drift"])
    assert len(both["drift"]) == 20
    assert 0 < both["largest_drift"] < 2 * alone["largest_drift"]
    name = "embeddings.token_embedding.weight"
    rows = [load_file(Path(each["output"]) / "text_encoder/model.safetensors")[name] for each in documents]
    assert not torch.equal(*rows)


def test_captions() -> None:
    of_class = Recipe(distill_captions="class", trigger="sks", class_word="dog")
    assert captions_by_picture(of_class, {"a <sks> runs": "a SKS runs"}) == {"a <sks> runs": ("a dog runs",)}
    without = Recipe(distill_captions="class", word="sks")
    assert captions_by_picture(without, {"a sks dog": "a sks dog"}) == {"a sks dog": ("a dog",)}
    with pytest.raises(ConfigError) as caught:
        captions_by_picture(of_class, {"a sks": "a sks", "a cat": "a cat"})
    assert caught.value.message == "1 caption for distillation without the trigger 'sks': 'a cat'"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distill_captions": "own"}, "distill_captions: own of distill_pictures: instance would undo the training"),
        ({"distill_captions": []}, "distill_captions is an empty list"),
        ({"distill_captions": "class"}, "distill_captions: class needs the word that it replaces"),
        (DISTILLED, "distill_pictures: class needs class_prompts"),
        ({**DISTILLED, "distill_captions": "class"}, "captions of class pictures have no trigger to replace"),
        ({"distill_pictures": "elsewhere"}, "distill_pictures is elsewhere, and distill_captions is null"),
        ({"prior": "distill"}, "unknown key 'prior'"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(Recipe, settings)


def test_a_word_that_trains_is_in_no_caption_to_keep(tmp_path: Path) -> None:
    made = recipe(tmp_path, word="sks", instance_images=str(INSTANCES), distill_captions=["a sks star"])
    with pytest.raises(ConfigError, match="the word 'sks' trains, and distillation would keep it from it"):
        read_inputs(made, ())
