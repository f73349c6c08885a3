"""The weights of a denoiser, read one by one from the files of its pipeline folder, without loading the pipeline.

base = BaseWeights.in_folder(folder, variant=None)      # None if the folder has no safetensors files of its denoiser
base = BaseWeights.of_pipeline(pipe)                     # of a pipeline that had to be loaded
base.pipeline_class, base.shapes
base.read(["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"])
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nullbooth_cli.datatypes import SECOND_DENOISERS, denoiser_of_weight
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.adapter_files import shapes_in
from nullbooth_cli.model.denoisers import MAIN_PARTS, denoiser_weights
from nullbooth_cli.model.pipeline_folder import read_pipeline_folder
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.model.sources import SAFE


@dataclass(frozen=True, kw_only=True)
class BaseWeights:
    """The shapes of the denoisers' parameters by their names in a store, and where their values are: files, or tensors."""

    pipeline_class: str
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    files: Mapping[str, Path] = field(default_factory=dict, repr=False)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def in_folder(cls, folder: Path, variant: str | None) -> "BaseWeights | None":
        """Of a pipeline folder; None if its denoiser has no safetensors files. Cost: their headers.

        Raises ConfigError for a folder that is no pipeline, and for files that cannot be read.
        """
        kind = read_pipeline_folder(folder, weights=False).class_name
        of_parts = {
            part: [file for file in sorted((folder / part).glob(f"*{SAFE}")) if _is_of(file, variant)]
            for part in (*MAIN_PARTS, *SECOND_DENOISERS)
        }
        if (main := next((part for part in MAIN_PARTS if of_parts[part]), None)) is None:
            return None
        shapes: dict[str, tuple[int, ...]] = {}
        files: dict[str, Path] = {}
        for prefix, part in {"": main, **{f"{part}.": part for part in SECOND_DENOISERS}}.items():
            for file in of_parts[part]:
                named = {f"{prefix}{name}": shape for name, shape in shapes_in(file).items()}
                shapes |= named
                files |= dict.fromkeys(named, file)
        return cls(pipeline_class=kind, shapes=shapes, files=files)

    @classmethod
    def of_pipeline(cls, pipe: Pipeline) -> "BaseWeights":
        """Of a loaded pipeline, whose weights are not copied."""
        tensors = denoiser_weights(pipe)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return cls(pipeline_class=type(pipe).__name__, shapes=shapes, tensors=tensors)

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The weights of these names, on the CPU, in the dtype that they are stored in. Cost: one read of each.

        Raises ConfigError for a name that the denoiser does not have.
        """
        from safetensors import safe_open

        names = [*names]
        if missing := [name for name in names if name not in self.shapes]:
            raise ConfigError(f"the base has no {missing[0]}", "name the base that the store was collected from")
        made = {name: self.tensors[name].cpu() for name in names if name in self.tensors}
        for file in dict.fromkeys(self.files[name] for name in names if name in self.files):
            with safe_open(file, "pt") as opened:
                own = [name for name in names if self.files.get(name) == file]
                made |= {name: opened.get_tensor(name.removeprefix(denoiser_of_weight(name))) for name in own}
        return made


def _is_of(file: Path, variant: str | None) -> bool:
    """Whether a file of weights is of a variant: diffusion_pytorch_model.fp16-00001-of-00002.safetensors is of fp16."""
    words = file.name.removesuffix(SAFE).split(".")[1:]
    return not words if variant is None else any(word.split("-")[0] == variant for word in words)
