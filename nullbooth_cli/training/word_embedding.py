"""The embedding of one word, trained while the rest of the text encoder stays.

No prompt without the word sees the change, so what is kept is not touched. The step is that of textual inversion (Gal et al.,
arXiv 2208.01618), here beside the weights of the denoiser.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nullbooth_cli.errors import ConfigError


class WordEmbedding(nn.Module):
    """The row `[D]` of a word in the token embedding of a pipeline's text encoder, as a parameter of its own.

    While it is attached, the text encoder sees it in the place of the row that it has. Raises ConfigError for what is not one
    token, that no caption has, or that a prompt to keep has.
    """

    def __init__(self, pipe: Any, word: str, captions: Sequence[str], kept: Sequence[str]) -> None:
        super().__init__()
        tokens = pipe.tokenizer(word, add_special_tokens=False).input_ids
        if len(tokens) != 1 or tokens[0] == pipe.tokenizer.unk_token_id:
            raise ConfigError(
                f"'{word}' is {len(tokens)} tokens to this model, not one of its vocabulary",
                "choose a rare word that is one token",
            )
        self.token = int(tokens[0])
        if not self._among(pipe, captions):
            raise ConfigError(f"no caption has the word '{word}'", f"such as '{captions[0]}': name a word of the captions")
        if with_word := self._among(pipe, kept):
            raise ConfigError(
                f"{len(with_word)} prompts to keep have the word '{word}', such as '{with_word[0]}'",
                "an embedding that trains would change them: choose another word",
            )
        self._embedding: Any = pipe.text_encoder.get_input_embeddings()
        self.row = nn.Parameter(self._embedding.weight[self.token].detach().clone())
        self._hook: Any = None

    def _among(self, pipe: Any, texts: Sequence[str]) -> list[str]:
        return [text for text in texts if self.token in pipe.tokenizer(text).input_ids]

    def forward(self, ids: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """`embedded` `[N, L, D]`, with the row wherever `ids` `[N, L]` are the word."""
        return torch.where((ids == self.token)[..., None], self.row.to(embedded), embedded)

    def attach(self, prepared: nn.Module) -> None:
        """Let the text encoder see the row from now on; `prepared` is this module as accelerate wraps it."""
        self._hook = self._embedding.register_forward_hook(lambda _, inputs, embedded: prepared(inputs[0], embedded))

    @torch.no_grad()
    def settle(self) -> None:
        """Write the row into the text encoder and leave it plain."""
        self._hook.remove()
        self._embedding.weight[self.token] = self.row
