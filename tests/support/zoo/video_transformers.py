"""Tiny pipelines of video: transformers over frames and pixels, with a T5 as text encoder."""

from typing import Any

import diffusers

from tests.support.tiny import TEXT, vae
from tests.support.zoo.wan_family import HEADS, flow, with_t5


def ltx(name: str = "LTXPipeline") -> Any:
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    transformer = diffusers.LTXVideoTransformer3DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=2,
        caption_channels=TEXT,
    )
    return getattr(diffusers, name)(vae=vae, **with_t5(), transformer=transformer, scheduler=flow())


def cogvideox(name: str = "CogVideoXPipeline", channels: int = 4) -> Any:
    blocks = 4
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * blocks,
        up_block_types=("CogVideoXUpBlock3D",) * blocks,
        block_out_channels=(8,) * blocks,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    transformer = diffusers.CogVideoXTransformer3DModel(
        **HEADS,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=TEXT,
        num_layers=2,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=226,
    )
    return getattr(diffusers, name)(vae=vae, **with_t5(), transformer=transformer, scheduler=diffusers.CogVideoXDDIMScheduler())


def mochi() -> Any:
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=4,
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    transformer = diffusers.MochiTransformer3DModel(
        **HEADS,
        attention_head_dim=12,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=TEXT,
        time_embed_dim=4,
        max_sequence_length=256,
    )
    return diffusers.MochiPipeline(vae=vae, **with_t5(), transformer=transformer, scheduler=flow())


def allegro() -> Any:
    blocks = 4
    vae = diffusers.AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * blocks,
        up_block_types=("AllegroUpBlock3D",) * blocks,
        block_out_channels=(8,) * blocks,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    transformer = diffusers.AllegroTransformer3DModel(
        **HEADS,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=24,
        sample_width=4,
        sample_height=4,
        sample_frames=4,
        caption_channels=TEXT,
    )
    return diffusers.AllegroPipeline(
        vae=vae,
        **with_t5(),
        transformer=transformer,
        scheduler=diffusers.EulerAncestralDiscreteScheduler(),
    )


def latte() -> Any:
    """Frames are rows: blocks of space and of time take turns."""
    transformer = diffusers.LatteTransformer3DModel(
        **HEADS,
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=12,
        caption_channels=TEXT,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=4,
    )
    return diffusers.LattePipeline(
        vae=vae(),
        **with_t5(),
        transformer=transformer,
        scheduler=diffusers.DDIMScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02, clip_sample=False),
    )
