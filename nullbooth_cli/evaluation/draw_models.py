"""Loads the base and every edited model, one at a time, and draws all pictures with each."""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from nullbooth_cli.collect.edited_model import load_edited, require_fits, stored_shapes
from nullbooth_cli.collect.open_model import load_path
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.evaluation.encoders import FeatureSpaces
from nullbooth_cli.evaluation.instance_loss import has_instance_loss, instance_errors
from nullbooth_cli.evaluation.pictures import Pictures, draw_pictures, pooled_latents, read_images
from nullbooth_cli.evaluation.request import EvaluationRequest
from nullbooth_cli.evaluation.weight_drift import Weights, require_same_architecture, weights_of
from nullbooth_cli.model.denoise import DenoisingPath
from nullbooth_cli.model.denoisers import denoiser_weights
from nullbooth_cli.model.prompt_length import cut_off_note
from nullbooth_cli.model.protocols import LatentPipeline, Pipeline, Scheduler
from nullbooth_cli.model.stored_schedule import put_scheduler, scheduler_in
from nullbooth_cli.nullspace.usable import check_model
from nullbooth_cli.progress import Event, Note, Progress
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.weighting import weighting_note
from nullbooth_cli.store import Store

BASE, ANOTHER = "base", "another seed"
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class DrawnBase:
    """The results that outlive the pipeline of the base.

    `images` are the instances `[N, H, W, 3]` in the size of the drawn pictures, `instances` their vectors by feature space, and
    `has_loss` whether a loss of them can be measured.
    """

    path: DenoisingPath
    scheduler: Scheduler
    images: NDArray[np.uint8] | None
    instances: Mapping[str, Floats] | None
    has_loss: bool


@dataclass(kw_only=True)
class DrawnModels:
    """Pictures and weights of every model that has drawn, and its `errors` on the instances (`instance_errors`), by its name."""

    config: Config
    store: Store
    request: EvaluationRequest
    device: torch.device
    drawn: dict[str, Pictures] = field(default_factory=dict)
    weights: dict[str, Weights] = field(default_factory=dict)
    errors: dict[str, Floats] = field(default_factory=dict)

    def draw_base(self, spaces: FeatureSpaces) -> Generator[Event, None, DrawnBase]:
        """Load the base, try every LoRA on it, and draw every picture twice, from two seeds."""
        yield Note(f"loading the model {self.config.model}, to {self.device}")
        pipe, path = load_path(self.config, self.store.schedule(), str(self.device))
        path = replace(path, images=None)  # every picture starts from noise, even if real images were collected
        check_model(self.store, denoiser_weights(pipe))
        if cut := cut_off_note(pipe, [spec.prompt.text for spec in self.request.specs]):
            yield Note(cut)
        if weights_in_prompts := weighting_note(spec.prompt.text for spec in self.request.specs):
            yield Note(weights_in_prompts)
        self.weights[BASE] = weights_of(pipe, self._protected)
        for place in self.request.edited:
            require_fits(self.config, pipe, place)
            if (shapes := stored_shapes(place)) is not None:
                require_same_architecture(self.weights[BASE], shapes, place)
        yield from self._draw(BASE, pipe, path)
        yield from self._draw(ANOTHER, pipe, path, series=1)
        base = self._base(pipe, path, spaces)
        self._measure_errors(BASE, pipe, base)
        return base

    def draw_edited(self, place: str, base: DrawnBase) -> Iterator[Event]:
        """Load an edited model and draw every picture from the noise of the base."""
        yield Note(f"loading {place}")
        pipe = load_edited(self.config, place, str(self.device))
        put_scheduler(pipe, base.scheduler)  # not the scheduler that the edited pipeline was saved with
        self.weights[place] = weights_of(pipe, self._protected)
        shapes = {name: weight.shape for name, weight in self.weights[place].protected.items()}
        require_same_architecture(self.weights[BASE], shapes, place)
        if self.weights[place].digests == self.weights[BASE].digests:
            yield Note(f"{place} has the weights of the base: nothing was edited")
        self._measure_errors(place, pipe, base)
        yield from self._draw(place, pipe, base.path)
        shape, base_shape = (self.drawn[name].latents.shape[1:] for name in (place, BASE))
        if shape != base_shape:
            raise ConfigError(
                f"{place} draws latents of {shape}, the base of {base_shape}", "name a model of the size of the base"
            )

    def _draw(self, name: str, pipe: Pipeline, path: DenoisingPath, series: int = 0) -> Iterator[Event]:
        specs, parts = self.request.specs, []
        total = len(specs) * (2 + len(self.request.edited))
        for part in draw_pictures(pipe, path, specs, self.request.batch_size, 2 * self.request.series + series):
            parts.append(part)
            done = len(self.drawn) * len(specs) + sum(len(each.images) for each in parts)
            yield Progress("evaluate", done, total, name)
        self.drawn[name] = Pictures.joined(parts)

    def _base(self, pipe: Pipeline, path: DenoisingPath, spaces: FeatureSpaces) -> DrawnBase:
        images, vectors = None, None
        if self.request.instances:
            height, width = self.drawn[BASE].images.shape[1:3]
            images = read_images([each.path for each in self.request.instances], height, width)
            encoded = {name: encode(images) for name, encode in spaces.encoders.items()}
            vectors = {"latents": pooled_latents(cast(LatentPipeline, pipe), images), **encoded}
        has_loss = images is not None and has_instance_loss(pipe)
        return DrawnBase(path=path, scheduler=scheduler_in(pipe), images=images, instances=vectors, has_loss=has_loss)

    def _measure_errors(self, name: str, pipe: Pipeline, base: DrawnBase) -> None:
        if base.images is not None and base.has_loss:
            captions = [each.caption for each in self.request.instances]
            size, series = self.request.batch_size, self.request.series
            self.errors[name] = instance_errors(pipe, base.images, captions, batch_size=size, seed=series)

    @property
    def _protected(self) -> list[str]:
        return [name for site in self.store.sites for name in site.weights]
