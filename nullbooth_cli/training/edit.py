"""Closed-form edits: one prompt is made to mean what another one means, without training, and without moving what is known.

    report = nb.edit(pipe, nb.open_store("run.zarr"), {"a zwx": "a red star"})

The k and v weights of cross-attention are all that the text passes through. K1 are the inputs of the prompts to edit and K* those
of their targets, token by token. Each weight W is asked for W' K1 = V1 = W K*: then a source prompt gives the keys and values of
its target, and the model draws the same. (Attention to text knows no order, so position by position is as good as any other.)
With R = V1 - W K1, what is missing, W' = W + dW is

    alphaedit   dW = R K1^T P (K1 K1^T P + a I)^-1               Fang et al., arXiv 2410.02355, without earlier edits
    uce         dW = R K1^T (K1 K1^T + b K0 K0^T + a I)^-1       Gandikota et al., arXiv 2308.14761

`alphaedit` acts within the null space alone: what it does to the known prompts comes from leakage. `uce` weighs both against
each other. A source that is made of known tokens only has no part in the null space, and cannot be moved without moving them.

All weights of a site have one K1, so one system is solved for all of them: dW = W M. Everything is float64.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from nullbooth_cli.api import OpenStore
from nullbooth_cli.collect.find_sites import MASK_ARGUMENT, split_branches
from nullbooth_cli.datatypes import Prompt, Site
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.denoise import DenoisingPath, denoise
from nullbooth_cli.model.hooks import ProjectionHooks
from nullbooth_cli.model.load import denoiser_of
from nullbooth_cli.model.projections import Projection, find_projections
from nullbooth_cli.nullspace.projector import Projector, relative_drift
from nullbooth_cli.settings.strict_yaml import parse_yaml

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Edited:
    """What became of one weight.

    `missing`: norm(W' K1 - V1) / norm(W K1 - V1), 0 where the edit is whole and 1 where nothing happened. `drift`: norm(dW K0) /
    norm(W K0) on all inputs that were collected. `change`: norm(dW) / norm(W).
    """

    missing: float
    drift: float
    change: float


@dataclass(frozen=True)
class EditReport:
    """An edit as it was done, by the names of the weights."""

    method: str
    pairs: Mapping[str, str]
    weights: Mapping[str, Edited]

    @property
    def missing(self) -> float:
        """The largest of all weights, as the others."""
        return max(weight.missing for weight in self.weights.values())

    @property
    def drift(self) -> float:
        return max(weight.drift for weight in self.weights.values())

    def __str__(self) -> str:
        return (
            f"{len(self.pairs)} prompts edited in {len(self.weights)} weights ({self.method}): at most {self.missing:.2g} of the "
            f"edit is missing, at most {self.drift:.2g} of what the weights do to the known prompts has changed"
        )


def edit(
    pipe: Any,
    store: OpenStore,
    pairs: Mapping[str, str],
    *,
    method: Literal["alphaedit", "uce"] = "alphaedit",
    ridge: float = 1e-2,
    preserve: float = 1.0,
) -> EditReport:
    """Make each source prompt of `pairs` draw what its target draws, by changing k and v weights of the pipeline in place.

    `ridge` is a in units of the mean squared norm of an edited token: a larger one changes less and leaves more missing.
    `preserve` (`uce` only) is b: at 1 all known tokens together weigh as much as all edited ones.

    Raises ConfigError for a model that is not the one that was collected from (so for a second edit, too: edit all at once), and
    for a store without a k or v weight that receives the text alone; nothing is changed then. Cost: the beginning of one forward
    for each prompt, and some 10 D^3 operations for each site.
    """
    if method not in ("alphaedit", "uce"):
        raise ConfigError(f"method={method!r}", "alphaedit or uce")
    if not ridge > 0 or not preserve >= 0:
        raise ConfigError(f"ridge={ridge}, preserve={preserve}", "ridge is more than 0, preserve is 0 or more")
    idle = [source for source, target in pairs.items() if source == target]
    if idle or not pairs:
        raise ConfigError(f"'{idle[0]}' is its own target" if idle else "no prompt to edit", "name sources and other targets")
    denoiser = denoiser_of(pipe)
    projectors = store.projectors(denoiser)
    sites = text_sites(store)
    tokens = {text: text_inputs(pipe, sites, text) for text in dict.fromkeys([*pairs, *pairs.values()])}
    after: dict[str, torch.Tensor] = {}
    edited: dict[str, Edited] = {}
    for site in sites:
        source, missing = paired([(tokens[one][site], tokens[other][site]) for one, other in pairs.items()])
        moment = store.moment(site).second_moment
        penalty = ridge * float(np.square(source).sum(1).mean())
        if method == "alphaedit":
            factor = alphaedit(source, missing, projectors[site.weights[0]], penalty)
        else:
            factor = uce(source, missing, preserve * len(source) * moment, penalty)
        for name in site.weights:
            weight = denoiser.get_parameter(name).detach()
            before = weight.cpu().double().numpy()
            after[name] = torch.from_numpy(before + before @ factor).to(weight)
            change = after[name].cpu().double().numpy() - before
            edited[name] = Edited(
                missing=float(np.linalg.norm(source @ change.T - missing @ before.T) / np.linalg.norm(missing @ before.T)),
                drift=relative_drift(change, before, moment),
                change=float(np.linalg.norm(change) / np.linalg.norm(before)),
            )
    for name, weight in after.items():
        denoiser.get_parameter(name).data.copy_(weight)
    return EditReport(method, dict(pairs), edited)


def read_pairs(prompts: Sequence[str], file: str | None) -> dict[str, str]:
    """Pairs of a command line, source after target, and of a YAML file that maps sources to targets.

    Raises ConfigError for a source without a target, and for one that stands twice.
    """
    if len(prompts) % 2:
        raise ConfigError(f"'{prompts[-1]}' has no target", "name a source and its target, and so on: an even number of prompts")
    pairs = list(zip(prompts[::2], prompts[1::2], strict=True))
    if file is not None:
        try:
            read = parse_yaml(Path(file).read_text(encoding="utf-8"), file)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {file}: {error}", "it is a YAML file of lines `source: target`") from error
        if not isinstance(read, dict) or not all(isinstance(text, str) for pair in read.items() for text in pair):
            raise ConfigError(f"{file} does not map prompts to prompts", "write a line `source: target` for each")
        pairs += read.items()
    twice = [source for source, count in Counter(source for source, _ in pairs).items() if count > 1]
    if twice:
        raise ConfigError(f"'{twice[0]}' stands twice", "a prompt has one target")
    return dict(pairs)


def alphaedit(source: Rows, missing: Rows, projector: Projector, penalty: float) -> Rows:
    """M `[D, D]` of dW = W M, from K1^T and (K* - K1)^T, both `[N, D]`: R is W (K* - K1).

    As P is a projector, K1^T P (K1 K1^T P + a I)^-1 = (P K1)^T ((P K1) (P K1)^T + a I)^-1, which is symmetric and positive.
    """
    # The last P takes away the round-off that the solution has outside.
    return projector.apply(_solve(projector.apply(source), missing, penalty * np.eye(projector.dim)))


def uce(source: Rows, missing: Rows, known: Rows, penalty: float) -> Rows:
    """M `[D, D]` of dW = W M; `known` is b K0 K0^T, `[D, D]`."""
    return _solve(source, missing, known + penalty * np.eye(len(known)))


def _solve(source: Rows, missing: Rows, penalty: Rows) -> Rows:
    """missing^T X (X^T X + penalty)^-1 for X = `source` `[N, D]`."""
    return np.asarray(np.linalg.solve(source.T @ source + penalty, source.T @ missing).T)


def text_sites(store: OpenStore) -> list[Site]:
    """The sites that feed k or v weights and receive the text alone. Raises ConfigError if there is none."""
    sites = [site for site in store.sites() if site.timestep_free and {of for _, of in site.projections} <= {"k", "v"}]
    if not sites:
        raise ConfigError(
            f"no k or v weight in {store.url} receives the text alone",
            "collect k and v features; in models with joint attention (SD3, Flux) they see the image as well, and train instead",
        )
    return sites


def text_inputs(pipe: Any, sites: list[Site], text: str) -> dict[Site, tuple[Rows, NDArray[np.bool_]]]:
    """What each site receives of a prompt, `[L, D]`, and which of its tokens the model looks at, `[L]`."""
    denoiser = denoiser_of(pipe)
    first = {site.weights[0]: site for site in sites}
    watched = tuple(p for p in find_projections(denoiser, ("k", "v"), "all") if p.weight in first)
    found: dict[Site, tuple[Rows, NDArray[np.bool_]]] = {}
    masks: list[torch.Tensor | None] = []

    def receive(projection: Projection, _: int, tensor: torch.Tensor) -> None:
        rows = split_branches(tensor, 1, "cond")[0].cpu().double().numpy()
        looked_at = np.ones(len(rows), bool)
        if masks[0] is not None:
            looked_at = split_branches(masks[0][..., None], 1, "cond")[0, :, 0].cpu().numpy() > 0
        found[first[projection.weight]] = rows, looked_at

    with ProjectionHooks(denoiser, watched, "input", receive, last=0, begin=lambda given: masks.append(given.get(MASK_ARGUMENT))):
        denoise(pipe, DenoisingPath(2, (), guidance_scale=1.0, height=None, width=None, seed=0), [(0, Prompt(text))])
    return found


def paired(pairs: list[tuple[tuple[Rows, NDArray[np.bool_]], tuple[Rows, NDArray[np.bool_]]]]) -> tuple[Rows, Rows]:
    """(K1^T, (K* - K1)^T), both `[N, D]`: the tokens of all pairs that both prompts of the pair have, position by position."""
    both = [mask & other_mask for (_, mask), (_, other_mask) in pairs]
    source = [rows[kept] for ((rows, _), _), kept in zip(pairs, both, strict=True)]
    target = [rows[kept] for (_, (rows, _)), kept in zip(pairs, both, strict=True)]
    return np.concatenate(source), np.concatenate(target) - np.concatenate(source)
