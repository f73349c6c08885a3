"""Checks that try the run itself: schedule, model, layers, two steps of a prompt and of a batch; and what follows from them."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import counted, duration, size
from nullbooth_cli.pipeline.doctor.examination import Caution, Examination

if TYPE_CHECKING:
    from nullbooth_cli.pipeline.plan import Plan


def schedule(patient: Examination) -> str:
    from nullbooth_cli.collect.open_model import compute_steps

    if patient.store is not None and "schedule" in patient.states and patient.states["schedule"].is_done:
        patient.steps = patient.store.schedule()
    else:
        _, patient.steps = compute_steps(patient.config, len(patient.prompts) or 1)
    first, last = patient.steps[0].timestep, patient.steps[-1].timestep
    strategy = patient.config.schedule.sampler_strategy or "uniform DDIM"
    return f"{counted(len(patient.steps), 'step')} of {strategy}, timesteps {first:g} to {last:g}"


@contextlib.contextmanager
def _foreign_errors(what: str, hint: str) -> Iterator[None]:
    """Errors of the pipeline's own code are findings, not bugs of ours."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError) as error:
        first = next(iter(str(error).strip().splitlines()), "")
        raise ConfigError(f"{what}: {type(error).__name__}: {first}", hint) from error


def model(patient: Examination) -> str:
    from nullbooth_cli.collect.open_model import load_model
    from nullbooth_cli.model.load import denoiser_of

    config = patient.config
    with _foreign_errors(
        f"{config.model} does not go to {patient.device}", "choose another --device, or dtype: float16 or bfloat16"
    ):
        patient.pipe = load_model(config, str(patient.device))
    count = sum(parameter.numel() for parameter in denoiser_of(patient.pipe).parameters())
    return f"{type(patient.pipe).__name__} loads, its denoiser has {count / 1e6:,.1f} M parameters in {config.dtype}"


def layers(patient: Examination) -> str:
    from nullbooth_cli.collect.open_model import chosen_projections
    from nullbooth_cli.model.load import denoiser_of
    from nullbooth_cli.model.projections import find_projections

    patient.projections = chosen_projections(patient.config, patient.pipe)
    matching = {projection.layer for projection in patient.projections}
    features = patient.config.collect.collect_features.chosen()
    there = {projection.layer for projection in find_projections(denoiser_of(patient.pipe), features, "all")}
    matched = f"{len(matching)} of {counted(len(there), 'cross-attention layer')} match"
    return f"{matched}, with {counted(len(patient.projections), 'projection')}"


def attention_maps(patient: Examination) -> str | None:
    from nullbooth_cli.collect.attention_maps import find_attention
    from nullbooth_cli.model.load import denoiser_of
    from nullbooth_cli.settings.knowledge import attention_prompts

    section = patient.config.collect
    if not section.visual_attention_map:
        return None
    chosen = attention_prompts(patient.config, patient.prompts)
    found = find_attention(denoiser_of(patient.pipe), section.attention_layers)
    return f"{counted(len(chosen), 'prompt')}, {counted(len(found) // 2, 'layer')}"


def tokenizer(patient: Examination) -> str | Caution:
    from nullbooth_cli.model.denoise import truncated_prompts
    from nullbooth_cli.model.load import tokenizers_of

    every = (*patient.prompts, *patient.heldout)
    room = "; ".join(f"{name} takes {each.model_max_length} tokens" for name, each in tokenizers_of(patient.pipe).items())
    if cut := truncated_prompts(patient.pipe, every):
        prompt, lost = cut[0]
        return Caution(
            f"{len(cut)} of {len(every)} prompts are too long ({room}), such as '{prompt.text}', which loses '{lost}'",
            "shorten them: what is cut off is not kept",
        )
    return f"no prompt is too long: {room}"


def probe(patient: Examination) -> str:
    from nullbooth_cli.collect.open_model import find_collection, path_of
    from nullbooth_cli.model.load import weights_digest
    from nullbooth_cli.pipeline.collect import require_same_model, require_same_noise
    from nullbooth_cli.pipeline.run import model_renamed

    with _foreign_errors("the model fails on a prompt", "check collect.height, collect.width, dtype and the model itself"):
        patient.path = path_of(patient.config, patient.steps, patient.pipe)
        patient.collection = find_collection(patient.config, patient.pipe, patient.path, patient.prompts[0])
    config, store, states = patient.config, patient.store, patient.states
    if store is not None and "schedule" in states and states["schedule"].is_done:
        require_same_noise(config, store, patient.pipe.scheduler)
    if store is not None and "collect" in states:
        collect = states["collect"]
        if collect.state == "partial" or (collect.is_done and model_renamed(config, store)):
            weights = weights_digest(patient.pipe, encodes=patient.path.images is not None)
            require_same_model(config, store, weights, patient.collection.sites)
    recordings = counted(len(patient.collection.sites), "recording")
    return f"two steps of one prompt run, which takes {recordings}"


