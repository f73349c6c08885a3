"""Tiny random pipelines of transformers that are newer than the rest, or that few people use."""

from typing import Any

import diffusers
from transformers import (
    ByT5Tokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Mistral3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
)

from tests.support.tiny import TEXT, clip, clip_tokenizer, t5, t5_tokenizer, vae
from tests.support.zoo.flux_family import SHIFTING, flow, flux2_transformer, flux2_vae
from tests.support.zoo.language_models import SHAPE, language_model, qwen_tokenizer, qwen_vl

QWEN_VAE = {"base_dim": 4, "z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "num_res_blocks": 1}


def mistral(made: Any, **changes: Any) -> Any:
    return made(
        Mistral3Config(
            text_config={**SHAPE, "model_type": "mistral", **changes},
            vision_config={
                "model_type": "pixtral",
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 8,
            },
        )
    )


def qwen3_vl(made: Any, **changes: Any) -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]}
    return made(
        Qwen3VLConfig(
            text_config={**SHAPE, "rope_parameters": rope, **changes},
            vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": TEXT},
        )
    )


def flux2() -> Any:
    """Its text are the layers 10, 20 and 30 of the language model."""
    return diffusers.Flux2Pipeline(
        scheduler=flow(**SHIFTING),
        vae=flux2_vae(),
        text_encoder=mistral(Mistral3ForConditionalGeneration, num_hidden_layers=30),
        tokenizer=qwen_tokenizer(),
        transformer=flux2_transformer(3 * TEXT, guidance=True),
    )


def longcat() -> Any:
    """The processor of pictures and text rewrites prompts alone, and its place is taken by the tokenizer here."""
    return diffusers.LongCatImagePipeline(
        scheduler=flow(**SHIFTING),
        vae=vae(shift=0.06, latents=16),
        text_encoder=qwen_vl(),
        tokenizer=qwen_tokenizer(),
        text_processor=qwen_tokenizer(),
        transformer=diffusers.LongCatImageTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT,
            pooled_projection_dim=TEXT,
            axes_dims_rope=(4, 4, 8),
        ),
    )


def krea2() -> Any:
    return diffusers.Krea2Pipeline(
        scheduler=flow(**SHIFTING),
        vae=diffusers.AutoencoderKLQwenImage(**QWEN_VAE),
        text_encoder=qwen3_vl(Qwen3VLModel, num_hidden_layers=2),
        tokenizer=qwen_tokenizer(),
        transformer=diffusers.Krea2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            timestep_embed_dim=16,
            text_hidden_dim=TEXT,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=32,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 6, 6),
        ),
        text_encoder_select_layers=(1, 2),
    )


def ernie() -> Any:
    return diffusers.ErnieImagePipeline(
        transformer=diffusers.ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=64,
            in_channels=16,
            out_channels=16,
            text_in_dim=TEXT,
            rope_axes_dim=(4, 6, 6),
        ),
        vae=flux2_vae(),
        text_encoder=mistral(Mistral3Model),
        tokenizer=qwen_tokenizer(),
        scheduler=flow(),
    )


def hunyuan_image() -> Any:
    t5_shape = {"d_model": TEXT, "d_kv": 8, "d_ff": 2 * TEXT, "num_layers": 1, "num_heads": 2}
    return diffusers.HunyuanImagePipeline(
        scheduler=flow(),
        vae=diffusers.AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32),
            layers_per_block=1,
            spatial_compression_ratio=2,
            sample_size=16,
            scaling_factor=0.75,
        ),
        text_encoder=qwen_vl(num_hidden_layers=3),
        tokenizer=qwen_tokenizer(),
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=384, **t5_shape)),
        tokenizer_2=ByT5Tokenizer(),
        transformer=diffusers.HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            text_embed_dim=TEXT,
            text_embed_2_dim=TEXT,
            rope_axes_dim=(8, 8),
        ),
    )


def prx() -> Any:
    return diffusers.PRXPipeline(
        transformer=diffusers.PRXTransformer2DModel(
            in_channels=4, context_in_dim=TEXT, hidden_size=32, mlp_ratio=2.0, num_heads=2, depth=2, axes_dim=[8, 8]
        ),
        scheduler=flow(),
        text_encoder=t5(TEXT),
        tokenizer=t5_tokenizer(model_max_length=64),
        vae=vae(4),
        default_sample_size=256,
    )


def bria_fibo() -> Any:
    return diffusers.BriaFiboPipeline(
        transformer=diffusers.BriaFiboTransformer2DModel(
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=2 * TEXT,
            axes_dims_rope=[4, 4, 8],
            text_encoder_dim=TEXT,
        ),
        scheduler=flow(**SHIFTING),
        vae=wan_vae(),
        text_encoder=language_model("SmolLM3ForCausalLM", vocab_size=128_001, num_hidden_layers=2),
        tokenizer=qwen_tokenizer(),
    )


def wan_vae() -> Any:
    shape = {"base_dim": 3, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    return diffusers.AutoencoderKLWan(**shape, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)


def kandinsky5() -> Any:
    """It chooses among known sizes of 1024 pixels; large patches leave 64 tokens."""
    return diffusers.Kandinsky5T2IPipeline(
        transformer=diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=TEXT,
            in_text_dim2=TEXT,
            time_dim=16,
            out_visual_dim=4,
            patch_size=(1, 16, 16),
            model_dim=32,
            ff_dim=64,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(4, 6, 6),
        ),
        vae=vae(4),
        text_encoder=qwen_vl(),
        tokenizer=qwen_tokenizer(),
        text_encoder_2=clip(TEXT),
        tokenizer_2=clip_tokenizer(),
        scheduler=flow(),
    )
