"""Checks that try the run itself: schedule, model, layers, steps of a prompt and of a batch, and the estimates from them."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nullbooth_cli.errors import ModelError
from nullbooth_cli.formatting import counted, duration, size
from nullbooth_cli.pipeline.doctor.examination import Caution, Examination

if TYPE_CHECKING:
    from nullbooth_cli.pipeline.plan import Plan


def schedule(exam: Examination) -> str:
    """Whether the scheduler gives the steps that are asked for."""
    from nullbooth_cli.collect.open_model import compute_steps

    if exam.store is not None and "schedule" in exam.states and exam.states["schedule"].is_done:
        exam.steps = exam.store.schedule()
    else:
        _, exam.steps = compute_steps(exam.config, len(exam.prompts) or 1)
    first, last = exam.steps[0].timestep, exam.steps[-1].timestep
    strategy = exam.config.schedule.sampler_strategy or "uniform DDIM"
    return f"{counted(len(exam.steps), 'step')} of {strategy}, timesteps {first:g} to {last:g}"


@contextlib.contextmanager
def _foreign_errors(what: str, hint: str) -> Iterator[None]:
    """Turn an error of the pipeline's own code into ModelError: a finding, not a bug of ours."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError) as error:
        first = next(iter(str(error).strip().splitlines()), "")
        raise ModelError(f"{what}: {type(error).__name__}: {first}", hint) from error


def model(exam: Examination) -> str:
    """Whether the model loads, and fits the device."""
    from nullbooth_cli.collect.open_model import load_model
    from nullbooth_cli.model.denoisers import denoiser_of

    config = exam.config
    with _foreign_errors(
        f"{config.model} cannot be moved to {exam.device}", "choose another device, or set dtype to float16 or bfloat16"
    ):
        exam.pipe = load_model(config, str(exam.device))
    count = sum(parameter.numel() for parameter in denoiser_of(exam.pipe).parameters())
    return f"{type(exam.pipe).__name__} loads, its denoiser has {count / 1e6:,.1f} M parameters in {config.dtype}"


def layers(exam: Examination) -> str:
    """Whether the chosen layers and features are there."""
    from nullbooth_cli.collect.open_model import chosen_projections
    from nullbooth_cli.model.denoisers import denoisers_of
    from nullbooth_cli.model.projections import attention_of

    exam.projections = chosen_projections(exam.config, exam.pipe)
    matching = {projection.layer for projection in exam.projections}
    there = {layer for layer, each in attention_of(denoisers_of(exam.pipe)).items() if each.sees_text}
    matched = f"{len(matching & there)} of {counted(len(there), 'layer')} of attention to text match"
    others = f", and {counted(len(matching - there), 'other layer')}" if matching - there else ""
    return f"{matched}{others}, with {counted(len(exam.projections), 'projection')}"


def attention_maps(exam: Examination) -> str | None:
    """Whether the prompts and layers of the attention maps are there."""
    from nullbooth_cli.collect.attention_maps import find_attention
    from nullbooth_cli.model.denoisers import denoiser_of
    from nullbooth_cli.settings.knowledge import attention_prompts

    section = exam.config.collect
    if not section.visual_attention_map:
        return None
    chosen = attention_prompts(exam.config, exam.prompts)
    found = find_attention(denoiser_of(exam.pipe), section.attention_layers)
    return f"{counted(len(chosen), 'prompt')}, {counted(len(found) // 2, 'layer')}"


def tokenizer(exam: Examination) -> str | Caution:
    """Whether a prompt is longer than the tokenizer takes."""
    from nullbooth_cli.model.prompt_length import cut_texts, token_limits

    every = [prompt.text for prompt in (*exam.prompts, *exam.heldout)]
    room = "; ".join(f"{name} takes {limit} tokens" for name, limit in token_limits(exam.pipe).items())
    if cut := cut_texts(exam.pipe, every):
        return Caution(
            f"{len(cut)} of {len(every)} prompts are too long ({room}), such as '{cut[0].text}', which loses '{cut[0].lost}'",
            "shorten them: the words that are cut off are not preserved",
        )
    return f"no prompt is too long: {room}"


def probe(exam: Examination) -> str:
    """Whether two steps of one prompt run, with the model that the store was collected with."""
    from nullbooth_cli.collect.open_model import find_recordable, follow_schedule
    from nullbooth_cli.model.load import weights_digest
    from nullbooth_cli.pipeline.differences import model_renamed
    from nullbooth_cli.pipeline.same_model import require_same_model, require_same_noise

    with _foreign_errors("the model fails on a prompt", "check collect.height, collect.width, dtype and the model itself"):
        exam.path = follow_schedule(exam.config, exam.steps, exam.pipe)
        exam.recordable = find_recordable(exam.config, exam.pipe, exam.path, exam.prompts)
    config, store, states = exam.config, exam.store, exam.states
    if store is not None and "schedule" in states and states["schedule"].is_done:
        require_same_noise(config, store, exam.pipe)
    if store is not None and "collect" in states:
        collect = states["collect"]
        if collect.state == "partial" or (collect.is_done and model_renamed(config, store)):
            weights = weights_digest(exam.pipe, encodes=exam.path.images is not None)
            require_same_model(config, store, weights, exam.recordable.sites)
    sites = counted(len(exam.recordable.sites), "site")
    return f"two steps of one prompt run; {sites} to record"


