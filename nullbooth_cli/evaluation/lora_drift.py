"""How much a finished LoRA moves the preserved prompts, module by module, from the moments and projectors of a store.

No model runs and nothing is drawn. For a module with the change dW, of a weight W0 whose inputs K the store has:

    drift     norm(dW K) / norm(W0 K): how much the output of the layer moves on the preserved prompts, as a share of it
    inside    norm(dW P)^2 / norm(dW)^2: the share of the change that the null space contains, and that costs nothing

Where a moment was kept as a factor, a drift is the most that it can be. A module whose input was not recorded is *outside* the
store: nothing is known of what it moves. `measure()` reads one file.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, isnan
from pathlib import Path

import numpy as np
import torch

from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.base_weights import BaseWeights
from nullbooth_cli.model.finished_change import FinishedFiles
from nullbooth_cli.model.lora_file import DENOISER
from nullbooth_cli.model.lora_module import LoraModule
from nullbooth_cli.model.lora_targets import recorded_by
from nullbooth_cli.model.trained_files import Located
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.pooling import moment_of, pooled
from nullbooth_cli.nullspace.projector import Projector, relative_drift
from nullbooth_cli.nullspace.usable import load_projector, require_pooled
from nullbooth_cli.store import Store
from nullbooth_cli.tensors import tensor_digest

HARDLY, A_LITTLE = 0.01, 0.1  # the most of each, of the largest drift


@dataclass(frozen=True, kw_only=True)
class ModuleDrift:
    """What one module of a LoRA does.

    `module` is its name in the file, `weights` are those of the denoiser that it changes, `site` the store's for their input.
    `drift`, `heldout_drift` and `inside` are None where `reason` says why: the store has no such input, or the kind has no
    measurable change. `norm` is that of the change. `inside` is None for a change of zero, too.
    """

    module: str
    part: str
    kind: str
    weights: tuple[str, ...]
    site: str | None
    norm: float | None
    drift: float | None
    heldout_drift: float | None
    inside: float | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class LoraDrift:
    """What a LoRA file does to the preserved prompts. `notes` are those in its metadata: how it was refitted, in order.

    `word` is the verdict on `largest_drift`, which is None without any measured module. `inside` is the share of the change of
    all measured modules that the null spaces contain. `outside` counts the modules of the denoiser whose input the store lacks,
    by what records such inputs; `other_parts` those of other parts: a text encoder moves every text.
    """

    path: str
    notes: tuple[str, ...]
    word: str
    is_good: bool
    largest_drift: float | None
    largest_heldout_drift: float | None
    inside: float | None
    measured: int
    outside: Mapping[str, int]
    other_parts: Mapping[str, int]
    modules: tuple[ModuleDrift, ...]


def measure(
    store: Store,
    path: Path,
    base: BaseWeights,
    *,
    allow_pickle: bool = False,
    open_before: Callable[[Located], BaseWeights] | None = None,
) -> LoraDrift:
    """Measure a LoRA file, a folder with one, or what a training run wrote: a LoRA, or weights of the denoiser.

    Weights that were trained after another model than the base are compared with that, which `open_before` opens.

    Raises ConfigError for what is no change of this base, for a base that is not the one that was collected from, and for
    per-timestep projectors. Cost: one read of the file, and of the moments, eigenvectors and weights of the modules that the
    store has; some products of [M, D] and [D, D] for each.
    """
    require_pooled(store)
    files = FinishedFiles.find(path, allow_pickle=allow_pickle)
    changes_base = files.adapter is not None or files.at.after is None  # an adapter is a change by itself
    changed = files.modules(base if changes_base or open_before is None else open_before(files.at))
    sites = {weight: site for site in store.sites for weight in site.weights}
    found: dict[str, ModuleDrift] = {}
    fed: dict[Site, list[LoraModule]] = {}
    for module in changed:
        site = next((sites[weight] for weight in module.weights if weight in sites), None)
        if site is not None and module.is_measurable:
            fed.setdefault(site, []).append(module)
        else:
            found[module.name] = _not_measured(module, site)
    for site, modules in fed.items():
        inputs = _Inputs.read(store, site)
        found |= {module.name: _measured(module, inputs, _base_of(module, store, base)) for module in modules}
    return _summary(str(path), files.notes, [found[module.name] for module in changed], base)


@dataclass(frozen=True)
class _Inputs:
    """What a store knows of the inputs of one site, read once for all modules that it feeds."""

    site: Site
    projector: Projector
    moment: Moment
    heldout: Moment | None

    @classmethod
    def read(cls, store: Store, site: Site) -> "_Inputs":
        inner = store.heldout() if store.config["heldout_prompts"] is not None else None
        heldout = None if inner is None else moment_of(pooled(inner, site))
        return cls(site, load_projector(store, site), moment_of(pooled(store, site)), heldout)


def _base_of(module: LoraModule, store: Store, base: BaseWeights) -> torch.Tensor:
    """The weight W0 `[M, D]` float32 that a module is added to. Raises ConfigError if the store was collected from another."""
    weights, recorded = base.read(module.weights), store.records["collect"].get("tensors") or {}
    for name, weight in weights.items():
        if name in recorded and tensor_digest(weight, store.config["dtype"]) != recorded[name]:
            raise ConfigError(
                f"{name} of the base is another one than that of the model that {store.url} was collected from",
                "set model to the model that was collected from",
            )
    return torch.cat([weights[name].float().flatten(1) for name in module.weights])


def _measured(module: LoraModule, inputs: _Inputs, base: torch.Tensor) -> ModuleDrift:
    change, weight, shift = module.change(base).double().numpy(), base.double().numpy(), module.shift()
    moved = partial(relative_drift, change, weight, shift=None if shift is None else shift.double().numpy())
    norm = float(np.linalg.norm(change))
    return ModuleDrift(
        module=module.name,
        part=module.part,
        kind=module.kind,
        weights=module.weights,
        site=inputs.site.name,
        norm=norm,
        drift=moved(inputs.moment),
        heldout_drift=None if inputs.heldout is None else moved(inputs.heldout),
        inside=float(np.linalg.norm(inputs.projector.apply(change)) / norm) ** 2 if norm else None,
        reason=None,
    )


def _not_measured(module: LoraModule, site: Site | None) -> ModuleDrift:
    reason = f"the change of a module of the kind {module.kind} is not measured"
    if module.part != DENOISER:
        reason = f"it is in the {module.part}"
    elif site is None:
        reason = "its input is not in the store"
    return ModuleDrift(
        module=module.name,
        part=module.part,
        kind=module.kind,
        weights=module.weights,
        site=None if site is None else site.name,
        norm=None,
        drift=None,
        heldout_drift=None,
        inside=None,
        reason=reason,
    )


def _summary(path: str, notes: tuple[str, ...], modules: Sequence[ModuleDrift], base: BaseWeights) -> LoraDrift:
    measured = [module for module in modules if module.drift is not None]
    heldout = [module.heldout_drift for module in measured if module.heldout_drift is not None]
    largest = max((module.drift for module in measured if module.drift is not None), key=_nan_last, default=None)
    total = sum(module.norm**2 for module in measured if module.norm)
    inside = sum(module.inside * module.norm**2 for module in measured if module.norm and module.inside is not None)
    outside = Counter(
        recorded_by(module.weights[0], base.shapes[module.weights[0]], base.pipeline_class)
        for module in modules
        if module.part == DENOISER and module.site is None
    )
    others = Counter(module.part for module in modules if module.part != DENOISER)
    return LoraDrift(
        path=path,
        notes=notes,
        word=_word(largest),
        is_good=largest is not None and largest <= HARDLY and len(measured) == len(modules),
        largest_drift=largest,
        largest_heldout_drift=max(heldout, key=_nan_last, default=None),
        inside=inside / total if total else None,
        measured=len(measured),
        outside=dict(outside),
        other_parts=dict(others),
        modules=tuple(modules),
    )


def _nan_last(value: float) -> float:
    return inf if isnan(value) else value


def _word(largest: float | None) -> str:
    if largest is None:
        return "unknown"
    return "hardly moved" if largest <= HARDLY else "moved a little" if largest <= A_LITTLE else "moved much"
