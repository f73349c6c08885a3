"""Other prompts that have what is edited: whether an edit holds in them is measured, and nothing is asked of them.

    "[circle]" -> "square"     and the preserved prompt     "a red circle on a table" -> "a red square on a table"

A word that the preserved prompts have may take its target alone and in templates, and yet nothing of it in a sentence: there its
inputs are preserved. On the embedded model an erased circle was "reached" with 0.42 missing by itself, and 12 of 12 preserved
prompts with it drew their circle as before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from nullbooth_cli.api import OpenStore
from nullbooth_cli.editing.positions import Marked
from nullbooth_cli.editing.preserved import evenly_spaced, preserved_texts
from nullbooth_cli.model.words import has_word, place_of_word

MOST = 40  # prompts that are run, of all contexts together, but two of each at least

Choice = Literal["preserved", "held-out"]
MarkedPairs = tuple[tuple[Marked, Marked], ...]  # of one source, with each of its targets


@dataclass(frozen=True, kw_only=True)
class Context:
    """The prompts of one kind that have the text of a source, `count` of them; of some, what they would become."""

    concept: str
    prompts: Choice
    count: int
    pairs: tuple[MarkedPairs, ...]


@dataclass(frozen=True, kw_only=True)
class InContext:
    """What is missing of an edit in other prompts, `count` preserved or held-out ones that have the `concept` which is edited.

    `missing` is 1 - <dW K1, R> / <R, R> over all changed weights, K1 the inputs of these prompts from the subject on and R what
    would give them the target in place of the concept: 0 where the edit does all of it, 1 where it does nothing of it.
    """

    concept: str
    prompts: Choice
    count: int
    missing: float


def contexts_of(sources: Sequence[MarkedPairs], store: OpenStore, can_pair: Callable[[MarkedPairs], bool]) -> list[Context]:
    """The contexts of each source among the preserved and the held-out prompts that are longer than it.

    `can_pair` tells whether the tokens of a prompt and of what it would become can be paired; of others, too long for the model,
    nothing can be told.
    """
    heldout = store.store.heldout() if store.config.heldout_prompts is not None else None
    every: dict[Choice, list[str]] = {"preserved": preserved_texts(store)}
    if heldout is not None:
        every["held-out"] = [prompt.text for prompt in heldout.prompts()]
    found = [
        (to_each, prompts, having)
        for to_each in sources
        for prompts, texts in every.items()
        if (concept := to_each[0][0].text.strip())
        and (having := [text for text in texts if text.strip() != concept and has_word(text, concept)])
    ]
    contexts = []
    for to_each, prompts, having in found:
        pairs = [within(text, to_each) for text in evenly_spaced(having, max(2, MOST // len(found)))]
        if pairs := [each for each in pairs if can_pair(each)]:
            contexts.append(Context(concept=to_each[0][0].text.strip(), prompts=prompts, count=len(having), pairs=tuple(pairs)))
    return contexts


def within(text: str, to_each: MarkedPairs) -> MarkedPairs:
    """A prompt that has the text of a source, and the prompts with each target in its place; the subjects stay marked."""
    place = place_of_word(text, to_each[0][0].text.strip())
    assert place is not None, text
    before, concept, after = text[: place[0]], text[slice(*place)], text[place[1] :]
    pairs = []
    for source, target in to_each:
        if source.until is None:
            pairs.append((Marked(text, None), Marked(_plain(before + target.text + after), None)))
            continue
        until = concept[: len(source.until)]
        pairs.append(
            (
                Marked(text, before + until, source.subject),
                Marked(_plain(before + target.text + after), _plain(before + (target.until or "")), target.subject),
            )
        )
    return tuple(pairs)


def _plain(text: str) -> str:
    return " ".join(text.split())
