"""Exponential moving averages of the parameters that train, which the result has in place of the last values.

Under a constraint, X of a weight W0 + X P is averaged. P is linear, so the average W0 + mean(X) P is constrained as exactly as
with any other X. Of a LoRA, A and B are averaged each: B (A P) is constrained for any A and B.

The average is that of diffusers' `EMAModel`: after step n it moves by 1 - min(ema_decay, n / (9 + n)) towards the new values (all
the way after the first), so the start is forgotten early.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn


class Averages:
    """The averages of named parameters. Memory: a copy of each, on its device; another, on the CPU, while they are applied."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        from diffusers.training_utils import EMAModel

        self._parameters = dict(parameters)
        self._model = EMAModel(self._parameters.values(), decay=decay)

    def update(self) -> None:
        """Take the values after an optimizer step into the averages."""
        self._model.step(self._parameters.values())

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the parameters their averages for a while."""
        self._model.store(self._parameters.values())
        self._model.copy_to(self._parameters.values())
        try:
            yield
        finally:
            self._model.restore(self._parameters.values())

    def apply(self) -> None:
        """Give the parameters their averages for good."""
        self._model.copy_to(self._parameters.values())

    def tensors(self) -> dict[str, torch.Tensor]:
        """The averages, by the names of their parameters."""
        return dict(zip(self._parameters, self._model.shadow_params, strict=True))

    def load(self, tensors: Mapping[str, torch.Tensor], steps: int) -> None:
        """Take averages over `steps` updates, as `tensors()` had them."""
        for name, average in self.tensors().items():
            average.copy_(tensors[name])
        self._model.optimization_step = steps


def averaged(averages: Averages | None) -> contextlib.AbstractContextManager[None]:
    """The parameters have their averages meanwhile, if there are any."""
    return contextlib.nullcontext() if averages is None else averages.applied()
