"""The embedding of one word, trained while the rest of the text encoders is frozen.

1. `Word.of()` decides which token trains in each text encoder, from the tokenizers alone; `require_trainable()` compares them
   with captions and preserved prompts.
2. `WordEmbedding` has the rows of those tokens, as parameters of its own.

Prompts without the token do not change, so the preserved prompts do not. This is textual inversion (Gal et al., arXiv
2208.01618), together with training of the denoiser's weights.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import counted
from nullbooth_cli.model.protocols import Pipeline, TextEncoder, Tokenizer
from nullbooth_cli.model.words import (
    WORD_FILE,
    add_token,
    encoders_in,
    own_token,
    pieces_of,
    readers_of,
    tokenizer_of,
    with_token,
)
from nullbooth_cli.settings.texts import cut


@dataclass(frozen=True, kw_only=True)
class WordToken:
    """The token of a word in one text encoder. Its row starts as the mean of the rows of `pieces`.

    A token that `is_new` is added to the vocabulary; any other is the word's own.
    """

    name: str
    pieces: tuple[int, ...]
    is_new: bool

    def id_in(self, tokenizer: Tokenizer) -> int:
        """The number of the token in a tokenizer that has it."""
        return tokenizer.convert_tokens_to_ids(self.name) if self.is_new else self.pieces[0]


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word that trains. `name` is how prompts write it, `tokens` are its tokens in the text encoders, by their key."""

    word: str
    name: str
    tokens: Mapping[str, WordToken]

    @classmethod
    def of(cls, tokenizers: Mapping[str, Tokenizer], word: str, *, beside: bool) -> "Word":
        """The tokens of a word; with `beside`, the word's own tokens stay as they are, and new ones train beside them.

        Where the word is one token, its own row trains; where it is several, a new token of its name. If a vocabulary has that
        name as another token, all text encoders get a new one, `<word>`. Raises ConfigError for a text that is not one word, and
        for a word that the model cannot read.
        """
        if not word or re.search(r"\s", word):
            raise ConfigError(f"word is '{word}', which is not one word", "set word to one without spaces")
        pieces = {key: tuple(pieces_of(tokenizer, word)) for key, tokenizer in tokenizers.items()}
        if not all(pieces.values()):
            raise ConfigError(f"'{word}' has no character that this model knows", "set word to one of other letters")
        owns = {key: own_token(tokenizer, word) is not None for key, tokenizer in tokenizers.items()}
        usable = [not beside if owns[key] else word not in tokenizer.get_vocab() for key, tokenizer in tokenizers.items()]
        name = word if all(usable) else f"<{word}>"
        if name != word and any(name in tokenizer.get_vocab() for tokenizer in tokenizers.values()):
            raise ConfigError(f"the vocabulary of this model has '{name}' already", f"set word to another than '{word}'")
        tokens = {key: WordToken(name=name, pieces=pieces[key], is_new=name != word or not owns[key]) for key in tokenizers}
        return cls(word=word, name=name, tokens=tokens)

    def written(self, text: str) -> str:
        """A text with the name of the token in place of the word."""
        return with_token(text, self.word, self.name)

    def require_trainable(
        self,
        tokenizers: Mapping[str, Tokenizer],
        limits: Mapping[str, int],
        *,
        captions: Sequence[str],
        preserved: Sequence[str],
    ) -> None:
        """Raise ConfigError if no caption has the token, or if a preserved prompt has it, in one of the text encoders.

        The texts are as they are written. Of each the first `limits` tokens count: the model never sees more. A new token is
        added to the tokenizer: it may then be found inside another word.
        """
        for key, tokenizer in tokenizers.items():
            if self.tokens[key].is_new:
                tokenizer.add_tokens(self.name)
            numbers = partial(_numbers, tokenizer, limits[key])
            self._require_trainable(self.tokens[key].id_in(tokenizer), numbers, captions, preserved)

    def _require_trainable(
        self, token: int, numbers: Callable[[str], list[int]], captions: Sequence[str], preserved: Sequence[str]
    ) -> None:
        def with_word(texts: Sequence[str]) -> list[str]:
            return [text for text in dict.fromkeys(texts) if token in numbers(text)]

        if not with_word(captions):
            raise ConfigError(
                f"no caption has the word '{self.word}'",
                f"name a word that a caption has in the part that the model reads, such as one of '{cut(captions[0])}'",
            )
        if found := with_word(preserved):
            raise ConfigError(
                f"the word '{self.name}' is in {counted(len(found), 'preserved prompt')}, such as '{cut(found[0])}'",
                "choose another word: training its embedding would change those prompts",
            )


