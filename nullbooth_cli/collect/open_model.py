"""Opens the model of a config: its scheduler and steps, its pipeline with weights or without, its path and its sites.

The only file below pipeline/, beside edited_model.py, that reads a `Config`.
Nothing here reads or writes a store. Heavy imports are inside the functions.

1. `compute_steps()` and `scheduler_of()` need the model's config files only.
2. `load_model()` loads the pipeline; `follow_schedule()` sets the stored schedule; `find_recordable()` finds its sites.
   `load_path()` does the first two, `load_recordable()` all three.
3. `open_base()` reads single weights, without the pipeline if possible.
4. `open_preview()` opens a model to be asked for its shapes, without weights if possible.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nullbooth_cli.datatypes import Prompt, Step
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.config import Config

if TYPE_CHECKING:
    from nullbooth_cli.collect.find_sites import RecordableModel
    from nullbooth_cli.collect.preview import Preview
    from nullbooth_cli.model.base_weights import BaseWeights
    from nullbooth_cli.model.denoise import DenoisingPath
    from nullbooth_cli.model.projections import Projection
    from nullbooth_cli.model.protocols import Pipeline, Scheduler


def compute_steps(config: Config, num_prompts: int, device: str | None = None) -> "tuple[Scheduler, tuple[Step, ...]]":
    """The config's scheduler and its steps; needs the model's config files, not its weights.

    A flow-matching pipeline chooses the sigmas itself, so it is called up to its first forward. It is loaded to `device` only if
    it cannot be built without weights.
    """
    from nullbooth_cli.collect import without_weights
    from nullbooth_cli.model import denoise
    from nullbooth_cli.model.scheduler import compute_schedule, is_flow_matching
    from nullbooth_cli.model.stored_schedule import put_scheduler

    require_call(config)
    section, scheduler = config.schedule, scheduler_of(config)

    def set_by_pipeline(_: int) -> None:
        pipe = open_without_weights(config, scheduler) or load_model(config, device)
        put_scheduler(pipe, scheduler)
        denoise.begin_denoising(pipe, denoising_path(config), without_weights.ANY_PROMPT)

    steps = compute_schedule(
        section.sampler_strategy,
        scheduler,
        section.num_denoising_steps,
        mode=section.timestep_mode,
        jitter=section.sde_jitter,
        seed=section.seed,
        num_prompts=num_prompts,
        set_timesteps=set_by_pipeline if is_flow_matching(scheduler) else None,
    )
    return scheduler, steps


def require_call(config: Config) -> None:
    """Raise ConfigError unless the model's pipeline class takes what the config gives it, and is given all that it needs.

    Raises ModelError for a class that cannot be used. Cost: reads the model's config files.
    """
    from nullbooth_cli.model import load
    from nullbooth_cli.model.pipeline_call import call_of
    from nullbooth_cli.model.sources import Source

    section = config.collect
    call = call_of(load.load_class(Source.of(config)))
    call.require_inputs(section.pipeline_inputs)
    call.require_settings(
        guidance_is_set=section.guidance_scale != type(section).model_fields["guidance_scale"].default,
        size_is_set=section.height is not None or section.width is not None,
        batch_size=section.batch_size,
    )
    _require_whole_size(config)


def scheduler_of(config: Config) -> "Scheduler":
    """The config's scheduler, without steps."""
    from nullbooth_cli.model import load
    from nullbooth_cli.model.scheduler import build_scheduler
    from nullbooth_cli.model.sources import Source

    shipped = load.load_scheduler(Source.of(config))
    return build_scheduler(config.schedule.sampler_strategy, shipped, config.schedule.timestep_spacing)


def open_without_weights(config: Config, scheduler: "Scheduler") -> "Pipeline | None":
    """The config's pipeline without weights; None for a pipeline class that cannot be built that way."""
    from nullbooth_cli.collect import without_weights
    from nullbooth_cli.model import load
    from nullbooth_cli.model.sources import Source

    folder = load.config_folder(Source.of(config))
    if without_weights.pipeline_class(folder) not in without_weights.TEXT_SHAPES:
        return None
    return without_weights.build_pipeline(folder, scheduler)


def open_base(config: Config, device: str | None) -> "BaseWeights":
    """The weights of the config's denoiser, to be read one by one.

    Cost: the headers of its files; a single file, or a folder with pickles alone, is loaded as a whole.
    """
    from nullbooth_cli.model.base_weights import BaseWeights
    from nullbooth_cli.model.load_errors import explained
    from nullbooth_cli.model.quiet import quiet_libraries
    from nullbooth_cli.model.sources import Source, fetch

    source = Source.of(config)
    if not source.is_single_file:
        with quiet_libraries(), explained(source):
            folder = Path(fetch(source))
        if (in_files := BaseWeights.in_folder(folder, config.variant)) is not None:
            return in_files
    return BaseWeights.of_pipeline(load_model(config, device))


