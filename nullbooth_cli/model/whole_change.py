"""The change of a model whose weights were trained themselves, as modules of whole changes, one for each layer that differs.

whole_changes(weights_of_denoiser_file(Path("trained/denoiser.safetensors"), base), base)
whole_changes(BaseWeights.in_folder(Path("runs/toy-sks/pipeline"), None), base)
"""

from pathlib import Path

import torch

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import counted
from nullbooth_cli.model.adapter_files import shapes_in
from nullbooth_cli.model.base_weights import BaseWeights
from nullbooth_cli.model.lora_file import DENOISER
from nullbooth_cli.model.lora_module import OTHER_BASE, LoraModule


def weights_of_denoiser_file(file: Path, base: BaseWeights) -> BaseWeights:
    """The weights in a file that has those of a denoiser that were trained, by their names. Cost: its header."""
    shapes = shapes_in(file)
    return BaseWeights(pipeline_class=base.pipeline_class, shapes=shapes, files=dict.fromkeys(shapes, file))


def whole_changes(trained: BaseWeights, base: BaseWeights, place: Path) -> tuple[LoraModule, ...]:
    """The modules that differ from the base, each the kind "full" with the name of its weight; `place` is for messages.

    A weight of the base is rounded to the dtype of the trained one first: a model that was saved in another precision did not
    change. Raises ConfigError for a weight that the base lacks or has in another shape, and for values that are not finite.
    Cost: one read of both, one layer at a time, and the changes in float32.
    """
    wrong = [name for name, shape in trained.shapes.items() if base.shapes.get(name) != shape]
    if wrong:
        raise ConfigError(
            f"{place} does not fit a {base.pipeline_class}: {counted(len(wrong), 'tensor')} of its {len(trained.shapes)}, "
            f"such as {wrong[0]} {list(trained.shapes[wrong[0]])}",
            OTHER_BASE,
        )
    layers: dict[str, list[str]] = {}
    for name in trained.shapes:
        path, _, kind = name.rpartition(".")
        layers.setdefault(path if kind in ("weight", "bias") else name, []).append(name)
    found = []
    for path, names in layers.items():
        changes = {name: _difference(trained, base, name, place) for name in names}
        if any(bool(change.any()) for change in changes.values()):
            found.append(_module(path, changes, base))
    return tuple(found)


def _difference(trained: BaseWeights, base: BaseWeights, name: str, place: Path) -> torch.Tensor:
    (after,), (before,) = trained.read([name]).values(), base.read([name]).values()
    if not after.isfinite().all():
        raise ConfigError(f"{place}: {name} is not finite", "train it again, or name another")
    return after.float() - before.to(after.dtype).float()


def _module(path: str, changes: dict[str, torch.Tensor], base: BaseWeights) -> LoraModule:
    """A layer by its path; whatever has no weight `[M, D]` counts as a norm."""
    weight = f"{path}.weight" if f"{path}.weight" in base.shapes else path
    shape = base.shapes[weight]
    diff = changes[weight] if weight in changes else torch.zeros(shape)
    is_linear = diff.ndim > 1 and weight != path
    tensors = {"diff" if is_linear else "w_norm": diff}
    if is_linear and f"{path}.bias" in changes:
        tensors["diff_b"] = changes[f"{path}.bias"]
    return LoraModule(
        name=path,
        part=DENOISER,
        path=path,
        kind="full" if is_linear else "norm",
        weights=(weight,),
        rows=(slice(0, shape[0]),),
        shape=shape,
        scale=1.0,
        tensors=tensors,
        keys={},
    )
