"""Weights that were trained themselves as a finished change: those in trained files, and a whole pipeline folder."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from nullbooth_cli.collect.edited_model import open_before
from nullbooth_cli.collect.open_model import load_model
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.adapter_files import metadata_in, shapes_in, with_note
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.finished_change import FinishedFiles
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.model.sources import PICKLED, SAFE
from nullbooth_cli.model.trained_files import BASE_FILE, DENOISER_FILE, TrainedFiles
from nullbooth_cli.model.words import WORD_FILE
from nullbooth_cli.nullspace.export import written
from nullbooth_cli.settings.config import Config
from nullbooth_cli.training.refit_change import ChangedModel, ChangedModule, FinishedChange, Matrix, Weights


class TrainedWeights(FinishedChange):
    """Weights of the denoiser in trained files: one module for each."""

    def __init__(self, files: TrainedFiles) -> None:
        assert files.denoiser is not None
        self._files, self._file = files, files.denoiser
        self.modules = tuple(ChangedModule(name, (name,)) for name in shapes_in(files.denoiser))

    def load_into(self, pipe: Pipeline, dropped: Sequence[ChangedModule]) -> ChangedModel:
        parameters = dict(denoiser_of(pipe).named_parameters())
        before = {each.name: parameters[each.name].detach().clone() for each in dropped if each.name in parameters}
        self._files.load_into(pipe)
        for name, value in before.items():
            parameters[name].data.copy_(value)
        return ChangedModel(pipe)

    def change(self, module: ChangedModule, initial: Weights) -> dict[str, torch.Tensor]:
        with safe_open(self._file, "pt") as opened:
            return {module.name: _moved(opened.get_tensor(module.name), initial[module.name])}

    def write(
        self, output: Path, maps: Mapping[str, Matrix], *, dropped: Sequence[ChangedModule], initial: Weights, note: str
    ) -> tuple[str, ...]:
        tensors = load_file(self._file)
        for module in dropped:
            del tensors[module.name]
        _map(tensors, maps, initial)
        with written(output) as folder:
            folder.mkdir()
            save_file(tensors, folder / DENOISER_FILE, metadata=with_note(metadata_in(self._file), note))
            copy_beside(self._files, folder)
        return ()


class WholePipeline(FinishedChange):
    """A pipeline folder: one module for each parameter of its denoiser that differs from the base, in the coarser dtype.

    Raises ConfigError for a folder that does not fit the base. Cost: one read of both denoisers, and a second model in memory.
    """

    def __init__(self, found: FinishedFiles, config: Config, device: str | None) -> None:
        self._folder, self._weights, self._base = found.path, found.whole_weights(), open_before(config, found.at, device)
        if self._weights.shapes != self._base.shapes:
            raise ConfigError(
                f"the denoiser of {found.path}, a {self._weights.pipeline_class}, has other weights than the base",
                "name the base that it was made for",
            )
        different = [name for name in self._weights.shapes if self._differs(name)]
        if not different:
            raise ConfigError(
                f"the denoiser of {found.path} is that of the base: nothing changed", "name a model that was trained"
            )
        self.modules = tuple(ChangedModule(name, (name,)) for name in different)
        here = {"model": str(found.path), "revision": None, "variant": None, "pipeline_config": None}
        self._changed = load_model(config.model_copy(update=here), device)

    def _differs(self, name: str) -> bool:
        (after,), (before,) = (weights.read([name]).values() for weights in (self._weights, self._base))
        if not after.isfinite().all():
            raise ConfigError(f"{self._folder}: {name} is not finite", "train it again, or name another")
        return not torch.equal(after, before.to(after.dtype)) and not torch.equal(after.to(before.dtype), before)

    def load_into(self, pipe: Pipeline, dropped: Sequence[ChangedModule]) -> ChangedModel:
        self._dropped = self._base.read(each.name for each in dropped)
        parameters = dict(denoiser_of(self._changed).named_parameters())
        for name, value in self._dropped.items():
            parameters[name].data.copy_(value)
        others = [
            part
            for part, old in pipe.components.items()
            if isinstance(old, nn.Module)
            and part.startswith("text_encoder")
            and not _is_same(old, self._changed.components[part])
        ]
        note = f"{self._folder} has another {' and '.join(others)} than the base, which is copied as it is"
        return ChangedModel(self._changed, (note,) if others else ())

    def change(self, module: ChangedModule, initial: Weights) -> dict[str, torch.Tensor]:
        (after,), (before,) = (weights.read([module.name]).values() for weights in (self._weights, self._base))
        return {module.name: _moved(after, before)}

    def write(
        self, output: Path, maps: Mapping[str, Matrix], *, dropped: Sequence[ChangedModule], initial: Weights, note: str
    ) -> tuple[str, ...]:
        files = set(self._weights.files.values())
        (folder,) = {file.parent.name for file in files}
        with written(output) as place:
            shutil.copytree(self._folder, place)
            for file in (place / folder).iterdir():
                if file.suffix not in (SAFE, *PICKLED):
                    continue
                if (original := self._folder / folder / file.name) not in files:
                    file.unlink()  # the same weights in another form, which were not refitted
                    continue
                tensors = load_file(original)
                tensors |= {name: value.to(tensors[name].dtype) for name, value in self._dropped.items() if name in tensors}
                here = {name: m for name, m in maps.items() if name in tensors}
                _map(tensors, here, self._base.read(here))
                save_file(tensors, file, metadata=with_note(metadata_in(original), note))
        return ()


def copy_beside(files: TrainedFiles, folder: Path) -> None:
    """Copy the name of the base, and the word if there is one."""
    for name in (BASE_FILE, *((WORD_FILE,) if files.word is not None else ())):
        shutil.copyfile(files.folder / name, folder / name)


def _map(tensors: dict[str, torch.Tensor], maps: Mapping[str, Matrix], initial: Weights) -> None:
    """Replace each weight in `maps` by its base and dW M, in its own dtype."""
    for name, m in maps.items():
        before, after = initial[name], tensors[name]
        moved = _moved(after, before) @ torch.from_numpy(m)
        tensors[name] = (before.double() + moved.reshape(before.shape)).to(after.dtype)


def _moved(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """dW `[M, D]` in float64. What only rounding to the dtype of `after` changed counts as nothing."""
    rounded = before.to(after.dtype) if after.dtype.itemsize < before.dtype.itemsize else before
    return (after.double() - rounded.double()).flatten(1)


def _is_same(one: nn.Module, other: nn.Module) -> bool:
    before, after = one.state_dict(), other.state_dict()
    return before.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in before.items())
