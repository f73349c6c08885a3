"""Tiny pipelines of video whose denoiser is a U-Net: frames are rows, and blocks of space and of time take turns."""

from typing import Any

import diffusers
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.support.tiny import BETAS, TEXT, WIDTH, clip, clip_tokenizer, sdxl, unet, vae

CHANNELS = (WIDTH, WIDTH)
BLOCKS = {
    "sample_size": 8,
    "block_out_channels": CHANNELS,
    "layers_per_block": 1,
    "cross_attention_dim": TEXT,
    "norm_num_groups": 4,
}


def scheduler() -> Any:
    return diffusers.DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1)


def motion_adapter(**changes: Any) -> Any:
    settings = {
        "block_out_channels": CHANNELS,
        "motion_layers_per_block": 1,
        "motion_norm_num_groups": 4,
        "motion_num_attention_heads": 2,
        "motion_max_seq_length": 8,
        "use_motion_mid_block": False,
    }
    return diffusers.MotionAdapter(**{**settings, **changes})


def with_clip() -> dict[str, Any]:
    return {"vae": vae(), "text_encoder": clip(), "tokenizer": clip_tokenizer(), "scheduler": scheduler()}


def of_motion(made: Any = diffusers.AnimateDiffPipeline, **changes: Any) -> Any:
    parts = {"unet": unet(block_out_channels=CHANNELS), "motion_adapter": motion_adapter()}
    return made(**with_clip(), **parts, **changes)


def animatediff() -> Any:
    return of_motion()


def animatediff_pag() -> Any:
    return of_motion(diffusers.AnimateDiffPAGPipeline, pag_applied_layers="mid")


def animatediff_video_to_video() -> Any:
    return of_motion(diffusers.AnimateDiffVideoToVideoPipeline)


def controlnet() -> Any:
    return diffusers.ControlNetModel(
        block_out_channels=CHANNELS,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        cross_attention_dim=TEXT,
        conditioning_embedding_out_channels=(8, 8),
        attention_head_dim=4,
        norm_num_groups=4,
    )


def animatediff_controlnet() -> Any:
    return of_motion(diffusers.AnimateDiffControlNetPipeline, controlnet=controlnet())


def animatediff_video_to_video_controlnet() -> Any:
    return of_motion(diffusers.AnimateDiffVideoToVideoControlNetPipeline, controlnet=controlnet())


def animatediff_sparse_controlnet() -> Any:
    sparse = diffusers.SparseControlNetModel(
        block_out_channels=CHANNELS,
        layers_per_block=1,
        conditioning_channels=4,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        cross_attention_dim=TEXT,
        attention_head_dim=4,
        norm_num_groups=4,
        motion_num_attention_heads=2,
    )
    return of_motion(diffusers.AnimateDiffSparseControlNetPipeline, controlnet=sparse)


def animatediff_sdxl() -> Any:
    parts = sdxl().components
    parts |= {"scheduler": scheduler(), "motion_adapter": motion_adapter(block_out_channels=(WIDTH, 2 * WIDTH))}
    return diffusers.AnimateDiffSDXLPipeline(**parts)


def pia() -> Any:
    adapter = motion_adapter(conv_in_channels=9)
    return diffusers.PIAPipeline(**with_clip(), unet=unet(block_out_channels=CHANNELS, in_channels=4), motion_adapter=adapter)


def text_to_video(made: Any = diffusers.TextToVideoSDPipeline) -> Any:
    denoiser = diffusers.UNet3DConditionModel(
        **BLOCKS,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )
    return made(**with_clip(), unet=denoiser)


def video_to_video() -> Any:
    return text_to_video(diffusers.VideoToVideoSDPipeline)


def vision(dim: int = TEXT) -> dict[str, Any]:
    config = CLIPVisionConfig(
        hidden_size=dim,
        projection_dim=dim,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        intermediate_size=2 * dim,
        patch_size=16,
    )
    sizes = {"crop_size": 32, "size": 32}
    return {"image_encoder": CLIPVisionModelWithProjection(config), "feature_extractor": CLIPImageProcessor(**sizes)}
