"""Schedules equal diffusers' own, whatever the strategy, and a pipeline can be held to them."""

import math
import re

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model.corrected_solver import CorrectedDPMSolver
from nullbooth_cli.model.scheduler import build_scheduler, compute_schedule, is_sde
from nullbooth_cli.model.stored_schedule import install
from nullbooth_cli.settings.config import STRATEGIES

BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
}
SHIPPED = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True)

# Written out from the schedulers' documentation, apart from the package's own table.
EXPECTED = {
    None: lambda: diffusers.DDIMScheduler(**BETAS, timestep_spacing="linspace", clip_sample=False, set_alpha_to_one=False),
    "DPM++ 2M": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS, timestep_spacing="linspace"),
    "DPM++ 2M Karras": lambda: diffusers.DPMSolverMultistepScheduler(
        **BETAS, timestep_spacing="linspace", use_karras_sigmas=True
    ),
    "DPM++ 3M": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS, timestep_spacing="linspace", solver_order=3),
    "DPM++ 3M SDE Karras": lambda: diffusers.DPMSolverMultistepScheduler(
        **BETAS, timestep_spacing="linspace", solver_order=3, algorithm_type="sde-dpmsolver++", use_karras_sigmas=True
    ),
    "Euler": lambda: diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="linspace"),
    "Euler a": lambda: diffusers.EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="linspace"),
    "UniPC": lambda: diffusers.UniPCMultistepScheduler(**BETAS, timestep_spacing="linspace"),
    "DDIM": lambda: diffusers.DDIMScheduler(**BETAS, timestep_spacing="leading", clip_sample=False, set_alpha_to_one=False),
    "LCM": lambda: diffusers.LCMScheduler(**BETAS, original_inference_steps=50),
    "model": lambda: diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True),
}


def sigmas_from_betas(timesteps: np.ndarray) -> np.ndarray:
    betas = np.linspace(BETAS["beta_start"] ** 0.5, BETAS["beta_end"] ** 0.5, 1000) ** 2
    alphas = np.cumprod(1 - betas)[timesteps.astype(int)]
    return np.sqrt((1 - alphas) / alphas)


def test_every_strategy_is_compared() -> None:
    assert set(EXPECTED) == {None, *STRATEGIES}


@pytest.mark.parametrize("num_steps", [4, 10, 30, 50])
@pytest.mark.parametrize("strategy", list(EXPECTED))
def test_steps_are_the_schedulers_own(strategy: str | None, num_steps: int) -> None:
    expected = EXPECTED[strategy]()
    expected.set_timesteps(num_steps)
    steps = compute_schedule(strategy, build_scheduler(strategy, SHIPPED), num_steps)
    timesteps = expected.timesteps.double().numpy()
    np.testing.assert_array_equal([step.timestep for step in steps], timesteps)
    if hasattr(expected, "sigmas"):
        np.testing.assert_allclose([step.sigma for step in steps], expected.sigmas[: len(steps)].numpy(), rtol=1e-6)
    else:
        np.testing.assert_allclose([step.sigma for step in steps], sigmas_from_betas(timesteps), rtol=1e-4)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_spacing_can_be_overridden(spacing: str) -> None:
    expected = diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing=spacing)
    expected.set_timesteps(10)
    steps = compute_schedule("Euler", build_scheduler("Euler", SHIPPED, spacing), 10)
    np.testing.assert_allclose([step.timestep for step in steps], expected.timesteps.double().numpy())


def test_the_shipped_spacing_does_not_leak_in() -> None:
    """The same model gives the same steps before and after a save_pretrained, which writes "leading" into its config."""
    resaved = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, timestep_spacing="leading")
    for strategy in ("Euler", "DPM++ 2M", None):
        before, after = (compute_schedule(strategy, build_scheduler(strategy, s), 10) for s in (SHIPPED, resaved))
        assert before == after


def test_karras_may_repeat_a_timestep_and_keys_stay_unique() -> None:
    steps = compute_schedule("DPM++ 2M Karras", build_scheduler("DPM++ 2M Karras", SHIPPED), 50)
    timesteps = [step.timestep for step in steps]
    assert len(set(timesteps)) < len(timesteps)
    assert len({step.key for step in steps}) == 50


