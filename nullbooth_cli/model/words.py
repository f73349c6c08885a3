"""Words of a text encoder: tokens of its vocabulary, tokens that are added to it, and files of their embeddings.

    {token: [1, D]}    learned_embeds.safetensors, as diffusers' `load_textual_inversion` reads it

A token is added as diffusers adds one, so that a text has the same tokens here and there: without regard to capitals, and also
inside another word.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.adapter_files import shapes_in
from nullbooth_cli.model.protocols import Pipeline, StableDiffusion, Tokenizer

WORD_FILE = "learned_embeds.safetensors"


def pieces_of(tokenizer: Tokenizer, word: str) -> list[int]:
    """The tokens that a word falls into, without those that stand for what the vocabulary lacks."""
    return [token for token in tokenizer(word, add_special_tokens=False).input_ids if token != tokenizer.unk_token_id]


def own_token(tokenizer: Tokenizer, word: str) -> int | None:
    """The token of a word that is one token; None for any other."""
    tokens = tokenizer(word, add_special_tokens=False).input_ids
    return tokens[0] if len(tokens) == 1 and tokens[0] != tokenizer.unk_token_id else None


def with_token(text: str, word: str, token: str) -> str:
    """A text with a token in place of a word, whatever its capitals; where the token is written already, it stays."""
    if token == word:
        return text
    return re.sub(rf"(?<![\w<]){re.escape(word)}(?![\w>])", lambda _: token, text, flags=re.IGNORECASE)


def add_token(pipe: StableDiffusion, name: str) -> int:
    """Add a token to the tokenizer and a row for it to the text encoder's table; the row is still to be written."""
    pipe.tokenizer.add_tokens(name)
    token = pipe.tokenizer.convert_tokens_to_ids(name)
    table = pipe.text_encoder.get_input_embeddings()
    if token >= table.num_embeddings:  # some tables have rows to spare
        is_trained = table.weight.requires_grad
        pipe.text_encoder.resize_token_embeddings(token + 1, mean_resizing=False)
        pipe.text_encoder.get_input_embeddings().requires_grad_(is_trained)
    return token


@dataclass(frozen=True)
class WordFile:
    """A file with the embedding of one word: its token, and the width D of its row."""

    path: Path
    token: str
    width: int

    @classmethod
    def read(cls, path: Path) -> "WordFile":
        """What a file holds, from its header. Raises ConfigError for anything but one row of one token."""
        shapes = shapes_in(path)
        [(token, shape)] = shapes.items() if len(shapes) == 1 else [("", ())]
        if len(shape) != 2 or shape[0] != 1:
            found = ", ".join(f"{name} {list(size)}" for name, size in shapes.items()) or "nothing"
            raise ConfigError(
                f"{path} is not the embedding of one word: it has {found}",
                "name a file that has one tensor, with the name of the token and the shape [1, D]",
            )
        return cls(path, token, shape[1])

    def require_fits(self, pipe: Pipeline) -> None:
        """Raise ConfigError unless the text encoder of a pipeline has rows of this width."""
        encoder = getattr(pipe, "text_encoder", None)
        table = None if encoder is None else encoder.get_input_embeddings()
        if table is None or table.embedding_dim != self.width:
            has = "no text encoder" if table is None else f"rows of {table.embedding_dim}"
            raise ConfigError(
                f"{self.path} has a row of {self.width} numbers for '{self.token}', and this base {has}",
                "name the base that the word was trained in",
            )

    @torch.no_grad()
    def load_into(self, pipe: Pipeline) -> None:
        """Write the row into the text encoder, for the token that a prompt with this word has; a new one is added.

        Raises ConfigError as `require_fits` does, and for values that are not finite.
        """
        from safetensors.torch import load_file

        self.require_fits(pipe)
        pipe = cast(StableDiffusion, pipe)
        row = load_file(self.path)[self.token][0]
        if not row.isfinite().all():
            raise ConfigError(f"{self.path}: {self.token} is not finite", "train it again, or name another")
        token = own_token(pipe.tokenizer, self.token)
        if token is None:
            token = add_token(pipe, self.token)
        pipe.text_encoder.get_input_embeddings().weight[token] = row
