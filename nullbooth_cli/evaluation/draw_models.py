"""Loads the base and every edited model, one at a time, and draws all pictures with each."""

import gc
from collections.abc import Generator, Iterator, Mapping, Sequence
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
from nullbooth_cli.evaluation.pictures import Pictures, PictureSpec, draw_pictures, pooled_latents, read_images
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

    `no_drift` is the reason if the store does not know the inputs of its weights. `images` are the instances `[N, H, W, 3]` in
    the size of the drawn pictures, `instances` their vectors by feature space, and `has_loss` whether a loss of them can be
    measured.
    """

    path: DenoisingPath
    scheduler: Scheduler
    no_drift: str | None
    images: NDArray[np.uint8] | None
    instances: Mapping[str, Floats] | None
    has_loss: bool


@dataclass(kw_only=True)
class DrawnModels:
    """Pictures and weights of every model that has drawn, and its `errors` on the instances (`instance_errors`), by its name.

    `targets` are the base's pictures of the targets of an edit, None without any.
    """

    config: Config
    store: Store
    request: EvaluationRequest
    device: torch.device
    drawn: dict[str, Pictures] = field(default_factory=dict)
    weights: dict[str, Weights] = field(default_factory=dict)
    errors: dict[str, Floats] = field(default_factory=dict)
    targets: Pictures | None = None

    def draw_base(self, spaces: FeatureSpaces) -> Generator[Event, None, DrawnBase]:
        """Load the base, try every LoRA on it, and draw every picture twice, from two seeds, and those of targets."""
        yield Note(f"loading the model {self.config.model}, to {self.device}")
        pipe, path = load_path(self.config, self.store.schedule(), str(self.device))
        path = replace(path, images=None)  # every picture starts from noise, even if real images were collected
        texts = [spec.prompt.text for spec in (*self.request.specs, *self.request.target_specs)]
        if cut := cut_off_note(pipe, texts):
            yield Note(cut)
        if weights_in_prompts := weighting_note(texts):
            yield Note(weights_in_prompts)
        place, scheduler = self.request.base, scheduler_in(pipe)
        for each in (*self.request.edited, *([] if place is None else [place])):
            require_fits(self.config, pipe, each)
        if place is not None:
            del pipe
            self._free()
            yield Note(f"loading {place}, the base")
            pipe = self._load(place, scheduler)
        no_drift = self._require_known(pipe)
        if no_drift is not None:
            yield Note(f"the drift of weights is not measured: {no_drift}")
        self.weights[BASE] = weights_of(pipe, self._protected)
        for each in self.request.edited:
            if (shapes := stored_shapes(each)) is not None:
                require_same_architecture(self.weights[BASE], shapes, each)
        self.drawn[BASE] = yield from self._draw(BASE, pipe, path, self.request.specs)
        self.drawn[ANOTHER] = yield from self._draw(ANOTHER, pipe, path, self.request.specs, series=1)
        if self.request.target_specs:
            self.targets = yield from self._draw(f"{BASE}, targets", pipe, path, self.request.target_specs)
        base = self._base(pipe, path, spaces, no_drift)
        self._measure_errors(BASE, pipe, base)
        return base

    def _require_known(self, pipe: Pipeline) -> str | None:
        """Raise ConfigError unless the base is a model of the store; of a base that was named, the reason why it has no drift."""
        try:
            check_model(self.store, denoiser_weights(pipe))
        except ConfigError:
            if self.request.base is None:
                raise
            return f"{self.store.url} has not recorded the inputs of {self.request.base}"
        return None

    def draw_edited(self, place: str, base: DrawnBase) -> Iterator[Event]:
        """Load an edited model and draw every picture from the noise of the base."""
        self._free()
        yield Note(f"loading {place}")
        pipe = self._load(place, base.scheduler)
        self.weights[place] = weights_of(pipe, self._protected)
        shapes = {name: weight.shape for name, weight in self.weights[place].protected.items()}
        require_same_architecture(self.weights[BASE], shapes, place)
        if self.weights[place].digests == self.weights[BASE].digests:
            yield Note(f"{place} has the weights of the base: nothing was edited")
        self._measure_errors(place, pipe, base)
        self.drawn[place] = yield from self._draw(place, pipe, base.path, self.request.specs)
        shape, base_shape = (self.drawn[name].latents.shape[1:] for name in (place, BASE))
        if shape != base_shape:
            raise ConfigError(
                f"{place} draws latents of {shape}, the base of {base_shape}", "name a model of the size of the base"
            )

    def _load(self, place: str, scheduler: Scheduler) -> Pipeline:
        """The model at a place, with the scheduler of the config, not the one that its pipeline was saved with."""
        pipe = load_edited(self.config, place, str(self.device))
        put_scheduler(pipe, scheduler)
        return pipe

    def _free(self) -> None:
        """Give back the memory of a pipeline that is no longer used."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _draw(
        self, name: str, pipe: Pipeline, path: DenoisingPath, specs: Sequence[PictureSpec], *, series: int = 0
    ) -> Generator[Event, None, Pictures]:
        parts: list[Pictures] = []
        total = len(self.request.specs) * (2 + len(self.request.edited)) + len(self.request.target_specs)
        before = sum(len(drawn.images) for drawn in (*self.drawn.values(), *([self.targets] if self.targets else [])))
        for part in draw_pictures(pipe, path, specs, self.request.batch_size, 2 * self.request.series + series):
            parts.append(part)
            yield Progress("evaluate", before + sum(len(each.images) for each in parts), total, name)
        return Pictures.joined(parts)

    def _base(self, pipe: Pipeline, path: DenoisingPath, spaces: FeatureSpaces, no_drift: str | None) -> DrawnBase:
        images, vectors = None, None
        if self.request.instances:
            height, width = self.drawn[BASE].images.shape[1:3]
            images = read_images([each.path for each in self.request.instances], height, width)
            encoded = {name: encode(images) for name, encode in spaces.encoders.items()}
            vectors = {"latents": pooled_latents(cast(LatentPipeline, pipe), images), **encoded}
        has_loss = images is not None and has_instance_loss(pipe)
        return DrawnBase(
            path=path,
            scheduler=scheduler_in(pipe),
            no_drift=no_drift,
            images=images,
            instances=vectors,
            has_loss=has_loss,
        )

    def _measure_errors(self, name: str, pipe: Pipeline, base: DrawnBase) -> None:
        if base.images is not None and base.has_loss:
            captions = [each.caption for each in self.request.instances]
            size, series = self.request.batch_size, self.request.series
            self.errors[name] = instance_errors(pipe, base.images, captions, batch_size=size, seed=series)

    @property
    def _protected(self) -> list[str]:
        return [name for site in self.store.sites for name in site.weights]
