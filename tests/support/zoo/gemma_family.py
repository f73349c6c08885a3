"""Tiny random pipelines that read prompts with Gemma, and those with one stream of text and image: Sana, Lumina, Z-Image."""

from typing import Any

import diffusers

from tests.support.tiny import TEXT, vae
from tests.support.zoo.flux_family import flow
from tests.support.zoo.language_models import gemma, gemma_tokenizer, language_model, qwen_tokenizer

# 512 pixels are the smallest of the known sizes that it chooses among.
SANA_SHAPE = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": TEXT,
    "sample_size": 16,
}


def dc_vae() -> Any:
    """Images are 32 times as large as latents."""
    return diffusers.AutoencoderDC(
        latent_channels=4,
        encoder_block_types=("ResBlock",) * 6,
        decoder_block_types=("ResBlock",) * 6,
        encoder_block_out_channels=(4,) * 6,
        decoder_block_out_channels=(4,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        scaling_factor=0.41407,
    )


def sana(name: str = "SanaPipeline", shape: dict[str, Any] | None = None, **parts: Any) -> Any:
    components = {
        "tokenizer": gemma_tokenizer(),
        "text_encoder": gemma(),
        "vae": dc_vae(),
        "transformer": diffusers.SanaTransformer2DModel(**{**SANA_SHAPE, **(shape or {})}),
        "scheduler": flow(),
    }
    return getattr(diffusers, name)(**{**components, **parts})


def sana_sprint(name: str = "SanaSprintPipeline") -> Any:
    """Its timesteps are angles."""
    shape = {"sample_size": 32, "guidance_embeds": True, "qk_norm": "rms_norm_across_heads", "timestep_scale": 1000.0}
    return sana(name, shape, scheduler=diffusers.SCMScheduler())


def sana_controlnet() -> Any:
    return sana("SanaControlNetPipeline", controlnet=diffusers.SanaControlNetModel(**{**SANA_SHAPE, "num_layers": 1}))


def lumina() -> Any:
    return diffusers.LuminaPipeline(
        transformer=diffusers.LuminaNextDiT2DModel(
            sample_size=8,
            hidden_size=32,
            num_layers=2,
            num_attention_heads=2,
            num_kv_heads=2,
            multiple_of=16,
            cross_attention_dim=TEXT,
        ),
        scheduler=flow(),
        vae=vae(),
        text_encoder=gemma(),
        tokenizer=gemma_tokenizer(),
    )


def lumina2() -> Any:
    return diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 6, 6),
            axes_lens=(512, 64, 64),
            cap_feat_dim=TEXT,
        ),
        scheduler=flow(),
        vae=vae(),
        text_encoder=gemma(),
        tokenizer=gemma_tokenizer(),
    )


def z_image(name: str = "ZImagePipeline", **parts: Any) -> Any:
    return getattr(diffusers, name)(
        scheduler=flow(),
        vae=vae(shift=0.06),
        text_encoder=language_model("Qwen3Model"),
        tokenizer=qwen_tokenizer(),
        transformer=diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=TEXT,
            axes_dims=[4, 6, 6],
            axes_lens=[1024, 64, 64],
        ),
        **parts,
    )


def z_image_controlnet(name: str, channels: int) -> Any:
    """Its control network runs refiners of the transformer as well."""
    net = diffusers.ZImageControlNetModel(
        control_layers_places=[0],
        control_refiner_layers_places=[0],
        control_in_dim=channels,
        dim=32,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
    )
    return z_image(name, controlnet=net)
