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
from typing import Literal

import numpy as np
import torch
from torch import nn

from nullbooth_cli.api import OpenStore
from nullbooth_cli.datatypes import Site, denoiser_of_weight
from nullbooth_cli.editing.solve import Rows, alphaedit, uce
from nullbooth_cli.editing.tokens import paired, text_inputs
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.formatting import counted
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.fixed_inputs import read_inputs
from nullbooth_cli.model.prompt_length import cut_off_note
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.projector import relative_drift
from nullbooth_cli.nullspace.usable import require_pooled
from nullbooth_cli.settings import limits
from nullbooth_cli.settings.strict_yaml import parse_yaml
from nullbooth_cli.settings.texts import read_text
from nullbooth_cli.training.constrainable import require_constrainable
from nullbooth_cli.training.protected_weights import actual_names


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
