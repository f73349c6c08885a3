"""What training runs write, as models to load: found by the place that a user names, and put onto their base.

    <output>/pipeline/                     a pipeline folder; its base is the recipe's model, in train.json
    <output>/lora/                         trained files
    <output>/checkpoint-000200/trained/    trained files

A folder of trained files holds what a run trained, without the base:

    pytorch_lora_weights.safetensors    method lora; of PixArt adapter_model.safetensors and adapter_config.json, PEFT's files
    denoiser.safetensors                method full: the parameters that trained, by their names in the denoiser, as plain weights
    learned_embeds.safetensors          with a word: its embedding, by its token, or by text encoder
    base.json                           the model that it belongs to, what it started from (`after.py`), the step, and what it was
                                        taught: the token, and the prompts that have it

`locate()` finds what a place names; `TrainedFiles` reads such a folder; `prompts_of_training()` tells what it was taught.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from nullbooth_cli import toy
from nullbooth_cli.datatypes import CHECKPOINT, RESULT, RESULTS, TRAINED
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import listed
from nullbooth_cli.model.adapter_files import PEFT_FILES, AdapterFile, shapes_in
from nullbooth_cli.model.adapters import attached, fuse
from nullbooth_cli.model.after import After
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.pipeline_folder import read_json
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.model.sources import PIPELINE_INDEX
from nullbooth_cli.model.words import WORD_FILE, WordFile

LORA_FILE, DENOISER_FILE, BASE_FILE = "pytorch_lora_weights.safetensors", "denoiser.safetensors", "base.json"
_EARLIER = "finish the run, and name its output; or train again"


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model that something was trained on, as its recipe names it."""

    model: str
    revision: str | None = None
    variant: str | None = None
    pipeline_config: str | None = None

    @classmethod
    def read(cls, document: Mapping[str, Any], file: Path) -> "Base":
        """The base in a recipe or a base.json. Raises ConfigError if it is not there."""
        found = {field.name: document.get(field.name) for field in fields(cls)}
        if found["model"] is None or not all(value is None or isinstance(value, str) for value in found.values()):
            raise ConfigError(f"{file} does not name the model that was trained", "name a folder that a training run wrote")
        return cls(**found)  # type: ignore[arg-type]  # strings, or None

    @classmethod
    def of(cls, settings: Any) -> "Base":
        """The model that a config or a recipe names."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})

    @property
    def name(self) -> str:
        """Model and revision, for a reader."""
        return self.model if self.revision is None else f"{self.model} at {self.revision}"

    def is_same(self, other: "Base") -> bool:
        """Whether another base is this model: the same folder, or the same hub id and revision."""
        if _address(self.model) != _address(other.model):
            return False
        return Path(_address(self.model)).exists() or (self.revision or "main") == (other.revision or "main")


def _address(model: str) -> str:
    path = toy.FOLDER if model == "toy" else Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


@dataclass(frozen=True, kw_only=True)
class TrainedFiles:
    """A folder of trained files: a LoRA or trained weights of the denoiser, and perhaps a word.

    They are put onto the base, or, with `after`, onto what they started from: `chain.py` finds that.
    """

    folder: Path
    base: Base
    token: str | None
    adapter: AdapterFile | None
    denoiser: Path | None
    word: WordFile | None
    after: After | None = None

    @classmethod
    def find(cls, folder: Path) -> "TrainedFiles | None":
        """The trained files in a folder; None for one without a base.json.

        Raises ConfigError for files that are missing or cannot be read whole. Cost: their headers.
        """
        file = folder / BASE_FILE
        if not file.is_file():
            return None
        document = read_json(file)
        lora, denoiser, word = (folder / name for name in (LORA_FILE, DENOISER_FILE, WORD_FILE))
        if (of_peft := folder / PEFT_FILES[0]).is_file():
            lora = of_peft
        if lora.is_file() == denoiser.is_file():
            has = "both" if lora.is_file() else "neither"
            raise ConfigError(
                f"{folder} has {has} {LORA_FILE} and {DENOISER_FILE}", "name a folder that one training run wrote, as it was"
            )
        token = document.get("token")
        if word.is_file() != isinstance(token, str):
            raise ConfigError(
                f"{file} names {token or 'no token'}, and {word} {'exists' if word.is_file() else 'is missing'}",
                "copy the whole folder that the training run wrote",
            )
        return cls(
            folder=folder,
            base=Base.read(document, file),
            token=token,
            adapter=AdapterFile.find(lora, allow_pickle=False) if lora.is_file() else None,
            denoiser=denoiser if denoiser.is_file() else None,
            word=WordFile.read(word, token) if word.is_file() else None,
            after=After.read(document),
        )

    def require_base(self, base: Base) -> None:
        """Raise ConfigError, naming both, if this was trained on another base."""
        if not self.base.is_same(base):
            raise ConfigError(
                f"{self.folder} was trained on {self.base.name}, and the base here is {base.name}",
                f"set model to {self.base.model}; if both are the same model, write {base.model} into {self.folder / BASE_FILE}",
            )

    def require_fits(self, pipe: Pipeline) -> None:
        """Raise ConfigError for files that do not fit a pipeline, which stays as it was. Cost: one read of a LoRA."""
        if self.adapter is not None:
            with attached(pipe, self.adapter):
                pass
        if self.denoiser is not None:
            _require_parameters(self.denoiser, pipe)
        if self.word is not None:
            self.word.require_fits(pipe)

    def load_into(self, pipe: Pipeline, scale: float = 1.0) -> None:
        """Put everything onto the base: the LoRA times `scale` is fused. Raises ConfigError as `require_fits` does."""
        if self.adapter is not None:
            fuse(pipe, self.adapter, scale)
        if self.denoiser is not None:
            _load_parameters(self.denoiser, pipe)
        if self.word is not None:
            self.word.load_into(pipe)


def _require_parameters(file: Path, pipe: Pipeline) -> None:
    """Raise ConfigError unless the denoiser has every tensor of a file, by name and shape."""
    of_base = {name: tuple(parameter.shape) for name, parameter in denoiser_of(pipe).named_parameters()}
    found = shapes_in(file)
    if not found:
        raise ConfigError(f"{file} has no tensor", "name a folder that a training run wrote")
    wrong = [name for name, shape in found.items() if of_base.get(name) != shape]
    if wrong:
        name = wrong[0]
        there = f"{list(of_base[name])}" if name in of_base else "nothing of that name"
        raise ConfigError(
            f"{file} does not fit this base: {len(wrong)} of its {len(found)} tensors, such as {name} {list(found[name])}, "
            f"where the base has {there}",
            "name the base that it was trained on",
        )


@torch.no_grad()
def _load_parameters(file: Path, pipe: Pipeline) -> None:
    from safetensors.torch import load_file

    _require_parameters(file, pipe)
    tensors = load_file(file)
    if wrong := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ConfigError(f"{file}: {listed(wrong)} not finite", "train it again, or name another")
    parameters = dict(denoiser_of(pipe).named_parameters())
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)


@dataclass(frozen=True, kw_only=True)
class Located:
    """What a place names: a pipeline folder, trained files, or, if no training run wrote it, the place itself.

    `base`, `token` and `prompts` (the captions of its pictures, as prompts write them) are those of the run, as far as its files
    tell; `after` is what it started from, None for the base. `note` says which of several models was chosen.
    """

    path: Path
    base: Base | None = None
    token: str | None = None
    prompts: tuple[str, ...] = ()
    after: After | None = None
    note: str | None = None


def locate(place: Path) -> Located:
    """What a place that exists names: of a training output its result, else its newest checkpoint.

    Raises ConfigError for an output that has neither. Cost: a small file.
    """
    if (place / PIPELINE_INDEX).is_file():
        written = place.parent / RESULT
        return _result(place, written) if place.name == RESULTS[0] and written.is_file() else Located(path=place)
    if (place / BASE_FILE).is_file():
        return _trained(place)
    if (place / RESULT).is_file():
        method = _recipe(place / RESULT).get("method")
        result = place / RESULTS[method == "lora"]
        if not result.is_dir():
            raise ConfigError(f"{place} has a {RESULT}, and no {result.name}", "run its training again: it writes the result")
        return _result(result, place / RESULT)
    if CHECKPOINT.fullmatch(place.name) and place.is_dir():
        if not (place / TRAINED / BASE_FILE).is_file():
            raise ConfigError(f"{place} has no {TRAINED}/{BASE_FILE}: an earlier nullbooth made it", _EARLIER)
        return _trained(place / TRAINED)
    return _newest_checkpoint(place)


def _checkpoints(output: Path) -> dict[int, Path]:
    named = [(CHECKPOINT.fullmatch(path.name), path) for path in (output.iterdir() if output.is_dir() else ())]
    return {int(match[1]): path for match, path in named if match and path.is_dir()}


def trained_checkpoints(output: Path) -> dict[int, Path]:
    """The checkpoints of a training output that have trained files, by their steps."""
    return {step: path for step, path in _checkpoints(output).items() if (path / TRAINED / BASE_FILE).is_file()}


def _newest_checkpoint(output: Path) -> Located:
    if not _checkpoints(output):
        return Located(path=output)
    usable = trained_checkpoints(output)
    if not usable:
        raise ConfigError(f"{output} has no result, and its checkpoints have no {TRAINED}/{BASE_FILE}", _EARLIER)
    step = max(usable)
    note = f"{output} has no result yet: this is its newest checkpoint, after {step} steps"
    return _trained(usable[step] / TRAINED, note)


def _trained(folder: Path, note: str | None = None) -> Located:
    document = read_json(folder / BASE_FILE)
    return Located(
        path=folder,
        base=Base.read(document, folder / BASE_FILE),
        token=document.get("token"),
        prompts=_prompts(document),
        after=After.read(document),
        note=note,
    )


def _recipe(file: Path) -> Mapping[str, Any]:
    recipe = read_json(file).get("recipe")
    if not isinstance(recipe, dict):
        raise ConfigError(f"{file} has no recipe", "name a folder that a training run wrote")
    return recipe


def _result(path: Path, file: Path) -> Located:
    """The result of a run, by its train.json."""
    document = read_json(file)
    token = document.get("token")
    return Located(
        path=path,
        base=Base.read(_recipe(file), file),
        token=token if isinstance(token, str) else None,
        prompts=_prompts(document),
        after=After.read(document),
    )


def _prompts(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The prompts in a train.json or base.json; one of them in those of an earlier nullbooth."""
    found = document.get("prompts") or [document.get("instance_prompt")]
    return tuple(text for text in found if isinstance(text, str))


def prompts_of_training(place: Path) -> tuple[str, tuple[str, ...]]:
    """The name of the training run that wrote a place, which is that of its output, and the prompts of what it was taught.

    The prompts are the captions of its pictures, each once, as prompts write the word. Raises ConfigError for a place that no
    training run wrote, and as `locate` does. Cost: a small file.
    """
    prompts, name = locate(place.expanduser().resolve()).prompts, name_of_training(place)
    if not prompts or name is None:
        raise ConfigError(f"{place} names no prompt of what it was taught", "name the prompts, or the output of a training run")
    return name, prompts


def name_of_training(place: Path) -> str | None:
    """The name of the output of the training run that wrote a place; None if none did. Cost: a small file."""
    path = place.expanduser().resolve()
    if not path.exists() or locate(path).base is None:
        return None
    if path.name == TRAINED:
        path = path.parent
    return (path.parent if path.name in RESULTS or CHECKPOINT.fullmatch(path.name) else path).name