def projectors(exam: Examination) -> str | Caution:
    """Whether the threshold rule is possible, and the prompts give enough vectors for every site."""
    from nullbooth_cli.nullspace.cut import require_possible
    from nullbooth_cli.nullspace.spectrum import doubts_of, worst_doubts
    from nullbooth_cli.pipeline.project import pooling_of, require_inputs

    config, sites, pooling = exam.config, exam.recordable.sites, pooling_of(exam.config)
    require_inputs(config)
    groups = [(site, group) for site in sites for group in pooling.groups(site, exam.steps)]
    rule, value = config.project.rule()
    require_possible(rule, value, sites, config.covariance.accumulate, config.covariance.factoring())
    few = worst_doubts(
        (site.name, "", doubt)
        for site, group in groups
        for doubt in doubts_of(
            dim=site.dim, count=len(exam.prompts) * site.num_tokens * len(group), null_dim=0, threshold=None, noise_floor=0.0
        )
    )
    if few:
        return Caution("\n".join(few), "collect more prompts")
    return f"{rule} {value:g}; there will be enough vectors for every site"


def batch(exam: Examination) -> str:
    """Whether a whole batch runs, and how long a step of it takes."""
    from nullbooth_cli.collect.batch_size import time_step

    if exam.states["collect"].is_done:
        return "collect is done: no forward is left"
    if exam.store is not None and (pace := exam.store.progress.pace("collect")) is not None:
        exam.seconds_per_unit = pace
        return f"a unit took {duration(pace)} when it was last run here"
    section, found = exam.config.collect, exam.recordable.found
    members = list(enumerate(exam.prompts[: section.batch_size]))
    with _foreign_errors(
        f"a batch of {counted(len(members), 'prompt')} fails",
        "lower collect.batch_size, or let auto_batch find one",
    ):
        seconds = time_step(exam.recordable, members)
    exam.seconds_per_unit = seconds * found.forwards_needed(len(exam.steps))
    return f"a step of {counted(len(members), 'prompt')} takes {seconds:.2g} s"


def _plans(exam: Examination) -> "list[Plan]":
    from nullbooth_cli.pipeline.plan import Work, plan_for
    from nullbooth_cli.settings.config import STAGES

    paces = {} if exam.seconds_per_unit is None else {"collect": exam.seconds_per_unit}
    work = Work(
        config=exam.config,
        prompts=exam.prompts,
        store=exam.store,
        states=exam.states,
        steps=exam.steps,
        sites=exam.recordable.sites,
        device=str(exam.device),
        free=exam.backing.free_nbytes(),
        paces=paces,
    )
    return plan_for(STAGES, work)


def memory(exam: Examination) -> str | Caution:
    """Whether sums and matrices fit the memory beside the model."""
    from nullbooth_cli.nullspace.moments import sums_nbytes
    from nullbooth_cli.pipeline.space import place_for_sums

    plans, num_steps, factoring = _plans(exam), len(exam.steps), exam.config.covariance.factoring()
    folds = exam.config.collect.keep != "features" or exam.config.heldout_prompts is not None
    sums = sums_nbytes(exam.recordable.sites, num_steps, factoring, in_memory=True) if folds else 0
    needed = size(max(sums, *(plan.device_bytes_needed for plan in plans)))
    room = f"sums and matrices take up to {needed}, {size(plans[0].device_bytes_free)} are free on {exam.device} beside the model"
    if folds and place_for_sums(exam.recordable.sites, num_steps, exam.device, factoring) != exam.device:
        return Caution(f"{room}: they stay in host memory", "choose fewer layers or steps to fold them on the device")
    return room


def disk(exam: Examination) -> str:
    """Whether everything that the run writes fits the disk."""
    from nullbooth_cli.pipeline.space import require_room

    needed, free = sum(plan.bytes_needed for plan in _plans(exam)), exam.backing.free_nbytes()
    require_room(exam.backing.url, needed, free)
    return f"about {size(needed)} to write, " + ("the place cannot report what is free" if free is None else f"{size(free)} free")


def time(exam: Examination) -> str:
    """How long the stages that are left take, from units measured here."""
    left = [plan for plan in _plans(exam) if not exam.states[plan.stage].is_done and plan.stage != "schedule"]
    known = [f"{plan.stage} about {duration(plan.seconds)}" for plan in left if plan.seconds is not None]
    unknown = [plan.stage for plan in left if plan.seconds is None]
    unestimated = [f"not estimated, because never run here: {', '.join(unknown)}"] if unknown else []
    return "; ".join([*known, *unestimated]) or "nothing is left to do"
