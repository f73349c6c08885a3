"""Tiny pipelines of several stages: a prior makes an embedding of the image from the text, and a decoder the image."""

from typing import Any

import diffusers
import torch
from diffusers.pipelines.deepfloyd_if.watermark import IFWatermarker
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_diffnext import WuerstchenDiffNeXt
from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_prior import WuerstchenPrior
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.support.tiny import TEXT, clip, clip_tokenizer, t5, t5_tokenizer

CHANNELS = (32, 64)
# U-Nets of pixels or image embeddings: their cross-attention adds keys of the text to those of the image.
ADDED_KEYS = {
    "sample_size": 16,
    "layers_per_block": 1,
    "block_out_channels": CHANNELS,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "cross_attention_dim": TEXT,
    "encoder_hid_dim": TEXT,
    "attention_head_dim": 8,
    "resnet_time_scale_shift": "scale_shift",
    "norm_num_groups": 8,
}


def movq() -> Any:
    return diffusers.VQModel(
        block_out_channels=CHANNELS,
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )


def ddim() -> Any:
    return diffusers.DDIMScheduler(
        beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )


def unclip_scheduler(**changes: Any) -> Any:
    settings = {"variance_type": "fixed_small_log", "prediction_type": "sample", "clip_sample_range": 10.0}
    return diffusers.UnCLIPScheduler(**{**settings, **changes})


def prior_parts() -> dict[str, Any]:
    config = CLIPVisionConfig(
        hidden_size=TEXT,
        projection_dim=TEXT,
        image_size=32,
        patch_size=16,
        intermediate_size=2 * TEXT,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    prior = diffusers.PriorTransformer(num_attention_heads=2, attention_head_dim=12, embedding_dim=TEXT, num_layers=2)
    torch.nn.init.ones_(prior.clip_std)  # else every text has the same embedding
    return {
        "prior": prior,
        "image_encoder": CLIPVisionModelWithProjection(config),
        "text_encoder": clip(TEXT, TEXT),
        "tokenizer": clip_tokenizer(),
        "scheduler": unclip_scheduler(),
        "image_processor": CLIPImageProcessor(crop_size=32, size=32),
    }


def of_prior(parts: dict[str, Any]) -> dict[str, Any]:
    return {f"prior_{name}": part for name, part in parts.items()}


def kandinsky_parts(channels: int) -> dict[str, Any]:
    config = MCLIPConfig(
        numDims=TEXT,
        transformerDimensions=TEXT,
        hidden_size=TEXT,
        intermediate_size=2 * TEXT,
        num_attention_heads=2,
        num_hidden_layers=1,
        vocab_size=128,
    )
    unet = diffusers.UNet2DConditionModel(
        **ADDED_KEYS,
        in_channels=channels,
        out_channels=8,
        addition_embed_type="text_image",
        encoder_hid_dim_type="text_image_proj",
    )
    return {
        "text_encoder": MultilingualCLIP(config).eval(),
        "tokenizer": t5_tokenizer(),
        "unet": unet,
        "scheduler": ddim(),
        "movq": movq(),
    }


def kandinsky_prior() -> Any:
    return diffusers.KandinskyPriorPipeline(**prior_parts())


def kandinsky_combined(name: str = "KandinskyCombinedPipeline", channels: int = 4) -> Any:
    return getattr(diffusers, name)(**kandinsky_parts(channels), **of_prior(prior_parts()))


def kandinsky22_parts(channels: int) -> dict[str, Any]:
    unet = diffusers.UNet2DConditionModel(
        **ADDED_KEYS, in_channels=channels, out_channels=8, addition_embed_type="image", encoder_hid_dim_type="image_proj"
    )
    return {"unet": unet, "scheduler": ddim(), "movq": movq()}


def kandinsky22_prior() -> Any:
    return diffusers.KandinskyV22PriorPipeline(**prior_parts())


def kandinsky22_combined(name: str = "KandinskyV22CombinedPipeline", channels: int = 4) -> Any:
    return getattr(diffusers, name)(**kandinsky22_parts(channels), **of_prior(prior_parts()))


def kandinsky3(name: str = "Kandinsky3Pipeline") -> Any:
    unet = diffusers.Kandinsky3UNet(
        time_embedding_dim=8,
        groups=8,
        attention_head_dim=8,
        layers_per_block=2,
        block_out_channels=CHANNELS,
        cross_attention_dim=TEXT,
        encoder_hid_dim=TEXT,
    )
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", beta_start=0.00085, beta_end=0.012, steps_offset=1)
    return getattr(diffusers, name)(tokenizer=t5_tokenizer(), text_encoder=t5(), unet=unet, scheduler=scheduler, movq=movq())


def cascade_prior_parts() -> dict[str, Any]:
    prior = diffusers.models.unets.StableCascadeUNet(
        conditioning_dim=TEXT,
        block_out_channels=(32, 32),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        switch_level=(False,),
        clip_image_in_channels=TEXT,
        clip_text_in_channels=TEXT,
        clip_text_pooled_in_channels=TEXT,
        timestep_ratio_embedding_dim=16,
    )
    return {
        "tokenizer": clip_tokenizer(),
        "text_encoder": clip(TEXT, TEXT),
        "prior": prior,
        "scheduler": diffusers.DDPMWuerstchenScheduler(),
    }


def cascade_prior() -> Any:
    return diffusers.StableCascadePriorPipeline(**cascade_prior_parts(), resolution_multiple=4.0)


def cascade_parts() -> dict[str, Any]:
    plain, attending = ("SDCascadeResBlock", "SDCascadeTimestepBlock"), "SDCascadeAttnBlock"
    decoder = diffusers.models.unets.StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=TEXT,
        block_out_channels=(16, 32),
        num_attention_heads=(-1, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(plain, (*plain, attending)),
        clip_text_pooled_in_channels=TEXT,
        effnet_in_channels=16,
        pixel_mapper_in_channels=3,
        kernel_size=3,
        patch_size=2,
        timestep_ratio_embedding_dim=16,
    )
    return {
        "tokenizer": clip_tokenizer(),
        "text_encoder": clip(TEXT, TEXT),
        "decoder": decoder,
        "scheduler": diffusers.DDPMWuerstchenScheduler(),
        "vqgan": PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2, embed_dim=8),
    }


