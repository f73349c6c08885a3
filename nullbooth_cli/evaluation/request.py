"""The request of an evaluation: its models, its prompts, and the number of pictures of each."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.evaluation.answer import SUBJECT
from nullbooth_cli.evaluation.pictures import PictureSpec
from nullbooth_cli.settings.captions import captioned_images, has_captions

NUM_PROMPTS = 48
SUBJECT_IMAGES = 16
PictureSets = Mapping[str, tuple[PictureSpec, ...]]


@dataclass(frozen=True)
class Instance:
    """A picture that the subject was learned from, and its caption."""

    path: Path
    caption: str


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """`edited` are places of models, the one to evaluate first; `sets` the pictures to draw, by the name of their set.

    `encoders` gives folders of weights by feature space. `instances` are the pictures that the subject was learned from;
    `no_instances` is the reason if there are none. `batch_size` pictures are drawn together. Requests of another `series` draw
    from other noise.

    Raises ConfigError for a model that appears twice, and for instances without a subject.
    """

    edited: tuple[str, ...]
    sets: PictureSets
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


def picture_sets(
    preserved: Mapping[str, Sequence[Prompt]],
    subject: Sequence[Prompt] = (),
    *,
    num_prompts: int = NUM_PROMPTS,
    subject_images: int = SUBJECT_IMAGES,
) -> PictureSets:
    """One picture of at most `num_prompts` prompts of each set in `preserved`, `subject_images` of every subject prompt.

    The prompts of a larger set are chosen at random, but the same ones every time. Sets without prompts are left out.
    """
    sets = {name: tuple(map(PictureSpec, _sample(prompts, num_prompts))) for name, prompts in preserved.items() if prompts}
    if subject:
        sets[SUBJECT] = tuple(PictureSpec(prompt, number) for prompt in subject for number in range(subject_images))
    return sets


def _sample(prompts: Sequence[Prompt], most: int) -> list[Prompt]:
    """At most `most` of the prompts, in their order."""
    return [prompts[i] for i in sorted(random.Random(0).sample(range(len(prompts)), min(most, len(prompts))))]


def slices_of(sets: Mapping[str, Sequence[PictureSpec]]) -> dict[str, slice]:
    """The places of each set's pictures among all pictures of a model."""
    ends = list(accumulate(map(len, sets.values()), initial=0))
    return {name: slice(*ends[i : i + 2]) for i, name in enumerate(sets)}


def instances_in(folder: Path, prompt: str) -> tuple[Instance, ...]:
    """The pictures of a folder, with their captions if it has some, else with a prompt of the subject.

    Raises ConfigError for a folder without pictures, and for captions that are not whole, as `captioned_images` does.
    """
    caption = None if has_captions(str(folder), "instances") else prompt
    images = captioned_images(str(folder), "instances", caption)
    return tuple(Instance(image.path, image.prompt.text) for image in images)
