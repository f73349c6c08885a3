"""Hooks on projections: they record the tensors that enter or leave them, in every forward of every denoiser.

`ProjectionHooks` hands over the tensor of every projection in every forward, as tokens `[rows, L, D]`. A hook that does not fire
exactly once per forward is an error.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from nullbooth_cli.errors import ModelError
from nullbooth_cli.formatting import listed
from nullbooth_cli.model.projections import Projection


class StopDenoising(Exception):
    """Ends a denoising path early, from inside a hook."""


class NotOnce(ModelError):
    """Projections that do not run exactly once in a forward, with how often they do."""

    def __init__(self, step: int, runs: Mapping[Projection, int]) -> None:
        several = any(count > 1 for count in runs.values())
        super().__init__(
            f"in step {step} these projections did not run exactly once in a forward: "
            f"{listed([f'{projection} {count} times' for projection, count in runs.items()])}",
            "leave them out of collect.cross_attention_layers and collect.linear_layers: what runs twice cannot be recorded"
            if several
            else "load the model without compiled, fused or custom attention processors, or leave them out of the config",
        )
        self.projections = frozenset(runs)


class Forward(NamedTuple):
    """One forward of a denoiser (its prefix, as in `denoisers_of`).

    `step` counts the steps of the scheduler, and `turn` the forwards of this denoiser in that step: guidance may need several.
    """

    denoiser: str
    step: int
    turn: int


Receive = Callable[[Projection, Forward, torch.Tensor], None]
Begin = Callable[[Forward, Mapping[str, Any]], None]
Enter = Callable[[str, Mapping[str, Any]], None]


class ProjectionHooks:
    """Context manager: calls `receive(projection, forward, tensor)` for every projection in every forward of its denoiser.

    `side` is "input" or "output". `begin` gets the arguments of each forward by name, before it runs, and `enter` those of each
    layer and block around a projection, with its path. Call `end_step` after each step of the scheduler. Once
    all projections of a denoiser have fired in forward `last`, the rest of the model is not computed: `StopDenoising` is raised,
    which ends the block without an error and sets `ended`.

    Tensors are the model's own memory as `tokens_of` reads it: copy what you store. Raises ModelError if a projection does not
    fire exactly once in a forward.
    """

    def __init__(
        self,
        denoisers: Mapping[str, nn.Module],
        projections: tuple[Projection, ...],
        side: str,
        receive: Receive,
        *,
        last: Forward | None = None,
        begin: Begin = lambda *_: None,
        enter: Enter = lambda *_: None,
    ) -> None:
        self._denoisers, self._side, self._receive, self._last = denoisers, side, receive, last
        self._begin, self._enter = begin, enter
        self._projections = {prefix: [each for each in projections if each.denoiser == prefix] for prefix in denoisers}
        self.ended = False
        self._handles: list[RemovableHandle] = []
        self._fired: Counter[Projection] = Counter()
        self._step, self._turns, self._now = 0, Counter[str](), Forward("", 0, 0)
        self._is_running = False  # a control network may run layers of the denoiser before it

    def __enter__(self) -> Self:
        for prefix, denoiser in self._denoisers.items():
            self._handles += [
                *map(self._hook, self._projections[prefix]),
                denoiser.register_forward_pre_hook(partial(self._start_forward, prefix), with_kwargs=True),
                denoiser.register_forward_hook(lambda *_: self._end_forward()),
                *(
                    module.register_forward_pre_hook(
                        partial(self._enter_module, f"{prefix}{name}", argument_names(module), _defaults(module)),
                        with_kwargs=True,
                    )
                    for name, module in _around(denoiser, prefix, self._projections[prefix])
                ),
            ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        for handle in self._handles:
            handle.remove()
        self.ended = kind is StopDenoising
        return self.ended

    def end_step(self) -> None:
        """Count a step that the scheduler has made."""
        self._step += 1
        self._turns.clear()

    def _hook(self, projection: Projection) -> RemovableHandle:
        def fire(tensor: torch.Tensor) -> None:
            if not self._is_running:
                return
            self._fired[projection] += 1
            self._receive(projection, self._now, tokens_of(projection, tensor))
            if self._now == self._last and len(self._fired) == len(self._projections[self._now.denoiser]):
                raise StopDenoising

        if self._side == "input":
            return projection.module.register_forward_pre_hook(
                lambda _, inputs, named: fire(inputs[0] if inputs else next(iter(named.values()))), with_kwargs=True
            )
        return projection.module.register_forward_hook(lambda _, __, output: fire(output))

    def _start_forward(self, prefix: str, denoiser: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._fired.clear()
        self._is_running = True
        self._now = Forward(prefix, self._step, self._turns[prefix])
        self._turns[prefix] += 1
        self._begin(self._now, dict(zip(argument_names(denoiser), inputs, strict=False)) | named)

    def _enter_module(
        self,
        path: str,
        names: Sequence[str],
        defaults: dict[str, Any],
        _: nn.Module,
        inputs: tuple[Any, ...],
        named: dict[str, Any],
    ) -> None:
        self._enter(path, defaults | dict(zip(names, inputs, strict=False)) | named)

    def _end_forward(self) -> None:
        self._is_running = False
        wrong = {each: self._fired[each] for each in self._projections[self._now.denoiser] if self._fired[each] != 1}
        if wrong:
            raise NotOnce(self._now.step, wrong)


def argument_names(module: nn.Module) -> list[str]:
    """The names of the arguments of a module's forward, in order; the first of a denoiser is that of the latents."""
    return [name for name in _parameters(module) if name != "self"]


def _defaults(module: nn.Module) -> dict[str, Any]:
    return {name: each.default for name, each in _parameters(module).items() if each.default is not inspect.Parameter.empty}


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    return _signature(type(module).forward)


@cache  # every unit hooks every block anew
def _signature(forward: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(forward).parameters


def _around(denoiser: nn.Module, prefix: str, projections: Sequence[Projection]) -> Iterator[tuple[str, nn.Module]]:
    """The modules around projections, the denoiser itself excepted. Those that only list others never run."""
    paths = [projection.weight.removeprefix(prefix).split(".")[:-1] for projection in projections]
    names = {".".join(path[:length]) for path in paths for length in range(1, len(path))}
    return ((name, module) for name, module in denoiser.named_modules() if name in names)


def tokens_of(projection: Projection, tensor: torch.Tensor) -> torch.Tensor:
    """What a projection receives or returns as tokens `[rows, L, D]`, a view where the memory allows one.

    The tokens of a convolution `[rows, D, h, w]` are its pixels, and `[rows, D]`, as the timestep's embedding, is one token.
    Raises ModelError for any other shape.
    """
    if projection.is_convolution and tensor.dim() == 4:
        return tensor.flatten(2).transpose(1, 2)
    if tensor.dim() == 2:
        return tensor[:, None]
    if projection.tokens_first and tensor.dim() == 3:
        return tensor.transpose(0, 1)
    if tensor.dim() > 3 and not projection.is_convolution:
        return tensor.flatten(1, -2)
    if tensor.dim() != 3:
        raise ModelError(
            f"{projection} has a tensor of shape {list(tensor.shape)}, not that of tokens [rows, L, D]",
            "leave it out of collect.linear_layers",
        )
    return tensor


def memory_of(tensor: torch.Tensor) -> tuple[object, ...]:
    """Equal for tensors that are the same memory read in the same way; also on the meta device, where every address is 0."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