class TestJitter:
    strategy = "DPM++ 3M SDE Karras"

    def steps(self, **options: object) -> np.ndarray:
        found = compute_schedule(self.strategy, build_scheduler(self.strategy, SHIPPED), 10, **options)
        return np.array([(step.timestep, step.sigma) for step in found])

    def test_fresh_unless_seeded(self) -> None:
        assert (self.steps(jitter=0.02, seed=3, num_prompts=4) == self.steps(jitter=0.02, seed=3, num_prompts=4)).all()
        assert (self.steps(jitter=0.02, num_prompts=4) != self.steps(jitter=0.02, num_prompts=4)).any()

    def test_zero_leaves_the_schedulers_own(self) -> None:
        assert (self.steps(jitter=0.0) == self.steps()).all()

    def test_avg_is_the_mean_of_the_prompts_and_first_is_the_first(self) -> None:
        own = self.steps()[:, 1]
        rng = np.random.default_rng(7)
        drawn = [np.sort(own * (1 + 0.02 * rng.standard_normal(10)))[::-1] for _ in range(25)]
        options = {"jitter": 0.02, "seed": 7, "num_prompts": 25}
        np.testing.assert_allclose(self.steps(mode="avg", **options)[:, 1], np.mean(drawn, axis=0), rtol=1e-12)
        np.testing.assert_allclose(self.steps(mode="first", **options)[:, 1], drawn[0], rtol=1e-12)

    def test_timesteps_follow_the_sigmas(self) -> None:
        steps = self.steps(jitter=0.02, seed=0, num_prompts=9)
        nearest = sigmas_from_betas(np.arange(1000))
        back = np.interp(np.log(steps[:, 1]), np.log(nearest), np.arange(1000))
        np.testing.assert_allclose(steps[:, 0], back, atol=0.51)

    @pytest.mark.parametrize("strategy", [name for name in EXPECTED if not is_sde(name)])
    def test_other_strategies_have_none(self, strategy: str | None) -> None:
        with_jitter, without = (
            compute_schedule(strategy, build_scheduler(strategy, SHIPPED), 10, jitter=jitter) for jitter in (0.02, 0.0)
        )
        assert with_jitter == without


def test_lcm_takes_few_steps_and_no_more_than_it_knows() -> None:
    for num_steps in (1, 2, 4, 8):
        assert len(compute_schedule("LCM", build_scheduler("LCM", SHIPPED), num_steps)) == num_steps
    with pytest.raises(ConfigError, match="51 is more than the 50"):
        compute_schedule("LCM", build_scheduler("LCM", SHIPPED), 51)


@pytest.mark.parametrize("strategy", [None, "DPM++ 2M Karras", "Euler"])
def test_one_step_is_no_path(strategy: str | None) -> None:
    with pytest.raises(ConfigError, match="num_denoising_steps 1 "):
        compute_schedule(strategy, build_scheduler(strategy, SHIPPED), 1)


def test_more_steps_than_timesteps() -> None:
    with pytest.raises(ConfigError, match="1001 is more than the model's 1000"):
        compute_schedule("Euler", build_scheduler("Euler", SHIPPED), 1001)


def test_a_timestep_out_of_range_is_shown() -> None:
    with pytest.raises(ConfigError, match=re.escape("outside 0..999: 1000")):
        compute_schedule("DDIM", build_scheduler("DDIM", SHIPPED), 1000)


def test_a_late_start_is_refused() -> None:
    late = diffusers.DDIMScheduler(**BETAS)
    late.set_timesteps = lambda n: setattr(late, "timesteps", torch.tensor([400, 200, 0]))
    with pytest.raises(ConfigError, match="starts at timestep 400"):
        compute_schedule(None, late, 3)


def test_flow_matching_models_know_only_their_own_sampler() -> None:
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ConfigError, match="FlowMatchEulerDiscreteScheduler") as caught:
        build_scheduler("DPM++ 2M", flow)
    assert "model" in caught.value.hint
    assert len(compute_schedule("model", build_scheduler("model", flow), 4)) == 4


@pytest.mark.parametrize("strategy", list(EXPECTED))
def test_an_installed_schedule_is_walked_exactly(strategy: str | None) -> None:
    steps = compute_schedule(strategy, build_scheduler(strategy, SHIPPED), 8, jitter=0.02, seed=1, num_prompts=3)
    scheduler = install(build_scheduler(strategy, SHIPPED), steps)
    for _ in range(2):
        scheduler.set_timesteps(8, device="cpu")
        np.testing.assert_allclose(scheduler.timesteps.double().numpy(), [step.timestep for step in steps], rtol=1e-6)
        if hasattr(scheduler, "sigmas") and len(scheduler.sigmas) > len(steps):
            np.testing.assert_allclose(scheduler.sigmas[: len(steps)], [step.sigma for step in steps], rtol=1e-6)
    with pytest.raises(ModelError, match="walks 9 steps" if strategy != "model" else "walks 10 steps"):
        scheduler.set_timesteps(9)


