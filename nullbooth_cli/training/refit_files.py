"""Finished changes, read from files and written back in the form that they had.

    lora.safetensors, a folder of PEFT    a LoRA: its tensors for the inputs change, all else stays, and a note is added
    runs/toy-sks, .../lora                trained files: the LoRA or the weights of the denoiser in them; the word is copied
    runs/toy-sks with method full         its last checkpoint, which has the weights of its result
    a pipeline folder                     what differs from the base in its denoiser; all else is copied

`find_change()` finds what a place names, from headers; `open_change()` then reads it for a base that is loaded.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.base_weights import BaseWeights
from nullbooth_cli.model.finished_change import FinishedFiles
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.model.sources import SAFE
from nullbooth_cli.model.trained_files import Base
from nullbooth_cli.model.words import has_word
from nullbooth_cli.settings.config import Config
from nullbooth_cli.training.refit_change import FinishedChange
from nullbooth_cli.training.refit_lora import LoraChange, is_one_file
from nullbooth_cli.training.refit_weights import TrainedWeights, WholePipeline


def find_change(config: Config, place: str) -> FinishedFiles:
    """The finished change at a place.

    Raises ConfigError if there is none, or if it was trained on another base than the config's. Cost: the headers of files.
    """
    found = FinishedFiles.find(Path(place), allow_pickle=config.allow_pickle)
    if found.files is not None:
        found.files.require_base(Base.of(config))
    return found


def require_word(found: FinishedFiles, prompts: Sequence[str]) -> None:
    """Raise ConfigError if no prompt has the word that was taught."""
    if found.token is not None and not any(has_word(prompt, found.token) for prompt in prompts):
        raise ConfigError(f"no prompt has the word that was taught, {found.token}", f"write {found.token} in the prompts")


def require_output(found: FinishedFiles, output: Path) -> None:
    """Raise ConfigError for a name of a file that the result does not have, or of a file where it is a folder."""
    if is_one_file(found) and output.suffix != SAFE:
        raise ConfigError(f"{output} is not the name of a {SAFE} file, which the result is", f"name {output.stem}{SAFE}")


def open_change(
    found: FinishedFiles, config: Config, pipe: Pipeline, protected: Collection[str], device: str | None
) -> FinishedChange:
    """Read a change for its base; `protected` are the weights that the store has.

    Raises ConfigError if it does not fit, or if a module of these weights cannot be refitted. Cost: one read of a LoRA; of a
    pipeline folder its load.
    """
    if found.adapter is not None:
        return LoraChange(found.lora(BaseWeights.of_pipeline(pipe)), found, protected)
    if found.files is not None:
        return TrainedWeights(found.files)
    return WholePipeline(found, config, device)
