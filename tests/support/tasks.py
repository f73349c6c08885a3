"""Stores that remember tasks: models with random changes, a small collection of text inputs, and its tasks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nullbooth_cli.model import load
from nullbooth_cli.pipeline.remember import RememberRequest, forget_events, remember_events
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, TEXT_ONLY, execute, small_config

DOG = ("a sks dog", "a photo of a sks dog on a red background")


def fresh() -> Any:
    return load.load_pipeline(
        "toy", revision=None, variant=None, dtype="float32", local_files_only=True, device=torch.device("cpu")
    )


def changed(pipe: Any, folder: Path, seed: int) -> Path:
    """A pipeline folder with random changes of its k and v weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in pipe.unet.named_parameters():
            if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    pipe.save_pretrained(folder)
    return folder


def collected(place: Path, prompts: Sequence[str] = PROMPTS, **changes: Any) -> Config:
    config = small_config(place, original_knowledge_prompts=list(prompts), **{**TEXT_ONLY, "collect__keep": "moments"}, **changes)
    execute(config, "collect", "covariance", "project")
    return config


def remember(config: Config, source: Path, name: str = "dog", prompts: Sequence[str] = DOG, **rest: Any) -> None:
    for _ in remember_events(config, RememberRequest(source=str(source), prompts=tuple(prompts), name=name, **rest)):
        pass


def forget(config: Config, name: str) -> None:
    for _ in forget_events(config, name):
        pass


def spectra(config: Config) -> list[np.ndarray]:
    store = Store.open(config.store)
    return [store.projectors.read_eigenvalues(site, 0) for site in store.sites]


def dog_and_cat(folder: Path) -> dict[str, Path]:
    """The models `dog`, and `cat`, which started from it."""
    pipe = fresh()
    return {name: changed(pipe, folder / name, seed) for seed, name in enumerate(("dog", "cat"))}
