"""A pipeline walks the stored steps, whatever its scheduler, and is watched while it does."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from nullbooth_cli.datatypes import Step
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model.scheduler import build_scheduler, compute_schedule
from nullbooth_cli.model.stored_schedule import install, put_scheduler, scheduler_in, watched

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# Schedulers that pipelines ship with, and the steps that 4 denoising steps are.
SHIPPED: dict[str, tuple[Callable[[], Any], int]] = {
    "DDPM": (lambda: diffusers.DDPMScheduler(**BETAS, variance_type="learned_range"), 4),
    "DDIM of CogVideoX": (lambda: diffusers.CogVideoXDDIMScheduler(**BETAS), 4),
    "DPM of CogVideoX": (lambda: diffusers.CogVideoXDPMScheduler(**BETAS), 4),
    "UniPC of Wan": (
        lambda: diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        4,
    ),
    "Heun": (lambda: diffusers.HeunDiscreteScheduler(**BETAS), 7),
    "flow Heun": (lambda: diffusers.FlowMatchHeunDiscreteScheduler(), 7),
    "KDPM2": (lambda: diffusers.KDPM2DiscreteScheduler(**BETAS), 7),
    "KDPM2 ancestral": (lambda: diffusers.KDPM2AncestralDiscreteScheduler(**BETAS), 7),
    "PNDM": (lambda: diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True), 5),
    "PNDM with Runge-Kutta": (lambda: diffusers.PNDMScheduler(**BETAS), 13),
    "LCM": (lambda: diffusers.LCMScheduler(**BETAS), 4),
    "TCD": (lambda: diffusers.TCDScheduler(**BETAS), 4),
    "EDM": (lambda: diffusers.EDMDPMSolverMultistepScheduler(), 4),
    "flow LCM": (lambda: diffusers.FlowMatchLCMScheduler(), 4),
    "UnCLIP": (lambda: diffusers.UnCLIPScheduler(), 4),
    "Wuerstchen": (lambda: diffusers.DDPMWuerstchenScheduler(), 4),
    "SCM": (lambda: diffusers.SCMScheduler(), 4),
}


def set_steps(scheduler: Any, num_steps: int) -> None:
    more = {"intermediate_timesteps": None} if isinstance(scheduler, diffusers.SCMScheduler) else {}
    scheduler.set_timesteps(num_steps, **more)


def schedule_of(name: str) -> tuple[Any, tuple[Step, ...]]:
    scheduler = build_scheduler("model", SHIPPED[name][0]())
    return scheduler, compute_schedule("model", scheduler, 4, set_timesteps=lambda num_steps: set_steps(scheduler, num_steps))


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of diffusers' KDPM2 with numpy 2
@pytest.mark.parametrize("name", SHIPPED)
def test_every_scheduler_has_a_schedule_that_it_then_walks(name: str) -> None:
    made, num_steps = SHIPPED[name]
    own, (scheduler, steps) = made(), schedule_of(name)
    set_steps(own, 4)
    assert len(steps) == num_steps
    np.testing.assert_array_equal([step.timestep for step in steps], own.timesteps[:num_steps].double())
    assert np.isfinite([step.sigma for step in steps]).all()
    assert len({step.key for step in steps}) == num_steps
    changed = tuple(replace(step, timestep=step.timestep + (1 if name == "DDPM" else 0)) for step in steps)
    install(scheduler, changed)
    set_steps(scheduler, 4)
    np.testing.assert_allclose(scheduler.timesteps[:num_steps].double(), [step.timestep for step in changed])
    assert len(scheduler.timesteps) == len(own.timesteps), "what follows the last step stays"


def test_sigmas_are_noise_over_signal() -> None:
    _, steps = schedule_of("SCM")
    np.testing.assert_allclose([step.sigma for step in steps[1:]], np.tan([step.timestep for step in steps[1:]]), rtol=1e-6)
    _, steps = schedule_of("Wuerstchen")
    t = np.array([step.timestep for step in steps])
    kept = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    kept = kept.clip(1e-4, 0.9999)
    np.testing.assert_allclose([step.sigma for step in steps], np.sqrt((1 - kept) / kept), rtol=1e-3)


def test_the_names_of_small_timesteps_have_their_decimals() -> None:
    assert [step.key for step in schedule_of("SCM")[1]] == ["alpha_00_1.57", "alpha_01_1.18", "alpha_02_0.79", "alpha_03_0.39"]


def test_a_scheduler_without_betas_is_named() -> None:
    with pytest.raises(ConfigError, match="needs a noise schedule of betas, and the SCMScheduler of this model has none"):
        build_scheduler("DDIM", diffusers.SCMScheduler())


def test_any_strategy_can_be_asked_for_its_variance() -> None:
    """As the pipelines of DeepFloyd IF do, which ship with a learned variance."""
    for strategy in (None, "Euler", "DPM++ 2M"):
        assert build_scheduler(strategy, SHIPPED["DDPM"][0]()).config.variance_type is None  # type: ignore[attr-defined]


class Stepping:
    """A pipeline that makes `turns` steps with its scheduler, beginning at `first`, and as many with a copy of it."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def __call__(self, turns: int, first: int = 0) -> torch.Tensor:
        other = copy.deepcopy(self.scheduler)
        for each in (self.scheduler, other):
            each.set_timesteps(4)
        x = y = torch.ones(1, 2)
        for timestep in self.scheduler.timesteps[first : first + turns]:
            x = self.scheduler.step(0.1 * x, timestep, x)[0]
            y = other.step(0.1 * y, timestep, y)[0]
        torch.testing.assert_close(x, y)
        return x


