"""Draws prompts with models that a user names: to look at, without a store.

    request = SampleRequest(models=("runs/toy-sks",), prompts=("a sks circle",), with_base=True)
    samples = yield from draw_samples(request)

A picture follows from its prompt and its seed, as a user of diffusers draws it: the pipeline's own scheduler, number of steps and
guidance, unless the request has others. Every model starts from the same noise.
"""

import gc
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nullbooth_cli.collect.edited_model import EditedModel, base_of, load_edited, read_place
from nullbooth_cli.collect.open_model import load_model
from nullbooth_cli.errors import ConfigError, DataError
from nullbooth_cli.evaluation.encoders import batches
from nullbooth_cli.evaluation.pictures import require_pictures
from nullbooth_cli.model.device import pick_device
from nullbooth_cli.model.fixed_inputs import read_inputs
from nullbooth_cli.model.pipeline_call import call_of
from nullbooth_cli.model.prompt_length import cut_off_note
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.model.quiet import quiet_libraries
from nullbooth_cli.model.scheduler import build_scheduler
from nullbooth_cli.model.stored_schedule import put_scheduler, scheduler_in
from nullbooth_cli.model.trained_files import Base
from nullbooth_cli.progress import Event, Note, Progress
from nullbooth_cli.settings import limits
from nullbooth_cli.settings.config import STRATEGIES, Config
from nullbooth_cli.settings.texts import cut, flaw
from nullbooth_cli.settings.weighting import weighting_note
from nullbooth_cli.tensors import generators

BATCH = 4
Images = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """The models, prompts and seeds to draw.

    `models` are places as `read_place` takes them. `base` is the model of LoRAs that do not name theirs. `with_base` also draws
    with the base of each model. `num_inference_steps`, `guidance_scale` and `strategy` (a name of `STRATEGIES`) are the
    pipeline's own if they are None. Of `config`, the keys count that say how models are loaded, such as dtype.
    Raises ConfigError for what cannot be drawn.
    """

    models: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    base: str | None = None
    with_base: bool = False
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    strategy: str | None = None
    device: str | None = None
    config: Config = field(default_factory=Config)

    def __post_init__(self) -> None:
        for what, values in (("model", self.models), ("prompt", self.prompts), ("seed", self.seeds)):
            if not values:
                raise ConfigError(f"no {what} is named", f"name a {what}")
            if again := [value for value in values if values.count(value) > 1]:
                raise ConfigError(f"a {what} is named twice: {cut(str(again[0]))}", "name each once")
        for prompt in self.prompts:
            if not prompt.strip() or (problem := flaw(prompt)):
                raise ConfigError(f"the prompt '{cut(prompt)}' {problem if prompt.strip() else 'is empty'}", "write a text")
        if not all(0 <= seed <= limits.SEED for seed in self.seeds):
            raise ConfigError(f"seeds are {min(self.seeds)} to {max(self.seeds)}", f"choose seeds from 0 to {limits.SEED}")
        if self.strategy is not None and self.strategy not in STRATEGIES:
            raise ConfigError(f"no scheduler is named '{self.strategy}'", f"choose one of {', '.join(STRATEGIES)}")


