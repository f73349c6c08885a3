"""Texts that are longer than a pipeline takes: diffusers cuts them off, and warns at most.

if note := cut_off_note(pipe, captions):
    yield Note(note)
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nullbooth_cli.formatting import counted
from nullbooth_cli.model.load import tokenizers_of
from nullbooth_cli.model.protocols import Pipeline, Tokenizer
from nullbooth_cli.settings.texts import cut


@dataclass(frozen=True)
class CutText:
    """A text, and the end of it that a tokenizer of the pipeline cuts off."""

    text: str
    lost: str


def token_limits(pipe: Pipeline) -> dict[str, int]:
    """The tokens that each tokenizer of a pipeline takes, marks included, by its name.

    A pipeline with a `max_sequence_length` cuts the text of T5 and its like there. CLIP takes fewer in any case.
    """
    return limits_of(pipe, tokenizers_of(pipe))


def limits_of(pipe: Pipeline, tokenizers: Mapping[str, Tokenizer]) -> dict[str, int]:
    """As `token_limits`, of tokenizers by any name for a pipeline that may be without its own."""
    argument = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    longest = argument.default if argument is not None and isinstance(argument.default, int) else None
    limits = {name: tokenizer.model_max_length for name, tokenizer in tokenizers.items()}
    return limits if longest is None else {name: min(limit, longest) for name, limit in limits.items()}


def cut_texts(pipe: Pipeline, texts: Iterable[str]) -> list[CutText]:
    """The texts that are too long for a tokenizer of the pipeline, in order, each once and with the longest end that is lost.

    Cost: tokenizes every text, some 20,000 a second.
    """
    found: list[CutText] = []
    tokenizers = tokenizers_of(pipe)
    limits = token_limits(pipe)
    for text in dict.fromkeys(texts):
        lost = max((_lost(tokenizers[name], limits[name], text) for name in tokenizers), key=len, default="")
        if lost:
            found.append(CutText(text, lost))
    return found


def _lost(tokenizer: Tokenizer, limit: int, text: str) -> str:
    ids = tokenizer(text, truncation=False, verbose=False).input_ids
    if len(ids) <= limit:
        return ""
    end_marks = 1 if ids[-1] in tokenizer.all_special_ids else 0  # it stays, in place of one more word
    return tokenizer.decode(ids[limit - end_marks :], skip_special_tokens=True).strip()


def cut_off_note(pipe: Pipeline, texts: Sequence[str], what: str = "prompt") -> str | None:
    """A sentence that counts the texts that are too long, and shows one with its lost end; None if all fit.

    `what` is the noun for one text. Cost as `cut_texts`.
    """
    return _note(cut_texts(pipe, texts), what)


def cut_off_note_of(tokenizer: Tokenizer, limit: int, texts: Iterable[str], what: str = "prompt") -> str | None:
    """As `cut_off_note`, for a tokenizer alone, that takes `limit` tokens."""
    lost = ((text, _lost(tokenizer, limit, text)) for text in dict.fromkeys(texts))
    return _note([CutText(text, end) for text, end in lost if end], what)


def _note(found: Sequence[CutText], what: str) -> str | None:
    if not found:
        return None
    are, ends = ("is", "its end,") if len(found) == 1 else ("are", "their ends, such as")
    example = f"'{cut(found[0].lost)}' of '{cut(found[0].text)}'"
    return f"{counted(len(found), what)} {are} too long for the tokenizer, which cuts off {ends} {example}"
