"""Requests to teach that take seconds."""

from typing import Any

SETTINGS = ["schedule.num_denoising_steps=2", "train_batch_size=2", "validation_inference_steps=2"]
FAST: dict[str, Any] = {"steps": 2, "settings": SETTINGS}
