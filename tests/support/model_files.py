"""The embedded model as other people keep theirs: one file in the layout of Stable Diffusion 1, pickles, a cache of the hub."""

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from nullbooth_cli.toy import FOLDER

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
_PICKLES = {"text_encoder": "pytorch_model"}
_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_PLACE = {"resnets": "0", "attentions": "1", "downsamplers": "0", "upsamplers": "2"}


def copy_folder(to: Path) -> Path:
    """The pipeline folder of the embedded model, somewhere else."""
    shutil.copytree(FOLDER, to, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return to


def weights_file(folder: Path, part: str) -> Path:
    return folder / part / f"{WEIGHTS[part]}.safetensors"


def pickle_folder(folder: Path) -> Path:
    """Turn the weights of a pipeline folder into pickles."""
    for part in WEIGHTS:
        file = weights_file(folder, part)
        torch.save(load_file(file), file.with_name(f"{_PICKLES.get(part, WEIGHTS[part])}.bin"))
        file.unlink()
    return folder


def hub_cache(cache: Path, name: str) -> None:
    """What huggingface_hub keeps of a repository that was downloaded."""
    repository = cache / f"models--{name.replace('/', '--')}"
    copy_folder(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


def single_file(pipe: Any) -> dict[str, torch.Tensor]:
    """The tensors of a pipeline under the names of Stable Diffusion 1: the inverse of what diffusers does on loading them."""
    layers, blocks = pipe.unet.config.layers_per_block, len(pipe.vae.config.up_block_types)
    named = {f"model.diffusion_model.{_unet(name, layers)}": tensor for name, tensor in pipe.unet.state_dict().items()}
    named |= {f"first_stage_model.{_vae(name, blocks)}": tensor for name, tensor in pipe.vae.state_dict().items()}
    text = pipe.text_encoder.state_dict().items()
    return named | {f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in text}


def save_single_file(pipe: Any, file: Path) -> Path:
    tensors = {name: tensor.contiguous() for name, tensor in single_file(pipe).items()}
    if file.suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save({"state_dict": tensors}, file)
    return file


def _unet(name: str, layers: int) -> str:
    module, _, kind = name.rpartition(".")
    if module in _TOP:
        return f"{_TOP[module]}.{kind}"

    def block(match: re.Match[str]) -> str:
        way, number, part, place = match[1], int(match[2]) * (layers + 1), match[3], int(match[4])
        number += layers if part.endswith("samplers") else place
        return f"input_blocks.{number + 1}.{_PLACE[part]}." if way == "down" else f"output_blocks.{number}.{_PLACE[part]}."

    new = re.sub(r"^(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.", block, name)
    new = re.sub(r"^mid_block\.resnets\.(\d)\.", lambda match: f"middle_block.{2 * int(match[1])}.", new)
    new = new.replace("mid_block.attentions.0.", "middle_block.1.")
    if ".resnets." in name:
        new = re.sub(r"\.(\w+)(\.\w+)$", lambda match: f".{_RESNET[match[1]]}{match[2]}", new)
    return new.replace(".conv.", ".op.") if "downsamplers" in name else new


def _vae(name: str, blocks: int) -> str:
    for pattern, new in (
        (r"down_blocks\.(\d)\.resnets\.", r"down.\1.block."),
        (r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample."),
        (r"conv_norm_out", "norm_out"),
        (r"conv_shortcut", "nin_shortcut"),
    ):
        name = re.sub(pattern, new, name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda match: f"up.{blocks - 1 - int(match[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda match: f"up.{blocks - 1 - int(match[1])}.upsample.", name)
    return re.sub(r"mid_block\.resnets\.(\d)\.", lambda match: f"mid.block_{int(match[1]) + 1}.", name)
