"""The embedding of one word, trained while the rest of the text encoder is frozen.

1. `WordToken.of()` decides which token trains, from the tokenizer alone; `require_trainable()` compares it with captions and
   preserved prompts.
2. `WordEmbedding` is the row of that token, as a parameter of its own.

Prompts without the token do not change, so the preserved prompts do not. This is textual inversion (Gal et al., arXiv
2208.01618), together with training of the denoiser's weights.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import counted
from nullbooth_cli.model.protocols import StableDiffusion, Tokenizer
from nullbooth_cli.model.words import WORD_FILE, add_token, own_token, pieces_of, with_token
from nullbooth_cli.settings.texts import cut


@dataclass(frozen=True, kw_only=True)
class WordToken:
    """The token that trains for a word. `name` is how prompts write it; its row starts as the mean of the rows of `pieces`.

    A token that `is_new` is added to the vocabulary; any other is the word's own.
    """

    word: str
    name: str
    pieces: tuple[int, ...]
    is_new: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer, word: str, *, beside: bool) -> "WordToken":
        """The token of a word; with `beside`, the word's own token stays as it is, and a new one trains beside it.

        A word of several tokens gets a new one of its own name, or `<word>` if the vocabulary has that name. Raises ConfigError
        for a text that is not one word, and for a word that the model cannot read.
        """
        if not word or re.search(r"\s", word):
            raise ConfigError(f"word is '{word}', which is not one word", "set word to one without spaces")
        pieces = pieces_of(tokenizer, word)
        if not pieces:
            raise ConfigError(f"'{word}' has no character that this model knows", "set word to one of other letters")
        if not beside and own_token(tokenizer, word) is not None:
            return cls(word=word, name=word, pieces=tuple(pieces), is_new=False)
        vocabulary = tokenizer.get_vocab()
        is_free = own_token(tokenizer, word) is None and word not in vocabulary
        name = word if is_free else f"<{word}>"
        if name in vocabulary:
            raise ConfigError(f"the vocabulary of this model has '{name}' already", f"set word to another than '{word}'")
        return cls(word=word, name=name, pieces=tuple(pieces), is_new=True)

    def written(self, text: str) -> str:
        """A text with the name of the token in place of the word, if it has another name."""
        return with_token(text, self.word, self.name)

    def require_trainable(self, tokenizer: Tokenizer, *, captions: Sequence[str], preserved: Sequence[str]) -> None:
        """Raise ConfigError if no caption has the token, or if a preserved prompt has it; both are texts as they are written.

        The end of a text that is longer than the tokenizer takes does not count: the model never sees it. A new token is added to
        the tokenizer: it may then be found inside another word.
        """
        if self.is_new:
            tokenizer.add_tokens(self.name)
        token = self.id_in(tokenizer)

        def with_word(texts: Sequence[str]) -> list[str]:
            return [text for text in dict.fromkeys(texts) if token in tokenizer(text, truncation=True).input_ids]

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

    def id_in(self, tokenizer: Tokenizer) -> int:
        """The number of the token in a tokenizer that has it."""
        return tokenizer.convert_tokens_to_ids(self.name) if self.is_new else self.pieces[0]


class WordEmbedding(nn.Module):
    """The row `[D]` of a token in the token embedding of a pipeline's text encoder, as a parameter of its own.

    A new token is added to the pipeline. While this is attached, the text encoder uses it instead of the row in its table.
    """

    def __init__(self, pipe: StableDiffusion, token: WordToken) -> None:
        super().__init__()
        start = pipe.text_encoder.get_input_embeddings().weight[list(token.pieces)].detach().mean(0)
        self.name = token.name
        self.token = add_token(pipe, token.name) if token.is_new else token.id_in(pipe.tokenizer)
        self._table = pipe.text_encoder.get_input_embeddings()
        self.row = nn.Parameter(start)
        self._hook: RemovableHandle | None = None

    def forward(self, ids: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """`embedded` `[N, L, D]`, with the row wherever `ids` `[N, L]` are the word."""
        return torch.where((ids == self.token)[..., None], self.row.to(embedded), embedded)

    def attach(self, prepared: nn.Module) -> None:
        """Let the text encoder use the row from now on; `prepared` is this module as accelerate wraps it."""
        self._hook = self._table.register_forward_hook(lambda _, inputs, embedded: prepared(inputs[0], embedded))

    def save(self, folder: Path) -> Path:
        """Write the row into a folder that exists: `learned_embeds.safetensors`, which `load_textual_inversion` reads.

        diffusers reads it if the token is new to the vocabulary; nullbooth also if it is not.
        """
        from safetensors.torch import save_file

        path = folder / WORD_FILE
        save_file({self.name: self.row.detach().float().cpu()[None].contiguous()}, path)
        return path

    @torch.no_grad()
    def merge(self) -> None:
        """Write the row into the text encoder's table, and detach."""
        if self._hook is not None:
            self._hook.remove()
        self._table.weight[self.token] = self.row
