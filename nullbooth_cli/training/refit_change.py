"""What a refit needs of a finished change, in whatever form its files are: modules, the changed model, and a way to write it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from nullbooth_cli.model.protocols import Pipeline

Matrix = NDArray[np.float64]
Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ChangedModule:
    """One module of a change, as its file names it: `weights` of the denoiser that it changes, which receive one input.

    `weights` is empty for a module of a text encoder.
    """

    name: str
    weights: tuple[str, ...] = ()


class ChangedModel(NamedTuple):
    """The base with a change on it, and notes for the user on what of the change is not in it."""

    pipe: Pipeline
    notes: tuple[str, ...] = ()


class FinishedChange(ABC):
    """A change of a base model that is finished, read from its files."""

    modules: tuple[ChangedModule, ...]

    @abstractmethod
    def load_into(self, pipe: Pipeline, dropped: Sequence[ChangedModule]) -> ChangedModel:
        """Put the change onto its base, without some modules; the shifts of biases as well."""

    @abstractmethod
    def change(self, module: ChangedModule, initial: Weights) -> dict[str, torch.Tensor]:
        """Rows X `[*, D]` for each weight of a module with X^T X = dW^T dW: dW itself, or fewer rows if it has no shift.

        `initial` has the base's weights by name.
        """

    def shift(self, module: ChangedModule) -> dict[str, torch.Tensor]:
        """The change `[M]` of the bias of each weight of a module; empty without one. A refit leaves it out."""
        return {}

    @abstractmethod
    def write(
        self, output: Path, maps: Mapping[str, Matrix], *, dropped: Sequence[ChangedModule], initial: Weights, note: str
    ) -> tuple[str, ...]:
        """Write the change with the modules in `maps` multiplied by M `[D, D]` from the right, and some left out.

        Returns notes for the user on what has another form than before.
        """
