"""What a projection of the embedded model receives, by a pipeline call and a hook of our own."""

from typing import Any

import diffusers
import numpy as np
import torch

NOISE = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "v_prediction"}


def by_hand(pipe: Any, prompts: list[str], first: int, module: str, scheduler: Any = None) -> np.ndarray:
    """Inputs of one projection at each of four steps, `[T, rows, L, D]`, through a pipeline and a scheduler of our own."""
    pipe.scheduler = scheduler or diffusers.DPMSolverMultistepScheduler(**NOISE, use_karras_sigmas=True)
    seen: list[np.ndarray] = []
    handle = pipe.unet.get_submodule(module).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy().copy()))
    try:
        generators = [torch.Generator("cpu").manual_seed(first + i) for i in range(len(prompts))]
        pipe(prompts, num_inference_steps=4, guidance_scale=4.0, generator=generators, output_type="latent")
    finally:
        handle.remove()
    return np.stack(seen)
