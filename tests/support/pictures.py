"""Pictures of noise, folders of them with captions, and a config that reads such a folder."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nullbooth_cli.settings.config import Config
from tests.support.builders import ROOT, small_config

TOY = ROOT / "dataset/images/toy"
MID = {"collect__cross_attention_layers": ["mid_block*"], "collect__batch_size": 2}


def picture(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    """Uniform noise in RGB."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def photos(folder: Path, captions: list[str], **size: int) -> Path:
    """A folder of noise, each image with its caption beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, caption in enumerate(captions):
        picture(i, **size).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption)
    return folder


def of_images(store: Path, folder: Path, **changes: Any) -> Config:
    """A small run on one layer, on the images of a folder."""
    return small_config(store, collect__latents="images", collect__images=str(folder), **{**MID, **changes})
