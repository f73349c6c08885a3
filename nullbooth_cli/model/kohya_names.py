"""The names that kohya's sd-scripts gives the modules of a denoiser, and the weights of diffusers that each of them changes.

    kohya_modules(weights, "FluxPipeline")["lora_unet_double_blocks_0_img_attn_qkv"]
    -> ("transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.attn.to_k.weight", "transformer_blocks.0.attn.to_v.weight")

A name is `lora_unet_` and the path of the module with its dots as underscores. Whose path depends on the model: kohya trains
Stable Diffusion 1 and 2 on diffusers' U-Net, SDXL on sgm's, Stability's generative-models (files with
diffusers' paths exist as well), Flux on that of Black Forest Labs, and SD3 on that of Stability, the last two with fused q, k, v.
The tables agree with diffusers' own converters (`loaders/lora_conversion_utils.py`; of SD3 the base model's, in
`loaders/single_file_utils.py`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from nullbooth_cli.errors import ModelError

PREFIX = "lora_unet_"
_UNETS = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")
_SDXL, _SD3, _FLUX = "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"
PIPELINES = (*_UNETS, _SDXL, _SD3, _FLUX)
_RESNETS_OF_SDXL = 2  # in each block on the way down

# kohya's path -> diffusers' paths, in the order of the fused rows; {} is the number of the block.
_OF_FLUX = {
    "double_blocks.{}.img_attn.qkv": [f"transformer_blocks.{{}}.attn.to_{each}" for each in "qkv"],
    "double_blocks.{}.img_attn.proj": ["transformer_blocks.{}.attn.to_out.0"],
    "double_blocks.{}.img_mlp.0": ["transformer_blocks.{}.ff.net.0.proj"],
    "double_blocks.{}.img_mlp.2": ["transformer_blocks.{}.ff.net.2"],
    "double_blocks.{}.img_mod.lin": ["transformer_blocks.{}.norm1.linear"],
    "double_blocks.{}.txt_attn.qkv": [f"transformer_blocks.{{}}.attn.add_{each}_proj" for each in "qkv"],
    "double_blocks.{}.txt_attn.proj": ["transformer_blocks.{}.attn.to_add_out"],
    "double_blocks.{}.txt_mlp.0": ["transformer_blocks.{}.ff_context.net.0.proj"],
    "double_blocks.{}.txt_mlp.2": ["transformer_blocks.{}.ff_context.net.2"],
    "double_blocks.{}.txt_mod.lin": ["transformer_blocks.{}.norm1_context.linear"],
    "single_blocks.{}.linear1": [
        *(f"single_transformer_blocks.{{}}.attn.to_{each}" for each in "qkv"),
        "single_transformer_blocks.{}.proj_mlp",
    ],
    "single_blocks.{}.linear2": ["single_transformer_blocks.{}.proj_out"],
    "single_blocks.{}.modulation.lin": ["single_transformer_blocks.{}.norm.linear"],
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "time_in.in_layer": ["time_text_embed.timestep_embedder.linear_1"],
    "time_in.out_layer": ["time_text_embed.timestep_embedder.linear_2"],
    "vector_in.in_layer": ["time_text_embed.text_embedder.linear_1"],
    "vector_in.out_layer": ["time_text_embed.text_embedder.linear_2"],
    "guidance_in.in_layer": ["time_text_embed.guidance_embedder.linear_1"],
    "guidance_in.out_layer": ["time_text_embed.guidance_embedder.linear_2"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
    "final_layer.linear": ["proj_out"],
}
_OF_SD3 = {
    "joint_blocks.{}.x_block.attn.qkv": [f"transformer_blocks.{{}}.attn.to_{each}" for each in "qkv"],
    "joint_blocks.{}.x_block.attn.proj": ["transformer_blocks.{}.attn.to_out.0"],
    "joint_blocks.{}.x_block.attn2.qkv": [f"transformer_blocks.{{}}.attn2.to_{each}" for each in "qkv"],
    "joint_blocks.{}.x_block.attn2.proj": ["transformer_blocks.{}.attn2.to_out.0"],
    "joint_blocks.{}.x_block.mlp.fc1": ["transformer_blocks.{}.ff.net.0.proj"],
    "joint_blocks.{}.x_block.mlp.fc2": ["transformer_blocks.{}.ff.net.2"],
    "joint_blocks.{}.x_block.adaLN_modulation.1": ["transformer_blocks.{}.norm1.linear"],
    "joint_blocks.{}.context_block.attn.qkv": [f"transformer_blocks.{{}}.attn.add_{each}_proj" for each in "qkv"],
    "joint_blocks.{}.context_block.attn.proj": ["transformer_blocks.{}.attn.to_add_out"],
    "joint_blocks.{}.context_block.mlp.fc1": ["transformer_blocks.{}.ff_context.net.0.proj"],
    "joint_blocks.{}.context_block.mlp.fc2": ["transformer_blocks.{}.ff_context.net.2"],
    "joint_blocks.{}.context_block.adaLN_modulation.1": ["transformer_blocks.{}.norm1_context.linear"],
    "x_embedder.proj": ["pos_embed.proj"],
    "context_embedder": ["context_embedder"],
    "t_embedder.mlp.0": ["time_text_embed.timestep_embedder.linear_1"],
    "t_embedder.mlp.2": ["time_text_embed.timestep_embedder.linear_2"],
    "y_embedder.mlp.0": ["time_text_embed.text_embedder.linear_1"],
    "y_embedder.mlp.2": ["time_text_embed.text_embedder.linear_2"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
    "final_layer.linear": ["proj_out"],
}
# diffusers' part of a U-Net -> sgm's, the same in every block.
_OF_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_IN_BLOCK = re.compile(r"(?P<way>down|up)_blocks\.(?P<block>\d+)\.(?P<kind>\w+)\.(?P<number>\d+)\.(?P<rest>.+)")
_IN_THE_MIDDLE = re.compile(r"mid_block\.(?P<kind>resnets|attentions)\.(?P<number>\d+)\.(?P<rest>.+)")


def kohya_modules(weights: Iterable[str], pipeline_class: str) -> dict[str, tuple[str, ...]]:
    """kohya's name of each module -> the weights of a denoiser, by diffusers' names, that its rows change, first rows first.

    `weights` chooses the modules: every module that changes one of them is there, with all of its weights. What has no name in
    kohya's model (the norms of a transformer) is left out. A module of SDXL is there twice: by its path in sgm's U-Net, and in
    diffusers'. The path in sgm's depends on the resnets of a block, which are counted in `weights`, and are two, as in SDXL, if
    it has none of them.

    Raises ModelError for a pipeline that kohya does not train.
    """
    paths = [weight.removesuffix(".weight") for weight in weights if weight.endswith(".weight")]
    if pipeline_class in (_FLUX, _SD3):
        return _by_table(paths, _OF_FLUX if pipeline_class == _FLUX else _OF_SD3)
    if pipeline_class not in PIPELINES:
        raise ModelError(f"kohya trains no {pipeline_class}", f"use a model of one of {', '.join(PIPELINES)}")
    found: dict[str, tuple[str, ...]] = {_name(path): (f"{path}.weight",) for path in paths}
    if pipeline_class == _SDXL:
        resnets = [int(match["number"]) for path in paths if (match := _IN_BLOCK.fullmatch(path)) and _is_down_resnet(match)]
        per_block = max(resnets) + 1 if resnets else _RESNETS_OF_SDXL
        found |= {_name(sgm): (f"{path}.weight",) for path in paths if (sgm := _path_in_sgm(path, per_block))}
    return found


def has_swapped_halves(weight: str, weights: Iterable[str], pipeline_class: str) -> bool:
    """Whether kohya's model has the two halves of the rows of this weight in the other order than diffusers'.

    They are shift and scale of the last modulations: that of the output (SD3, Flux), and of the text in the last block of SD3.
    `weights` are all of the denoiser.
    """
    if pipeline_class in (_FLUX, _SD3) and weight == "norm_out.linear.weight":
        return True
    block = re.fullmatch(r"transformer_blocks\.(\d+)\.norm1_context\.linear\.weight", weight)
    if pipeline_class != _SD3 or block is None:
        return False
    following = f"transformer_blocks.{int(block[1]) + 1}."
    return not any(other.startswith(following) for other in weights)


def _name(path: str) -> str:
    return PREFIX + path.replace(".", "_")


def _by_table(paths: Sequence[str], table: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    rows = {each: (theirs, ours) for theirs, ours in table.items() for each in ours}
    found = dict[str, tuple[str, ...]]()
    for path in paths:
        number = re.search(r"(?<=blocks\.)\d+", path)
        block = number[0] if number else ""
        if row := rows.get(re.sub(r"(?<=blocks\.)\d+", "{}", path)):
            theirs, ours = row
            found[_name(theirs.format(block))] = tuple(f"{each.format(block)}.weight" for each in ours)
    return found


def _is_down_resnet(match: re.Match[str]) -> bool:
    return match["way"] == "down" and match["kind"] == "resnets"


def _path_in_sgm(path: str, per_block: int) -> str | None:
    """The path of diffusers' U-Net in sgm's, whose blocks on the way down and up are one list each, counted through."""
    if middle := _IN_THE_MIDDLE.fullmatch(path):
        number = 2 * int(middle["number"]) + (middle["kind"] == "attentions")  # a resnet, the attention, a resnet
        return f"middle_block.{number}.{_in_part(middle)}"
    if not (match := _IN_BLOCK.fullmatch(path)):
        return _OUTSIDE_BLOCKS.get(path)
    block, number = int(match["block"]), int(match["number"])
    if match["kind"] == "downsamplers":
        return f"input_blocks.{(block + 1) * (per_block + 1)}.0.op"
    if match["kind"] == "upsamplers":  # after a resnet and its attention
        return f"output_blocks.{block * (per_block + 1) + per_block}.2.{match['rest']}"
    place = block * (per_block + 1) + number
    inside = f"{int(match['kind'] == 'attentions')}.{_in_part(match)}"
    return f"input_blocks.{place + 1}.{inside}" if match["way"] == "down" else f"output_blocks.{place}.{inside}"


def _in_part(match: re.Match[str]) -> str:
    return _OF_RESNET[match["rest"]] if match["kind"] == "resnets" else match["rest"]
