"""The pictures of the base, of another seed and of edited models, one model after the other."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nullbooth_cli.collect import open_model
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.evaluation.draw_models import ANOTHER, BASE, DrawnModels
from nullbooth_cli.evaluation.encoders import FeatureSpaces
from nullbooth_cli.evaluation.pictures import PictureSpec
from nullbooth_cli.evaluation.request import EvaluationRequest
from nullbooth_cli.progress import Event, Note, Progress
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from nullbooth_cli.toy import FOLDER
from tests.support.builders import PROMPTS
from tests.support.edited_models import toy

LONG = "a photo of a red circle at the left of a blue background with a green star"
SPECS = tuple(PictureSpec(Prompt(text)) for text in (*PROMPTS[:2], LONG))


@pytest.fixture(scope="module")
def drawn(run: tuple[Config, Store], models: Path) -> tuple[DrawnModels, list[Event], str]:
    """The base and the model `free`, with their events."""
    config, store = run
    free = str(models / "free")
    request = EvaluationRequest(edited=(free, str(FOLDER)), sets={"preserved": SPECS}, batch_size=2)
    made = DrawnModels(config=config, store=store, request=request, device=torch.device("cpu"))
    events: list[Event] = []
    drawing = made.draw_base(FeatureSpaces())
    while True:
        try:
            events.append(next(drawing))
        except StopIteration as ended:
            base = ended.value
            break
    for place in request.edited:
        events += made.draw_edited(place, base)
    return made, events, free


def test_each_model_has_every_picture(drawn: tuple[DrawnModels, list[Event], str]) -> None:
    made, _, free = drawn
    assert list(made.drawn) == [BASE, ANOTHER, free, str(FOLDER)]
    assert {pictures.images.shape for pictures in made.drawn.values()} == {(3, 32, 32, 3)}
    assert list(made.weights) == [BASE, free, str(FOLDER)], "another seed is the same model"


@pytest.mark.parametrize(("name", "series"), [(BASE, 0), (ANOTHER, 1)])
def test_latents_are_those_of_the_pipeline(
    drawn: tuple[DrawnModels, list[Event], str], run: tuple[Config, Store], name: str, series: int
) -> None:
    config, store = run
    pipe = toy()
    open_model.follow_schedule(config, store.schedule(), pipe)
    for spec, latents in zip(SPECS, drawn[0].drawn[name].latents, strict=True):
        generator = torch.Generator("cpu").manual_seed(config.collect.seed + spec.noise(series))
        expected = pipe(
            spec.prompt.text, num_inference_steps=4, guidance_scale=4.0, generator=generator, output_type="latent"
        ).images[0]
        np.testing.assert_allclose(latents, expected, rtol=1e-3, atol=1e-3)


def test_a_model_that_is_the_base_draws_its_pictures(drawn: tuple[DrawnModels, list[Event], str]) -> None:
    made, events, free = drawn
    np.testing.assert_array_equal(made.drawn[str(FOLDER)].images, made.drawn[BASE].images)
    assert (made.drawn[free].images != made.drawn[BASE].images).any()
    notes = [event.text for event in events if isinstance(event, Note)]
    assert f"{FOLDER} has the weights of the base: nothing was edited" in notes
    assert not [text for text in notes if text.startswith(f"{free} has")]


def test_prompts_that_are_cut_off_are_named_once(drawn: tuple[DrawnModels, list[Event], str]) -> None:
    told = [event.text for event in drawn[1] if isinstance(event, Note) and "tokenizer" in event.text]
    assert told == [f"1 prompt is too long for the tokenizer, which cuts off its end, 'a green star' of '{LONG}'"]


def test_pictures_of_all_models_are_counted_together(drawn: tuple[DrawnModels, list[Event], str]) -> None:
    made, events, free = drawn
    found = [(event.done, event.total, event.what) for event in events if isinstance(event, Progress)]
    names = [BASE, ANOTHER, free, str(FOLDER)]
    assert found == [(3 * i + part, 12, name) for i, name in enumerate(names) for part in (2, 3)]
    assert made.request.specs == SPECS
