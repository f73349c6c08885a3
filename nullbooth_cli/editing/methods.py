"""Each method's R and G for a weight, from what all weights of a site share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from nullbooth_cli.api import OpenStore
from nullbooth_cli.collect.open_model import denoising_path
from nullbooth_cli.datatypes import Site
from nullbooth_cli.editing.ace import query_projectors
from nullbooth_cli.editing.positions import Marked
from nullbooth_cli.editing.preserved import evenly_spaced, preserved_texts
from nullbooth_cli.editing.settings import EditSettings
from nullbooth_cli.editing.solve import Rows, alphaedit, uce
from nullbooth_cli.editing.speed import Filter
from nullbooth_cli.editing.tokens import TokenInputs, text_inputs
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.model.words import has_word
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.projector import Projector

ACE_STEPS = 10  # of the authors


@dataclass(frozen=True, kw_only=True)
class MethodInputs:
    """What a method takes from preserved prompts: the filters of speed by site, and the P_Q of ace by the weight's name."""

    filters: Mapping[Site, Filter] = field(default_factory=dict)
    queries: Mapping[str, Rows] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class System:
    """The edit of a site: K1^T and (K* - K1)^T `[N, D]`, the preserved prompts, C (None without earlier edits), the
    settings, and the rule and value by which speed cuts its spectra."""

    site: Site
    source: Rows
    missing: Rows
    moment: Moment
    projector: Projector
    before: Rows | None
    settings: EditSettings
    rule: tuple[str, float]
    inputs: MethodInputs

    def of(self, name: str, weight: Rows) -> tuple[Rows, Rows]:
        """R^T `[N, M]` and G `[N, D]` of a weight W `[M, D]`."""
        missing = self.missing @ weight.T
        if self.settings.method == "uce":
            return missing, self._weighed
        if self.settings.method == "speed":
            effect = missing.T @ self._free
            null = self.inputs.filters[self.site].projector(weight, effect, *self.rule)
            return missing, alphaedit(self.source, null, self._penalty, self.before)
        if (hidden := self.inputs.queries.get(name)) is not None:
            missing = (self.source + self.missing) @ weight.T @ hidden - self.source @ weight.T
        return missing, self._within

    @property
    def _penalty(self) -> float:
        return self.settings.ridge * self.moment.trace

    @cached_property
    def _within(self) -> Rows:
        return alphaedit(self.source, self.projector, self._penalty, self.before)

    @cached_property
    def _weighed(self) -> Rows:
        return uce(self.source, self.settings.preserve * self.moment.ceiling, self._penalty, self.before)

    @cached_property
    def _free(self) -> Rows:
        return uce(self.source, np.zeros((self.site.dim, self.site.dim)), self._penalty)


def prepare(
    pipe: Pipeline, store: OpenStore, sites: Sequence[Site], sources: Sequence[Marked], settings: EditSettings
) -> MethodInputs:
    """What speed and ace take from preserved prompts, which run through the pipeline. Raises ConfigError if none is left.

    Cost: the beginning of a forward for each prompt; for ace `ACE_STEPS` steps more.
    """
    if settings.method not in ("speed", "ace"):
        return MethodInputs()
    concepts = [source.subject or source.text for source in sources]
    others = [text for text in preserved_texts(store) if not any(has_word(text, concept) for concept in concepts)]
    if not others:
        raise ConfigError(
            f"every preserved prompt of {store.url} has what is edited",
            "collect other prompts, or choose the method alphaedit or uce",
        )
    path = denoising_path(store.config)
    texts = evenly_spaced(others, settings.prompts)
    inputs = {text: text_inputs(pipe, sites, text, path.inputs) for text in texts}
    if settings.method == "ace":
        path = replace(path, num_inference_steps=ACE_STEPS)
        return MethodInputs(queries=query_projectors(pipe, path, inputs, settings.project))
    empty = text_inputs(pipe, sites, "", path.inputs)
    return MethodInputs(
        filters={
            site: Filter(
                preserved=np.concatenate([_attended(inputs[text][site]) for text in texts]),
                empty=_attended(empty[site]),
                noise=settings.noise,
                seed=settings.seed,
            )
            for site in sites
        }
    )


def _attended(inputs: TokenInputs) -> Rows:
    return inputs.rows[inputs.attended]


def with_copies(source: Rows, missing: Rows, settings: EditSettings) -> tuple[Rows, Rows]:
    """Edited tokens with noisy copies that have the same targets: (K1^T, (K* - K1)^T), both `[N (1 + copies), D]`.

    The noise has a tenth of the standard deviation of the tokens (`old_expand` in the code of ACE, with 49 copies).
    """
    if not settings.copies:
        return source, missing
    rng = np.random.default_rng(settings.seed)
    noise = np.vstack(
        [np.zeros_like(source), source.std() / 10 * rng.standard_normal((settings.copies * len(source), source.shape[1]))]
    )
    return np.tile(source, (settings.copies + 1, 1)) + noise, np.tile(missing, (settings.copies + 1, 1)) - noise
