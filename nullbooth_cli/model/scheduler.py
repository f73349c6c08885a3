"""Timesteps and sigmas: always a diffusers scheduler's own, built from the model's noise schedule.

1. `model_scheduler()` reads the scheduler that a pipeline folder ships with, without weights.
2. `build_scheduler()` makes the one that a `sampler_strategy` names. It passes every setting that shapes the steps explicitly:
   `from_config` alone answers "linspace" for a hub SD1.5 and "leading" for the same model after one `save_pretrained`.
3. `compute_schedule()` asks it for N steps; `stored_schedule.install()` makes a pipeline walk exactly the stored steps.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMWuerstchenScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    SCMScheduler,
    UniPCMultistepScheduler,
)
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Step, step_key
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.formatting import listed
from nullbooth_cli.model.corrected_solver import CorrectedDPMSolver
from nullbooth_cli.model.pipeline_call import class_named
from nullbooth_cli.model.pipeline_classes import OTHER
from nullbooth_cli.model.pipeline_folder import read_json, read_pipeline_folder
from nullbooth_cli.model.protocols import BetaScheduler, Scheduler
from nullbooth_cli.model.stored_schedule import SCHEDULER_PARTS, num_walked
from nullbooth_cli.settings.fingerprints import fingerprint

NOISE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "steps_offset",
    "rescale_betas_zero_snr",
)
LCM_MAX_STEPS = 50
SMALLEST_ALPHA = 2.0**-24
SMALL_TIMESTEPS = 10.0  # timesteps that are all below are ratios, angles or logarithms
_PATH = "choose another num_denoising_steps, sampler_strategy or timestep_spacing"
_DDIM = {"clip_sample": False, "set_alpha_to_one": False}
_DPM = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "timestep_spacing": "linspace",
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "euler_at_final": False,
}
_SAMPLERS: dict[str | None, tuple[type, dict[str, Any]]] = {
    None: (DDIMScheduler, {**_DDIM, "timestep_spacing": "linspace"}),
    "DPM++ 2M": (DPMSolverMultistepScheduler, _DPM),
    "DPM++ 2M Karras": (DPMSolverMultistepScheduler, {**_DPM, "use_karras_sigmas": True}),
    "DPM++ 3M": (DPMSolverMultistepScheduler, {**_DPM, "solver_order": 3}),
    "DPM++ 3M SDE Karras": (
        CorrectedDPMSolver,
        {**_DPM, "solver_order": 3, "algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "Euler": (
        EulerDiscreteScheduler,
        {"timestep_spacing": "linspace", "interpolation_type": "linear", "final_sigmas_type": "zero"},
    ),
    "Euler a": (EulerAncestralDiscreteScheduler, {"timestep_spacing": "linspace"}),
    "UniPC": (
        UniPCMultistepScheduler,
        {
            "solver_order": 2,
            "solver_type": "bh2",
            "predict_x0": True,
            "lower_order_final": True,
            "timestep_spacing": "linspace",
            "final_sigmas_type": "zero",
        },
    ),
    "DDIM": (DDIMScheduler, {**_DDIM, "timestep_spacing": "leading"}),
    "LCM": (LCMScheduler, {"original_inference_steps": LCM_MAX_STEPS}),
}


def is_sde(strategy: str | None) -> bool:
    """Whether the sigmas of a strategy are perturbed per prompt (`sde_jitter`)."""
    return strategy is not None and "SDE" in strategy


def model_scheduler(folder: str) -> Scheduler:
    """The scheduler that a folder's pipeline has once it is loaded; reads some small JSON files, no weights.

    Pipelines of Stable Diffusion set `steps_offset` to 1 and `clip_sample` to false, whatever the file says.
    """
    import diffusers
    from diffusers.pipelines.pipeline_utils import StableDiffusionMixin

    found = read_pipeline_folder(folder, weights=False)
    pipeline = class_named(found.class_name)
    part = next((name for name in SCHEDULER_PARTS if name in found.parts), None)
    if part is None:
        raise ModelError(f"{folder} has no scheduler", OTHER)
    read_json(Path(folder) / part / "scheduler_config.json")  # raises, naming it
    scheduler: Scheduler = getattr(diffusers, found.parts[part]).from_pretrained(folder, subfolder=part)
    if issubclass(pipeline, StableDiffusionMixin):
        needed = [name for name, each in inspect.signature(pipeline).parameters.items() if each.default is each.empty]
        scheduler = pipeline(**{**dict.fromkeys(needed), "scheduler": scheduler}).scheduler
    return scheduler


def build_scheduler(strategy: str | None, shipped: Scheduler, spacing: str | None = None) -> Scheduler:
    """A fresh scheduler for a strategy, with the noise schedule of `shipped` (the model's own scheduler).

    Raises ConfigError for a model without betas, such as a flow-matching one, with any strategy but "model", and for a strategy
    whose first step does not work with what the model predicts.
    """
    override = {} if spacing is None else {"timestep_spacing": spacing}
    if strategy == "model":
        return type(shipped).from_config(shipped.config, **override)
    if is_flow_matching(shipped):
        raise ConfigError(
            f"sampler_strategy {strategy or 'null'} needs a noise schedule of betas, and the {type(shipped).__name__} of this "
            "model has none",
            "set schedule.sampler_strategy to model, the only strategy for this model",
        )
    scheduler_class, settings = _SAMPLERS[strategy]
    noise = {key: shipped.config[key] for key in NOISE_KEYS if shipped.config.get(key) is not None}
    known = _parameters(scheduler_class)
    built: Scheduler = scheduler_class(**{key: value for key, value in noise.items() if key in known}, **{**settings, **override})
    if "variance_type" in shipped.config and "variance_type" not in built.config:
        built.register_to_config(variance_type=None)  # type: ignore[attr-defined]  # pipelines of IF ask any scheduler for it
    _require_a_first_step(strategy, built)
    return built


def _require_a_first_step(strategy: str | None, scheduler: Scheduler) -> None:
    """Raise ConfigError if a strategy cannot make a step from the first timestep of the model; cost: some milliseconds."""
    trial: Any = type(scheduler).from_config(scheduler.config)
    trial.set_timesteps(4)
    generator = torch.Generator().manual_seed(0)
    sample, predicted = torch.randn(2, 1, 4, 2, 2, generator=generator)
    drawn = {"generator": generator} if "generator" in _parameters(trial.step) else {}
    try:
        trial.scale_model_input(sample, trial.timesteps[0])
        stepped = trial.step(predicted, trial.timesteps[0], sample, **drawn)[0]
        reason = (
            None
            if torch.isfinite(stepped).all()
            else "its first step divides by zero, because nothing of the image is left there"
        )
    except (NotImplementedError, ValueError) as error:  # of a scheduler that cannot step from this prediction
        reason = str(error)
    if reason is not None:
        predicts = scheduler.config.get("prediction_type")
        snr = " with rescale_betas_zero_snr" if scheduler.config.get("rescale_betas_zero_snr") else ""
        raise ConfigError(
            f"sampler_strategy {strategy or 'null'} cannot denoise a model that predicts {predicts}{snr}: {reason}",
            "set schedule.sampler_strategy to another one, such as DPM++ 2M or UniPC",
        )


def is_flow_matching(scheduler: Scheduler) -> bool:
    """Whether a scheduler has no betas that its timesteps count, as that of flow matching: the pipeline may set its steps."""
    return "beta_start" not in scheduler.config or scheduler.config.get("prediction_type") == "flow_prediction"


def noise_digest(strategy: str | None, scheduler: Scheduler) -> str:
    """Digest of the settings that a schedule takes from the model's scheduler: its noise schedule, under "model" all of them."""
    settings = {key: value for key, value in scheduler.config.items() if not key.startswith("_") and value is not None}
    return fingerprint({key: value for key, value in settings.items() if strategy == "model" or key in NOISE_KEYS})


def _parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def sigmas_of(scheduler: Scheduler) -> torch.Tensor:
    """The sigmas of the timesteps that a scheduler walks, `[T]` float64: noise over signal, NaN where a scheduler has none.

    If it has no sigmas, they follow from what is left of the signal at a timestep. With `rescale_betas_zero_snr` the last is
    infinite; as in diffusers' own schedulers with sigmas, it is 4096 instead.
    """
    timesteps = scheduler.timesteps[: num_walked(scheduler)].cpu()
    if len(getattr(scheduler, "sigmas", ())) >= len(timesteps):
        sigmas: torch.Tensor = scheduler.sigmas  # type: ignore[attr-defined]  # not every scheduler has them
        return torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")[: len(timesteps)]
    if isinstance(scheduler, DDPMWuerstchenScheduler):
        alphas = scheduler._alpha_cumprod(timesteps, timesteps.device).double()
    elif isinstance(scheduler, SCMScheduler):  # its timestep is the angle between signal and noise
        alphas = timesteps.double().cos() ** 2
    elif hasattr(scheduler, "alphas_cumprod"):
        alphas = torch.as_tensor(scheduler.alphas_cumprod, dtype=torch.float64)[timesteps.long()]
    else:
        return torch.full((len(timesteps),), torch.nan, dtype=torch.float64)
    alphas = alphas.clamp(min=SMALLEST_ALPHA)
    found: torch.Tensor = ((1 - alphas) / alphas).sqrt()
    return found


def compute_schedule(
    strategy: str | None,
    scheduler: Scheduler,
    num_steps: int,
    *,
    mode: str = "avg",
    jitter: float = 0.0,
    seed: int | None = None,
    num_prompts: int = 1,
    set_timesteps: Callable[[int], None] | None = None,
) -> tuple[Step, ...]:
    """The steps of one run, in order.

    `set_timesteps` sets the scheduler's timesteps for pipelines that do more than ask it for `num_steps`.

    `mode` "avg" streams the mean of the prompts' sigma sequences, "first" takes the first, "all_steps" the scheduler's own. Only
    SDE strategies have sequences that differ: each sigma is multiplied by 1 + jitter * N(0, 1), independently per prompt, from
    `seed` or fresh randomness. Raises ConfigError, showing the values, if the timesteps are not usable.
    """
    num_train = scheduler.config.get("num_train_timesteps")
    _require_possible(strategy, num_steps, num_train)
    (set_timesteps or scheduler.set_timesteps)(num_steps)
    timesteps = scheduler.timesteps[: num_walked(scheduler)].double().cpu().numpy()
    last = None if is_flow_matching(scheduler) else scheduler.config["num_train_timesteps"] - 1
    _require_a_path(timesteps, last)
    sigmas = sigmas_of(scheduler).numpy()
    if (np.diff(sigmas) > 0).any():
        raise ConfigError(f"the scheduler gave increasing sigmas: {listed([f'{s:g}' for s in sigmas], most=10)}", _PATH)
    if is_sde(strategy) and jitter > 0 and mode != "all_steps":
        sigmas = _mean_of_perturbed(sigmas, jitter, np.random.default_rng(seed), num_prompts if mode == "avg" else 1)
        timesteps = _nearest_timesteps(cast(BetaScheduler, scheduler), sigmas)
        _require_a_path(timesteps, last)
    of_units = bool(np.abs(timesteps).max() < SMALL_TIMESTEPS)
    return tuple(
        Step(i, step_key(strategy, i, t, of_units=of_units), float(t), float(s))
        for i, (t, s) in enumerate(zip(timesteps, sigmas, strict=True))
    )


def _require_possible(strategy: str | None, num_steps: int, num_train: int | None) -> None:
    if num_train is not None and num_steps > num_train:
        raise ConfigError(
            f"num_denoising_steps {num_steps} is more than the model's {num_train} timesteps",
            "set schedule.num_denoising_steps to fewer, such as 30",
        )
    if num_steps == 1 and strategy not in ("LCM", "model"):
        raise ConfigError(
            "num_denoising_steps 1 is not a denoising path: only few-step models denoise in a single step",
            "set schedule.num_denoising_steps to 4 or more, or schedule.sampler_strategy to LCM for a model distilled for it",
        )
    if strategy == "LCM" and num_steps > LCM_MAX_STEPS:
        raise ConfigError(
            f"num_denoising_steps {num_steps} is more than the {LCM_MAX_STEPS} steps of LCM",
            "set schedule.num_denoising_steps to 1 to 8",
        )


def _require_a_path(timesteps: NDArray[np.float64], last: int | None) -> None:
    """Raise ConfigError unless the timesteps lead from noise (`last`) downwards; None where they do not count betas.

    Those of other schedulers may be ratios, angles or logarithms, and may increase: their sigmas tell.
    """
    shown = listed([f"{t:g}" for t in timesteps], most=10)
    if not np.isfinite(timesteps).all():
        raise ConfigError(f"the scheduler gave non-finite timesteps: {shown}", _PATH)
    if last is None:
        return
    if timesteps.min() < 0 or timesteps.max() > last:
        raise ConfigError(f"the scheduler gave timesteps outside 0..{last}: {shown}", _PATH)
    if (np.diff(timesteps) > 0).any():
        raise ConfigError(f"the scheduler gave increasing timesteps: {shown}", _PATH)
    if timesteps[0] < last / 2:
        raise ConfigError(f"the path starts at timestep {timesteps[0]:g}, below half of {last}: {shown}", _PATH)


def _mean_of_perturbed(sigmas: NDArray[np.float64], jitter: float, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """The mean of `count` sequences of perturbed sigmas, each sorted downwards; one sequence in memory at a time."""
    mean = np.zeros_like(sigmas)
    for i in range(count):
        perturbed = np.sort(sigmas * (1.0 + jitter * rng.standard_normal(len(sigmas))))[::-1]
        mean += (perturbed - mean) / (i + 1)
    return mean


def _nearest_timesteps(scheduler: BetaScheduler, sigmas: NDArray[np.float64]) -> NDArray[np.float64]:
    log_sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().log().numpy()
    return np.array([scheduler._sigma_to_t(sigma, log_sigmas) for sigma in sigmas]).round()
