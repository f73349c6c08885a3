"""The inputs of a changed model's layers, for the prompts that use the change: their second moments, in memory.

The model runs as `collect` ran its base: the same schedule, guidance and sites, the same recorder. Of guidance only the prompt's
own branch counts, because the empty prompt is preserved. Nothing is written.

1. Text that is an argument of the denoiser comes from the text encoders alone: every prompt, no forward.
2. All other sites need pictures: the first `num_drawn` prompts are drawn, over the whole schedule.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace

import torch

from nullbooth_cli.collect.find_sites import FoundSites, RecordableModel, find_sites
from nullbooth_cli.collect.open_model import chosen_projections, follow_schedule
from nullbooth_cli.collect.recorder import Recorder
from nullbooth_cli.collect.units import run_unit
from nullbooth_cli.datatypes import Prompt, Site, Step
from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.projections import Projection
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.moments import SecondMoments, fold
from nullbooth_cli.nullspace.pooling import moment_of
from nullbooth_cli.progress import Begin, Event, Progress
from nullbooth_cli.settings.config import Config

STAGE = "inputs"


class _PooledMoments:
    """A sink that adds up the vectors of every timestep."""

    dtype: str | None = None

    def __init__(self, sites: Sequence[Site], device: torch.device) -> None:
        self._moments = {site: SecondMoments(1, site.dim, device) for site in sites}

    def lacks(self, unit: int) -> bool:
        return True

    def receive(self, site: Site, step: int, rows: Sequence[int], values: torch.Tensor) -> None:
        fold(self._moments[site], site, values.flatten(0, 1)[None])

    def due(self) -> bool:
        return False

    def checkpoint(self, units: Sequence[int]) -> None:
        """Nothing is written."""

    def by_weight(self) -> dict[str, Moment]:
        return {weight: moment_of(moments.sums()[0]) for site, moments in self._moments.items() for weight in site.weights}


def used_inputs(
    pipe: Pipeline,
    config: Config,
    steps: tuple[Step, ...],
    weights: Sequence[str],
    texts: Sequence[str],
    *,
    num_drawn: int,
) -> Generator[Event, None, dict[str, Moment]]:
    """The second moment about zero, with the mean, of what each of the weights receives for the texts, over all timesteps.

    `config` and `steps` are those of the store. Raises ModelError or DataError for what cannot be recorded. Cost: that of
    `collect` for as many prompts; 8 D^2 bytes for each site.
    """
    # Its own path for every store: there are no images of prompts that nobody collected.
    section = config.collect.model_copy(update={"latents": "path", "images": None})
    path = follow_schedule(config.model_copy(update={"collect": section}), steps, pipe)
    wanted = set(weights)
    projections = tuple(each for each in chosen_projections(config, pipe) if each.weight in wanted)
    found = find_sites(
        pipe,
        path,
        projections,
        side="input",
        branches="cond",
        prompts=[Prompt(texts[0])],
        tokens_per_prompt=section.tokens_per_prompt,
    )
    if missing := wanted - {projection.weight for projection in found.projections}:
        raise ModelError(f"this model has no {sorted(missing)[0]}, which the store protects", "name the model of the store")
    of_text, of_image = _parts(found)
    batch_size = 1 if found.alone else section.batch_size
    moments: dict[str, Moment] = {}
    passes = [(part, tuple(texts[:most])) for part, most in ((of_text, len(texts)), (of_image, num_drawn)) if part.sites]
    done, total = 0, sum(len(used) for _, used in passes)
    yield Begin(STAGE, done, total)
    for part, used in passes:
        model = RecordableModel(pipe, path, part)
        sums = _PooledMoments(part.sites, pipe._execution_device)
        for start in range(0, len(used), batch_size):
            members = [(start + i, Prompt(text)) for i, text in enumerate(used[start : start + batch_size])]
            recorder = Recorder(model, members, sinks=[sums])
            run_unit(model, recorder)
            recorder.check()
            done += len(members)
            yield Progress(STAGE, done, total, f"prompts of {'the text' if part is of_text else 'pictures'}")
        moments |= sums.by_weight()
    return moments


def _parts(found: FoundSites) -> tuple[FoundSites, FoundSites]:
    """The sites that are the denoiser's text argument, and all others."""

    def only(is_argument: bool) -> FoundSites:
        owners: Mapping[Projection, Site] = {
            each: site for each, site in found.site_of.items() if (site in found.arguments) is is_argument
        }
        sites = tuple(site for site in found.sites if (site in found.arguments) is is_argument)
        return replace(found, sites=sites, site_of=owners, arguments=found.arguments if is_argument else frozenset())

    return only(True), only(False)
