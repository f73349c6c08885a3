"""What a refit should give, written plainly: the inputs of the embedded model's text sites, and M."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import nullbooth_cli as nb
from nullbooth_cli.training.refit_solution import FLOOR
from tests.support import lora_files

USED = ["a zwx circle on a red background", "a zwx star"]
WEIGHT = f"{lora_files.LAYER}.weight"


def text_inputs(pipe: Any, texts: list[str]) -> np.ndarray:
    """Every token of the texts, `[N, 96]`, by the text encoder's own call."""
    ids = pipe.tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt").input_ids
    found: np.ndarray = pipe.text_encoder(ids)[0].detach().double().flatten(0, 1).numpy()
    return found


def plain_m(k1: np.ndarray, c0: np.ndarray, m: float) -> np.ndarray:
    """M of the inputs `[N, D]` and the preserved moment."""
    c1 = k1.T @ k1 / len(k1)
    c1, c0 = c1 / np.trace(c1), c0 / np.trace(c0)
    return c1 @ np.linalg.inv(c1 + m * (c0 + FLOOR * np.eye(len(c1))))


def moment_of(store: nb.OpenStore, weight: str) -> np.ndarray:
    """The preserved moment of a weight's inputs."""
    return store.moment(next(site for site in store.sites() if weight in site.weights)).second_moment


def changed(file: Path) -> torch.Tensor:
    """What a file of one module changes, in either form."""
    tensors = {re.sub(r".*(lora_A|lora_down|lora_B|lora_up|alpha).*", r"\1", name): t for name, t in load_file(file).items()}
    down, up = (tensors.get(kohya, tensors.get(peft)) for kohya, peft in (("lora_down", "lora_A"), ("lora_up", "lora_B")))
    assert down is not None
    assert up is not None
    return float(tensors.get("alpha", len(down))) / len(down) * (up.double() @ down.double())
