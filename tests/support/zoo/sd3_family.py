"""Tiny random pipelines of Stable Diffusion 3 and of the transformers around it: AuraFlow, CogView, HunyuanDiT, PixArt."""

from typing import Any

import diffusers

from tests.support.tiny import BETAS, SD3_SHAPE, TEXT, clip, clip_tokenizer, pixart, sd3, t5, t5_tokenizer, vae, with_class
from tests.support.zoo.flux_family import flow
from tests.support.zoo.language_models import bert, bert_tokenizer, glm_tokenizer, language_model, qwen_tokenizer


def sd3_as(name: str, **parts: Any) -> Any:
    return with_class(name, sd3(), **parts)


def sd3_inpaint() -> Any:
    """It takes latents of 16 channels alone."""
    made = sd3().transformer
    transformer = type(made).from_config({**made.config, "in_channels": 16, "out_channels": 16})
    return sd3_as("StableDiffusion3InpaintPipeline", transformer=transformer, vae=vae(shift=0.06, latents=16))


def sd3_controlnet(name: str, extra_channels: int = 0) -> Any:
    net = diffusers.SD3ControlNetModel(num_layers=1, extra_conditioning_channels=extra_channels, **SD3_SHAPE)
    return sd3_as(name, controlnet=net)


def pixart_as(name: str, **parts: Any) -> Any:
    return with_class(name, pixart(), **parts)


def auraflow() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(vocab_size=128, d_model=TEXT, d_kv=8, d_ff=2 * TEXT, num_layers=1, num_heads=2)
    return diffusers.AuraFlowPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=UMT5EncoderModel(config),
        vae=vae(),
        transformer=diffusers.AuraFlowTransformer2DModel(
            sample_size=8,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=TEXT,
            caption_projection_dim=32,
            pos_embed_max_size=256,
        ),
        scheduler=flow(),
    )


def cogview_shape(rope: bool) -> dict[str, Any]:
    shape = {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "text_embed_dim": TEXT,
        "time_embed_dim": 16,
        "condition_dim": 4,
        "pos_embed_max_size": 16,
        "sample_size": 8,
    }
    return {**shape, "rope_axes_dim": (8, 8)} if rope else shape


def cogview3() -> Any:
    return diffusers.CogView3PlusPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(TEXT),
        vae=vae(),
        transformer=diffusers.CogView3PlusTransformer2DModel(**cogview_shape(rope=False)),
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )


def cogview4() -> Any:
    return diffusers.CogView4Pipeline(
        tokenizer=glm_tokenizer(),
        text_encoder=language_model("GlmModel"),
        vae=vae(),
        transformer=diffusers.CogView4Transformer2DModel(**cogview_shape(rope=True)),
        scheduler=flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, base_image_seq_len=256),
    )


HUNYUAN_SHAPE = {
    "sample_size": 8,
    "patch_size": 16,
    "in_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "hidden_size": 32,
    "cross_attention_dim": TEXT,
    "cross_attention_dim_t5": TEXT,
    "pooled_projection_dim": 16,
    "use_style_cond_and_image_meta_size": False,
}


def hunyuandit(name: str = "HunyuanDiTPipeline", **parts: Any) -> Any:
    """It chooses among known sizes, of which 1024 pixels are the smallest square; large patches leave 64 tokens."""
    return getattr(diffusers, name)(
        vae=vae(4, block_out_channels=(2,) * 4, mid_block_add_attention=False),
        text_encoder=bert(),
        tokenizer=bert_tokenizer(),
        text_encoder_2=t5(TEXT),
        tokenizer_2=t5_tokenizer(),
        transformer=diffusers.HunyuanDiT2DModel(**HUNYUAN_SHAPE, num_layers=2),
        scheduler=diffusers.DDPMScheduler(**BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )


def hunyuandit_controlnet() -> Any:
    net = diffusers.HunyuanDiT2DControlNetModel(**HUNYUAN_SHAPE, transformer_num_layers=2)
    return hunyuandit("HunyuanDiTControlNetPipeline", controlnet=net)


def hidream() -> Any:
    """It draws 128 latents a side, whatever is asked for; large patches leave 256 tokens."""
    return diffusers.HiDreamImagePipeline(
        scheduler=flow(),
        vae=vae(1, shift=0.06),
        text_encoder=clip(TEXT, TEXT, max_position_embeddings=128),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(TEXT, TEXT, max_position_embeddings=128),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(TEXT),
        tokenizer_3=t5_tokenizer(),
        text_encoder_4=language_model("LlamaForCausalLM", num_hidden_layers=2),
        tokenizer_4=qwen_tokenizer(),
        transformer=diffusers.HiDreamImageTransformer2DModel(
            patch_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=[TEXT, TEXT],
            text_emb_dim=2 * TEXT,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(8, 4, 4),
            max_resolution=(16, 16),
            llama_layers=[0, 1],
        ),
    )
