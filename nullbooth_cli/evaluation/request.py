"""The request of an evaluation: its models, its prompts, and the number of pictures of each."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.evaluation.answer import EARLIER, EDITED, PARAPHRASES, SUBJECT
from nullbooth_cli.evaluation.edited_prompts import EditedPrompts
from nullbooth_cli.evaluation.pictures import PictureSpec
from nullbooth_cli.model.edit_file import Pairs
from nullbooth_cli.settings.captions import captioned_images, has_captions

NUM_PROMPTS = 48
SUBJECT_IMAGES = 16
OF_EDIT = (EDITED, PARAPHRASES)  # the sets whose prompts have targets
Item = TypeVar("Item")
PictureSets = Mapping[str, tuple[PictureSpec, ...]]


@dataclass(frozen=True)
class Instance:
    """A picture that the subject was learned from, and its caption."""

    path: Path
    caption: str


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """`edited` are places of models, the one to evaluate first; `sets` the pictures to draw, by the name of their set.

    `base` is the place of the model to compare with, None for the config's. `num_left_out` prompts contain an edited prompt, and
    are in no set of the rest. `encoders` gives folders of weights by feature space. `instances` are the pictures that the subject
    was learned from; `no_instances` is the reason if there are none. `batch_size` pictures are drawn together. Requests of
    another `series` draw from other noise.

    Raises ConfigError for a model that appears twice, and for instances without a subject.
    """

    edited: tuple[str, ...]
    sets: PictureSets
    base: str | None = None
    num_left_out: int = 0
    encoders: Mapping[str, str] = field(default_factory=dict)
    instances: tuple[Instance, ...] = ()
    no_instances: str | None = None
    device: str | None = None
    batch_size: int = 8
    series: int = 0

    def __post_init__(self) -> None:
        if len(set(self.edited)) < len(self.edited):
            raise ConfigError(f"a model is named twice: {' '.join(self.edited)}", "name each once")
        if self.instances and SUBJECT not in self.sets:
            folder = self.instances[0].path.parent
            raise ConfigError(f"no subject is named, but pictures of it: {folder}", "name a prompt of the subject")

    @property
    def specs(self) -> tuple[PictureSpec, ...]:
        """Every picture to draw, set by set."""
        return tuple(spec for of_set in self.sets.values() for spec in of_set)

    @property
    def target_specs(self) -> tuple[PictureSpec, ...]:
        """The pictures of the targets of all edited prompts and paraphrases, picture by picture and target by target."""
        return tuple(each for name in OF_EDIT for spec in self.sets.get(name, ()) for each in spec.of_targets())


def picture_sets(
    preserved: Mapping[str, Sequence[Prompt]],
    subject: Sequence[Prompt] = (),
    *,
    num_prompts: int = NUM_PROMPTS,
    subject_images: int = SUBJECT_IMAGES,
    edits: EditedPrompts | None = None,
    earlier: Sequence[PictureSpec] = (),
) -> PictureSets:
    """One picture of at most `num_prompts` prompts of each set in `preserved`, `subject_images` of every subject prompt.

    With `edits`, the sets in `preserved` lack the prompts that contain an edited one, and there are two sets more, of the edited
    prompts and of paraphrases. Each has at most `num_prompts` pictures, and at most `subject_images` of one prompt. `earlier` are
    pictures of what the base was taught or edited before.

    The prompts of a larger set are chosen at random, but the same ones every time. Sets without prompts are left out.
    """
    everything = [prompt for prompts in preserved.values() for prompt in prompts]
    if edits is not None:
        preserved = {name: edits.rest(prompts) for name, prompts in preserved.items()}
    sets = {name: tuple(map(PictureSpec, _sample(prompts, num_prompts))) for name, prompts in preserved.items()}
    sets[EARLIER] = tuple(earlier)
    if edits is not None:
        sets[EDITED] = edited_specs(edits.pairs, num_prompts, subject_images)
        sets[PARAPHRASES] = edited_specs(edits.paraphrases(everything), num_prompts, subject_images)
    sets[SUBJECT] = tuple(PictureSpec(prompt, number) for prompt in subject for number in range(subject_images))
    return {name: specs for name, specs in sets.items() if specs}


def edited_specs(pairs: Pairs, most: int, most_of_one: int) -> tuple[PictureSpec, ...]:
    """At most `most` pictures of edited prompts, as many of each and at most `most_of_one`."""
    drawn = specs_of(list(map(Prompt, pairs)), most, most_of_one)
    return tuple(replace(spec, targets=pairs[spec.prompt.text]) for spec in drawn)


def specs_of(prompts: Sequence[Prompt], most: int, most_of_one: int) -> tuple[PictureSpec, ...]:
    """At most `most` pictures of prompts, as many of each and at most `most_of_one`."""
    chosen = _sample(prompts, most)
    count = min(most_of_one, most // len(chosen)) if chosen else 0
    return tuple(PictureSpec(prompt, number) for prompt in chosen for number in range(count))


def _sample(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of the items, in their order."""
    return [items[i] for i in sorted(random.Random(0).sample(range(len(items)), min(most, len(items))))]


def slices_of(sets: Mapping[str, Sequence[PictureSpec]]) -> dict[str, slice]:
    """The places of each set's pictures among all pictures of a model."""
    ends = list(accumulate(map(len, sets.values()), initial=0))
    return {name: slice(*ends[i : i + 2]) for i, name in enumerate(sets)}


def target_slices(sets: Mapping[str, Sequence[PictureSpec]]) -> dict[str, list[slice]]:
    """The places of the targets' pictures among `target_specs`, by set of an edit and picture by picture."""
    found: dict[str, list[slice]] = {}
    start = 0
    for name in OF_EDIT:
        for spec in sets.get(name, ()):
            found.setdefault(name, []).append(slice(start, start + len(spec.targets)))
            start += len(spec.targets)
    return found


def instances_in(folder: Path, prompt: str) -> tuple[Instance, ...]:
    """The pictures of a folder, with their captions if it has some, else with a prompt of the subject.

    Raises ConfigError for a folder without pictures, and for captions that are not whole, as `captioned_images` does.
    """
    caption = None if has_captions(str(folder), "instances") else prompt
    images = captioned_images(str(folder), "instances", caption)
    return tuple(Instance(image.path, image.prompt.text) for image in images)
