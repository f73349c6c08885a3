"""The prompts that an edit changed, with their targets, and paraphrases of both.

The caller names them, or they are those of the record beside the edited pipeline (`model/edit_file.py`). Paraphrases that nobody
names are made in two ways, each of which changes a prompt and its target alike:

1. The prompts of a store that contain an edited prompt, with the target in its place.
2. Both texts in each of `TEMPLATES`; the empty target stays empty.

A prompt that contains an edited one is meant to change. It does not belong to the rest, on which forgetting and specificity are
measured.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.edit_file import Pairs, edited_pairs, pairs_of
from nullbooth_cli.model.words import has_word
from nullbooth_cli.settings.class_prompts import article

TEMPLATES = ("a photo of {}", "a picture of {}", "a drawing of {}", "an image of {}")


class NoEdits(ConfigError):
    """Paraphrases of an edit without an edit."""


@dataclass(frozen=True, kw_only=True)
class EditedPrompts:
    """Edited prompts with their targets; `given` are paraphrases of them with theirs, None for made ones."""

    pairs: Pairs
    given: Pairs | None = None

    def rest(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """The prompts that contain no edited prompt, as words of their own."""
        return [prompt for prompt in prompts if not any(has_word(prompt.text, source) for source in self.pairs)]

    def paraphrases(self, prompts: Iterable[Prompt]) -> Pairs:
        """The paraphrases that were given, else those made of the `prompts` of a store and of the templates."""
        if self.given is not None:
            return self.given
        made = [*self._of_prompts(prompts), *self._of_templates()]
        return {source: targets for source, targets in made if source not in self.pairs}

    def _of_prompts(self, prompts: Iterable[Prompt]) -> Iterator[tuple[str, tuple[str, ...]]]:
        for text in (prompt.text for prompt in prompts):
            if (source := next((source for source in self.pairs if has_word(text, source)), None)) is not None:
                yield text, tuple(replaced(text, source, target) for target in self.pairs[source])

    def _of_templates(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Of prompts that contain no other edited prompt: an edit of a bare word has put it into templates already."""
        shortest = (source for source in self.pairs if not any(has_word(source, each) for each in self.pairs if each != source))
        for source in shortest:
            for template in TEMPLATES:
                yield template.format(source), tuple(template.format(target) if target else "" for target in self.pairs[source])


def find_edits(
    places: Sequence[str], pairs: Mapping[str, Any] | None = None, paraphrases: Mapping[str, Any] | None = None
) -> EditedPrompts | None:
    """The edited prompts that are named, else those of the first of the models that has a record of edits; None without any.

    Raises ConfigError for paraphrases without an edit, and for what does not map prompts to prompts.
    """
    recorded = (found for place in places if (found := edited_pairs(place)) is not None)
    found = next(recorded, None) if pairs is None else pairs_of(pairs, "the edit")
    if found is None:
        if paraphrases is not None:
            raise NoEdits("paraphrases of an edit are named, and no edit is", "name the edited prompts with their targets")
        return None
    return EditedPrompts(pairs=found, given=None if paraphrases is None else pairs_of(paraphrases, "the paraphrases"))


def replaced(text: str, source: str, target: str) -> str:
    """A text with a target in the place of a source, and the article that the target takes."""

    def put(found: re.Match[str]) -> str:
        before = found["article"]
        if before is None or not target or re.match(r"(an?|the) ", target, re.IGNORECASE):
            return target
        return f"{article(target) if before.islower() else article(target).capitalize()} {target}"

    pattern = rf"(?<![\w<])(?:(?P<article>an?) )?{re.escape(source)}(?![\w>])"
    return " ".join(re.sub(pattern, put, text, flags=re.IGNORECASE).split())