def load_model(config: Config, device: str | None) -> "Pipeline":
    """The config's pipeline, with its weights, on the device."""
    from nullbooth_cli.model import load
    from nullbooth_cli.model.device import pick_device
    from nullbooth_cli.model.sources import Source

    return load.load_pipeline(
        **asdict(Source.of(config)),
        dtype=config.dtype,
        device=pick_device(device),
        model_cpu_offload=config.model_cpu_offload,
        attention_slicing=config.attention_slicing,
    )


def follow_schedule(config: Config, steps: tuple[Step, ...], pipe: "Pipeline") -> "DenoisingPath":
    """Replace a pipeline's scheduler by the config's, which walks exactly these steps; returns the path."""
    from nullbooth_cli.model import denoise
    from nullbooth_cli.model.scheduler import build_scheduler
    from nullbooth_cli.model.stored_schedule import scheduler_in
    from nullbooth_cli.settings import images

    scheduler = build_scheduler(config.schedule.sampler_strategy, scheduler_in(pipe), config.schedule.timestep_spacing)
    denoise.use_schedule(pipe, scheduler, steps)
    folder = config.collect.images
    return replace(denoising_path(config, steps), images=None if folder is None else images.image_files(folder))


def denoising_path(config: Config, steps: tuple[Step, ...] = ()) -> "DenoisingPath":
    """The path of a config, without images; without steps, the pipeline walks those of its own scheduler."""
    from nullbooth_cli.model import denoise
    from nullbooth_cli.model.fixed_inputs import read_inputs

    _require_whole_size(config)
    section = config.collect
    return denoise.DenoisingPath(
        num_inference_steps=config.schedule.num_denoising_steps,
        steps=steps,
        guidance_scale=section.guidance_scale,
        height=section.height,
        width=section.width,
        seed=section.seed,
        inputs=read_inputs(section.pipeline_inputs),
    )


def _require_whole_size(config: Config) -> None:
    """Raise ConfigError for a height without a width: some pipelines then take neither."""
    height, width = config.collect.height, config.collect.width
    if (height is None) != (width is None):
        given, missing = ("height", "width") if width is None else ("width", "height")
        raise ConfigError(
            f"collect.{given} is {height or width}, and collect.{missing} is not set",
            "set both, or neither for the model's own size",
        )


def load_path(
    config: Config, steps: tuple[Step, ...], device: str | None, pipe: "Pipeline | None" = None
) -> "tuple[Pipeline, DenoisingPath]":
    """Load the model, unless it is given, and let it follow the schedule; returns (pipeline, path)."""
    require_call(config)
    pipe = load_model(config, device) if pipe is None else pipe
    return pipe, follow_schedule(config, steps, pipe)


def load_recordable(
    config: Config, steps: tuple[Step, ...], prompts: tuple[Prompt, ...], device: str | None, *, pipe: "Pipeline | None" = None
) -> "RecordableModel":
    """Load the model, unless it is given, let it follow the schedule and find its sites. Cost: the load, and `find_sites`."""
    pipe, path = load_path(config, steps, device, pipe)
    return find_recordable(config, pipe, path, prompts)


def find_recordable(config: Config, pipe: "Pipeline", path: "DenoisingPath", prompts: tuple[Prompt, ...]) -> "RecordableModel":
    """Find the sites of a pipeline that follows the schedule. Cost: that of `find_sites`; moments need no longest prompt."""
    from nullbooth_cli.collect import find_sites

    section = config.collect
    found = find_sites.find_sites(
        pipe,
        path,
        chosen_projections(config, pipe),
        side=section.side,
        branches=section.branches,
        prompts=prompts[:1] if section.keep == "moments" else prompts,
        tokens_per_prompt=section.tokens_per_prompt,
    )
    return find_sites.RecordableModel(pipe, path, found)


def chosen_projections(config: Config, pipe: "Pipeline") -> "tuple[Projection, ...]":
    """The projections of a pipeline that the config chooses."""
    from nullbooth_cli.model.denoisers import denoisers_of
    from nullbooth_cli.model.projections import find_projections

    section = config.collect
    denoisers, features = denoisers_of(pipe), section.collect_features.chosen()
    return find_projections(denoisers, features, section.cross_attention_layers, section.linear_layers)


def open_preview(config: Config, device: str | None, note: Callable[[str], None]) -> "Preview":
    """Open the config's model to find its shapes; `note` is called with a text if it must be loaded for that."""
    from nullbooth_cli.collect.preview import Preview
    from nullbooth_cli.model.stored_schedule import put_scheduler

    require_call(config)
    scheduler = scheduler_of(config)
    pipe = open_without_weights(config, scheduler)
    loaded = pipe is None
    if pipe is None:
        note(f"the shapes of {config.model} cannot be found without its weights: loading it")
        pipe = load_model(config, device)
        put_scheduler(pipe, scheduler)
    section = config.collect
    return Preview(
        model=config.model,
        pipe=pipe,
        loaded=loaded,
        path=denoising_path(config),
        chosen=chosen_projections(config, pipe),
        side=section.side,
        branches=section.branches,
        tokens_per_prompt=section.tokens_per_prompt,
        feature_dtype=section.feature_dtype,
        factoring=config.covariance.factoring(),
    )
