"""A config's model: its scheduler and steps, its pipeline with weights or without, its path and its sites.

Nothing here reads or writes a store, and everything heavy is imported when it is called.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from nullbooth_cli.datatypes import Prompt, Site, Step
from nullbooth_cli.settings.config import Config


def compute_steps(config: Config, num_prompts: int, device: str | None = None) -> tuple[Any, tuple[Step, ...]]:
    """(the scheduler, the steps) that the config asks for; needs the model's config files, not its weights.

    A flow-matching pipeline chooses the sigmas itself, so it is called up to its first forward; one that is no `shell` is loaded.
    """
    from nullbooth_cli.collect import without_weights
    from nullbooth_cli.model import denoise
    from nullbooth_cli.model.scheduler import compute_schedule, is_flow_matching

    section, scheduler = config.schedule, scheduler_of(config)

    def set_by_pipeline(_: int) -> None:
        pipe = open_shell(config, scheduler) or load_model(config, device)
        pipe.scheduler = scheduler
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


def scheduler_of(config: Config) -> Any:
    """The scheduler that the config asks for."""
    from nullbooth_cli.model import load
    from nullbooth_cli.model.scheduler import build_scheduler

    shipped = load.load_scheduler(config.model, **_where(config))
    return build_scheduler(config.schedule.sampler_strategy, shipped, config.schedule.timestep_spacing)


def open_shell(config: Config, scheduler: Any) -> Any:
    """The config's pipeline without weights; None for one whose shapes are known only once it is loaded."""
    from nullbooth_cli.collect import without_weights
    from nullbooth_cli.model import load

    folder = load.config_folder(config.model, **_where(config))
    return (
        without_weights.build_pipeline(folder, scheduler)
        if without_weights.pipeline_class(folder) in without_weights.TEXT_SHAPES
        else None
    )


def _where(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("revision", "local_files_only", "allow_pickle", "pipeline_config")}


@dataclass(frozen=True)
class Collection:
    """A loaded model, ready to be recorded."""

    pipe: Any
    path: Any
    found: Any = field(repr=False)

    @property
    def sites(self) -> tuple[Site, ...]:
        sites: tuple[Site, ...] = self.found.sites
        return sites


def load_model(config: Config, device: str | None) -> Any:
    """The pipeline that the config names."""
    from nullbooth_cli.model import load
    from nullbooth_cli.model.device import pick_device

    return load.load_pipeline(
        config.model,
        variant=config.variant,
        dtype=config.dtype,
        device=pick_device(device),
        **_where(config),
        model_cpu_offload=config.model_cpu_offload,
        attention_slicing=config.attention_slicing,
    )


def path_of(config: Config, steps: tuple[Step, ...], pipe: Any) -> Any:
    """Hold a pipeline to the schedule; returns the `denoise.DenoisingPath`."""
    from nullbooth_cli.model import denoise
    from nullbooth_cli.model.scheduler import build_scheduler
    from nullbooth_cli.settings import images

    scheduler = build_scheduler(config.schedule.sampler_strategy, pipe.scheduler, config.schedule.timestep_spacing)
    denoise.use_schedule(pipe, scheduler, steps)
    folder = config.collect.images
    return replace(denoising_path(config, steps), images=None if folder is None else images.image_files(folder))


def denoising_path(config: Config, steps: tuple[Step, ...] = ()) -> Any:
    """The `denoise.DenoisingPath` of a config; without steps, those that the pipeline's scheduler gives."""
    from nullbooth_cli.model import denoise

    section = config.collect
    return denoise.DenoisingPath(
        config.schedule.num_denoising_steps,
        steps,
        section.guidance_scale,
        section.height,
        section.width,
        section.seed,
    )


def load_path(config: Config, steps: tuple[Step, ...], device: str | None) -> tuple[Any, Any]:
    """Load the model and hold it to the schedule; returns (pipeline, `denoise.DenoisingPath`)."""
    pipe = load_model(config, device)
    return pipe, path_of(config, steps, pipe)


def load_collection(config: Config, steps: tuple[Step, ...], prompts: tuple[Prompt, ...], device: str | None) -> Collection:
    """Load the model, hold it to the schedule and find its sites (two steps of one prompt)."""
    pipe, path = load_path(config, steps, device)
    return find_collection(config, pipe, path, prompts[0])


def chosen_projections(config: Config, pipe: Any) -> Any:
    """The projections (`sites.Projection`) that the config chooses of a pipeline."""
    from nullbooth_cli.model import load
    from nullbooth_cli.model.projections import find_projections

    section = config.collect
    return find_projections(load.denoiser_of(pipe), section.collect_features.chosen(), section.cross_attention_layers)


def find_collection(config: Config, pipe: Any, path: Any, prompt: Prompt) -> Collection:
    """Find the sites of a model that is held to the schedule, by two steps of a prompt."""
    from nullbooth_cli.collect import find_sites

    section, projections = config.collect, chosen_projections(config, pipe)
    found = find_sites.find_sites(pipe, path, projections, section.side, section.branches, prompt, section.tokens_per_prompt)
    return Collection(pipe, path, found)
