"""Tiny pipelines of video whose text is that of a language model: Llama, Qwen, Gemma."""

from typing import Any

import diffusers
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from transformers import (
    ByT5Tokenizer,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5EncoderModel,
    T5Gemma2Encoder,
    T5Gemma2EncoderConfig,
    T5Gemma2TextConfig,
)

from tests.support.tiny import TEXT, clip, clip_tokenizer, t5_tokenizer
from tests.support.zoo.language_models import SHAPE, language_model, qwen_tokenizer, qwen_vl
from tests.support.zoo.wan_family import HEADS, flow, wan_vae


def llama_tokenizer() -> Any:
    """Its instruction before a prompt has as many tokens as the pipeline cuts off."""
    instruction = DEFAULT_PROMPT_TEMPLATE["template"].partition("{}")[0]
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens([instruction[: 1 - DEFAULT_PROMPT_TEMPLATE["crop_start"]]])
    return tokenizer


def llama() -> Any:
    return LlamaModel(
        LlamaConfig(vocab_size=514, hidden_size=TEXT, intermediate_size=2 * TEXT, num_hidden_layers=3, num_attention_heads=2)
    )


def hunyuan_vae() -> Any:
    blocks = 2
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * blocks,
        up_block_types=("HunyuanVideoUpBlock3D",) * blocks,
        block_out_channels=(8,) * blocks,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )


def hunyuan_video() -> Any:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=TEXT,
        pooled_projection_dim=TEXT,
        rope_axes_dim=(4, 4, 4),
    )
    return diffusers.HunyuanVideoPipeline(
        vae=hunyuan_vae(),
        text_encoder=llama(),
        tokenizer=llama_tokenizer(),
        text_encoder_2=clip(),
        tokenizer_2=clip_tokenizer(),
        transformer=transformer,
        scheduler=flow(shift=7.0),
    )


def hunyuan_video15() -> Any:
    """Its text is that of a language model and of the glyphs in quotes, each with a mask; guidance is a part of its own."""
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        **HEADS,
        in_channels=9,
        out_channels=4,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=TEXT,
        text_embed_2_dim=TEXT,
        image_embed_dim=12,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type="t2v",
    )
    return diffusers.HunyuanVideo15Pipeline(
        vae=vae,
        text_encoder=language_model("Qwen2_5_VLTextModel", num_hidden_layers=3, **qwen_rope()),
        tokenizer=qwen_tokenizer(),
        text_encoder_2=t5_of_bytes(),
        tokenizer_2=ByT5Tokenizer(),
        transformer=transformer,
        scheduler=flow(shift=7.0),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=4.0),
    )


def t5_of_bytes() -> Any:
    return T5EncoderModel(T5Config(vocab_size=384, d_model=TEXT, d_kv=8, d_ff=2 * TEXT, num_layers=1, num_heads=2))


def qwen_rope() -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]}}


def easy_animate() -> Any:
    blocks = 4
    vae = diffusers.AutoencoderKLMagvit(
        down_block_types=("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3),
        up_block_types=("SpatialUpBlock3D", *("SpatialTemporalUpBlock3D",) * 3),
        block_out_channels=(8,) * blocks,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    transformer = diffusers.EasyAnimateTransformer3DModel(
        **HEADS,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=TEXT,
        num_layers=2,
        mmdit_layers=1,
        sample_width=16,
        sample_height=16,
        patch_size=2,
    )
    return diffusers.EasyAnimatePipeline(
        vae=vae, text_encoder=qwen_vl(), tokenizer=qwen_tokenizer(), transformer=transformer, scheduler=flow()
    )


def kandinsky5() -> Any:
    """Its text has no mask: where prompts of a batch have unequal lengths, it attends to padding as well."""
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=TEXT,
        in_text_dim2=TEXT,
        time_dim=16,
        out_visual_dim=4,
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(1, 1, 2),
    )
    return diffusers.Kandinsky5T2VPipeline(
        vae=hunyuan_vae(),
        text_encoder=qwen_vl(),
        tokenizer=qwen_tokenizer(),
        text_encoder_2=clip(),
        tokenizer_2=clip_tokenizer(),
        transformer=transformer,
        scheduler=flow(shift=7.0),
    )


def motif_video() -> Any:
    config = T5Gemma2TextConfig(
        **{**SHAPE, "vocab_size": 128, "pad_token_id": 0, "dropout_rate": 0.0, "max_position_embeddings": 512}
    )
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    transformer = diffusers.MotifVideoTransformer3DModel(
        **HEADS,
        in_channels=2 * 4 + 1,
        out_channels=4,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=1,
        patch_size=1,
        text_embed_dim=TEXT,
        rope_axes_dim=(4, 4, 4),
    )
    return diffusers.MotifVideoPipeline(
        vae=wan_vae(),
        text_encoder=T5Gemma2Encoder(T5Gemma2EncoderConfig(text_config=config, vision_config=vision)),
        tokenizer=t5_tokenizer(),
        transformer=transformer,
        scheduler=flow(shift=7.0),
        guider=diffusers.AdaptiveProjectedGuidance(guidance_scale=4.0),
        feature_extractor=None,
    )
