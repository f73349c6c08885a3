"""What a run would record and how much work it is, before it: from the model's config files, else from the loaded model.

shapes = look(config, device, say)
found = shapes.find(shapes.chosen())
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nullbooth_cli.collect import without_weights
from nullbooth_cli.collect.find_sites import FoundSites, find_sites
from nullbooth_cli.collect.open_model import chosen_projections, denoising_path, load_model, open_shell, scheduler_of
from nullbooth_cli.collect.sinks import features_nbytes
from nullbooth_cli.collect.units import forwards_needed
from nullbooth_cli.datatypes import Site
from nullbooth_cli.model.load import denoiser_of
from nullbooth_cli.model.projections import Projection, find_projections
from nullbooth_cli.nullspace.moments import sums_nbytes
from nullbooth_cli.settings.config import Config

EVERY_FEATURE = ("q", "k", "v", "out")
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Preview:
    """A model that can be asked for its shapes; `loaded` if its config files did not say them."""

    config: Config
    pipe: Any
    loaded: bool

    def chosen(self) -> tuple[Projection, ...]:
        """The projections that the config chooses."""
        chosen: tuple[Projection, ...] = chosen_projections(self.config, self.pipe)
        return chosen

    def every(self) -> tuple[Projection, ...]:
        """All projections of layers that attend to text, and those that the config chooses beside them, in the model's order."""
        denoiser = denoiser_of(self.pipe)
        order = {name: place for place, (name, _) in enumerate(denoiser.named_modules())}
        found = {*self.chosen(), *find_projections(denoiser, EVERY_FEATURE, "all")}
        return tuple(sorted(found, key=lambda projection: order[projection.weight.removesuffix(".weight")]))

    def find(self, projections: tuple[Projection, ...]) -> FoundSites:
        section, path = self.config.collect, denoising_path(self.config)
        settings = (projections, section.side, section.branches)
        if self.loaded:
            return find_sites(self.pipe, path, *settings, without_weights.ANY_PROMPT, section.tokens_per_prompt)
        return without_weights.find_shapes(self.pipe, path, *settings, section.tokens_per_prompt)

    def count_operations(self, found: FoundSites, num_steps: int) -> int | None:
        """Floating point operations of the denoiser for one prompt, over as many forwards as the recordings need.

        None for a loaded model: it would have to run, and torch counts no attention on the CPU.
        """
        if self.loaded:
            return None
        needed = forwards_needed(found, num_steps)
        return needed and needed * without_weights.count_operations(self.pipe, denoising_path(self.config))


def open_preview(config: Config, device: str | None, say: Callable[[str], None]) -> Preview:
    """Make the config's model ready to be asked. `say` hears that it has to be loaded for that."""
    scheduler = scheduler_of(config)
    pipe = open_shell(config, scheduler)
    if pipe is not None:
        return Preview(config, pipe, loaded=False)
    say(f"the shapes of {config.model} are known only once it is loaded: loading it")
    pipe = load_model(config, device)
    pipe.scheduler = scheduler
    return Preview(config, pipe, loaded=True)


def sites_of(found: FoundSites, projections: tuple[Projection, ...]) -> tuple[Site, ...]:
    """The recordings that these of the found projections need."""
    needed = {found.owners[projection] for projection in projections}
    return tuple(site for site in found.sites if site in needed)


def layers_document(shapes: Preview, found: FoundSites, num_steps: int, keeps: Callable[[str, str], bool]) -> dict[str, Any]:
    """The layers of what was found of `shapes.every()`, with what each would record.

    `keeps(layer, feature)` filters the projections. Bytes are of features in the config's dtype for one prompt, and of moments.
    """
    config, chosen, every = shapes.config, shapes.chosen(), shapes.every()
    text = find_projections(denoiser_of(shapes.pipe), EVERY_FEATURE, "all")
    index = {layer: number for number, layer in enumerate(dict.fromkeys(projection.layer for projection in text))}
    layers: dict[str, dict[str, Any]] = {}
    for projection in every:
        layer = projection.layer
        if keeps(layer, projection.feature):
            entry = layers.setdefault(layer, {"index": index.get(layer), "layer": layer, "recordings": []})
            site = found.owners[projection].name
            if not entry["recordings"] or entry["recordings"][-1]["site"] != site:
                entry["recordings"].append({"site": site, "features": [], "chosen": False})
            recording = entry["recordings"][-1]
            recording["features"].append(projection.feature)
            recording["chosen"] = recording["chosen"] or projection in chosen
    names = {recording["site"] for layer in layers.values() for recording in layer["recordings"]}

    def nbytes(sites: Sequence[Site]) -> dict[str, int]:
        return {
            "feature_bytes_per_prompt": features_nbytes(sites, num_steps, 1, config.collect.feature_dtype),
            "moment_bytes": sums_nbytes(sites, num_steps),
        }

    return {
        "schema_version": SCHEMA_VERSION,
        "model": config.model,
        "pipeline": type(shapes.pipe).__name__,
        "steps": num_steps,
        "layers": list(layers.values()),
        "sites": [{**vars(site), "name": site.name, **nbytes([site])} for site in found.sites if site.name in names],
        "totals": {
            title: {
                "layers": len({projection.layer for projection in projections}),
                "sites": len(sites),
                "weights": len(projections),
                **nbytes(sites),
            }
            for title, projections, sites in (
                ("all", every, found.sites),
                ("chosen", chosen, sites_of(found, chosen)),
            )
        },
    }
