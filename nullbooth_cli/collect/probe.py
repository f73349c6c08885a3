"""A probe of a pipeline: what the projections of its denoisers receive in the first steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.denoise import DenoisingPath, denoise
from nullbooth_cli.model.denoisers import denoiser_of, denoisers_of
from nullbooth_cli.model.hooks import Forward, ProjectionHooks, StopDenoising, argument_names, memory_of
from nullbooth_cli.model.padding import TEXT_ARGUMENT, Padding
from nullbooth_cli.model.projections import Projection
from nullbooth_cli.model.protocols import Pipeline

_SAMPLE = 64  # places along tokens and dimensions that stand for a tensor in comparisons
TIMESTEPS = ("timestep", "timesteps", "timestep_ratio", "t")  # names of a denoiser's timestep


@dataclass(frozen=True, kw_only=True)
class Received:
    """A tensor that a projection received: its memory and shape `[rows, L, D]`, and a sample of it.

    `changes` says whether it depends on the latents or the timestep, where that is known without values. `attended` `[rows, L]`
    is False for padding, None if there is none. `is_argument`: it is the text that the denoiser is given.
    """

    memory: tuple[object, ...]
    shape: tuple[int, ...]
    sample: torch.Tensor
    changes: bool | None
    attended: torch.Tensor | None
    is_argument: bool


class Probe:
    """Runs prompts until each denoiser has made `num_steps` steps, and keeps what its projections received.

    `num_rows` has, for each forward, the rows of the denoiser's latents. `changes` says of a tensor without values whether it
    depends on the latents or the timestep. `only_main`: no other denoiser than the main one counts. Memory: the tensors of one
    forward.
    """

    def __init__(
        self,
        pipe: Pipeline,
        projections: tuple[Projection, ...],
        side: str,
        *,
        num_steps: int,
        changes: Callable[[torch.Tensor], bool] | None = None,
        only_main: bool = False,
    ) -> None:
        self._pipe, self._projections, self._side, self._num_steps, self._changes = pipe, projections, side, num_steps, changes
        self.denoisers = {"": denoiser_of(pipe)} if only_main else denoisers_of(pipe)
        self.received: dict[Forward, dict[Projection, Received]] = {}
        self.num_rows: dict[Forward, int] = {}
        self._timesteps: dict[Forward, torch.Tensor] = {}
        self._alive: list[torch.Tensor] = []  # sharing means the same memory, so that of a whole forward must stay taken
        self._text: torch.Tensor | None = None
        self._padding = Padding({})

    def run(self, path: DenoisingPath, *prompts: Prompt, last: Forward | None = None) -> None:
        """Run prompts as one batch, with the noise of the first rows; after forward `last` no more.

        Raises ModelError for hooks that misfire, and for a denoiser that never runs or has several timesteps in one step.
        """
        hooks = ProjectionHooks(
            self.denoisers,
            self._projections,
            self._side,
            self._receive,
            last=last,
            begin=self._begin,
            enter=lambda *given: self._padding.enter(*given),
        )

        def after_step() -> None:
            hooks.end_step()
            if all(len({forward.step for forward in self.forwards(prefix)}) >= self._num_steps for prefix in self.denoisers):
                raise StopDenoising

        with hooks:
            denoise(self._pipe, path, [*enumerate(prompts)], after_step=after_step)
        self._alive.clear()
        for prefix in self.denoisers:
            if not self.forwards(prefix):
                raise ModelError(
                    f"{prefix or 'the denoiser'} never runs along these {path.num_inference_steps} steps",
                    "set more schedule.num_denoising_steps, or the pipeline's own boundary between its denoisers",
                )

    def forwards(self, prefix: str) -> list[Forward]:
        """The forwards of a denoiser, in their order."""
        return [forward for forward in self.num_rows if forward.denoiser == prefix]

    def first_step(self, prefix: str) -> int:
        """The step in which a denoiser first ran."""
        return self.forwards(prefix)[0].step

    def _begin(self, forward: Forward, arguments: Mapping[str, Any]) -> None:
        self._alive.clear()
        latents = arguments[argument_names(self.denoisers[forward.denoiser])[0]]
        self.num_rows[forward], self.received[forward] = len(latents), {}
        self._padding, text = Padding(arguments), arguments.get(TEXT_ARGUMENT)
        self._text = text if isinstance(text, torch.Tensor) else None
        self._require_one_timestep(forward, arguments)

    def _require_one_timestep(self, forward: Forward, arguments: Mapping[str, Any]) -> None:
        given = next((arguments[name] for name in TIMESTEPS if isinstance(arguments.get(name), torch.Tensor)), None)
        if given is None or given.is_meta:
            return
        self._timesteps[forward] = given.flatten()[0]
        first = self._timesteps.get(forward._replace(turn=0))
        if first is not None and first != (later := self._timesteps[forward]):
            raise ModelError(
                f"the pipeline runs its denoiser at two timesteps in one step of its scheduler: {first:g} and {later:g}",
                "choose another pipeline: what this one records has no single timestep",
            )

    def _receive(self, projection: Projection, forward: Forward, tensor: torch.Tensor) -> None:
        self._alive.append(tensor)
        rows, num_tokens, dim = tensor.shape
        if rows % self.num_rows[forward]:
            raise ModelError(
                f"{projection} received {rows} rows in a forward of {self.num_rows[forward]}, not a whole number for each",
                "leave it out of collect.cross_attention_layers and collect.linear_layers",
            )
        self.received[forward][projection] = Received(
            memory=memory_of(tensor),
            shape=(rows, num_tokens, dim),
            sample=sample_of(tensor).clone(),
            changes=None if self._changes is None else self._changes(tensor),
            attended=self._padding.attended(projection, tensor),
            is_argument=self._text is not None and memory_of(tensor) == memory_of(self._text),
        )


def sample_of(tensor: torch.Tensor) -> torch.Tensor:
    """Evenly spaced tokens and dimensions of `[..., L, D]`, at least 64 of each where there are as many: a view."""
    num_tokens, dim = tensor.shape[-2:]
    return tensor[..., :: max(1, num_tokens // _SAMPLE), :: max(1, dim // _SAMPLE)]
