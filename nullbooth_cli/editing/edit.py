"""Closed-form edits: give one prompt the meaning of another without training, while the collected prompts are preserved.

    report = nb.edit(pipe, nb.open_store("run.zarr"), {"a zwx": "a red star"})

The text reaches the picture only through the k and v weights of cross-attention. K1 are their inputs for the prompts to edit,
K* those for the targets, token by token. For each weight W we want W' with W' K1 = V1 = W K*. Then a source prompt gives the keys
and values of its target, and the model draws the same. (Attention to text ignores order, so tokens may be paired by position.)
With the missing part R = V1 - W K1, W' = W + dW is

    alphaedit   dW = R K1^T P ((K1 K1^T + C) P + a I)^-1          Fang et al., arXiv 2410.02355
    ace         the same, with R = P_Q V1 - W K1 for keys         Wang et al., arXiv 2503.08116 (`editing.ace`)
    speed       dW = R K1^T P' ((K1 K1^T + C) P' + a I)^-1        Li et al., arXiv 2503.07392 (`editing.speed`)
    uce         dW = R K1^T (K1 K1^T + C + b K0 K0^T + a I)^-1    Gandikota et al., arXiv 2308.14761

C is the sum of K1 K1^T over the edits that were made before: with it a later edit does not undo them, and N edits one by one are
the solution for all N at once. What differs is where the targets are from: those of the second edit are of the weights after the
first.

`alphaedit` acts within the null space alone, so it affects the collected prompts only by leakage. `ace` beside that gives keys
that usual pictures do not attend to, `speed` takes for each weight the null space of the prompts that the edit would move, and
leaves the middle of the empty prompt exactly as it is. `uce` weighs the edit against the collected prompts. A source of collected
tokens only has no component in the null space: no edit can move it without the collected prompts.

All weights of a site have one K1, so one system is solved for all of them, but by `speed`. Everything is float64.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import nn

from nullbooth_cli.api import OpenStore
from nullbooth_cli.datatypes import Site, denoiser_of_weight, split_weight
from nullbooth_cli.editing.methods import System, prepare, with_copies
from nullbooth_cli.editing.positions import Marked, Positions
from nullbooth_cli.editing.report import EditedWeight, EditPlan, EditReport, Targets, several
from nullbooth_cli.editing.settings import EditOptions, EditSettings
from nullbooth_cli.editing.solve import Rows
from nullbooth_cli.editing.tokens import averaged, first_tokens, text_inputs
from nullbooth_cli.editing.verbs import require_pairs
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.formatting import counted
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.fixed_inputs import read_inputs
from nullbooth_cli.model.prompt_length import cut_off_note
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.projector import Projector, relative_drift
from nullbooth_cli.nullspace.usable import require_pooled
from nullbooth_cli.tensors import tensor_digest
from nullbooth_cli.training.constrainable import require_constrainable
from nullbooth_cli.training.protected_weights import actual_names


def edit(
    pipe: Pipeline,
    store: OpenStore,
    pairs: Mapping[str, Targets],
    *,
    earlier: Sequence[EditReport] = (),
    **settings: Unpack[EditOptions],
) -> EditReport:
    """Give each source prompt of `pairs` the picture of its target, by changing k and v weights of the pipeline in place.

    A source with several targets gets the mean of theirs, in equal shares.
    `settings` are those of `EditSettings`: method, tokens, weights, ridge, preserve, copies, prompts, noise, project, seed.
    `earlier` are the reports of the edits that this pipeline has had and the store does not remember, in order. The inputs that
    they edited are C, with those that the store remembers. The targets are those of the weights as they are now.

    Raises ConfigError for another model than the store knows or the last of `earlier` left, for a subject that cannot be found,
    for a target that has the tokens of its source, for wrong settings, and for a store without a weight to change that receives
    the text alone; ModelError for one that is compiled, fused or constrained, has adapters, or parts in dtypes that do not work
    together. After an error the model is as it was. Cost: the beginning of one forward for each prompt, and some 10 D^3
    operations for each site, with speed for each weight.
    """
    return plan_edit(pipe, store, pairs, earlier=earlier, **settings).apply()


def plan_edit(
    pipe: Pipeline,
    store: OpenStore,
    pairs: Mapping[str, Targets],
    *,
    earlier: Sequence[EditReport] = (),
    **settings: Unpack[EditOptions],
) -> EditPlan:
    """The edit that `edit` would make, with the same arguments, errors and cost; the pipeline stays as it is.

    Its memory: a copy of the weights to change.
    """
    require_possible(store, pairs, **settings)
    how, denoiser, sites = EditSettings(**settings), denoiser_of(pipe), text_sites(store)
    names = [name for site in sites for name in site.weights]
    _require_plain(denoiser, names)
    projectors = _projectors(store, denoiser, names, earlier)
    fixed = read_inputs(store.config.collect.pipeline_inputs)
    marked = [[(Marked.read(source), Marked.read(target)) for target in several(targets)] for source, targets in pairs.items()]
    texts = dict.fromkeys(each.text for to_each in marked for pair in to_each for each in pair)
    inputs = {text: text_inputs(pipe, sites, text, fixed) for text in texts}
    positions = Positions(pipe, fixed)
    ends = [[positions.subject_ends(*pair) for pair in to_each] if how.tokens == "subject" else None for to_each in marked]
    live = prepare(pipe, store, sites, [to_each[0][0] for to_each in marked], how)
    after: dict[str, torch.Tensor] = {}
    edited: dict[str, EditedWeight] = {}
    systems: dict[str, System] = {}
    worst = np.zeros(len(pairs))
    for site in sites:
        found = [[(inputs[one.text][site], inputs[other.text][site]) for one, other in to_each] for to_each in marked]
        of_pairs = [
            averaged(to_each, None if last is None else first_tokens(site, to_each, last))
            for to_each, last in zip(found, ends, strict=True)
        ]
        if same := [source for source, (_, wanted) in zip(pairs, of_pairs, strict=True) if not wanted.any()]:
            raise ConfigError(f"the model reads {same[0]!r} and its target as the same text", "name another target")
        counts = [len(rows) for rows, _ in of_pairs]
        keys, wanted = (np.concatenate(rows) for rows in zip(*of_pairs, strict=True))
        source, missing = with_copies(keys, wanted, how)
        system = System(
            site=site,
            source=source,
            missing=missing,
            moment=store.moment(site),
            projector=projectors[site.weights[0]],
            before=edited_before(store, site, earlier),
            settings=how,
            live=live,
        )
        systems[site.name], heldout = system, store.heldout_moment(site)
        for name in site.weights:
            if split_weight(name)[1] in how.features:
                after[name], edited[name], by_pair = _edit_weight(name, denoiser.get_parameter(name), system, heldout, counts)
                worst = np.maximum(worst, by_pair)
    dtype = store.config.dtype
    report = EditReport(
        method=how.method,
        tokens=how.tokens,
        pairs=dict(pairs),
        weights=edited,
        keys={name: system.source for name, system in systems.items()},
        tensors={name: tensor_digest(after.get(name, denoiser.get_parameter(name)), dtype) for name in names},
        by_pair=dict(zip(pairs, worst.tolist(), strict=True)),
        cut_off=cut_off_note(pipe, list(inputs)),
    )
    every = {name: system.missing for name, system in systems.items()}
    return EditPlan(report=report, after=after, wanted=every, denoiser=denoiser)


def edited_before(store: OpenStore, site: Site, earlier: Sequence[EditReport]) -> Rows | None:
    """C `[D, D]` of a site: K1 K1^T of the edits that the store remembers, and of `earlier` ones; None without any."""
    found = [rows.T @ rows for report in earlier if (rows := report.keys.get(site.name)) is not None]
    if (remembered := store.edited(site)) is not None:
        found.append(remembered)
    return np.sum(found, axis=0) if found else None


def _projectors(
    store: OpenStore, denoiser: nn.Module, names: Sequence[str], earlier: Sequence[EditReport]
) -> Mapping[str, Projector]:
    """The projector of each weight. Raises ConfigError for a model that neither the store nor the last of `earlier` knows."""
    if not earlier:
        return store.projectors(denoiser)
    last, dtype = earlier[-1].tensors, store.config.dtype
    other = [name for name in names if last.get(name) != tensor_digest(denoiser.get_parameter(name), dtype)]
    if other:
        raise ConfigError(
            f"this is not the model that the last of {counted(len(earlier), 'earlier edit')} left: "
            f"{counted(len(other), 'weight')} differ, such as {other[0]}",
            "give the reports of the edits that this pipeline has had, in order, and the store that they were made with",
        )
    return store.projectors()


def require_possible(store: OpenStore, pairs: Mapping[str, Targets], **settings: Any) -> None:
    """Raise ConfigError for arguments without an edit, and for a store that cannot constrain one: needs no model."""
    how = EditSettings(**settings)
    require_pairs(pairs)
    require_pooled(store.store)
    if not any(split_weight(name)[1] in how.features for site in text_sites(store) for name in site.weights):
        raise ConfigError(
            f"no {' or '.join(how.weights or 'v')} weight in {store.url} receives the text alone", "set weights to another choice"
        )
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
    name: str, parameter: nn.Parameter, system: System, heldout: Moment | None, counts: Sequence[int]
) -> tuple[torch.Tensor, EditedWeight, list[float]]:
    """W + R G rounded to the weight's dtype, its measures, and what is missing of each pair; `counts` are its tokens."""
    weight = parameter.detach()
    before = weight.cpu().double().numpy()
    wanted, factor = system.of(name, before)
    after = torch.from_numpy(before + wanted.T @ factor).to(weight)
    change = after.cpu().double().numpy() - before
    left, ends = system.source @ change.T - wanted, np.cumsum(counts)
    of_pairs = zip(np.split(left, ends)[: len(ends)], np.split(wanted, ends)[: len(ends)], strict=True)
    measured = EditedWeight(
        missing=float(np.linalg.norm(left) / np.linalg.norm(wanted)),
        drift=relative_drift(change, before, system.moment),
        change=float(np.linalg.norm(change) / np.linalg.norm(before)),
        heldout=None if heldout is None else relative_drift(change, before, heldout),
    )
    return after, measured, [float(np.linalg.norm(rest) / np.linalg.norm(whole)) for rest, whole in of_pairs]


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
