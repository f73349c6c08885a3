"""A request to teach a model a subject, and how the subject is shown by a model of each kind.

The figures of `TOY` are measured (docs/how-to/teach.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field, model_validator

from nullbooth_cli.settings import limits
from nullbooth_cli.settings.recipe import Method
from nullbooth_cli.settings.resizing import Resize
from nullbooth_cli.settings.schema import Section, refusal
from nullbooth_cli.toy.subject import ASKED_ON, SHAPE, WORD

THRESHOLD = 1e-4
"""From bare pictures this learned with every seed; smaller ones forgot less and learned less surely (docs/how-to/teach.md)."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is decided for a kind of model: the prompts to preserve, and those that show the subject.

    `preserved` are names of shipped prompt files; without `heldout` every `HELDOUT_EVERY`-th preserved prompt is held out.
    `scenes` complete the caption to the prompts that show the subject, each drawn `subject_images` times; `num_prompts` of the
    preserved and of the held-out prompts are drawn to measure what was forgotten. `settings` are keys of the recipe that differ
    from the shipped one's.
    """

    noun: str | None
    preserved: tuple[str, ...]
    heldout: str | None
    scenes: tuple[str, ...]
    subject_images: int
    num_prompts: int
    settings: Mapping[str, Any] = field(default_factory=dict)


TOY = Kind(
    noun=SHAPE,
    preserved=("toy.txt",),
    heldout="toy_heldout.txt",
    scenes=tuple(f"on a {background} background" for background in ASKED_ON),
    subject_images=6,
    num_prompts=32,
    # One caption for all pictures takes longer to learn than a caption for each.
    settings={"max_train_steps": 600, "checkpointing_steps": 150},
)
# The scenes are among those of DreamBooth's own evaluation (Ruiz et al., arXiv 2208.12242).
PHOTOGRAPHS = Kind(  # of any other model
    noun=None,
    preserved=("knowledge_1000.txt",),
    heldout=None,
    scenes=("in a bucket", "on the beach", "in the snow", "with a city in the background"),
    subject_images=4,
    num_prompts=16,
)
HELDOUT_EVERY = 11  # prime to the ten topics of the shipped files, which take turns


class TeachRequest(Section):
    """What a user asks for. What is None is decided: see `subject`, and the shipped recipe."""

    places: ClassVar[tuple[str, ...]] = ("pictures", "model", "after")

    pictures: str = Field(description="folder of pictures of the subject")
    word: str = Field(WORD, description="name of the subject in prompts, a rare word")
    noun: str | None = Field(None, description="class of the subject, such as dog")
    model: str = Field("toy", description="toy, a pipeline folder, a hub id, or the name of a shipped config, such as sdxl")
    after: str | None = Field(
        None, description="output that was taught before, to start from, with its model, config, recipe and preserved prompts"
    )
    preserve: list[str] = Field([], description="files of prompts that must not change, beside the shipped ones")
    caption: str | None = Field(None, description="one caption for all pictures; null: their own, or one made of word and noun")
    resize: Resize = Field("crop", description="as in a recipe")
    method: Method | None = Field(None, description="as in a recipe; null for the shipped recipe's")
    steps: int | None = Field(None, ge=1, le=limits.COUNT, description="optimizer steps; null for the shipped recipe's")
    threshold: float = Field(THRESHOLD, gt=0.0, lt=1.0, description="relative threshold of the null space")
    settings: list[str] = Field([], description="KEY=VALUE overrides of the recipe's keys, or of the config's")

    @model_validator(mode="after")
    def _are_words(self) -> "TeachRequest":
        for name, text in (("word", self.word), ("class", self.noun), ("caption", self.caption)):
            if text is not None and not text.strip():
                raise refusal(f"the {name} is empty", f"write the {name}, or leave it out")
        if len(self.word.split()) > 1:
            raise refusal(f"the word '{self.word}' is more than one word", "name one rare word, such as sks")
        if self.word.startswith("-"):
            raise refusal(f"the word '{self.word}' begins with a hyphen", "name one rare word, such as sks")
        if self.noun is not None and self.word in self.noun.split():
            raise refusal(f"the class '{self.noun}' has the word '{self.word}'", "name the class alone, such as dog")
        return self

    @property
    def kind(self) -> Kind:
        """What is decided for this kind of model."""
        return TOY if self.model == "toy" else PHOTOGRAPHS

    @property
    def subject(self) -> str:
        """The caption of the subject alone."""
        return self.caption or " ".join(filter(None, ("a photo of", self.word, self.noun or self.kind.noun)))

    @property
    def subject_prompts(self) -> list[str]:
        """The prompts that show whether the subject was learned."""
        return [f"{self.subject} {scene}" for scene in self.kind.scenes]
