"""A LoRA file as a finished change, alone, in a folder of PEFT, or in trained files."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import counted
from nullbooth_cli.model.adapter_files import PEFT_CONFIG
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.finished_change import FinishedFiles
from nullbooth_cli.model.lora_file import LoraFile
from nullbooth_cli.model.lora_kinds import split_key
from nullbooth_cli.model.lora_module import OTHER_BASE, LoraModule
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.model.sources import SAFE
from nullbooth_cli.nullspace.export import written
from nullbooth_cli.training.refit_change import ChangedModel, ChangedModule, FinishedChange, Matrix, Weights
from nullbooth_cli.training.refit_weights import copy_beside


def is_one_file(found: FinishedFiles) -> bool:
    """Whether a change is one file, and not a folder."""
    return found.files is None and found.adapter is not None and found.adapter.peft is None and found.path.is_file()


class LoraChange(FinishedChange):
    """A LoRA file; of the modules of `protected` weights, all must have an input side. Raises ConfigError if one has none."""

    def __init__(self, read: LoraFile, found: FinishedFiles, protected: Collection[str]) -> None:
        self._read, self._found = read, found
        self._by_name = {module.name: module for module in read.modules}
        self.modules = tuple(ChangedModule(module.name, module.weights) for module in read.modules)
        in_store = [module for module in read.modules if any(weight in protected for weight in module.weights)]
        wrong = [module for module in in_store if module.needs_base or not module.is_measurable]
        if wrong:
            raise ConfigError(
                f"{read.path} cannot be refitted: {counted(len(wrong), 'module')}, such as {wrong[0].name} ({wrong[0].kind}), "
                "for which the weight itself counts, whatever its input",
                "train a plain LoRA, or train under a constraint",
            )

    def load_into(self, pipe: Pipeline, dropped: Sequence[ChangedModule]) -> ChangedModel:
        left_out = {module.name for module in dropped}
        rotated = []
        for module in self._read.modules:
            if module.name in left_out:
                continue
            if module.kind in ("oft", "boft"):
                rotated.append(module)
            else:
                _add(module, _layers(pipe, module))
        if self._found.files is not None and self._found.files.word is not None:
            self._found.files.word.load_into(pipe)
        if not rotated:
            return ChangedModel(pipe)
        what = f"{counted(len(rotated), 'module')} of the kind {rotated[0].kind}, such as {rotated[0].name}"
        return ChangedModel(pipe, (f"{what}: kept in the file, and not in place while the inputs of pictures are recorded",))

    def change(self, module: ChangedModule, initial: Weights) -> dict[str, torch.Tensor]:
        found = self._by_name[module.name]
        if found.kind == "lora" and found.tensors.keys() <= {"up", "down", "alpha"}:
            up, down = (found.tensors[role].flatten(1).double() for role in ("up", "down"))
            short = [torch.linalg.qr(up[part], mode="r").R for part in found.rows]  # up = Q R
            return {weight: found.scale * (r @ down) for weight, r in zip(found.weights, short, strict=True)}
        rows = found.change()
        return {weight: rows[part].double() for weight, part in zip(found.weights, found.rows, strict=True)}

    def shift(self, module: ChangedModule) -> dict[str, torch.Tensor]:
        found = self._by_name[module.name]
        shift = found.shift()
        return {} if shift is None else {w: shift[part].double() for w, part in zip(found.weights, found.rows, strict=True)}

    def write(
        self, output: Path, maps: Mapping[str, Matrix], *, dropped: Sequence[ChangedModule], initial: Weights, note: str
    ) -> tuple[str, ...]:
        tensors, metadata = self._read.with_inputs_mapped(maps, note, drop=[module.name for module in dropped])
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with written(output) as place:
            if is_one_file(self._found):
                save_file(contiguous, place, metadata=metadata)
                return self._new_forms(tensors, maps)
            place.mkdir()
            save_file(contiguous, place / f"{self._read.path.stem}{SAFE}", metadata=metadata)
            if self._found.adapter is not None and self._found.adapter.peft is not None:
                config = self._read.peft_config(tensors)
                (place / PEFT_CONFIG).write_text(json.dumps(config, indent=2))
            if self._found.files is not None:
                copy_beside(self._found.files, place)
        return self._new_forms(tensors, maps)

    def _new_forms(self, tensors: Weights, maps: Mapping[str, Matrix]) -> tuple[str, ...]:
        """A note on each kind of module that became a plain LoRA, with its ranks, and on biases that were left out."""
        plain = {found[0]: len(tensor) for key, tensor in tensors.items() if (found := split_key(key)) and found[1] == "down"}
        ranks: dict[str, list[int]] = {}
        for module in self._read.modules:
            if module.kind in ("loha", "lokr") and module.name in plain:
                ranks.setdefault(module.kind, []).append(plain[module.name])
        notes = [
            f"{counted(len(found), 'module')} of the kind {kind} became plain LoRA, of rank "
            f"{' to '.join(map(str, dict.fromkeys((min(found), max(found)))))}"
            for kind, found in ranks.items()
        ]
        if biases := sum(module.name in maps and module.shift() is not None for module in self._read.modules):
            notes.append(
                f"the shift of a bias is left out of {counted(biases, 'module')}: it moves every output, whatever its input"
            )
        if small := sum(tensor.dtype.itemsize == 1 and tensor.numel() > 1 for tensor in self._read.tensors.values()):
            notes.append(
                f"of {counted(small, 'tensor')} in 8 bits, those that changed are in float16 now: 8 bits would not hold them"
            )
        return tuple(notes)


@torch.no_grad()
def _add(module: LoraModule, layers: Sequence[Any]) -> None:
    """Add the change of a module, and the shift of its bias, to the layers whose rows it changes."""
    if module.kind in ("norm", "bias"):
        zero = torch.cat([torch.zeros_like(layer.weight) for layer in layers])
        rows, shift = module.tensors.get("w_norm", module.tensors.get("diff", zero)), module.tensors.get("b_norm", module.shift())
    else:
        base = torch.cat([layer.weight.detach().cpu().flatten(1) for layer in layers]) if module.needs_base else None
        rows, shift = module.change(base), module.shift()
    sizes = sum(layer.weight.numel() for layer in layers), sum(len(layer.weight) for layer in layers)
    if rows.numel() != sizes[0] or (shift is not None and shift.numel() != sizes[1]):
        shapes = [list(layer.weight.shape) for layer in layers]
        raise ConfigError(f"{module.name} changes a weight of {list(rows.shape)}, and the base has {shapes} there", OTHER_BASE)
    for layer, part in zip(layers, module.rows or (slice(None),), strict=True):
        layer.weight += rows[part].reshape(layer.weight.shape).to(layer.weight)
        if shift is not None:
            if layer.bias is None:
                layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)), requires_grad=False)
            layer.bias += shift[part].to(layer.bias)


def _layers(pipe: Pipeline, module: LoraModule) -> list[nn.Module]:
    """The layers that a module changes. Raises ConfigError for one of a text encoder that the pipeline has not."""
    if module.weights:
        return [denoiser_of(pipe).get_submodule(weight.removesuffix(".weight")) for weight in module.weights]
    encoder = pipe.components.get(module.part)
    found = [] if encoder is None else [layer for path, layer in encoder.named_modules() if _flat(path) == _flat(module.path)]
    if not found:
        raise ConfigError(f"{module.name} changes nothing in the {module.part} of a {type(pipe).__name__}", OTHER_BASE)
    return found


def _flat(path: str) -> str:
    """A path in a text encoder as every trainer has it: kohya with underscores, transformers with or without `text_model`."""
    flat = path.replace(".", "_").removeprefix("text_model_")
    flat = re.sub(r"self_attn_to_([qkv])$", r"self_attn_\1_proj", flat)  # of diffusers' old processors
    return re.sub(r"self_attn_to_out$", "self_attn_out_proj", flat)
