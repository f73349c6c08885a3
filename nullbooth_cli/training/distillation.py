"""Distillation: on chosen captions and pictures, a model keeps predicting what it predicted before training.

    loss = training loss + distill_weight * mse(model(x, t, c), model before training(x, t, c))

| distill_captions | distill_pictures | what others call it |
| --- | --- | --- |
| class | instance | differential output preservation of ai-toolkit (DOP) |
| own | a folder | DOP of kohya, PRIOR_PREDICTION of OneTrainer, regularisation data of SimpleTuner |
| empty | instance | blank-prompt preservation of ai-toolkit |
| own | class | prior preservation of DreamBooth, with the model's prediction in place of the noise |

1. `captions_by_picture()` decides the captions c, from a recipe and the captions of its pictures, before a model is loaded.
2. `Teacher` is the model before training, inside the model that trains.

The pictures of the subject come with the noise and timesteps of the step that trains on them; others draw their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import counted
from nullbooth_cli.model.words import with_token
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.texts import cut
from nullbooth_cli.training.examples import Examples

Captions = Mapping[str, tuple[str, ...]]  # of a picture, by its own caption: those of which a step takes one


def captions_by_picture(recipe: Recipe, captions: Mapping[str, str]) -> Captions:
    """The captions for distillation; `captions` are those of its pictures, each as it trains and as it is written.

    Raises ConfigError for captions without the trigger that is to be replaced.
    """
    wanted = recipe.distill_captions
    if isinstance(wanted, list):
        return dict.fromkeys(captions, tuple(wanted))
    if wanted == "empty":
        return dict.fromkeys(captions, ("",))
    if wanted == "own":
        return {caption: (caption,) for caption in captions}
    trigger = recipe.trigger or recipe.word
    assert trigger is not None  # the recipe requires one
    found = {caption: with_token(written, trigger, recipe.class_word) for caption, written in captions.items()}
    if unchanged := [written for caption, written in captions.items() if found[caption] == written]:
        raise ConfigError(
            f"{counted(len(unchanged), 'caption')} for distillation without the trigger '{trigger}': '{cut(unchanged[0])}'",
            "write the trigger into the captions, or set trigger to a word that they have, or distill_captions to empty",
        )
    return {caption: (" ".join(text.split()),) for caption, text in found.items()}


class Teacher:
    """A model as it was before training: its layers with the first values of the parameters that train.

    Memory: a copy of these parameters. A call is a forward without gradients, with the arguments of the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._first = {name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Buffers, and parameters that do not train, are the model's own.
        with torch.no_grad():
            return torch.func.functional_call(self._model, self._first, args, kwargs)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What a step distils: `captions` of `pictures`, which are None for those that the step trains on."""

    pictures: Examples | None
    captions: Captions
    teacher: Teacher

    def choose(self, captions: Sequence[str], generator: torch.Generator) -> list[str]:
        """A caption at random for each picture of a batch, by its own caption."""
        choices = [self.captions[caption] for caption in captions]
        return [texts[int(torch.randint(len(texts), (), generator=generator))] for texts in choices]
