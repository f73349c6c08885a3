"""What a denoiser receives beside latents and a timestep, captured from a call of its pipeline.

    conditioning = capture(pipe, captions, size=(512, 512), guidance=1.0)
    denoiser(noisy, timestep=timesteps, **conditioning.rows([0, 2]).arguments())

The pipeline encodes the captions and makes masks, pooled texts, ids and sizes itself, exactly as when it draws. Just before its
denoiser would run, the call ends. So nothing here knows the arguments of any model.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.families import training_scheduler
from nullbooth_cli.model.hooks import StopDenoising
from nullbooth_cli.model.latents import size_settings
from nullbooth_cli.model.protocols import LatentPipeline
from nullbooth_cli.model.quiet import quiet_libraries
from nullbooth_cli.tensors import generators

Size = tuple[int, int]  # width and height, in pixels


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Keyword arguments of a denoiser for N captions; an argument inside a dictionary is named `outer.inner`.

    `by_row` are tensors `[N, ...]`, one row for each caption. `shared` are the others: tensors without such an axis (the places
    of Flux), settings, None.
    """

    by_row: Mapping[str, torch.Tensor]
    shared: Mapping[str, Any]

    def __len__(self) -> int:
        return len(next(iter(self.by_row.values())))

    def rows(self, indices: Sequence[int]) -> "Conditioning":
        """The conditioning of some captions, in this order; a caption may come more than once."""
        return self.with_rows({name: tensor[list(indices)] for name, tensor in self.by_row.items()})

    def with_rows(self, tensors: Mapping[str, torch.Tensor]) -> "Conditioning":
        """The same with other tensors under these names; a name that it does not have is left out."""
        return replace(self, by_row={name: tensors.get(name, tensor) for name, tensor in self.by_row.items()})

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Conditioning":
        """All tensors on a device, those of floating point in this dtype."""

        def moved(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return value.to(device, dtype if value.is_floating_point() else None)

        return Conditioning(
            by_row={name: moved(value) for name, value in self.by_row.items()},
            shared={name: moved(value) for name, value in self.shared.items()},
        )

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments, as the denoiser takes them."""
        found: dict[str, Any] = {}
        for name, value in {**self.shared, **self.by_row}.items():
            outer, _, inner = name.partition(".")
            if inner:
                found.setdefault(outer, {})[inner] = value
            else:
                found[outer] = value
        return found


def joined(parts: Sequence[Conditioning]) -> Conditioning:
    """Conditionings of one size, one after the other."""
    names = parts[0].by_row
    return replace(parts[0], by_row={name: torch.cat([part.by_row[name] for part in parts]) for name in names})


def capture(
    pipe: LatentPipeline, captions: Sequence[str], *, size: Size, guidance: float, like: Conditioning | None = None
) -> Conditioning:
    """The conditioning of captions for pictures of a size; `guidance` is the pipeline's guidance_scale (`Family.guidance`).

    Differentiable if anything that the pipeline computes it with trains. An argument has a row for each caption if its shape
    differs for another number of captions; `like`, from the same pipeline, says so without the second call. Raises ModelError for
    a pipeline that runs its denoiser on more rows than there are captions. Cost: the text encoders, twice without `like`.
    """
    found = _call(pipe, captions, size, guidance)
    if like is not None:
        names: Iterable[str] = like.by_row
    else:
        other = _call(pipe, captions[:1] if len(captions) > 1 else [*captions] * 2, size, guidance)
        tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
        names = [name for name, value in tensors.items() if value.shape != other[name].shape]
    by_row = {name: found[name] for name in names}
    if wrong := [name for name, value in by_row.items() if len(value) != len(captions)]:
        raise ModelError(
            f"{type(pipe).__name__} gives its denoiser {len(by_row[wrong[0]])} rows of {wrong[0]} for {len(captions)} captions",
            "train it in a script of your own, with nb.constrain: docs/how-to/constrain-training.md",
        )
    return Conditioning(by_row=by_row, shared={name: value for name, value in found.items() if name not in by_row})


def _call(pipe: LatentPipeline, captions: Sequence[str], size: Size, guidance: float) -> dict[str, Any]:
    """The arguments of the denoiser in a call of the pipeline, but for latents and timestep."""
    denoiser, found = denoiser_of(pipe), {}
    order = [name for name in inspect.signature(type(denoiser).forward).parameters if name != "self"]

    def keep(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.update(dict(zip(order, args, strict=False)) | kwargs)
        raise StopDenoising

    call = inspect.unwrap(type(pipe).__call__)  # diffusers' own has no gradients
    handle, scheduler = denoiser.register_forward_pre_hook(keep, with_kwargs=True), pipe.scheduler
    pipe.scheduler = training_scheduler(pipe)  # the pipeline's own may be set to the steps of a store
    try:
        with quiet_libraries():  # it warns of a text that is too long at each call
            call(
                pipe,
                [*captions],
                num_inference_steps=1,
                guidance_scale=guidance,
                generator=generators(range(len(captions))),
                output_type="latent",
                **size_settings(pipe, size),
            )
    except StopDenoising:
        pass
    finally:
        handle.remove()
        pipe.scheduler = scheduler
        pipe.maybe_free_model_hooks()
    taken = {name: value for name, value in found.items() if name not in (order[0], "timestep")}
    return {
        name if inner is None else f"{name}.{inner}": value
        for name, outer in taken.items()
        for inner, value in (outer.items() if isinstance(outer, dict) and outer else [(None, outer)])
    }
