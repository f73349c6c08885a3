"""The loss on the pictures of the subject: paired, independent of batches, and of the velocity."""

from typing import Any

import numpy as np
import pytest
import torch

from nullbooth_cli.evaluation import instance_loss
from nullbooth_cli.evaluation.instance_loss import DRAWS, has_instance_loss, instance_errors
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.denoising_loss import NoiseProcess
from nullbooth_cli.model.load import freeze
from tests.support import tiny
from tests.support.edited_models import toy
from tests.support.pictures import picture

CAPTIONS = ["a red circle", "a sks circle", "a sks star"]


def images(side: int = 32) -> Any:
    return np.stack([np.asarray(picture(i, side, side)) for i in range(3)])


def test_base_and_edited_meet_the_same_draws() -> None:
    pipe = toy()
    found = instance_errors(pipe, images(), CAPTIONS, batch_size=32, seed=0)
    np.testing.assert_array_equal(found, instance_errors(pipe, images(), CAPTIONS, batch_size=32, seed=0))
    np.testing.assert_allclose(found, instance_errors(pipe, images(), CAPTIONS, batch_size=5, seed=0), rtol=1e-3)
    other = instance_errors(pipe, images(), CAPTIONS, batch_size=32, seed=1)
    assert found.shape == (DRAWS,)
    assert np.abs(other - found).min() > 0


def test_an_error_is_that_of_its_picture_and_caption() -> None:
    """Changing the second picture's caption changes every third error."""
    pipe = toy()
    before, after = (
        instance_errors(pipe, images(), [CAPTIONS[0], text, CAPTIONS[2]], batch_size=64, seed=0)
        for text in ("a sks circle", "a blue ring")
    )
    changed = np.abs(before - after) > 1e-6
    assert set(np.flatnonzero(changed) % 3) == {1}


@pytest.mark.parametrize(
    ("name", "has"), [("sd1", True), ("sd2", True), ("sdxl", True), ("lcm", False), ("pixart", True), ("flux", True)]
)
def test_which_pipelines_have_it(name: str, has: bool) -> None:
    assert has_instance_loss(tiny.PIPELINES[name]()) == has


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "pixart"])
def test_every_family_has_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A model that predicts its target but for 0.5 has the error 0.25 of velocity; noise counts as velocity."""
    pipe, draws = freeze(tiny.PIPELINES[name]()), []
    monkeypatch.setattr(instance_loss, "DRAWS", 6)
    draw = NoiseProcess.draw
    monkeypatch.setattr(NoiseProcess, "draw", lambda *given: draws.append(draw(*given)) or draws[0])
    side = 4 * pipe.vae_scale_factor
    plain = instance_errors(pipe, images(side), CAPTIONS, batch_size=4, seed=0)
    assert plain.shape == (6,)
    assert (plain > 0).all()
    process, noised = NoiseProcess.of(pipe), []
    monkeypatch.setattr(NoiseProcess, "target", lambda self, latents, noising: noised.append(noising) or 0.5 + 0 * latents)
    monkeypatch.setattr(denoiser_of(pipe), "forward", lambda x, *_, **__: (torch.zeros_like(x),))
    found = instance_errors(pipe, images(side), CAPTIONS, batch_size=4, seed=0)
    expected = process.of_velocity(torch.full((6,), 0.25), torch.cat([each.timesteps for each in noised]))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


def test_an_error_of_noise_counts_as_one_of_the_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that predicts no noise at all is wrong by the noise; as a velocity, by that over the picture's share."""
    pipe = tiny.sd1()
    drawn = []
    draw = NoiseProcess.draw
    monkeypatch.setattr(NoiseProcess, "draw", lambda *a: drawn.append(draw(*a)) or drawn[0])
    monkeypatch.setattr(pipe.unet, "forward", lambda x, *_, **__: (torch.zeros_like(x),))
    found = instance_errors(pipe, images(16), ["a", "b", "c"], batch_size=64, seed=0)
    share = pipe.scheduler.alphas_cumprod[drawn[0].timesteps].double().numpy()
    expected = drawn[0].noise.double().square().mean((1, 2, 3)).numpy() / share
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_fall_and_its_error() -> None:
    rng = np.random.default_rng(0)
    falls, errors = [], []
    for _ in range(200):
        base = rng.gamma(4.0, 0.1, DRAWS)
        found = instance_loss.instance_loss(base, 0.6 * base + rng.normal(0, 0.05, DRAWS))
        falls.append(found.fall)
        errors.append(found.standard_error)
    assert np.mean(falls) == pytest.approx(0.4, abs=0.002)
    assert np.mean(errors) == pytest.approx(np.std(falls), rel=0.2)
    same = instance_loss.instance_loss(base, base)
    assert (same.fall, same.standard_error, same.draws) == (0, 0, DRAWS)
