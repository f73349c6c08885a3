"""Closed-form edits: give one prompt the meaning of another without training, while the collected prompts are preserved.

    report = nb.edit(pipe, nb.open_store("run.zarr"), {"a zwx": "a red star"})

The text reaches the picture only through the k and v weights of cross-attention. K1 are their inputs for the prompts to edit,
K* those for the targets, token by token. For each weight W we want W' with W' K1 = V1 = W K*. Then a source prompt gives the keys
and values of its target, and the model draws the same. (Attention to text ignores order, so tokens may be paired by position.)
With the missing part R = V1 - W K1, W' = W + dW is

    alphaedit   dW = R K1^T P (K1 K1^T P + a I)^-1               Fang et al., arXiv 2410.02355, without earlier edits
    uce         dW = R K1^T (K1 K1^T + b K0 K0^T + a I)^-1       Gandikota et al., arXiv 2308.14761

`alphaedit` acts within the null space alone, so it affects the collected prompts only by leakage. `uce` weighs the edit against
them. A source of collected tokens only has no component in the null space: no edit can move it without the collected prompts.

All weights of a site have one K1, so one system is solved for all of them: dW = W M. Everything is float64.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nullbooth_cli.api import OpenStore
from nullbooth_cli.datatypes import Prompt, Site, denoiser_of_weight
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.formatting import counted
from nullbooth_cli.model.denoise import DenoisingPath, denoise
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.fixed_inputs import read_inputs
from nullbooth_cli.model.hooks import Forward, ProjectionHooks
from nullbooth_cli.model.padding import Padding
from nullbooth_cli.model.projections import Projection, find_projections
from nullbooth_cli.model.prompt_length import cut_off_note
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.projector import Projector, relative_drift
from nullbooth_cli.nullspace.usable import require_pooled
from nullbooth_cli.settings import limits
from nullbooth_cli.settings.strict_yaml import parse_yaml
from nullbooth_cli.settings.texts import read_text
from nullbooth_cli.training.constrainable import require_constrainable
from nullbooth_cli.training.protected_weights import actual_names

Rows = NDArray[np.float64]


class TokenInputs(NamedTuple):
    """The inputs of a site for one prompt: `rows` `[L, D]`, and `attended` `[L]`, the tokens that the model attends to."""

    rows: Rows
    attended: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class EditedWeight:
    """The edit of one weight.

    `missing`: norm(W' K1 - V1) / norm(W K1 - V1), 0 for a complete edit and 1 for none. `drift`: norm(dW K0) / norm(W K0) on all
    inputs that were collected. `change`: norm(dW) / norm(W).
    """

    missing: float
    drift: float
    change: float


@dataclass(frozen=True)
class EditReport:
    """An edit: its method, the pairs of prompts, and each weight by name.

    `cut_off` names the prompts that are longer than the model takes; None if all fit.
    """

    method: str
    pairs: Mapping[str, str]
    weights: Mapping[str, EditedWeight]
    cut_off: str | None = None

    @property
    def missing(self) -> float:
        """The largest `missing` of all weights."""
        return float(np.max([weight.missing for weight in self.weights.values()]))

    @property
    def drift(self) -> float:
        """The largest `drift` of all weights."""
        return float(np.max([weight.drift for weight in self.weights.values()]))

    def __str__(self) -> str:
        return (
            f"{counted(len(self.pairs), 'prompt')} edited in {len(self.weights)} weights ({self.method}): at most "
            f"{self.missing:.2g} of the edit is missing, outputs on the collected prompts moved by {self.drift:.2g} at most"
        )


def edit(
    pipe: Pipeline,
    store: OpenStore,
    pairs: Mapping[str, str],
    *,
    method: Literal["alphaedit", "uce"] = "alphaedit",
    ridge: float = 1e-2,
    preserve: float = 1.0,
) -> EditReport:
    """Give each source prompt of `pairs` the picture of its target, by changing k and v weights of the pipeline in place.

    `ridge` is a in units of the mean squared norm of an edited token: a larger one changes less and leaves more missing.
    `preserve` (`uce` only) is b: at 1 all collected tokens together weigh as much as all edited ones.

    Raises ConfigError for another model than the one that was collected from (an edited one too: edit all prompts at once), and
    for a store without a k or v weight that receives the text alone; ModelError for one that is compiled, fused or constrained,
    has adapters, or parts in dtypes that do not work together. After an error the model is as it was. Cost: the beginning of one
    forward for each prompt, and some 10 D^3 operations for each site.
    """
    require_possible(store, pairs, method=method, ridge=ridge, preserve=preserve)
    denoiser, sites = denoiser_of(pipe), text_sites(store)
    _require_plain(denoiser, [weight for site in sites for weight in site.weights])
    projectors = store.projectors(denoiser)
    fixed = read_inputs(store.config.collect.pipeline_inputs)
    tokens = {text: text_inputs(pipe, sites, text, fixed) for text in dict.fromkeys([*pairs, *pairs.values()])}
    after: dict[str, torch.Tensor] = {}
    edited: dict[str, EditedWeight] = {}
    for site in sites:
        source, missing = paired([(tokens[one][site], tokens[other][site]) for one, other in pairs.items()])
        moment = store.moment(site)
        penalty = ridge * float(np.square(source).sum(1).mean())
        if method == "alphaedit":
            factor = alphaedit(source, missing, projectors[site.weights[0]], penalty)
        else:
            factor = uce(source, missing, preserve * len(source) * moment.ceiling, penalty)
        for name in site.weights:
            after[name], edited[name] = _edit_weight(
                denoiser.get_parameter(name), factor, source=source, missing=missing, moment=moment
            )
    for name, weight in after.items():
        denoiser.get_parameter(name).data.copy_(weight)
    return EditReport(method, dict(pairs), edited, cut_off_note(pipe, list(tokens)))


def require_possible(store: OpenStore, pairs: Mapping[str, str], *, method: str, ridge: float, preserve: float) -> None:
    """Raise ConfigError for arguments without an edit, and for a store that cannot constrain one: needs no model."""
    if method not in ("alphaedit", "uce"):
        raise ConfigError(f"method={method!r} is not a choice", "set method to alphaedit or uce")
    if not 0 < ridge < math.inf or not 0 <= preserve < math.inf:
        raise ConfigError(f"ridge={ridge}, preserve={preserve}", "set ridge to a number above 0, preserve to 0 or more")
    same = [source for source, target in pairs.items() if source == target]
    if same or not pairs:
        raise ConfigError(f"'{same[0]}' is its own target" if same else "no prompt to edit", "name sources and other targets")
    require_pooled(store.store)
    others = [prefix for site in text_sites(store) if (prefix := denoiser_of_weight(site.weights[0]))]
    if others:
        raise ConfigError(
            f"an edit changes one denoiser, and {store.url} has weights of a second one, {others[0].removesuffix('.')}",
            "train the pipeline under the constraint instead",
        )


def _require_plain(denoiser: nn.Module, weights: Sequence[str]) -> None:
    """Raise ModelError unless the weights to edit are what the denoiser uses."""
    require_constrainable(denoiser, weights)
    present = dict(denoiser.named_parameters())
    hidden = [name for name in weights if name not in present and name in denoiser.state_dict() | actual_names(denoiser)]
    if hidden:
        raise ModelError(
            f"{counted(len(hidden), 'weight')} to edit, such as {hidden[0]}, carry an adapter or a constraint",
            "edit the pipeline before adapters are loaded, or after unload_lora_weights(); merge() a constraint first",
        )


def _edit_weight(
    parameter: nn.Parameter, factor: Rows, *, source: Rows, missing: Rows, moment: Moment
) -> tuple[torch.Tensor, EditedWeight]:
    """W + W M rounded to the weight's dtype, and the measures of that edit. `factor` is M `[D, D]`."""
    weight = parameter.detach()
    before = weight.cpu().double().numpy()
    after = torch.from_numpy(before + before @ factor).to(weight)
    change = after.cpu().double().numpy() - before
    wanted = missing @ before.T
    return after, EditedWeight(
        missing=float(np.linalg.norm(source @ change.T - wanted) / np.linalg.norm(wanted)),
        drift=relative_drift(change, before, moment),
        change=float(np.linalg.norm(change) / np.linalg.norm(before)),
    )


def read_pairs(prompts: Sequence[str], file: str | None) -> dict[str, str]:
    """Pairs from a list, each source before its target, and from a YAML file that maps sources to targets.

    Raises ConfigError for a source without a target, for one that appears twice, and for a file that cannot be read.
    """
    if len(prompts) % 2:
        raise ConfigError(f"'{prompts[-1]}' has no target", "name a target after each source: an even number of prompts")
    pairs = list(zip(prompts[::2], prompts[1::2], strict=True))
    if file is not None:
        missing = "name a YAML file of lines `source: target`"
        read = parse_yaml(read_text(Path(file), "file", missing=missing, most=limits.SETTINGS_BYTES), file)
        if not isinstance(read, dict) or not all(isinstance(text, str) for pair in read.items() for text in pair):
            raise ConfigError(f"{file} does not map prompts to prompts", "write a line `source: target` for each")
        pairs += read.items()
    twice = [source for source, count in Counter(source for source, _ in pairs).items() if count > 1]
    if twice:
        raise ConfigError(f"'{twice[0]}' appears twice as a source", "keep one target for each prompt")
    return dict(pairs)


def alphaedit(source: Rows, missing: Rows, projector: Projector, penalty: float) -> Rows:
    """M `[D, D]` of dW = W M, from K1^T and (K* - K1)^T, both `[N, D]`: R is W (K* - K1).

    As P is a projector, K1^T P (K1 K1^T P + a I)^-1 = (P K1)^T ((P K1) (P K1)^T + a I)^-1, which is symmetric and positive.
    """
    # The last P removes the round-off of the solution outside the null space.
    return projector.apply(_solve(projector.apply(source), missing, penalty * np.eye(projector.dim)))


def uce(source: Rows, missing: Rows, preserved: Rows, penalty: float) -> Rows:
    """M `[D, D]` of dW = W M, from K1^T and (K* - K1)^T, both `[N, D]`; `preserved` is b K0 K0^T, `[D, D]`."""
    return _solve(source, missing, preserved + penalty * np.eye(len(preserved)))


def _solve(source: Rows, missing: Rows, penalty: Rows) -> Rows:
    """missing^T X (X^T X + penalty)^-1 for X = `source` `[N, D]`."""
    return np.asarray(np.linalg.solve(source.T @ source + penalty, source.T @ missing).T)


def text_sites(store: OpenStore) -> list[Site]:
    """The sites that feed k or v weights and receive the text alone. Raises ConfigError if there is none.

    In DeepFloyd IF and Kandinsky 2 these are add_k and add_v: the text has projections of its own there.
    """
    of_text = {"k", "v", "add_k", "add_v"}
    sites = [site for site in store.sites() if site.timestep_free and {of for _, of in site.projections} <= of_text]
    if not sites:
        raise ConfigError(
            f"no k or v weight in {store.url} receives the text alone",
            "collect k and v features; with joint attention (SD3, Flux) they receive the image as well: train instead",
        )
    return sites


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