@dataclass(frozen=True, kw_only=True)
class SampledModel:
    """The pictures of one model, `[P, S, H, W, 3]` for P prompts and S seeds, and how they were drawn.

    `base` is the model below it, if its files name one; `tokens` are the words that it was taught.
    """

    name: str
    images: Images
    num_inference_steps: int
    guidance_scale: float | None
    base: str | None = None
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The pictures of every model, bases first."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    models: tuple[SampledModel, ...]


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A model to load: `place` on the model of `config`, or, without a place, that model itself."""

    name: str
    config: Config
    place: str | None = None
    edited: EditedModel | None = None
    base: Base | None = None

    def load(self, device: str | None) -> Pipeline:
        return load_model(self.config, device) if self.place is None else load_edited(self.config, self.place, device)


def draw_samples(request: SampleRequest) -> Generator[Event, None, Samples]:
    """Draw every prompt with every seed and model.

    Raises ConfigError, before anything is loaded, for a place without a model and for a base that is not known; DataError for a
    picture that is not finite. Cost: a picture for each model, prompt and seed; one model is on the device at a time.
    """
    device = str(pick_device(request.device))
    edited = [_edited(request, place) for place in request.models]
    sources = [*edited, *(_bases(edited) if request.with_base else ())]
    for source in edited:
        if source.edited is not None:
            yield from map(Note, source.edited.notes)
            if note := source.edited.word_note(request.prompts):
                yield Note(f"{source.name}: {note}")
    if note := weighting_note(request.prompts):
        yield Note(note)
    drawn: list[SampledModel] = []
    cut_off: set[str] = set()
    for source in sources:
        yield Note(f"loading {source.name}, to {device}")
        pipe = source.load(device)
        if (note := cut_off_note(pipe, request.prompts)) and note not in cut_off:
            cut_off.add(note)
            yield Note(note)
        drawn.append((yield from _sampled(request, source, pipe, len(drawn), len(sources))))
        del pipe
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    bases = drawn[len(edited) :]
    return Samples(prompts=request.prompts, seeds=request.seeds, models=(*bases, *drawn[: len(edited)]))


def _edited(request: SampleRequest, place: str) -> _Source:
    """The model at a place, on the base that was given, else on the one that its files name."""
    given = None if request.base is None else Base(model=request.base)
    base = given or base_of(place)
    config = request.config if base is None else request.config.model_copy(update=vars(base))
    edited = read_place(config, place)
    if edited.additions and base is None:
        raise ConfigError(f"the files of {place} do not name the model that they belong to", "name it as the base")
    if request.with_base and base is None:
        raise ConfigError(f"{place} is a model of its own, whose files name no base", "name a base, or compare it with a model")
    return _Source(name=place, config=config, place=place, edited=edited, base=base)


def _bases(sources: Sequence[_Source]) -> list[_Source]:
    """The base of each model, each once."""
    found: list[_Source] = []
    for source in sources:
        assert source.base is not None
        if not any(other.base is not None and other.base.is_same(source.base) for other in found):
            found.append(_Source(name=f"base: {source.base.name}", config=source.config, base=source.base))
    return found


def _sampled(
    request: SampleRequest, source: _Source, pipe: Pipeline, models_done: int, num_models: int
) -> Generator[Event, None, SampledModel]:
    """Draw with one model."""
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.register_modules(safety_checker=None)  # it blackens pictures
    if request.strategy is not None:
        put_scheduler(pipe, build_scheduler(request.strategy, scheduler_in(pipe)))
    call = call_of(type(pipe))
    call.require_settings(guidance_is_set=request.guidance_scale is not None, size_is_set=False)
    steps = call.takes[call.steps] if request.num_inference_steps is None else request.num_inference_steps
    guidance = call.own_guidance if request.guidance_scale is None else request.guidance_scale
    most = scheduler_in(pipe).config.get("num_train_timesteps")
    if most is not None and steps > most:
        raise ConfigError(f"{steps} denoising steps are more than the {most} timesteps of {source.name}", "choose fewer steps")
    wanted = [(prompt, seed) for prompt in request.prompts for seed in request.seeds]
    images: list[Images] = []
    settings = {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "inputs": read_inputs(request.config.collect.pipeline_inputs),
    }
    for pictures in _batches(pipe, source.name, wanted, **settings):
        images.extend(pictures)
        yield Progress("sample", models_done * len(wanted) + len(images), num_models * len(wanted), source.name)
    return SampledModel(
        name=source.name,
        images=np.stack(images).reshape(len(request.prompts), len(request.seeds), *images[0].shape),
        num_inference_steps=steps,
        guidance_scale=guidance,
        base=None if source.place is None or source.base is None else source.base.name,
        tokens=() if source.edited is None else source.edited.tokens,
    )


def _batches(pipe: Any, name: str, wanted: Sequence[tuple[str, int]], **settings: Any) -> Iterator[Images]:
    """Pictures `[B, H, W, 3]` of (prompt, seed), a batch at a time."""
    call = call_of(type(pipe))
    for batch in batches(len(wanted), 1 if call.takes_one_prompt else BATCH):
        prompts, seeds = zip(*wanted[batch], strict=True)
        arguments = call.arguments(prompts, size={}, generators=generators(seeds), output_type="np", **settings)
        try:
            with quiet_libraries():
                drawn = pipe(**arguments)[0]
        except ValueError as error:
            raise ConfigError(
                f"{type(pipe).__name__} refuses this: {error}", "choose other steps, or another guidance"
            ) from error
        require_pictures(pipe, drawn)
        if not np.isfinite(drawn).all():
            raise DataError(f"a picture of {name} is not finite", "set dtype to float32 or bfloat16, or name another model")
        yield (drawn.clip(0, 1) * 255).round().astype(np.uint8)
