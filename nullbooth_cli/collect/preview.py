"""A preview of a run: the tensors that it would record, and how much work that is. `open_model.open_preview()` opens one.

preview = open_preview(config, device, note)
found = preview.find(preview.chosen)
report = layers_report(preview, preview.find(preview.every()), num_steps)
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nullbooth_cli.collect import without_weights
from nullbooth_cli.collect.find_sites import FoundSites, find_sites
from nullbooth_cli.collect.sinks import features_nbytes
from nullbooth_cli.datatypes import EVERY_FEATURE, Factoring, Site
from nullbooth_cli.model.attention_layers import CROSS
from nullbooth_cli.model.denoise import DenoisingPath
from nullbooth_cli.model.denoisers import denoisers_of
from nullbooth_cli.model.projections import Projection, attention_of, find_projections
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.nullspace.moments import sums_nbytes

ATTENTION = ("q", "k", "v", "out")


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A model whose shapes can be found, and the choices of a config.

    `model` is its name, `pipe` a pipeline without weights, or with them if `loaded`. `chosen` are the projections to record.
    """

    model: str
    pipe: Pipeline = field(repr=False)
    loaded: bool
    path: DenoisingPath
    chosen: tuple[Projection, ...] = field(repr=False)
    side: str
    branches: str
    tokens_per_prompt: int | None
    feature_dtype: str
    factoring: Factoring

    def every(self) -> tuple[Projection, ...]:
        """All projections of layers that attend to text, and the chosen ones of other layers, in the model's order."""
        names = (f"{prefix}{name}" for prefix, each in denoisers_of(self.pipe).items() for name, _ in each.named_modules())
        order = {name: place for place, name in enumerate(names)}
        found = {*self.chosen, *self.undisturbed(self.text_projections())}
        return tuple(sorted(found, key=lambda projection: order[projection.weight.removesuffix(".weight")]))

    def text_projections(self) -> tuple[Projection, ...]:
        """All projections of layers that attend to text."""
        denoisers = denoisers_of(self.pipe)
        some = any(layer.sees_text for layer in attention_of(denoisers).values())
        return find_projections(denoisers, ATTENTION, "all") if some else ()

    def undisturbed(self, projections: tuple[Projection, ...]) -> tuple[Projection, ...]:
        """Those outside of layers that perturbed attention guidance changes: their to_v runs twice, each time for some rows."""
        patterns: Sequence[str] = getattr(self.pipe, "pag_applied_layers", ())
        of_text = {layer for layer, each in attention_of(denoisers_of(self.pipe)).items() if each.kind == CROSS}
        return tuple(
            each
            for each in projections
            if each.layer in of_text or not any(re.search(pattern, each.layer) for pattern in patterns)
        )

    def find(self, projections: tuple[Projection, ...]) -> FoundSites:
        """The sites of these projections. Cost: a second without weights, else two steps of one prompt."""
        if self.loaded:
            return find_sites(
                self.pipe,
                self.path,
                projections,
                side=self.side,
                branches=self.branches,
                prompts=[without_weights.ANY_PROMPT],
                tokens_per_prompt=self.tokens_per_prompt,
            )
        return without_weights.find_shapes(
            self.pipe,
            self.path,
            projections,
            side=self.side,
            branches=self.branches,
            tokens_per_prompt=self.tokens_per_prompt,
        )

    def count_operations(self, found: FoundSites, num_steps: int) -> int | None:
        """Floating point operations of the denoiser for one prompt, over the forwards that the sites need.

        None for a loaded model: it would have to run, and torch counts no attention on the CPU.
        """
        if self.loaded:
            return None
        needed = found.forwards_needed(num_steps)
        return needed and needed * without_weights.count_operations(self.pipe, self.path)


@dataclass(frozen=True)
class RecordingReport:
    """A site in a layer: the features of the layer that it feeds, and whether the config chooses one of them."""

    site: str
    features: tuple[str, ...]
    chosen: bool