@pytest.fixture
def stepping() -> tuple[Any, tuple[Step, ...]]:
    scheduler, steps = schedule_of("flow LCM")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return Stepping(install(scheduler, steps)), steps


def test_a_copy_follows_the_stored_schedule_and_is_not_counted(stepping: Any) -> None:
    pipe, steps = stepping
    made: list[int] = []
    with watched(pipe, steps, lambda: made.append(pipe.scheduler.step_index)):
        watched_result = pipe(4)
        assert list(inspect.signature(pipe.scheduler.step).parameters)[:3] == ["model_output", "timestep", "sample"]
    assert made == [1, 2, 3, 4]
    assert type(pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    torch.testing.assert_close(pipe(4), watched_result)
    assert len(made) == 4


def test_another_number_of_steps_is_an_error(stepping: Any) -> None:
    pipe, steps = stepping
    with pytest.raises(ModelError, match="Stepping walks 3 steps, the stored schedule has 4"), watched(pipe, steps, list):
        pipe(3)
    with pytest.raises(ModelError, match="Stepping never steps its scheduler"), watched(pipe, (), list):
        pipe(0)
    with watched(pipe, (), list):
        pipe(2)


def test_a_path_that_starts_in_the_middle_is_an_error_before_its_first_step(stepping: Any) -> None:
    pipe, steps = stepping
    made: list[int] = []
    with (
        pytest.raises(ConfigError, match=r"Stepping starts at timestep 334, step 2 of the stored schedule") as caught,
        watched(pipe, steps, lambda: made.append(1)),
    ):
        pipe(2, first=2)
    assert not made
    assert "strength, to 1.0 in collect.pipeline_inputs" in caught.value.hint


def test_a_combined_pipeline_gets_the_scheduler_inside() -> None:
    class Combined:
        def __init__(self) -> None:
            self.scheduler = object()
            self.decoder_pipe = Stepping(self.scheduler)

    class Staged:
        decoder_scheduler = prior_scheduler = "its own"

    combined, staged, new = Combined(), Staged(), diffusers.DDPMScheduler()
    put_scheduler(combined, new)  # type: ignore[arg-type]
    assert combined.scheduler is combined.decoder_pipe.scheduler is new
    put_scheduler(staged, new)  # type: ignore[arg-type]
    assert scheduler_in(staged) is new  # type: ignore[arg-type]
    assert staged.prior_scheduler == "its own"
