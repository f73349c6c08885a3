"""Words of text encoders: tokens of a vocabulary, tokens that are added to it, and files of their embeddings.

    {token: [1, D]}                                       learned_embeds.safetensors of a word in the first text encoder
    {"clip_l": [1, D], "clip_g": [1, D], "t5": [1, D]}    of a word in several, by `KEYS`; base.json has the token

diffusers' `load_textual_inversion` reads the first as it is, of the second the tensor of one text encoder at a time.

A token is added as diffusers adds one, so that a text has the same tokens here and there: in CLIP without regard to capitals,
and in all also inside another word.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.adapter_files import shapes_in
from nullbooth_cli.model.protocols import Pipeline, TextEncoder, Tokenizer

WORD_FILE = "learned_embeds.safetensors"
FIRST = "text_encoder"
# The names by which tools know text encoders, by the part of the pipeline and the beginning of its class.
KEYS = {
    ("text_encoder", "CLIP"): "clip_l",
    ("text_encoder_2", "CLIP"): "clip_g",
    ("text_encoder", "T5"): "t5",
    ("text_encoder_2", "T5"): "t5",
    ("text_encoder_3", "T5"): "t5",
}


def encoders_in(classes: Mapping[str, str]) -> dict[str, str]:
    """The text encoders that have a table of words: parts of a pipeline by their key, from the name of each part's class."""
    return {key: part for (part, kind), key in KEYS.items() if classes.get(part, "").startswith(kind)}


def tokenizer_of(part: str) -> str:
    """The tokenizer of a text encoder: the part of a pipeline with the same number."""
    return part.replace("text_encoder", "tokenizer")


def pieces_of(tokenizer: Tokenizer, word: str) -> list[int]:
    """The tokens that a word falls into, without those that stand for what the vocabulary lacks."""
    return [token for token in tokenizer(word, add_special_tokens=False).input_ids if token != tokenizer.unk_token_id]


def own_token(tokenizer: Tokenizer, word: str) -> int | None:
    """The token of a word that is one token; None for any other."""
    tokens = tokenizer(word, add_special_tokens=False).input_ids
    return tokens[0] if len(tokens) == 1 and tokens[0] != tokenizer.unk_token_id else None


def with_token(text: str, word: str, token: str) -> str:
    """A text with a token in place of a word, whatever its capitals, which T5 minds; where the token is written, it stays."""
    return _as_word(word).sub(lambda _: token, text)


def has_word(text: str, word: str) -> bool:
    """Whether a text has a word, or a token, by itself and not inside another one, whatever its capitals."""
    return place_of_word(text, word) is not None


def place_of_word(text: str, word: str) -> tuple[int, int] | None:
    """Where a text first has a word, as `has_word` finds it: its beginning and end; None if it has not."""
    found = _as_word(word).search(text)
    return None if found is None else found.span()


def _as_word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w<]){re.escape(word)}(?![\w>])", re.IGNORECASE)


def add_token(tokenizer: Tokenizer, encoder: TextEncoder, name: str) -> int:
    """Add a token to a tokenizer and a row for it to its text encoder's table; the row is still to be written."""
    tokenizer.add_tokens(name)
    token = tokenizer.convert_tokens_to_ids(name)
    table = encoder.get_input_embeddings()
    if token >= table.num_embeddings:  # some tables have rows to spare
        is_trained = table.weight.requires_grad
        encoder.resize_token_embeddings(token + 1, mean_resizing=False)
        encoder.get_input_embeddings().requires_grad_(is_trained)
    return token


def readers_of(encoder: TextEncoder) -> list[nn.Module]:
    """The modules that look tokens up in the table: T5 has two that share it, and calls only one."""
    weight = encoder.get_input_embeddings().weight
    return [module for module in encoder.modules() if isinstance(module, nn.Embedding) and module.weight is weight]


@dataclass(frozen=True)
class WordFile:
    """A file with the embedding of one word: its token, and the width D of each tensor in it."""

    path: Path
    token: str
    widths: Mapping[str, int]

    @classmethod
    def read(cls, path: Path, token: str | None = None) -> "WordFile":
        """What a file holds, from its header; `token` is the word's in a file of several text encoders, which does not name it.

        Raises ConfigError for anything but rows of one token.
        """
        shapes = shapes_in(path)
        are_rows = all(len(shape) == 2 and shape[0] == 1 for shape in shapes.values())
        is_known = len(shapes) == 1 or (token is not None and shapes.keys() <= set(KEYS.values()))
        if not shapes or not are_rows or not is_known:
            found = ", ".join(f"{name} {list(size)}" for name, size in shapes.items()) or "nothing"
            keys = ", ".join(dict.fromkeys(KEYS.values()))
            raise ConfigError(
                f"{path} is not the embedding of one word: it has {found}",
                "name a file that has one tensor, with the name of the token and the shape [1, D], or such a tensor for each of "
                f"several text encoders ({keys}) beside the base.json of its training run",
            )
        names = list(shapes)
        return cls(path, names[0] if len(names) == 1 or token is None else token, {name: shapes[name][1] for name in names})

    def require_fits(self, pipe: Pipeline) -> None:
        """Raise ConfigError unless the text encoders of a pipeline have rows of these widths."""
        for name, part in self._parts(pipe).items():
            encoder = None if part is None else pipe.components.get(part)
            width = None if encoder is None else encoder.get_input_embeddings().embedding_dim
            if width != self.widths[name]:
                has = f"no text encoder {'' if name == self.token else name}".rstrip() if width is None else f"rows of {width}"
                raise ConfigError(
                    f"{self.path} has a row of {self.widths[name]} numbers for '{self.token}', and this base has {has}",
                    "name the base that the word was trained in",
                )

    def _parts(self, pipe: Pipeline) -> dict[str, str | None]:
        """The text encoder of each tensor; None for one that the pipeline has not."""
        if len(self.widths) == 1:
            return dict.fromkeys(self.widths, FIRST)
        found = encoders_in({part: type(component).__name__ for part, component in pipe.components.items()})
        return {name: found.get(name) for name in self.widths}

    def add_to(self, tokenizers: Mapping[str, Tokenizer]) -> None:
        """Give tokenizers, by the keys of their text encoders, the token that prompts have for this word."""
        for name in self.widths:
            # A file of one row is that of the first text encoder, which `encoders_in` has first.
            tokenizer = next(iter(tokenizers.values())) if len(self.widths) == 1 else tokenizers.get(name)
            if tokenizer is not None and own_token(tokenizer, self.token) is None:
                tokenizer.add_tokens(self.token)

    @torch.no_grad()
    def load_into(self, pipe: Pipeline) -> None:
        """Write the rows into the text encoders, for the token that a prompt with this word has; a new one is added.

        Raises ConfigError as `require_fits` does, and for values that are not finite.
        """
        from safetensors.torch import load_file

        self.require_fits(pipe)
        rows = load_file(self.path)
        if not all(row.isfinite().all() for row in rows.values()):
            raise ConfigError(f"{self.path}: {self.token} is not finite", "train it again, or name another")
        for name, part in self._parts(pipe).items():
            assert part is not None
            encoder, tokenizer = pipe.components[part], pipe.components[tokenizer_of(part)]
            token = own_token(tokenizer, self.token)
            if token is None:
                token = add_token(tokenizer, encoder, self.token)
            encoder.get_input_embeddings().weight[token] = rows[name][0]
