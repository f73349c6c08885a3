"""Stand-ins for the models that kohya trains: its classes' names and its paths, over the layers of a pipeline of diffusers.

A layer is the same object in both, so that a LoRA on it acts in diffusers' forward. Fused layers are new ones, and the layers of
diffusers that they replace take their rows from them.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


class _Model(nn.Module):
    """Around the denoiser, which is no child: its weights have kohya's paths only."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.denoiser = [denoiser]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.denoiser[0](*args, **kwargs)


class SdxlUNet2DConditionModel(_Model):
    """sgm's paths: a block on the way down is its two resnets with attention and a downsampler, on the way up three."""

    def __init__(self, unet: Any) -> None:
        super().__init__(unet)
        down = [nn.ModuleList([nn.Identity()])]
        for block in unet.down_blocks:
            down += [nn.ModuleList([*pair]) for pair in zip(block.resnets, _attentions(block), strict=True)]
            down += [nn.ModuleList([nn.Identity()])]
        self.input_blocks = nn.ModuleList(down)
        middle = unet.mid_block
        self.middle_block = nn.ModuleList([middle.resnets[0], middle.attentions[0], middle.resnets[1]])
        self.output_blocks = nn.ModuleList(
            nn.ModuleList([*pair]) for block in unet.up_blocks for pair in zip(block.resnets, _attentions(block), strict=True)
        )


def _attentions(block: Any) -> Any:
    return getattr(block, "attentions", None) or [nn.Identity() for _ in block.resnets]


def fused(*layers: Any) -> nn.Linear:
    """One layer with the rows of several, which from now on ask it for theirs."""
    rows = [len(layer.weight) for layer in layers]
    made = nn.Linear(layers[0].in_features, sum(rows))
    with torch.no_grad():
        made.weight.copy_(torch.cat([layer.weight for layer in layers]))
        made.bias.copy_(torch.cat([layer.bias for layer in layers]))
    for number, layer in enumerate(layers):
        layer.forward = lambda x, number=number: made(x).split(rows, -1)[number]
    return made


class DoubleStreamBlock(nn.Module):
    def __init__(self, block: Any) -> None:
        super().__init__()
        attn, ff, ff_context = block.attn, block.ff.net, block.ff_context.net
        self.img_mod = nn.ModuleDict({"lin": block.norm1.linear})
        self.img_attn = nn.ModuleDict({"qkv": fused(attn.to_q, attn.to_k, attn.to_v), "proj": attn.to_out[0]})
        self.img_mlp = nn.ModuleList([ff[0].proj, nn.Identity(), ff[2]])
        self.txt_mod = nn.ModuleDict({"lin": block.norm1_context.linear})
        text = fused(attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        self.txt_attn = nn.ModuleDict({"qkv": text, "proj": attn.to_add_out})
        self.txt_mlp = nn.ModuleList([ff_context[0].proj, nn.Identity(), ff_context[2]])


class SingleStreamBlock(nn.Module):
    def __init__(self, block: Any) -> None:
        super().__init__()
        attn = block.attn
        self.linear1 = fused(attn.to_q, attn.to_k, attn.to_v, block.proj_mlp)
        self.linear2 = block.proj_out
        self.modulation = nn.ModuleDict({"lin": block.norm.linear})


class Flux(_Model):
    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        self.params = SimpleNamespace(guidance_embed=transformer.config.guidance_embeds)
        self.double_blocks = nn.ModuleList(map(DoubleStreamBlock, transformer.transformer_blocks))
        self.single_blocks = nn.ModuleList(map(SingleStreamBlock, transformer.single_transformer_blocks))


class SingleDiTBlock(nn.Module):
    def __init__(self, q: Any, k: Any, v: Any, proj: Any, norm: Any) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"qkv": fused(q, k, v), **({} if proj is None else {"proj": proj})})
        self.adaLN_modulation = nn.ModuleList([nn.Identity(), norm.linear])


class MMDiT(_Model):
    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        blocks = []
        for block in transformer.transformer_blocks:
            attn = block.attn
            image = SingleDiTBlock(attn.to_q, attn.to_k, attn.to_v, attn.to_out[0], block.norm1)
            text = SingleDiTBlock(
                attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, getattr(attn, "to_add_out", None), block.norm1_context
            )
            blocks.append(nn.ModuleDict({"x_block": image, "context_block": text}))
        self.joint_blocks = nn.ModuleList(blocks)


def as_kohya_loads_it(pipe: Any) -> Any:
    """The denoiser of a pipeline, as the object that kohya's scripts give to a network."""
    made = {"StableDiffusionXLPipeline": SdxlUNet2DConditionModel, "FluxPipeline": Flux, "StableDiffusion3Pipeline": MMDiT}
    kind = type(pipe).__name__
    return made[kind](pipe.transformer if hasattr(pipe, "transformer") else pipe.unet) if kind in made else pipe.unet


def text_encoders(pipe: Any) -> Any:
    """One, or a list of them."""
    found = [getattr(pipe, name) for name in ("text_encoder", "text_encoder_2", "text_encoder_3") if hasattr(pipe, name)]
    return found if len(found) > 1 else found[0]
