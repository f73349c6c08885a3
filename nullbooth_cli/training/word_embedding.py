"""The embedding of one word, trained while the rest of the text encoder is frozen.

Prompts without the word do not change, so the preserved prompts do not. This is textual inversion (Gal et al., arXiv 2208.01618),
together with training of the denoiser's weights.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import counted
from nullbooth_cli.model.protocols import StableDiffusion, Tokenizer
from nullbooth_cli.settings.texts import cut


def token_of(tokenizer: Tokenizer, word: str, *, captions: Sequence[str], preserved: Sequence[str]) -> int:
    """The token of a word that can be trained.

    Raises ConfigError for a word that is not one token, that no caption has, or that a preserved prompt has. The end of a text
    that is longer than the tokenizer takes does not count: the model never sees it.
    """
    tokens = tokenizer(word, add_special_tokens=False).input_ids
    if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
        raise ConfigError(
            f"'{word}' is {len(tokens)} tokens to this model, not one of its vocabulary",
            "choose a rare word that is one token",
        )

    def with_word(texts: Sequence[str]) -> list[str]:
        return [text for text in dict.fromkeys(texts) if tokens[0] in tokenizer(text, truncation=True).input_ids]

    if not with_word(captions):
        raise ConfigError(
            f"no caption has the word '{word}'",
            f"name a word that a caption has in the part that the model reads, such as one of '{cut(captions[0])}'",
        )
    if found := with_word(preserved):
        raise ConfigError(
            f"the word '{word}' is in {counted(len(found), 'preserved prompt')}, such as '{cut(found[0])}'",
            "choose another word: training its embedding would change those prompts",
        )
    return int(tokens[0])


class WordEmbedding(nn.Module):
    """The row `[D]` of a word in the token embedding of a pipeline's text encoder, as a parameter of its own.

    While it is attached, the text encoder uses it instead of the row in its table. Raises ConfigError as `token_of` does.
    """

    def __init__(self, pipe: StableDiffusion, word: str, *, captions: Sequence[str], preserved: Sequence[str]) -> None:
        super().__init__()
        self.token = token_of(pipe.tokenizer, word, captions=captions, preserved=preserved)
        self._table = pipe.text_encoder.get_input_embeddings()
        self.row = nn.Parameter(self._table.weight[self.token].detach().clone())
        self._hook: RemovableHandle | None = None

    def forward(self, ids: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """`embedded` `[N, L, D]`, with the row wherever `ids` `[N, L]` are the word."""
        return torch.where((ids == self.token)[..., None], self.row.to(embedded), embedded)

    def attach(self, prepared: nn.Module) -> None:
        """Let the text encoder use the row from now on; `prepared` is this module as accelerate wraps it."""
        self._hook = self._table.register_forward_hook(lambda _, inputs, embedded: prepared(inputs[0], embedded))

    @torch.no_grad()
    def merge(self) -> None:
        """Write the row into the text encoder's table, and detach."""
        if self._hook is not None:
            self._hook.remove()
        self._table.weight[self.token] = self.row