def _numbers(tokenizer: Tokenizer, limit: int, text: str) -> list[int]:
    return tokenizer(text, truncation=True, max_length=limit).input_ids


class WordEmbedding(nn.Module):
    """The rows `[D]` of a word in the tables of a pipeline's text encoders, by their key, as float32 parameters of their own.

    `parts` are the names of those text encoders in the pipeline, by the same keys. `scales` are the root mean squares of the
    tables, in the order of the rows. New tokens are added to the pipeline. While this is attached, each text encoder uses its row
    instead of the one in its table.
    """

    def __init__(self, pipe: Pipeline, word: Word) -> None:
        super().__init__()
        parts = encoders_in({part: type(component).__name__ for part, component in pipe.components.items()})
        self.name = word.name
        self.parts = {key: parts[key] for key in word.tokens}
        self._encoders: dict[str, TextEncoder] = {key: pipe.components[parts[key]] for key in word.tokens}
        self._tokens: dict[str, int] = {}
        self.rows = nn.ParameterDict()
        scales: list[float] = []
        for key, token in word.tokens.items():
            encoder, tokenizer = self._encoders[key], pipe.components[tokenizer_of(parts[key])]
            table = encoder.get_input_embeddings().weight.detach()
            scales.append(float(torch.linalg.vector_norm(table, dtype=torch.float32)) / math.sqrt(table.numel()))
            start = table[list(token.pieces)].float().mean(0)
            self._tokens[key] = add_token(tokenizer, encoder, token.name) if token.is_new else token.id_in(tokenizer)
            self.rows[key] = nn.Parameter(start)
        self.scales = tuple(scales)
        self._hooks: list[RemovableHandle] = []

    def forward(self, key: str, ids: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """`embedded` `[N, L, D]`, with the row of a text encoder wherever `ids` `[N, L]` are its token."""
        return torch.where((ids == self._tokens[key])[..., None], self.rows[key].to(embedded), embedded)

    def attach(self, prepared: nn.Module) -> None:
        """Let the text encoders use the rows from now on; `prepared` is this module as accelerate wraps it."""

        def use(key: str, _: nn.Module, inputs: tuple[torch.Tensor, ...], embedded: torch.Tensor) -> torch.Tensor:
            return cast(torch.Tensor, prepared(key, inputs[0], embedded)).to(embedded)  # accelerate gives float32

        for key, encoder in self._encoders.items():
            self._hooks += [reader.register_forward_hook(partial(use, key)) for reader in readers_of(encoder)]

    def save(self, folder: Path) -> Path:
        """Write the rows into a folder that exists: `learned_embeds.safetensors`, whose form `model/words.py` describes.

        diffusers reads a token that is new to the vocabulary; nullbooth any.
        """
        from safetensors.torch import save_file

        path = folder / WORD_FILE
        names = self.rows if len(self.rows) > 1 else [self.name]
        rows = [row.detach().float().cpu()[None].contiguous() for row in self.rows.values()]
        save_file(dict(zip(names, rows, strict=True)), path)
        return path

    @torch.no_grad()
    def merge(self) -> None:
        """Write the rows into the tables of the text encoders, and detach."""
        for hook in self._hooks:
            hook.remove()
        for key, encoder in self._encoders.items():
            encoder.get_input_embeddings().weight[self._tokens[key]] = self.rows[key]