def projectors(patient: Examination) -> str | Caution:
    from nullbooth_cli.nullspace.decompose import require_possible
    from nullbooth_cli.nullspace.spectrum import spectrum_warnings
    from nullbooth_cli.pipeline.project import pooling_of, require_inputs

    config, sites, pooling = patient.config, patient.collection.sites, pooling_of(patient.config)
    require_inputs(config)
    groups = [(site, group) for site in sites for group in pooling.groups(site, patient.steps)]
    rule, value = config.project.rule()
    require_possible(rule, value, sites, config.covariance.accumulate)
    few = [
        f"{site.name}: {doubt}"
        for site, group in groups
        for doubt in spectrum_warnings(
            dim=site.dim, count=len(patient.prompts) * site.num_tokens * len(group), null_dim=0, threshold=None, noise_floor=0.0
        )
    ]
    if few:
        more = f" (and {len(few) - 1} more)" if len(few) > 1 else ""
        return Caution(f"{few[0]}{more}", "collect more prompts")
    return f"{rule} {value:g}; there will be enough vectors for every site"


def batch(patient: Examination) -> str:
    from nullbooth_cli.collect.batch_size import time_step
    from nullbooth_cli.collect.units import forwards_needed

    if patient.states["collect"].is_done:
        return "collect is done, and runs nothing more"
    if patient.store is not None and (pace := patient.store.progress.pace("collect")) is not None:
        patient.seconds_per_unit = pace
        return f"a unit took {duration(pace)} when it was last run here"
    section, found = patient.config.collect, patient.collection.found
    members = list(enumerate(patient.prompts[: section.batch_size]))
    with _foreign_errors(
        f"a batch of {counted(len(members), 'prompt')} fails",
        "lower collect.batch_size, or let nullbooth collect --auto-batch find one",
    ):
        seconds = time_step(patient.pipe, patient.path, found, section.branches, members)
    patient.seconds_per_unit = seconds * forwards_needed(found, len(patient.steps))
    return f"a step of {counted(len(members), 'prompt')} takes {seconds:.2g} s"


def _plans(patient: Examination) -> "list[Plan]":
    from nullbooth_cli.pipeline.plan import plan_for
    from nullbooth_cli.settings.config import STAGES

    paces = {} if patient.seconds_per_unit is None else {"collect": patient.seconds_per_unit}
    return plan_for(
        STAGES,
        patient.config,
        patient.prompts,
        patient.store,
        str(patient.device),
        patient.backing.free_nbytes(),
        patient.states,
        patient.steps,
        patient.collection.sites,
        paces,
    )


def memory(patient: Examination) -> str | Caution:
    from nullbooth_cli.nullspace.moments import sums_nbytes
    from nullbooth_cli.pipeline.space import place_for_sums

    plans, num_steps = _plans(patient), len(patient.steps)
    folds = patient.config.collect.keep != "features" or patient.config.heldout_prompts is not None
    sums = sums_nbytes(patient.collection.sites, num_steps) if folds else 0
    needed = size(max(sums, *(plan.device_bytes_needed for plan in plans)))
    room = (
        f"sums and matrices take up to {needed}, {size(plans[0].device_bytes_free)} are free on {patient.device} beside the model"
    )
    if folds and place_for_sums(patient.collection.sites, num_steps, patient.device) != patient.device:
        return Caution(f"{room}: they stay in host memory", "choose fewer layers or steps to fold them on the device")
    return room


def disk(patient: Examination) -> str:
    from nullbooth_cli.pipeline.space import require_room

    needed, free = sum(plan.bytes_needed for plan in _plans(patient)), patient.backing.free_nbytes()
    require_room(patient.backing.url, needed, free)
    return f"about {size(needed)} to write, " + ("nobody counts what is free there" if free is None else f"{size(free)} free")


def time(patient: Examination) -> str:
    left = [plan for plan in _plans(patient) if not patient.states[plan.stage].is_done and plan.stage != "schedule"]
    known = [f"{plan.stage} about {duration(plan.seconds)}" for plan in left if plan.seconds is not None]
    unknown = [plan.stage for plan in left if plan.seconds is None]
    said = [*known, *([f"not estimated, because never run here: {', '.join(unknown)}"] if unknown else [])]
    return "; ".join(said) or "nothing is left to do"
