"""Tiny random pipelines of the architectures that people use, built from their configs: nothing is downloaded.

Their weights mean nothing, but their wiring is the real one: what each projection receives, what is shared, what is masked.
"""

from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WIDTH, TEXT = 32, 24
FLUX_SHAPE = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (4, 4, 8),
}
# Of the transformer and of a control network beside it.
SD3_SHAPE = {
    "sample_size": 8,
    "in_channels": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 2 * TEXT,
    "out_channels": 4,
    "pos_embed_max_size": 16,
}
QWEN_SHAPE = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (4, 6, 6),
}


def with_class(name: str, pipe: Any, **parts: Any) -> Any:
    """The parts of a pipeline, but those that are None, in another pipeline class, with these in their place or beside them."""
    components = {part: made for part, made in pipe.components.items() if made is not None}
    return getattr(diffusers, name)(**{**components, **parts})


def clip_tokenizer() -> CLIPTokenizer:
    """Bytes and their forms at the end of a word: no merges, no files."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77)


def t5_tokenizer(**changes: Any) -> T5Tokenizer:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(chr(code) for code in range(33, 127))]
    return T5Tokenizer(
        vocab=[(piece, 0.0 if number < 3 else -2.0) for number, piece in enumerate(pieces)], extra_ids=0, **changes
    )


def clip(dim: int = TEXT, projection: int | None = None, **changes: Any) -> Any:
    made = CLIPTextModel if projection is None else CLIPTextModelWithProjection
    return made(
        CLIPTextConfig(
            vocab_size=514,
            hidden_size=dim,
            intermediate_size=2 * dim,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=projection or dim,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
            **changes,
        )
    )


def t5(dim: int = TEXT) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=128, d_model=dim, d_kv=8, d_ff=2 * dim, num_layers=1, num_heads=2))


def vae(levels: int = 2, shift: float | None = None, latents: int = 4, **changes: Any) -> diffusers.AutoencoderKL:
    """Images are 2^(levels - 1) times as large as latents; latents of flow matching are shifted."""
    settings = {
        "block_out_channels": (8,) * levels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": 2,
        "latent_channels": latents,
        "sample_size": 16,
        "shift_factor": shift,
    }
    return diffusers.AutoencoderKL(**{**settings, **changes})


def unet(**changes: Any) -> diffusers.UNet2DConditionModel:
    settings = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (WIDTH, 2 * WIDTH),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": TEXT,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return diffusers.UNet2DConditionModel(**{**settings, **changes})


def sd1() -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=unet(),
        scheduler=diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd2() -> Any:
    """As Stable Diffusion 2: linear projections, v-prediction."""
    pipe = sd1()
    return diffusers.StableDiffusionPipeline(
        **{
            **pipe.components,
            "unet": unet(use_linear_projection=True, attention_head_dim=(2, 4)),
            "scheduler": diffusers.DDIMScheduler(**BETAS, prediction_type="v_prediction", clip_sample=False, steps_offset=1),
        },
        requires_safety_checker=False,
    )


def lcm() -> Any:
    pipe = sd1()
    return diffusers.LatentConsistencyModelPipeline(
        **{**pipe.components, "unet": unet(time_cond_proj_dim=16), "scheduler": diffusers.LCMScheduler(**BETAS)},
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip(TEXT),
        text_encoder_2=clip(TEXT, TEXT),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            cross_attention_dim=2 * TEXT,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + TEXT,
            transformer_layers_per_block=(1, 2),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            use_linear_projection=True,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS),
        add_watermarker=False,
    )


def pixart(**changes: Any) -> Any:
    """It chooses among known sizes by itself; 256 pixels are the smallest."""
    return diffusers.PixArtSigmaPipeline(**_pixart_parts(**{"use_additional_conditions": False, **changes}))


def pixart_alpha(**changes: Any) -> Any:
    """As PixArt Alpha of 1024 pixels: its transformer is told the size and the aspect of the picture."""
    width = {"attention_head_dim": 24, "cross_attention_dim": 48}  # a third for each number of the size, and the aspect
    # A quarter of the model's own tokens: it takes no size but its own, and attention goes by their square.
    shape = {"sample_size": 128, "patch_size": 4, **width}
    return diffusers.PixArtAlphaPipeline(**_pixart_parts(**{**shape, **changes}))


def pixart_alpha_512() -> Any:
    """As PixArt Alpha of 512 pixels, which is told neither."""
    return pixart_alpha(sample_size=64)


def _pixart_parts(**changes: Any) -> dict[str, Any]:
    settings = {
        "sample_size": 32,
        "patch_size": 2,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
        "caption_channels": TEXT,
        "in_channels": 4,
        "out_channels": 8,
    }
    return {
        "vae": vae(4),
        "text_encoder": t5(),
        "tokenizer": t5_tokenizer(),
        "transformer": diffusers.PixArtTransformer2DModel(**{**settings, **changes}),
        "scheduler": diffusers.DPMSolverMultistepScheduler(**BETAS),
    }


def sd3(**changes: Any) -> Any:
    return diffusers.StableDiffusion3Pipeline(
        vae=vae(shift=0.06),
        text_encoder=clip(TEXT, TEXT),
        text_encoder_2=clip(TEXT, TEXT),
        text_encoder_3=t5(64),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer(),
        transformer=diffusers.SD3Transformer2DModel(patch_size=2, num_layers=2, **SD3_SHAPE, **changes),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def sd35() -> Any:
    """As Stable Diffusion 3.5 medium: the first block attends to the image a second time."""
    return sd3(dual_attention_layers=(0,), qk_norm="rms_norm")


def flux() -> Any:
    return diffusers.FluxPipeline(
        vae=vae(shift=0.06),
        text_encoder=clip(TEXT),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(TEXT),
        tokenizer_2=t5_tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            **FLUX_SHAPE,
            pooled_projection_dim=TEXT,
            guidance_embeds=True,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
    )


def chroma() -> Any:
    """Its mask covers text and image, and spares the first token of padding."""
    return diffusers.ChromaPipeline(
        vae=vae(),
        text_encoder=t5(TEXT),
        tokenizer=t5_tokenizer(),
        transformer=diffusers.ChromaTransformer2DModel(
            **FLUX_SHAPE,
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Bytes, and three marks."""
    words = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return Qwen2Tokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])


