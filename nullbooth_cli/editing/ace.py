"""ACE (Wang et al., arXiv 2503.08116): the equation of `alphaedit` with C, and targets of keys that normal queries do not see.

    v* := P_Q v*      for the weights of keys only; P_Q is the projector on the smallest directions of the queries
    R  = v* - W K1

It hides a concept: what usual queries do not see is not drawn, so a source draws neither itself nor its target (the embedded
model drew the star of "a red star" in 4 of 4 pictures with alphaedit and in none with ace). To draw the target, choose another
method.

P_Q is of one query for each preserved prompt and layer: that with the largest summed cosine to the keys of the prompt's tokens,
over all steps and places of the picture. The authors take the keys of the prompt's nouns, each encoded alone; here they are those
of all its tokens. A store of inputs has no queries, so the prompts are drawn.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from nullbooth_cli.datatypes import Prompt, Site, split_weight
from nullbooth_cli.editing.solve import Rows, smallest
from nullbooth_cli.editing.tokens import TokenInputs
from nullbooth_cli.errors import ModelError
from nullbooth_cli.formatting import counted
from nullbooth_cli.model.denoise import DenoisingPath, denoise
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.hooks import Forward, ProjectionHooks
from nullbooth_cli.model.projections import Projection, find_projections
from nullbooth_cli.model.protocols import Pipeline

KEYS = ("k", "add_k")


def query_projectors(
    pipe: Pipeline, path: DenoisingPath, inputs: Mapping[str, Mapping[Site, TokenInputs]], share: float
) -> dict[str, Rows]:
    """P_Q `[H, H]` of each weight of keys, by its name; `inputs` are those of the preserved prompts, by prompt and site.

    Raises ModelError for keys without queries of their width. Cost: each prompt is denoised along `path`.
    """
    denoiser = denoiser_of(pipe)
    sites = {name: site for site in next(iter(inputs.values())) for name in site.weights if split_weight(name)[1] in KEYS}
    layers = {split_weight(name)[0]: name for name in sites}
    queries = tuple(each for each in find_projections(denoiser, ("q",), "all") if each.feature == "q" and each.layer in layers)
    weights = {name: denoiser.get_parameter(name).detach().cpu().double().numpy() for name in sites}
    if lacking := set(layers) - {each.layer for each in queries}:
        raise ModelError(
            f"{counted(len(lacking), 'layer')}, such as {min(lacking)}, has keys and no queries", "choose another method"
        )
    found: dict[str, list[Rows]] = {name: [] for name in sites}
    for number, (text, of_site) in enumerate(inputs.items()):
        keys = {name: of_site[site].rows[of_site[site].attended] @ weights[name].T for name, site in sites.items()}
        for layer, query in _nearest(
            pipe, path, (number, Prompt(text)), queries, {layer: keys[name] for layer, name in layers.items()}
        ):
            found[layers[layer]].append(query)
    return {name: smallest(np.stack(rows).T @ np.stack(rows), share) for name, rows in found.items()}


def _nearest(
    pipe: Pipeline, path: DenoisingPath, row: tuple[int, Prompt], queries: Sequence[Projection], keys: Mapping[str, Rows]
) -> list[tuple[str, Rows]]:
    """The query of each layer with the largest summed cosine to its keys `[L, H]`, while a prompt is denoised."""
    towards = {layer: _unit(rows).sum(0) for layer, rows in keys.items()}
    best: dict[str, tuple[float, Rows]] = {}

    def receive(projection: Projection, forward: Forward, tensor: torch.Tensor) -> None:
        if forward.turn:  # guidance in two forwards: the first one has the prompt
            return
        rows = tensor[-1].cpu().double().numpy()  # the prompt's own, after that of the empty prompt
        if rows.shape[1] != len(towards[projection.layer]):
            raise ModelError(
                f"the queries of {projection.layer} have {rows.shape[1]} values, and its keys {len(towards[projection.layer])}",
                "choose another method: targets of keys cannot be projected on queries of another width",
            )
        score = _unit(rows) @ towards[projection.layer]
        top = int(score.argmax())
        if projection.layer not in best or score[top] > best[projection.layer][0]:
            best[projection.layer] = float(score[top]), rows[top]

    hooks = ProjectionHooks({"": denoiser_of(pipe)}, tuple(queries), "output", receive)
    with hooks:
        denoise(pipe, path, [row], after_step=hooks.end_step)
    return [(layer, query) for layer, (_, query) in best.items()]


def _unit(rows: Rows) -> Rows:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
