"""Tiny random pipelines of Flux and of what was built on its transformer."""

from typing import Any

import diffusers

from tests.support.tiny import FLUX_SHAPE, TEXT, chroma, flux, t5, t5_tokenizer, vae, with_class
from tests.support.zoo.language_models import language_model, qwen_tokenizer

SHIFTING = {"use_dynamic_shifting": True, "shift": 3.0}


def flow(**changes: Any) -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **changes})


def flux_transformer(**changes: Any) -> diffusers.FluxTransformer2DModel:
    shape = {"patch_size": 1, **FLUX_SHAPE, "pooled_projection_dim": TEXT, "guidance_embeds": True, **changes}
    return diffusers.FluxTransformer2DModel(**shape)


def flux_as(name: str, **parts: Any) -> Any:
    """The parts of Flux in another pipeline class, with these in their place or beside them."""
    return with_class(name, flux(), **parts)


def flux_with_channels(name: str, in_channels: int) -> Any:
    """Flux whose transformer takes channels of a picture beside those of the latents."""
    return flux_as(name, transformer=flux_transformer(in_channels=in_channels, out_channels=16))


def flux_controlnet(name: str) -> Any:
    shape = {**FLUX_SHAPE, "num_layers": 1, "num_single_layers": 1}
    return flux_as(
        name, controlnet=diffusers.FluxControlNetModel(patch_size=1, **shape, pooled_projection_dim=TEXT, guidance_embeds=True)
    )


def chroma_as(name: str) -> Any:
    return with_class(name, chroma(), vae=vae(shift=0.06))


def flux2_vae() -> Any:
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        sample_size=16,
    )


def flux2_transformer(joint: int, *, guidance: bool) -> Any:
    return diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=joint,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )


def flux2_klein(name: str = "Flux2KleinPipeline", **changes: Any) -> Any:
    """Its text are three layers of the language model, of which this one has 28 for that."""
    return getattr(diffusers, name)(
        scheduler=flow(**SHIFTING),
        vae=flux2_vae(),
        text_encoder=language_model("Qwen3ForCausalLM", num_hidden_layers=28),
        tokenizer=qwen_tokenizer(),
        transformer=flux2_transformer(3 * TEXT, guidance=False),
        **changes,
    )


def bria() -> Any:
    return diffusers.BriaPipeline(
        vae=vae(),
        text_encoder=t5(TEXT),
        tokenizer=t5_tokenizer(),
        transformer=diffusers.BriaTransformer2DModel(**FLUX_SHAPE, pooled_projection_dim=None),
        scheduler=flow(**SHIFTING),
    )


def ovis() -> Any:
    return diffusers.OvisImagePipeline(
        scheduler=flow(**SHIFTING),
        vae=vae(shift=0.06),
        text_encoder=language_model("Qwen3Model"),
        tokenizer=qwen_tokenizer(),
        transformer=diffusers.OvisImageTransformer2DModel(
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT,
            axes_dims_rope=(4, 4, 8),
        ),
    )
