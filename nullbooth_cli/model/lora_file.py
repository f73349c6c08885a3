"""A LoRA file of any trainer, module by module: the weights of the base that each one changes, and by how much.

    file = LoraFile.read(Path("style.safetensors"), "FluxPipeline", shapes)      # shapes: of the denoiser's weights, by name
    for module in file.modules:
        module.part, module.kind, module.weights, module.change()                # dW [M, D]
    tensors, metadata = file.with_inputs_mapped({"lora_unet_double_blocks_0_img_attn_qkv": m}, note="dW became dW M")

Read are the files of kohya's scripts and LyCORIS, diffusers (old and new), PEFT's folders, ai-toolkit, OneTrainer, ComfyUI and
xlabs. They differ in the names of modules (`_PREFIXES`, `kohya_names`), in the kinds of change (`lora_kinds`), and in where alpha
is: a tensor beside the others, or a config. Without any it is the rank.

`adapter_files.AdapterFile` finds a file and reads its tensors, for this and for `adapters`, which loads what diffusers can load.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import counted, listed
from nullbooth_cli.model import lora_kinds
from nullbooth_cli.model.adapter_files import PEFT_CONFIG, AdapterFile, require_adapter_alone, with_note
from nullbooth_cli.model.kohya_names import PIPELINES, PREFIX, has_swapped_halves, kohya_modules
from nullbooth_cli.model.lora_module import FUSE, OTHER_BASE, LoraModule, Matrix
from nullbooth_cli.model.pipeline_folder import read_json

DENOISER = "denoiser"
# How the name of a module begins, and the part of the pipeline that it is in.
_PREFIXES = (
    (re.compile(r"lora_unet_|lora_transformer_|lycoris_|unet\.|transformer\.|diffusion_model\."), DENOISER),
    (re.compile(r"lora_te1?_|text_encoder\.|text_encoders\.clip_l\.transformer\."), "text_encoder"),
    (re.compile(r"lora_te2_|text_encoder_2\.|text_encoders\.clip_g\.transformer\."), "text_encoder_2"),
    (re.compile(r"lora_te3_|text_encoder_3\.|text_encoders\.t5xxl\.transformer\."), "text_encoder_3"),
)
_AROUND = re.compile(r"(base_model\.model\.)?(model\.(?=diffusion_model\.))?")  # PEFT's and ComfyUI's models around these
_OF_TEXT_ENCODER = re.compile(r"text_model\.|encoder\.(block|layers)\.")  # in a folder of PEFT, which has no part before it
# xlabs' names of Flux: 1 is the image, 2 the text.
_XLABS = (
    (re.compile(r"^double_blocks_(\d+)_(qkv|proj)_1$"), r"double_blocks_\1_img_attn_\2"),
    (re.compile(r"^double_blocks_(\d+)_(qkv|proj)_2$"), r"double_blocks_\1_txt_attn_\2"),
    (re.compile(r"^single_blocks_(\d+)_proj$"), r"single_blocks_\1_linear2"),
)
_OF_DIFFUSERS = "lora_adapter_metadata"  # the configs of PEFT, as JSON, each key after the name of its part
_DIGESTS = "sshash_"  # kohya's digests of the tensors


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """A LoRA file: its modules in the file's order, its tensors by their keys, and the metadata in its header."""

    path: Path
    pipeline_class: str
    modules: tuple[LoraModule, ...]
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)
    configs: Mapping[str, Any] = field(repr=False)  # of PEFT

    @classmethod
    def read(
        cls, path: Path, pipeline_class: str, shapes: Mapping[str, tuple[int, ...]], *, allow_pickle: bool = False
    ) -> "LoraFile":
        """The LoRA at a place: a file, or a folder with one. `shapes` are those of all parameters of the base's denoiser.

        Raises ConfigError for a file that cannot be read, that was made for another base (a module that the denoiser lacks, or a
        change of another size), or that holds something else than a LoRA. Cost: one read of the file.
        """
        found = AdapterFile.find(path, allow_pickle=allow_pickle, plain=False)
        if found is None:
            raise ConfigError(f"{path} is a pipeline folder, not a LoRA", "name a LoRA")
        tensors, metadata = found.tensors(), found.metadata
        configs = _configs(found, metadata)
        names = _Names(pipeline_class, shapes)
        modules = tuple(
            _module(names, name, keys, {role: tensors[key] for role, key in keys.items()}, configs)
            for name, keys in _by_module(found.path, tensors).items()
        )
        if lacking := [module.name for module in modules if module.part == DENOISER and not module.weights]:
            raise ConfigError(
                f"{path} does not fit a {pipeline_class}: {counted(len(lacking), 'module')} of its "
                f"{len(modules)} change no weight of it: {listed(lacking)}",
                OTHER_BASE,
            )
        return cls(
            path=found.path, pipeline_class=pipeline_class, modules=modules, tensors=tensors, metadata=metadata, configs=configs
        )

    def with_inputs_mapped(
        self, matrices: Mapping[str, Matrix], note: str, *, drop: Collection[str] = (), drop_magnitudes: bool = False
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The tensors and metadata of a file in which the change dW of modules, by name, became dW M.

        M is `[D, D]`, or a number; a module that is fused of several weights has one input, and takes one M. In `drop` are the
        modules to leave out; all others stay as they are. Keys, shapes, dtypes and alphas are kept, and so is the metadata, but
        for kohya's digests of the tensors; `note` is added to those in it. A LoHa or LoKr becomes a plain LoRA of the rank that
        it takes; in a folder of PEFT, whose config knows one kind, so do all others, and `peft_config` has the new one. A DoRA
        becomes one with `drop_magnitudes`.

        Raises ConfigError for a module that the file lacks, and for one whose result has no form: see `LoraModule.mapped`.
        """
        by_name = {module.name: module for module in self.modules}
        if drop_magnitudes and self.configs:
            raise ConfigError(f"{self.path} has a config of PEFT, which says that all of its modules are DoRA", FUSE)
        if unknown := [name for name in (*matrices, *drop) if name not in by_name]:
            raise ConfigError(f"{self.path} has no module {listed(unknown)}", "use the names of its modules")
        made = dict(self.tensors)
        for name, module in by_name.items():
            is_mapped = name in matrices or self._becomes_plain
            if is_mapped or name in drop:
                made = {key: tensor for key, tensor in made.items() if key not in module.keys.values()}
            if is_mapped and name not in drop:
                made |= module.mapped(matrices.get(name, 1.0), drop_magnitudes=drop_magnitudes)
        order = {key: place for place, key in enumerate(self.tensors)}
        metadata = {key: value for key, value in self.metadata.items() if not key.startswith(_DIGESTS)}
        return dict(sorted(made.items(), key=lambda item: order.get(item[0], len(order)))), with_note(metadata, note)

    def peft_config(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
        """The config of PEFT for the tensors of a mapped file: as it was, or that of a plain LoRA without an alpha."""
        if not self._becomes_plain:
            return self.configs
        paths = {module.name: module.path for module in self.modules}
        split = ((lora_kinds.split_key(key), tensor) for key, tensor in tensors.items())
        ranks = {paths[found[0]]: len(tensor) for found, tensor in split if found is not None and found[1] == "down"}
        kept = ("base_model_name_or_path", "revision", "task_type", "inference_mode")
        pattern = {f"^{re.escape(path)}": rank for path, rank in ranks.items()}
        return {key: self.configs[key] for key in kept if key in self.configs} | {
            "peft_type": "LORA",
            "r": max(ranks.values(), default=1),
            "lora_alpha": max(ranks.values(), default=1),
            "rank_pattern": pattern,
            "alpha_pattern": pattern,
            "target_modules": "|".join(map(re.escape, ranks)),
        }

    @property
    def _becomes_plain(self) -> bool:
        """Whether it is a folder of PEFT whose modules are LoHa or LoKr, which one config knows alone."""
        return "peft_type" in self.configs and all(module.kind in ("loha", "lokr") for module in self.modules)


class _Names:
    """The weights of a denoiser, by what a file may call the modules that have them."""

    def __init__(self, pipeline_class: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.pipeline_class, self.shapes = pipeline_class, shapes
        paths = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")]
        self._of_diffusers = {path.replace(".", "_"): (f"{path}.weight",) for path in paths}
        kohya = kohya_modules(shapes, pipeline_class) if pipeline_class in PIPELINES else {}
        self._of_kohya = {name.removeprefix(PREFIX): weights for name, weights in kohya.items()}

    def part(self, name: str) -> tuple[str, str]:
        """The part of the pipeline that a module is in, and its path there."""
        inner = _AROUND.sub("", name, count=1)
        prefix, part = next(((match[0], part) for begin, part in _PREFIXES if (match := begin.match(inner))), ("", DENOISER))
        path = inner.removeprefix(prefix)
        if part == DENOISER and _OF_TEXT_ENCODER.match(path):
            return "text_encoder", path
        if part == "text_encoder_3" and self.pipeline_class == "FluxPipeline":  # kohya calls every T5 the third
            return "text_encoder_2", path
        return part, path

    def weights(self, path: str) -> tuple[str, ...]:
        """The weights of the denoiser that a module changes, in the order of its rows."""
        flat = path.replace(".processor.", ".").replace(".", "_")
        flat = f"{flat}_0" if flat.endswith("to_out") else flat  # as diffusers' old processors called it
        if alone := re.fullmatch(r"single_blocks_(\d+)_qkv", flat):  # of xlabs: the first rows of a fused weight
            return self._of_kohya.get(f"single_blocks_{alone[1]}_linear1", ())[:3]
        for pattern, theirs in _XLABS:
            flat = pattern.sub(theirs, flat)
        return self._of_diffusers.get(flat) or self._of_kohya.get(flat, ())

    def has_swapped_halves(self, path: str) -> bool:
        """Whether a module has the halves of its rows in the order of kohya's model, and diffusers' has the other."""
        weights, flat = self.weights(path), path.replace(".", "_")
        return flat not in self._of_diffusers and has_swapped_halves(weights[0], self.shapes, self.pipeline_class)


def _configs(file: AdapterFile, metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """The config of PEFT in a folder, or those in the metadata of diffusers. Raises ConfigError for one that trained more."""
    if file.peft is not None:
        found = read_json(file.peft / PEFT_CONFIG)
        require_adapter_alone(file.peft, found)
        return found
    try:
        configs = json.loads(metadata.get(_OF_DIFFUSERS, "{}"))
    except ValueError as error:
        raise ConfigError(f"{file.path}: {_OF_DIFFUSERS} in its metadata is no JSON: {error}", "save it again") from error
    if not isinstance(configs, dict):
        raise ConfigError(f"{file.path}: {_OF_DIFFUSERS} in its metadata is no mapping", "save it again")
    return configs


def _by_module(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, str]]:
    """The keys of the tensors by module and role. Raises ConfigError for a tensor that is no part of a LoRA."""
    found: dict[str, dict[str, str]] = {}
    unknown = [key for key in tensors if lora_kinds.split_key(key) is None]
    for key in tensors:
        if split := lora_kinds.split_key(key):
            name, role = split
            if (other := found.setdefault(name, {}).setdefault(role, key)) != key:
                raise ConfigError(f"{path} has two adapters: {other} and {key}", "save each in a file of its own")
    if not tensors:
        raise ConfigError(f"{path} has no tensor", "name a file of LoRA weights")
    for keys in found.values():
        if lora_kinds.kind_of({role: tensors[key] for role, key in keys.items()}) is None:
            unknown += keys.values()
    if unknown:
        raise ConfigError(
            f"{path} is not a whole LoRA: {counted(len(unknown), 'tensor')} of its {len(tensors)} "
            f"{'is' if len(unknown) == 1 else 'are'} no part of one: {listed(unknown)}",
            "name a file of LoRA weights",
        )
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() and tensor.numel() > 1:
            raise ConfigError(f"{path}: {key} is in {tensor.dtype}, which no weight is in", "save it in a floating-point dtype")
    return found


def _module(
    names: _Names, name: str, keys: Mapping[str, str], tensors: lora_kinds.Tensors, configs: Mapping[str, Any]
) -> LoraModule:
    part, path = names.part(name)
    weights = names.weights(path) if part == DENOISER else ()
    shapes = [names.shapes[weight] for weight in weights]
    ends = [*accumulate(shape[0] for shape in shapes)]
    kind = lora_kinds.kind_of(tensors)
    assert kind is not None  # as _by_module has seen
    module = LoraModule(
        name=name,
        part=part,
        path=path,
        kind="dora" if lora_kinds.magnitudes_of(tensors) is not None else kind,
        weights=weights,
        rows=tuple(slice(end - shape[0], end) for end, shape in zip(ends, shapes, strict=True)),
        shape=(ends[-1], *shapes[0][1:]) if shapes else None,
        scale=_scale(kind, tensors, _config_of(configs, name, path), path),
        swapped=bool(weights) and names.has_swapped_halves(path),
        tensors=tensors,
        keys=keys,
    )
    module.require_whole()
    return module


def _config_of(configs: Mapping[str, Any], name: str, path: str) -> Mapping[str, Any]:
    """The config of PEFT for a module: of its folder, or of its part in the metadata of diffusers."""
    part = name.removesuffix(path)
    return {key.removeprefix(part): value for key, value in configs.items() if "." not in key or key.startswith(part)}


def _scale(kind: str, tensors: lora_kinds.Tensors, config: Mapping[str, Any], path: str) -> float:
    """alpha over rank: of the tensor beside the others, or of a config of PEFT; 1 without either."""
    rank = lora_kinds.rank_of(kind, tensors)
    if "alpha" in tensors:
        if (values := tensors["alpha"].numel()) != 1:
            raise ConfigError(f"the alpha of {path} has {values} values, not one", "save the LoRA again")
        return float(tensors["alpha"]) / rank if rank else 1.0
    alpha = config.get("lora_alpha", config.get("alpha"))
    if alpha is None:
        return 1.0
    try:
        alpha = float(_by_pattern(config.get("alpha_pattern"), path, alpha))
        divisor = float(_by_pattern(config.get("rank_pattern"), path, config["r"]))
        return alpha / (math.sqrt(divisor) if config.get("use_rslora") else divisor)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, re.error) as error:
        raise ConfigError(f"the config of PEFT for {path} has no rank and alpha: {error!r}", "save the LoRA again") from error


def _by_pattern(patterns: Mapping[str, Any] | None, path: str, otherwise: Any) -> Any:
    """The value of the first pattern that the end of a path matches, as PEFT finds it."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", path)), otherwise)
