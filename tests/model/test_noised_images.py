"""`collect.latents: images`: what the denoiser sees in every forward, and models that cannot run on images."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from nullbooth_cli.collect.open_model import follow_schedule
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model import load
from nullbooth_cli.model.denoise import denoise
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.noised_images import noised
from nullbooth_cli.model.scheduler import build_scheduler, compute_schedule
from nullbooth_cli.settings.captions import load_captions
from nullbooth_cli.settings.config import build_config
from tests.support.builders import PROMPTS
from tests.support.pictures import photos, picture
from tests.support.tiny import PIPELINES


class Seen:
    """What the denoiser is given in every forward: its latents and its timestep."""

    def __init__(self, pipe: Any) -> None:
        self.latents: list[torch.Tensor] = []
        self.timesteps: list[float] = []
        self._handle = denoiser_of(pipe).register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, _: Any, inputs: tuple[Any, ...], arguments: dict[str, Any]) -> None:
        first = inputs[0] if inputs else arguments["hidden_states"]
        self.latents.append(first.clone())
        self.timesteps.append(float((inputs[1] if len(inputs) > 1 else arguments["timestep"]).flatten()[0]))

    def remove(self) -> None:
        self._handle.remove()


def walk(pipe: Any, tmp_path: Path, strategy: str | None, num_steps: int, size: int, rows: list[int], **collect: Any) -> Any:
    """(what the denoiser saw, the steps, the images' latents `[B, C, h, w]` by plain calls) of images in some rows."""
    folder = photos(tmp_path / "photos", PROMPTS[: len(rows)], width=size, height=size)
    section = {"latents": "images", "images": str(folder), "height": size, "width": size, "guidance_scale": 1.0, "seed": 5}
    config = build_config(
        {
            "schedule": {"num_denoising_steps": num_steps, "sampler_strategy": strategy, "timestep_mode": "all_steps"},
            "collect": {**section, **collect},
        }
    )
    shipped = pipe.scheduler
    scheduler = build_scheduler(strategy, shipped)
    if scheduler.config.get("use_dynamic_shifting"):
        scheduler = type(scheduler).from_config(scheduler.config, use_dynamic_shifting=False)
    steps = compute_schedule(strategy, scheduler, num_steps)
    seen = Seen(pipe)
    try:
        path = follow_schedule(config, steps, pipe)
        held = pipe.scheduler
        result = denoise(pipe, path, list(zip(rows, load_captions(str(folder)), strict=True)))
        assert pipe.scheduler is held
        assert "prepare_latents" not in vars(pipe)
    finally:
        seen.remove()
        pipe.scheduler = shipped
    pixels = torch.stack([torch.tensor(np.array(picture(i, size, size))).permute(2, 0, 1) for i in range(len(rows))])
    with torch.no_grad():
        clean = pipe.vae.float().encode(pixels.float() / 127.5 - 1).latent_dist.mean
    return seen, steps, clean, result


def noise(clean: torch.Tensor, rows: list[int], num_steps: int) -> list[torch.Tensor]:
    """One draw a step from the generator of each row, `[B, C, h, w]` each."""
    generators = [torch.Generator().manual_seed(5 + row) for row in rows]
    return [torch.stack([torch.randn(clean.shape[1:], generator=g) for g in generators]) for _ in range(num_steps)]


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """float32 of the scheduler against float64 here."""
    np.testing.assert_allclose(found, expected.to(found.dtype), rtol=tolerance, atol=tolerance * float(expected.abs().max()))


class TestWhatTheDenoiserSees:
    """A variance-preserving model sees (x + sigma e) / sqrt(1 + sigma^2), a flow-matching one (1 - sigma) x + sigma e.

    Whether a scheduler keeps its latents that way or scales them before the model, the sigma stored with the step says all.
    """

    # 80 Karras steps come to timestep 1 twice, with two sigmas.
    @pytest.mark.parametrize(
        ("strategy", "num_steps"),
        [(None, 4), ("DDIM", 4), ("DPM++ 2M Karras", 80), ("DPM++ 3M SDE Karras", 4), ("Euler", 4), ("Euler a", 4), ("UniPC", 4)],
    )
    def test_on_the_toy(self, pipe: Any, tmp_path: Path, strategy: str | None, num_steps: int) -> None:
        rows = [3, 9]
        seen, steps, clean, result = walk(pipe, tmp_path, strategy, num_steps, 32, rows)
        assert seen.timesteps == [pytest.approx(step.timestep) for step in steps]
        assert (len(set(seen.timesteps)) < num_steps) == (num_steps == 80)
        for step, found, drawn in zip(steps, seen.latents, noise(clean, rows, num_steps), strict=True):
            close(found, (clean + step.sigma * drawn) / (1 + step.sigma**2) ** 0.5, 1e-4)
        close(result, clean)

    @pytest.mark.parametrize(
        ("name", "strategy", "size"), [("sd1", "model", 16), ("sdxl", "Euler", 16), ("lcm", "LCM", 16), ("pixart", "UniPC", 256)]
    )
    def test_on_other_models_with_their_scaling(self, tmp_path: Path, name: str, strategy: str, size: int) -> None:
        torch.manual_seed(0)
        pipe = load.freeze(PIPELINES[name]())
        mean, std = [0.1, -0.2, 0.3, 0.0], [1.5, 2.0, 0.5, 1.0]
        if name == "sdxl":
            pipe.vae.register_to_config(latents_mean=mean, latents_std=std, scaling_factor=0.5)
        seen, steps, clean, _ = walk(pipe, tmp_path, strategy, 3, size, [0])
        if name == "sdxl":
            clean = (clean - torch.tensor(mean).view(1, 4, 1, 1)) * 0.5 / torch.tensor(std).view(1, 4, 1, 1)
        else:
            clean = clean * 0.18215
        assert len(steps) == (4 if name == "sd1" else 3)  # PNDM walks one step more
        for step, found, drawn in zip(steps, seen.latents, noise(clean, [0], len(steps)), strict=True):
            close(found, (clean + step.sigma * drawn) / (1 + step.sigma**2) ** 0.5, 1e-4)

    @pytest.mark.parametrize("name", ["sd3", "flux"])
    def test_flow_matching(self, tmp_path: Path, name: str) -> None:
        """Flux takes a 2 x 2 patch of 4 channels as one token of 16; the tests say in which order by themselves."""
        torch.manual_seed(0)
        pipe = load.freeze(PIPELINES[name]())
        pipe.vae.register_to_config(scaling_factor=1.5, shift_factor=0.06)
        if name == "flux":
            pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, use_dynamic_shifting=False)
        seen, steps, clean, _ = walk(pipe, tmp_path, "model", 3, 16, [2, 4])
        clean = (clean - 0.06) * 1.5
        for step, found, drawn in zip(steps, seen.latents, noise(clean, [2, 4], 3), strict=True):
            expected = (1 - step.sigma) * clean + step.sigma * drawn
            if name == "flux":
                patches = [expected[:, :, y : y + 2, x : x + 2].flatten(1) for y in range(0, 8, 2) for x in range(0, 8, 2)]
                expected = torch.stack(patches, dim=1)
            close(found, expected)

    def test_guidance_doubles_them_as_on_the_path(self, pipe: Any, tmp_path: Path) -> None:
        seen, steps, clean, _ = walk(pipe, tmp_path, None, 2, 32, [0, 1], guidance_scale=4.0)
        expected = (clean + steps[1].sigma * noise(clean, [0, 1], 2)[1]) / (1 + steps[1].sigma ** 2) ** 0.5
        close(seen.latents[1], torch.cat([expected, expected]), 1e-4)

    def test_in_half_precision_they_are_encoded_in_float32(self, tmp_path: Path) -> None:
        half = load.load_pipeline(
            "toy", revision=None, variant=None, dtype="bfloat16", local_files_only=True, device=torch.device("cpu")
        )
        weights = half.vae.encoder.conv_in.weight.clone()
        folder = photos(tmp_path / "photos", PROMPTS[:1])
        config = build_config({"schedule": {"num_denoising_steps": 2}, "collect": {"latents": "images", "images": str(folder)}})
        steps = compute_schedule("DPM++ 2M Karras", build_scheduler("DPM++ 2M Karras", half.scheduler), 2)
        encoded: list[torch.dtype] = []
        handle = half.vae.encoder.register_forward_pre_hook(lambda _, inputs: encoded.append(inputs[0].dtype))
        seen = Seen(half)
        denoise(half, follow_schedule(config, steps, half), [(0, load_captions(str(folder))[0])])
        handle.remove()
        seen.remove()
        assert encoded == [torch.float32]
        assert {latents.dtype for latents in seen.latents} == {torch.bfloat16}
        assert half.vae.dtype == torch.bfloat16
        assert torch.equal(half.vae.encoder.conv_in.weight, weights)


def test_an_autoencoder_that_is_not_known(tmp_path: Path) -> None:
    made = load.freeze(PIPELINES["sd1"]())
    made.vae = None
    with pytest.raises(ModelError, match="StableDiffusionPipeline cannot run on images") as caught:
        walk(made, tmp_path, None, 2, 16, [0])
    assert "collect.latents to path" in caught.value.hint


def test_latents_of_another_shape(tmp_path: Path) -> None:
    made = load.freeze(PIPELINES["sd1"]())
    made.vae_scale_factor = 4
    with pytest.raises(ConfigError, match=r"takes latents of shape \[1, 4, 4, 4\], and images of 16 x 16 pixels give"):
        walk(made, tmp_path, None, 2, 16, [0])


@pytest.mark.parametrize("name", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"])
def test_a_pipeline_with_a_picture_of_its_own(name: str, pipe: Any) -> None:
    made = getattr(diffusers, name)(**pipe.components, requires_safety_checker=False)
    refused = pytest.raises(ModelError, match=f"{name} starts from a picture of its own, and so cannot start from others")
    with refused as caught, noised(made, (), [], []):
        pass
    assert "collect.latents to path" in caught.value.hint
