"""The inputs of k and v weights for a prompt, token by token, and how the tokens of two prompts are paired."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nullbooth_cli.datatypes import Prompt, Site
from nullbooth_cli.editing.solve import Rows
from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.denoise import DenoisingPath, denoise
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.hooks import Forward, ProjectionHooks
from nullbooth_cli.model.padding import Padding
from nullbooth_cli.model.projections import Projection, find_projections
from nullbooth_cli.model.protocols import Pipeline


class TokenInputs(NamedTuple):
    """The inputs of a site for one prompt: `rows` `[L, D]`, and `attended` `[L]`, the tokens that the model attends to."""

    rows: Rows
    attended: NDArray[np.bool_]


def text_inputs(pipe: Pipeline, sites: list[Site], text: str, fixed: Mapping[str, Any] | None = None) -> dict[Site, TokenInputs]:
    """The inputs of each site for a prompt; `fixed` are the other inputs of the pipeline. Cost: the beginning of one forward."""
    denoiser = denoiser_of(pipe)
    by_weight = {site.weights[0]: site for site in sites}
    watched = tuple(p for p in find_projections(denoiser, ("k", "v"), "all") if p.weight in by_weight)
    found: dict[Site, TokenInputs] = {}
    paddings: list[Padding] = []

    def receive(projection: Projection, _: Forward, tensor: torch.Tensor) -> None:
        rows = tensor[-1].cpu().double().numpy()  # the prompt's own, after that of the empty prompt
        mask = paddings[0].attended(projection, tensor)
        attended = np.ones(len(rows), bool) if mask is None else mask[-1].cpu().numpy()
        found[by_weight[projection.weight]] = TokenInputs(rows, attended)

    path = DenoisingPath(num_inference_steps=2, steps=(), guidance_scale=1.0, height=None, width=None, seed=0, inputs=fixed or {})
    last = Forward("", 0, 0)
    hooks = ProjectionHooks(
        {"": denoiser},
        watched,
        "input",
        receive,
        last=last,
        begin=lambda _, given: paddings.append(Padding(given)),
        enter=lambda *given: paddings[0].enter(*given),
    )
    with hooks:
        try:
            denoise(pipe, path, [(0, Prompt(text))])
        except RuntimeError as error:
            raise _explained(pipe, error) from error
    return found


def _explained(pipe: Pipeline, error: RuntimeError) -> Exception:
    """A ModelError if parts of the pipeline are in different dtypes, else the error itself."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module) and name != "safety_checker"}
    dtypes = {name: str(next(part.parameters()).dtype).removeprefix("torch.") for name, part in parts.items()}
    if len(set(dtypes.values())) == 1:
        return error
    return ModelError(
        f"the parts of the pipeline do not work together: {', '.join(f'{name} in {dtype}' for name, dtype in dtypes.items())}",
        "bring all parts to one dtype, with pipe.to(dtype=...)",
    )


def paired(pairs: Sequence[tuple[TokenInputs, TokenInputs]]) -> tuple[Rows, Rows]:
    """(K1^T, (K* - K1)^T), both `[N, D]`: of each pair the N tokens that both prompts have, position by position.

    Of texts that are as long as their prompts, the positions of the shorter one.
    """
    lengths = [min(len(source.rows), len(target.rows)) for source, target in pairs]
    attended = [source.attended[:n] & target.attended[:n] for (source, target), n in zip(pairs, lengths, strict=True)]
    sources = np.concatenate([source.rows[: len(both)][both] for (source, _), both in zip(pairs, attended, strict=True)])
    targets = np.concatenate([target.rows[: len(both)][both] for (_, target), both in zip(pairs, attended, strict=True)])
    return sources, targets - sources