def k_diffusion_3m_sde(x: float, denoised: list[float], log_snr: list[float]) -> float:
    """The third-order step of k-diffusion's sample_dpmpp_3m_sde with eta = 1 and no noise, in its x = x0 + sigma * eps."""
    h, h_1, h_2 = (log_snr[i] - log_snr[i + 1] for i in range(3))
    h_eta = 2 * h
    x = math.exp(-h_eta) * x - math.expm1(-h_eta) * denoised[0]
    r0, r1 = h_1 / h, h_2 / h
    d1_0, d1_1 = (denoised[0] - denoised[1]) / r0, (denoised[1] - denoised[2]) / r1
    d1, d2 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1), (d1_0 - d1_1) / (r0 + r1)
    phi_2 = math.expm1(-h_eta) / h_eta + 1
    phi_3 = phi_2 / h_eta - 0.5
    return x + phi_2 * d1 - phi_3 * d2


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 17), st.lists(st.floats(-2, 2), min_size=4, max_size=4))
def test_the_third_order_sde_update_is_k_diffusions(index: int, values: list[float]) -> None:
    scheduler = build_scheduler("DPM++ 3M SDE Karras", SHIPPED)
    assert isinstance(scheduler, CorrectedDPMSolver)
    scheduler.set_timesteps(20)
    scheduler.sigmas = scheduler.sigmas.double()
    scheduler._step_index = index
    sample, *denoised = values
    outputs = [torch.tensor([value], dtype=torch.float64) for value in reversed(denoised)]
    stepped = scheduler.multistep_dpm_solver_third_order_update(
        outputs, sample=torch.tensor([sample], dtype=torch.float64), noise=torch.zeros(1, dtype=torch.float64)
    )
    sigmas = [float(scheduler.sigmas[i]) for i in (index + 1, index, index - 1, index - 2)]
    alpha_next, alpha = ((1 + sigma**2) ** -0.5 for sigma in sigmas[:2])
    expected = k_diffusion_3m_sde(sample / alpha, denoised, [-math.log(sigma) for sigma in sigmas]) * alpha_next
    assert float(stepped) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_the_correction_is_still_needed() -> None:
    """Fails once diffusers mends the sign: then CorrectedDPMSolver goes."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS, solver_order=3, algorithm_type="sde-dpmsolver++", use_karras_sigmas=True
    )
    scheduler.set_timesteps(20)
    scheduler._step_index = 5
    outputs = [torch.tensor([value]) for value in (0.1, 0.5, -0.3)]
    arguments = {"sample": torch.tensor([0.7]), "noise": torch.zeros(1)}
    corrected = CorrectedDPMSolver.from_config(scheduler.config)
    corrected.set_timesteps(20)
    corrected._step_index = 5
    shipped = scheduler.multistep_dpm_solver_third_order_update(outputs, **arguments)
    assert abs(float(shipped - corrected.multistep_dpm_solver_third_order_update(outputs, **arguments))) > 1e-3


EVERY = (None, "DPM++ 2M", "DPM++ 2M Karras", "DPM++ 3M", "DPM++ 3M SDE Karras", "Euler", "Euler a", "UniPC", "DDIM", "LCM")
# At the noise end of a zero-SNR model nothing is left of the image: schedulers without sigmas divide the predicted noise by zero.
REFUSED = {
    *((strategy, "epsilon", True) for strategy in (None, "LCM")),
    *(("Euler a", "sample", zero_snr) for zero_snr in (False, True)),
}


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_every_strategy_walks_finitely_or_is_refused(strategy: str | None, prediction: str, zero_snr: bool) -> None:
    shipped = diffusers.DDIMScheduler(prediction_type=prediction, rescale_betas_zero_snr=zero_snr)
    if (strategy, prediction, zero_snr) in REFUSED:
        with pytest.raises(
            ConfigError, match=f"sampler_strategy {strategy or 'null'} cannot denoise .* predicts {prediction}"
        ) as caught:
            build_scheduler(strategy, shipped)
        assert "set schedule.sampler_strategy to another one" in caught.value.hint
        return
    scheduler = build_scheduler(strategy, shipped)
    steps = compute_schedule(strategy, scheduler, 6)
    assert all(np.isfinite(step.sigma) and 0 <= step.sigma <= 4096 for step in steps)
    install(scheduler, steps).set_timesteps(6)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 4, 2, 2, generator=generator)
    for timestep in scheduler.timesteps:
        scheduler.scale_model_input(sample, timestep)
        sample = scheduler.step(torch.randn(1, 4, 2, 2, generator=generator), timestep, sample)[0]
        assert sample.isfinite().all()


def test_refusing_a_strategy_draws_nothing_from_torch() -> None:
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    for strategy in EVERY:
        build_scheduler(strategy, diffusers.DDIMScheduler())
    assert torch.equal(torch.randn(3), expected)
