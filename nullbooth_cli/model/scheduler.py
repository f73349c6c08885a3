"""Timesteps and sigmas: always a diffusers scheduler's own, built from the model's noise schedule.

1. `model_scheduler()` reads the scheduler that a pipeline folder ships with, without weights.
2. `build_scheduler()` makes the one that a `sampler_strategy` names. It passes every setting that shapes the steps explicitly:
   `from_config` alone answers "linspace" for a hub SD1.5 and "leading" for the same model after one `save_pretrained`.
3. `compute_schedule()` asks it for N steps; `install()` makes a pipeline walk exactly the stored steps.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Step, step_key
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.formatting import listed
from nullbooth_cli.model.corrected_solver import CorrectedDPMSolver
from nullbooth_cli.model.pipeline_call import class_named
from nullbooth_cli.model.pipeline_folder import read_json, read_pipeline_folder
from nullbooth_cli.model.protocols import BetaScheduler, Scheduler
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
    if "scheduler" not in found.parts:
        raise ModelError(f"{folder} has no scheduler", "set model to a text-to-image pipeline of diffusers")
    read_json(Path(folder) / "scheduler" / "scheduler_config.json")  # raises, naming it
    scheduler: Scheduler = getattr(diffusers, found.parts["scheduler"]).from_pretrained(folder, subfolder="scheduler")
    if issubclass(pipeline, StableDiffusionMixin):
        needed = [name for name, each in inspect.signature(pipeline).parameters.items() if each.default is each.empty]
        scheduler = pipeline(**{**dict.fromkeys(needed), "scheduler": scheduler}).scheduler
    return scheduler


def build_scheduler(strategy: str | None, shipped: Scheduler, spacing: str | None = None) -> Scheduler:
    """A fresh scheduler for a strategy, with the noise schedule of `shipped` (the model's own scheduler).

    Raises ConfigError for a flow-matching model with any strategy but "model", and for a strategy whose first step does not work
    with what the model predicts.
    """
    override = {} if spacing is None else {"timestep_spacing": spacing}
    if strategy == "model":
        return type(shipped).from_config(shipped.config, **override)
    if is_flow_matching(shipped):
        raise ConfigError(
            f"sampler_strategy {strategy or 'null'} needs a noise schedule of betas; this model is a flow-matching one, with a "
            f"{type(shipped).__name__}",
            "set schedule.sampler_strategy to model, the only strategy for this model",
        )
    scheduler_class, settings = _SAMPLERS[strategy]
    noise = {key: shipped.config[key] for key in NOISE_KEYS if shipped.config.get(key) is not None}
    known = _parameters(scheduler_class)
    built: Scheduler = scheduler_class(**{key: value for key, value in noise.items() if key in known}, **{**settings, **override})
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
    """Whether a scheduler moves along straight paths from noise to image, without betas."""
    return "beta_start" not in scheduler.config or scheduler.config.get("prediction_type") == "flow_prediction"


def noise_digest(strategy: str | None, scheduler: Scheduler) -> str:
    """Digest of the settings that a schedule takes from the model's scheduler: its noise schedule, under "model" all of them."""
    settings = {key: value for key, value in scheduler.config.items() if not key.startswith("_") and value is not None}
    return fingerprint({key: value for key, value in settings.items() if strategy == "model" or key in NOISE_KEYS})


def _parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def sigmas_of(scheduler: Scheduler) -> torch.Tensor:
    """The sigmas of the scheduler's current timesteps, `[T]` float64; from the betas if a scheduler has no sigmas.

    With `rescale_betas_zero_snr` the last is infinite; as in diffusers' own schedulers with sigmas, it is 4096 instead.
    """
    if hasattr(scheduler, "sigmas") and len(scheduler.sigmas) >= len(scheduler.timesteps):
        return torch.as_tensor(scheduler.sigmas, dtype=torch.float64, device="cpu")[: len(scheduler.timesteps)]
    alphas = torch.as_tensor(cast(BetaScheduler, scheduler).alphas_cumprod, dtype=torch.float64)[scheduler.timesteps.long()]
    alphas = alphas.clamp(min=SMALLEST_ALPHA)
    return ((1 - alphas) / alphas).sqrt()


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
    num_train = int(scheduler.config["num_train_timesteps"])
    _require_possible(strategy, num_steps, num_train)
    (set_timesteps or scheduler.set_timesteps)(num_steps)
    timesteps = scheduler.timesteps.double().cpu().numpy()
    # Flow-matching timesteps are sigmas times num_train, so they start at num_train itself.
    last = num_train - 1 if hasattr(scheduler, "alphas_cumprod") else num_train
    _require_a_path(timesteps, last)
    sigmas = sigmas_of(scheduler).numpy()
    if is_sde(strategy) and jitter > 0 and mode != "all_steps":
        sigmas = _mean_of_perturbed(sigmas, jitter, np.random.default_rng(seed), num_prompts if mode == "avg" else 1)
        timesteps = _nearest_timesteps(cast(BetaScheduler, scheduler), sigmas)
        _require_a_path(timesteps, last)
    return tuple(
        Step(i, step_key(strategy, i, t), float(t), float(s)) for i, (t, s) in enumerate(zip(timesteps, sigmas, strict=True))
    )


def _require_possible(strategy: str | None, num_steps: int, num_train: int) -> None:
    if num_steps > num_train:
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


def _require_a_path(timesteps: NDArray[np.float64], last: int) -> None:
    """Raise ConfigError unless the timesteps lead from noise (`last`) downwards."""
    shown = listed([f"{t:g}" for t in timesteps], most=10)
    hint = "choose another num_denoising_steps, sampler_strategy or timestep_spacing"
    if not np.isfinite(timesteps).all():
        raise ConfigError(f"the scheduler gave non-finite timesteps: {shown}", hint)
    if timesteps.min() < 0 or timesteps.max() > last:
        raise ConfigError(f"the scheduler gave timesteps outside 0..{last}: {shown}", hint)
    if (np.diff(timesteps) > 0).any():
        raise ConfigError(f"the scheduler gave increasing timesteps: {shown}", hint)
    if timesteps[0] < last / 2:
        raise ConfigError(f"the path starts at timestep {timesteps[0]:g}, below half of {last}: {shown}", hint)


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


def install(scheduler: Scheduler, steps: tuple[Step, ...]) -> Scheduler:
    """Make `set_timesteps` end in exactly these steps, so that a pipeline walks the stored schedule. Returns the scheduler.

    The solver then runs on the stored sigmas themselves: custom *timesteps* would lose Karras spacing and give NaN on repeats.
    `set_timesteps` raises ModelError if the scheduler walks another number of steps.
    """
    original = scheduler.set_timesteps

    @functools.wraps(original)
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        if len(scheduler.timesteps) != len(steps):
            raise ModelError(
                f"the scheduler walks {len(scheduler.timesteps)} steps, the stored schedule has {len(steps)}",
                "choose another schedule.sampler_strategy: this one does not follow a stored schedule",
            )
        write_steps(scheduler, steps)

    scheduler.set_timesteps = set_timesteps
    return scheduler


def write_steps(scheduler: Scheduler, steps: tuple[Step, ...]) -> None:
    """Replace the scheduler's timesteps and sigmas by the stored ones."""
    scheduler.timesteps = torch.tensor([s.timestep for s in steps], dtype=torch.float64).to(scheduler.timesteps)
    if hasattr(scheduler, "sigmas") and len(scheduler.sigmas) > len(steps):
        # The sigma after the last step (0, as a rule) stays the scheduler's own.
        stored = torch.tensor([s.sigma for s in steps], dtype=torch.float64).to(scheduler.sigmas)
        scheduler.sigmas = torch.cat([stored, scheduler.sigmas[len(steps) :]])
