"""Two subjects of the embedded model, taught one after the other under a store that remembers the first."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nullbooth_cli.collect.edited_model import load_edited
from nullbooth_cli.model.trained_files import prompts_of_training
from nullbooth_cli.pipeline.remember import RememberRequest, remember_events
from nullbooth_cli.settings.config import Config
from tests.support.builders import PROMPTS, TEXT_ONLY, execute, small_config
from tests.support.tiny_dreambooth import encoded, recipe, run


@dataclass(frozen=True)
class Subjects:
    """`dog` and `cat` are outputs of training in one folder; cat started from dog under `config`, whose store remembers dog."""

    config: Config
    dog: Path
    cat: Path


def changes(word: str, config: Config, **rest: Any) -> dict[str, Any]:
    """Of a recipe that teaches a word with one caption for all pictures."""
    return {"word": word, "instance_prompt": f"a {word} circle", "store": config.store, "word_learning_rate": 0.1, **rest}


def collected(store: Path) -> Config:
    """Few prompts, so that the null spaces are exact: what is preserved does not move."""
    exact = {"collect__keep": "moments", "project__relative_threshold": 1e-10, **TEXT_ONLY}
    config = small_config(store, original_knowledge_prompts=PROMPTS[:3], **exact)
    execute(config, "collect", "covariance", "project")
    return config


def remember(config: Config, place: Path) -> None:
    """Remember the output of a training run, by the captions of its pictures."""
    name, prompts = prompts_of_training(place)
    for _ in remember_events(config, RememberRequest(source=str(place), name=name, prompts=prompts), device="cpu"):
        pass


def teach_two(folder: Path, *, first: str = "lora", second: str = "lora") -> Subjects:
    """Both subjects, with these methods, four steps each."""
    config = collected(folder / "run.zarr")
    run(recipe(folder / "dog", **changes("sks", config, method=first)))
    remember(config, folder / "dog")
    run(recipe(folder / "cat", **changes("zwx", config, method=second, after=str(folder / "dog"))))
    return Subjects(config, folder / "dog", folder / "cat")


def loaded(config: Config, place: Path) -> Any:
    """The model at a place, drawn from its files."""
    return load_edited(config, str(place), "cpu")


def drift(before: Any, after: Any, texts: list[str], names: list[str]) -> float:
    """The largest norm((W' - W) K) / norm(W K) of some weights on texts, as the model before encodes them; float64."""
    inputs = encoded(before, texts).flatten(0, 1).double().numpy().T
    found = []
    for name in names:
        one, two = (pipe.unet.get_parameter(name).detach().double().numpy() for pipe in (before, after))
        found.append(np.linalg.norm((two - one) @ inputs) / np.linalg.norm(one @ inputs))
    return float(max(found))


def rows(pipe: Any, token: str) -> torch.Tensor:
    """The embedding of a word."""
    [number] = pipe.tokenizer(token, add_special_tokens=False).input_ids
    found: torch.Tensor = pipe.text_encoder.get_input_embeddings().weight[number]
    return found


def moved(subjects: Subjects, folder: Path) -> Subjects:
    """The same outputs in another folder; they are gone from here."""
    folder.mkdir()
    for place in (subjects.dog, subjects.cat):
        shutil.move(place, folder / place.name)
    return Subjects(subjects.config, folder / "dog", folder / "cat")