def cascade_decoder() -> Any:
    return diffusers.StableCascadeDecoderPipeline(**cascade_parts())


def cascade_combined() -> Any:
    return diffusers.StableCascadeCombinedPipeline(**cascade_parts(), **of_prior(cascade_prior_parts()))


def wuerstchen_prior_parts() -> dict[str, Any]:
    return {
        "tokenizer": clip_tokenizer(),
        "text_encoder": clip(),
        "prior": WuerstchenPrior(c_in=2, c=32, c_cond=TEXT, c_r=16, depth=2, nhead=2),
        "scheduler": diffusers.DDPMWuerstchenScheduler(),
    }


def wuerstchen_prior() -> Any:
    return diffusers.WuerstchenPriorPipeline(**wuerstchen_prior_parts(), resolution_multiple=4.0)


def wuerstchen_parts() -> dict[str, Any]:
    decoder = WuerstchenDiffNeXt(
        c_cond=TEXT,
        c_hidden=[16, 32],
        nhead=[-1, 2],
        blocks=[1, 1],
        level_config=["CT", "CTA"],
        inject_effnet=[False, True],
        effnet_embd=2,
        clip_embd=TEXT,
        c_r=16,
    )
    vqgan = PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2, embed_dim=8)
    return {
        "tokenizer": clip_tokenizer(),
        "text_encoder": clip(),
        "decoder": decoder,
        "scheduler": diffusers.DDPMWuerstchenScheduler(),
        "vqgan": vqgan,
    }


def wuerstchen_decoder() -> Any:
    return diffusers.WuerstchenDecoderPipeline(**wuerstchen_parts())


def wuerstchen_combined() -> Any:
    return diffusers.WuerstchenCombinedPipeline(**wuerstchen_parts(), **of_prior(wuerstchen_prior_parts()))


def deepfloyd(made: Any = diffusers.IFPipeline, **changes: Any) -> Any:
    settings = {"in_channels": 3, "out_channels": 6, "addition_embed_type": "text", "addition_embed_type_num_heads": 2}
    unet = diffusers.UNet2DConditionModel(
        **{**ADDED_KEYS, **settings, "cross_attention_dim": 32, "cross_attention_norm": "group_norm", "act_fn": "gelu", **changes}
    )
    betas = {"beta_schedule": "squaredcos_cap_v2", "beta_start": 0.0001, "beta_end": 0.02}
    noising = (
        {}
        if "image_noising_scheduler" not in made.__init__.__annotations__
        else {"image_noising_scheduler": diffusers.DDPMScheduler(**betas)}
    )
    return made(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        unet=unet,
        scheduler=diffusers.DDPMScheduler(**betas, thresholding=True, variance_type="learned_range"),
        watermarker=IFWatermarker(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **noising,
    )


def deepfloyd_super() -> Any:
    return deepfloyd(diffusers.IFSuperResolutionPipeline, in_channels=6, class_embed_type="timestep")


def deepfloyd_img2img() -> Any:
    return deepfloyd(diffusers.IFImg2ImgPipeline)


def deepfloyd_img2img_super() -> Any:
    return deepfloyd(diffusers.IFImg2ImgSuperResolutionPipeline, in_channels=6, class_embed_type="timestep")


def deepfloyd_inpainting() -> Any:
    return deepfloyd(diffusers.IFInpaintingPipeline)


def deepfloyd_inpainting_super() -> Any:
    return deepfloyd(diffusers.IFInpaintingSuperResolutionPipeline, in_channels=6, class_embed_type="timestep")
