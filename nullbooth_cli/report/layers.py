"""The layers of a model and the sites that each would record, before anything is collected."""

from dataclasses import dataclass, field

from nullbooth_cli.collect.preview import AttentionReport, LayerReport, LayersReport, RecordingSize, Total
from nullbooth_cli.collect.unprotected import DefaultLora
from nullbooth_cli.datatypes import Site
from nullbooth_cli.report.json_document import OPTIONAL, Document


@dataclass(frozen=True, kw_only=True)
class LayerSite:
    """A site that would be recorded, with its bytes of features for one prompt and of moments in all.

    `steps` are those of a denoiser that runs in a part of the schedule: the first, and how many.
    """

    layer: str
    feature: str
    side: str
    weights: tuple[str, ...]
    timestep_free: bool
    num_tokens: int
    dim: int
    masked: bool
    name: str
    feature_bytes_per_prompt: int
    moment_bytes: int
    steps: tuple[int, int] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class LayerTotals:
    """Of all layers, and of those that the config chooses; filters do not change them."""

    all: Total
    chosen: Total


@dataclass(frozen=True, kw_only=True)
class LayersDocument(Document):
    """The layers that pass the filters, their sites, and what the default LoRA of each trainer would leave unprotected."""

    model: str
    pipeline: str
    steps: int
    layers: tuple[LayerReport, ...]
    attention: tuple[AttentionReport, ...]
    sites: tuple[LayerSite, ...]
    totals: LayerTotals
    default_loras: tuple[DefaultLora, ...]


def layers_document(report: LayersReport, loras: tuple[DefaultLora, ...]) -> LayersDocument:
    """The document of a preview's report; `loras` are the default ones of each trainer."""
    return LayersDocument(
        model=report.model,
        pipeline=report.pipeline,
        steps=report.num_steps,
        layers=report.layers,
        attention=report.attention,
        sites=tuple(_site(site, size) for site, size in report.sites),
        totals=LayerTotals(report.every, report.chosen),
        default_loras=loras,
    )


def _site(site: Site, size: RecordingSize) -> LayerSite:
    return LayerSite(
        layer=site.layer,
        feature=site.feature,
        side=site.side,
        weights=site.weights,
        timestep_free=site.timestep_free,
        num_tokens=site.num_tokens,
        dim=site.dim,
        masked=site.masked,
        name=site.name,
        feature_bytes_per_prompt=size.feature_bytes_per_prompt,
        moment_bytes=size.moment_bytes,
        steps=site.steps,
    )
