"""The inputs of k and v weights for a prompt, token by token, and how the tokens of two prompts are paired."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nullbooth_cli.datatypes import Prompt, Site
from nullbooth_cli.editing.positions import Ends
from nullbooth_cli.editing.solve import Rows
from nullbooth_cli.errors import ConfigError, ModelError
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


def text_inputs(
    pipe: Pipeline, sites: Sequence[Site], text: str, fixed: Mapping[str, Any] | None = None
) -> dict[Site, TokenInputs]:
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


def paired(pairs: Sequence[tuple[TokenInputs, TokenInputs]], first: Sequence[tuple[int, int]] | None = None) -> tuple[Rows, Rows]:
    """(K1^T, (K* - K1)^T), both `[N, D]`: of each pair the N tokens that both prompts have.

    From the `first` tokens of each pair on, one by one, those of the source and of the target; from the beginning by default. Of
    texts that are as long as their prompts, as many as the shorter rest has.
    """
    sources, targets = [], []
    for (source, target), (at, to) in zip(pairs, first or [(0, 0)] * len(pairs), strict=True):
        length = min(len(source.rows) - at, len(target.rows) - to)
        both = source.attended[at : at + length] & target.attended[to : to + length]
        sources.append(source.rows[at : at + length][both])
        targets.append(target.rows[to : to + length][both])
    return np.concatenate(sources), np.concatenate(targets) - np.concatenate(sources)


def averaged(
    targets: Sequence[tuple[TokenInputs, TokenInputs]], first: Sequence[tuple[int, int]] | None = None
) -> tuple[Rows, Rows]:
    """As `paired`, of one source with several targets: (K1^T, (K* - K1)^T) with K* the mean of those of the targets.

    Raises ConfigError if they begin at different tokens of the source.
    """
    each = [paired([pair], None if first is None else [first[i]]) for i, pair in enumerate(targets)]
    length = min(len(source) for source, _ in each)
    source = each[0][0][:length]
    if not all(np.array_equal(source, other[:length]) for other, _ in each):
        raise ConfigError(
            "the targets of a source differ from it at different tokens", "put its subject into brackets, in the targets too"
        )
    return source, np.mean([missing[:length] for _, missing in each], axis=0)


def first_tokens(
    site: Site, inputs: Sequence[tuple[TokenInputs, TokenInputs]], ends: Sequence[Sequence[Ends]]
) -> list[tuple[int, int]]:
    """The last subject tokens of each pair, source and target, in the inputs of a site; `ends` has those of all text encoders.

    Raises ConfigError unless the site has as many tokens as one of the encoders, or as several that agree.
    """
    found = []
    for (source, target), of_pair in zip(inputs, ends, strict=True):
        lengths = len(source.rows), len(target.rows)
        last = {each.last for each in of_pair if each.lengths == lengths}
        if len(last) != 1:
            read = ", ".join(f"{one} and {other}" for one, other in dict.fromkeys(each.lengths for each in of_pair)) or "none"
            raise ConfigError(
                f"the subject's tokens in {site.name} cannot be found: it receives {lengths[0]} and {lengths[1]} tokens of "
                f"source and target, and the text encoders read {read}",
                "set tokens to all, which pairs them by position",
            )
        found.append(last.pop())
    return found
