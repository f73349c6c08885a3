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

from nullbooth_cli.api import OpenStore
from nullbooth_cli.datatypes import Site, denoiser_of_weight, split_weight
from nullbooth_cli.editing.problem import Problem
from nullbooth_cli.editing.report import EditPlan, EditReport, Targets
from nullbooth_cli.editing.settings import EditOptions, EditSettings
from nullbooth_cli.editing.verbs import require_pairs
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.nullspace.usable import require_pooled


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
    together. After an error the model is as it was. Cost: the beginning of one forward for each prompt, and for some forty other
    prompts that have what is edited; and some 10 D^3 operations for each site, with speed for each weight.
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
    return edit_problem(pipe, store, pairs, earlier=earlier, **settings).solve()


def edit_problem(
    pipe: Pipeline,
    store: OpenStore,
    pairs: Mapping[str, Targets],
    *,
    earlier: Sequence[EditReport] = (),
    **settings: Unpack[EditOptions],
) -> Problem:
    """The edit that `edit` would make, to be solved in several ways. The arguments and errors are those of `edit`."""
    require_possible(store, pairs, **settings)
    return Problem(pipe, store, pairs, EditSettings(**settings), sites=text_sites(store), earlier=earlier)


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