def qwen_image() -> Any:
    """Its text is as long as the longest prompt of a batch, and has no mask if all are that long."""
    return diffusers.QwenImagePipeline(
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=4, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4, num_res_blocks=1
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(
                text_config={
                    "vocab_size": 259,
                    "hidden_size": TEXT,
                    "intermediate_size": 2 * TEXT,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]},
                    "bos_token_id": None,
                    "eos_token_id": 256,
                },
                vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": TEXT},
                image_token_id=256,
                video_token_id=256,
                vision_start_token_id=256,
                vision_end_token_id=256,
            )
        ),
        tokenizer=qwen_tokenizer(),
        transformer=diffusers.QwenImageTransformer2DModel(**QWEN_SHAPE),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


PIPELINES = {made.__name__: made for made in (sd1, sd2, sdxl, lcm, pixart, pixart_alpha, sd3, flux)}
VARIANTS = {made.__name__: made for made in (pixart_alpha_512, sd35)}
UNEQUAL_TEXTS = {made.__name__: made for made in (chroma, qwen_image)}  # masked under other names than PixArt's


def saved(name: str, folder: Path) -> Path:
    """A folder with the pipeline of this name, as `save_pretrained` writes it; the same weights every time."""
    torch.manual_seed(0)
    (PIPELINES | VARIANTS | UNEQUAL_TEXTS)[name]().save_pretrained(folder / name)
    return folder / name
