"""Where the subject of a prompt ends among the tokens of its text.

Nothing here knows a tokenizer. The pipeline encodes texts as it does when it draws, and the tokens that its text encoders look up
in their tables are noted. A text ends where its tokens begin to differ from those of the same text with one word more; templates,
marks and padding around it are those of the pipeline. The tokens of an encoder are those of a site if there are as many.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.denoise import DenoisingPath, begin_denoising
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.model.words import readers_of, tokenizer_of

Ids = tuple[int, ...]
_ANOTHER_WORD = " dog"
_MARKED = re.compile(r"\[([^\[\]]+)\]")


class Marked(NamedTuple):
    """A prompt, the part of it up to the end of its subject, and the subject; None if it is not marked."""

    text: str
    until: str | None
    subject: str | None = None

    @classmethod
    def read(cls, prompt: str) -> "Marked":
        """A prompt whose subject may be in brackets: `a [sks star] on a table`.

        Raises ConfigError for brackets that are not one pair around something.
        """
        if not set("[]") & set(prompt):
            return cls(prompt, None)
        before, *found = _MARKED.split(prompt)
        if len(found) != 2 or set("[]") & {*before, *found[1]} or not found[0].strip():
            raise ConfigError(
                f"'{prompt}' does not mark one subject", "put one pair of brackets around it: a [sks star] on a table"
            )
        return cls(before + found[0] + found[1], (before + found[0]).rstrip(), found[0].strip())


class Ends(NamedTuple):
    """The last token of the subject of each of two prompts, for encoders that read as many tokens of them as `lengths` has."""

    lengths: tuple[int, int]
    last: tuple[int, int]


class Positions:
    """Finds tokens of prompts in one pipeline; `fixed` are its other inputs. Cost: the text encoders, twice for each text."""

    def __init__(self, pipe: Pipeline, fixed: Mapping[str, Any] | None = None) -> None:
        self._pipe = pipe
        self._path = DenoisingPath(
            num_inference_steps=2, steps=(), guidance_scale=1.0, height=None, width=None, seed=0, inputs=fixed or {}
        )
        parts = {name: part for name, part in pipe.components.items() if name.startswith("text_encoder")}
        self._encoders = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        self._rows = cache(self._read)

    def subject_ends(self, source: Marked, target: Marked) -> list[Ends]:
        """The last token of the subject in source and target, for each text encoder.

        Unmarked, the subject is what differs between the two, without the tokens that both begin and end with. If one of them has
        nothing of its own there, it is the token after that in both, or the last one of all.
        The subject of an empty text is the token before its end, a mark of the beginning where there is one.
        Raises ConfigError if only one is marked, and for a subject that does not end where a token does.
        """
        if (source.until is None) != (target.until is None) and target.text.strip():
            raise ConfigError(
                f"only one subject is marked in '{source.text}' and '{target.text}'", "put both into brackets, or neither"
            )
        return [self._ends(part, source, target) for part in self._encoders if self._rows("")[part]]

    def _ends(self, part: str, source: Marked, target: Marked) -> Ends:
        one, other = self._found(part, source.text), self._found(part, target.text)
        lengths = len(one.ids), len(other.ids)
        if source.until is None:
            return Ends(lengths, _of_difference(one, other))
        return Ends(lengths, (self._marked(part, source.until, one), self._marked(part, target.until or "", other)))

    def _marked(self, part: str, until: str, whole: "_Found") -> int:
        """The last token of a text that another one begins with."""
        found = self._found(part, until)
        if found.ids[: found.end] != whole.ids[: found.end]:
            raise ConfigError(f"the subject of '{until} ...' ends inside a token of its {part}", "mark whole words")
        return max(found.end - 1, 0)

    def _found(self, part: str, text: str) -> "_Found":
        """The tokens of a text in an encoder, and where it begins and ends among them."""
        empty, begin = self._end(part, "")
        ids, end = (empty, begin) if not text.strip() else self._end(part, text)
        if text.strip() and end <= begin:
            raise ConfigError(
                f"the tokens of '{text}' cannot be found among those that {part} reads",
                "set tokens to all, which needs no subject",
            )
        return _Found(ids, begin, end)

    def _end(self, part: str, text: str) -> tuple[Ids, int]:
        """The tokens of a text, and how many there are up to its end."""
        rows, longer = self._rows(text)[part], self._rows(text + _ANOTHER_WORD)[part]
        changed = {(row, more) for row, more in zip(rows, longer, strict=True) if row != more}
        if not changed and text:  # what comes after it is cut off
            own = {row for row, empty in zip(rows, self._rows("")[part], strict=True) if row != empty}
            special = getattr(self._pipe.components.get(tokenizer_of(part)), "all_special_ids", None)
            if len(own) == 1 and special is not None:
                (row,) = own
                return row, len(row) - (row[-1] in special)
        if len(changed) != 1:
            raise ConfigError(
                f"{part} reads {len(changed)} texts for one prompt, so its tokens cannot be found", "set tokens to all"
            )
        ((row, more),) = changed
        return row, _common(row, more)

    def _read(self, text: str) -> Mapping[str, Sequence[Ids]]:
        """The rows of tokens that each text encoder looks up for a prompt, in order."""
        found: dict[str, list[Ids]] = {part: [] for part in self._encoders}
        handles = [
            reader.register_forward_pre_hook(lambda _, given, part=part: found[part].extend(_rows_of(given[0])))
            for part, encoder in self._encoders.items()
            for reader in readers_of(encoder)  # type: ignore[arg-type]  # text encoders have what the protocol asks for
        ]
        try:
            begin_denoising(self._pipe, self._path, Prompt(text))
        finally:
            for handle in handles:
                handle.remove()
        return found


class _Found(NamedTuple):
    """The tokens of a text with all around it: its own are those from `begin` to `end`."""

    ids: Ids
    begin: int
    end: int

    @property
    def own(self) -> Ids:
        return self.ids[self.begin : self.end]


def _rows_of(ids: torch.Tensor) -> Iterator[Ids]:
    return (tuple(row) for row in ids.reshape(-1, ids.shape[-1]).tolist())


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many values two sequences begin with in common."""
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def _of_difference(source: _Found, target: _Found) -> tuple[int, int]:
    """The last token in which each of two texts differs from the other."""
    one, other = source.own, target.own
    before = _common(one, other)
    after = _common(one[before:][::-1], other[before:][::-1])
    if min(len(one), len(other)) - after == before:
        after = max(after - 1, 0)
    return max(source.end - after - 1, 0), max(target.end - after - 1, 0)
