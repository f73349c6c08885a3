"""Text encoders that do not train are run once for each text, while the others are run in every step.

    once = EncodedOnce([pipe.text_encoder_3])
    with once.attached():
        pipe(captions)          # takes from memory what this encoder computed before

Of Stable Diffusion 3 and Flux this is T5, which has many times the weights of the CLIP encoders that a word trains in.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn


class EncodedOnce:
    """Frozen text encoders with the outputs of each row of tokens that they received.

    A row is computed alone, so that its numbers do not depend on the others of a batch. Cost: the outputs stay on their device.
    """

    def __init__(self, encoders: Sequence[nn.Module]) -> None:
        self._encoders = encoders
        self._known: dict[Hashable, Any] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Meanwhile the encoders compute only rows that they have not had."""
        before = [encoder.forward for encoder in self._encoders]
        for place, (encoder, forward) in enumerate(zip(self._encoders, before, strict=True)):
            encoder.forward = partial(self._forward, place, forward)
        try:
            yield
        finally:
            for encoder in self._encoders:
                del encoder.forward

    @torch.no_grad()
    def _forward(self, place: int, forward: Callable[..., Any], input_ids: torch.Tensor, **others: Any) -> Any:
        """What `forward` returns for ids `[B, L]`: an output of transformers whose fields are tensors `[B, ...]`."""
        rows = []
        for i, ids in enumerate(input_ids.split(1)):
            given = {name: value[i : i + 1] if isinstance(value, torch.Tensor) else value for name, value in others.items()}
            key = place, _hashable(ids), *((name, _hashable(value)) for name, value in given.items())
            if key not in self._known:
                self._known[key] = forward(ids, **given)
            rows.append(self._known[key])
        return type(rows[0])(**{name: torch.cat([row[name] for row in rows]) for name in rows[0]})


def _hashable(value: Any) -> Hashable:
    return tuple(value.flatten().tolist()) if isinstance(value, torch.Tensor) else value
