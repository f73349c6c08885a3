"""What edits of the embedded model are tested with."""

from typing import Any

import numpy as np
import torch

from nullbooth_cli.model import load


def fresh() -> Any:
    """The embedded model, loaded for one test to change."""
    return load.load_pipeline(
        "toy", revision=None, variant=None, dtype="float32", local_files_only=True, device=torch.device("cpu")
    )


def embedded(pipe: Any, text: str) -> np.ndarray:
    """The text encoder's output, `[16, 96]`, by its own call."""
    ids = pipe.tokenizer(text, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
    return pipe.text_encoder(ids)[0][0].double().numpy()