@dataclass(frozen=True)
class LayerReport:
    """A layer and the sites that feed it; `index` counts layers that attend to text, and is None for others."""

    index: int | None
    layer: str
    recordings: tuple[RecordingReport, ...]


@dataclass(frozen=True)
class AttentionReport:
    """What an attention layer `attends_to` (cross, joint, text, self; as in `attention_layers`), and `why`.

    Layers of self attend to no text: they are recorded only where the config names them.
    """

    layer: str
    attends_to: str
    why: str


@dataclass(frozen=True)
class RecordingSize:
    """Bytes of features for one prompt, and of moments in all."""

    feature_bytes_per_prompt: int
    moment_bytes: int


@dataclass(frozen=True, kw_only=True)
class Total:
    """Numbers of layers, sites and weights, and their bytes."""

    layers: int
    sites: int
    weights: int
    feature_bytes_per_prompt: int
    moment_bytes: int


@dataclass(frozen=True, kw_only=True)
class LayersReport:
    """The layers of a model and the sites that each would record; `attention` has those that are left out as well.

    Filters do not change the totals `every` and `chosen`.
    """

    model: str
    pipeline: str
    num_steps: int
    layers: tuple[LayerReport, ...]
    attention: tuple[AttentionReport, ...]
    sites: tuple[tuple[Site, RecordingSize], ...]
    every: Total
    chosen: Total


def layers_report(
    preview: Preview, found: FoundSites, num_steps: int, passes: Callable[[str, str], bool] = lambda *_: True
) -> LayersReport:
    """The layers of `found`, which are the sites of `preview.every()`; `passes(layer, feature)` filters the projections."""
    every = preview.every()
    index = {layer: i for i, layer in enumerate(dict.fromkeys(projection.layer for projection in preview.text_projections()))}
    shown: dict[str, list[Projection]] = {}
    for projection in every:
        if passes(projection.layer, projection.feature):
            shown.setdefault(projection.layer, []).append(projection)
    layers = tuple(
        LayerReport(index.get(layer), layer, _recordings(projections, found, preview.chosen))
        for layer, projections in shown.items()
    )
    names = {recording.site for layer in layers for recording in layer.recordings}

    def size(sites: Sequence[Site]) -> RecordingSize:
        return RecordingSize(
            features_nbytes(sites, num_steps, 1, preview.feature_dtype), sums_nbytes(sites, num_steps, preview.factoring)
        )

    def total(projections: Sequence[Projection], sites: Sequence[Site]) -> Total:
        layers = {projection.layer for projection in projections}
        return Total(layers=len(layers), sites=len(sites), weights=len(projections), **vars(size(sites)))

    return LayersReport(
        model=preview.model,
        pipeline=type(preview.pipe).__name__,
        num_steps=num_steps,
        layers=layers,
        attention=tuple(
            AttentionReport(layer, each.kind, each.why)
            for layer, each in attention_of(denoisers_of(preview.pipe)).items()
            if any(passes(layer, feature) for feature in EVERY_FEATURE)
        ),
        sites=tuple((site, size([site])) for site in found.sites if site.name in names),
        every=total(every, found.sites),
        chosen=total(preview.chosen, found.of(preview.chosen)),
    )


def _recordings(
    projections: Sequence[Projection], found: FoundSites, chosen: Sequence[Projection]
) -> tuple[RecordingReport, ...]:
    """The sites of a layer's projections, in their order; neighbours that share a site are one entry."""
    runs: list[tuple[str, list[Projection]]] = []
    for projection in projections:
        site = found.site_of[projection].name
        if not runs or runs[-1][0] != site:
            runs.append((site, []))
        runs[-1][1].append(projection)
    return tuple(
        RecordingReport(site, tuple(member.feature for member in members), any(member in chosen for member in members))
        for site, members in runs
    )
