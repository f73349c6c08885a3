"""Parts in which pipelines with a U-Net differ from Stable Diffusion's: each by its name, to be made when it is needed."""

from functools import partial
from typing import Any

import diffusers
from transformers import (
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from tests.support import tiny

TEXT, WIDTH = tiny.TEXT, tiny.WIDTH
SMALL = (8, 8)  # channels of what reads a control image: one halving, as of the autoencoder


def unet_xl(**changes: Any) -> Any:
    """The U-Net of tiny SDXL."""
    config = {key: value for key, value in tiny.sdxl().unet.config.items() if not key.startswith("_")}
    return diffusers.UNet2DConditionModel(**{**config, **changes})


def vae(**changes: Any) -> Any:
    """The autoencoder of tiny Stable Diffusion."""
    config = {key: value for key, value in tiny.vae().config.items() if not key.startswith("_")}
    return diffusers.AutoencoderKL(**{**config, **changes})


def depth_estimator() -> DPTForDepthEstimation:
    return DPTForDepthEstimation(
        DPTConfig(
            hidden_size=8,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=8,
            image_size=16,
            patch_size=4,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[4, 4, 4, 4],
            fusion_hidden_size=4,
            is_hybrid=False,
        )
    )


def controlnet(unet: Any) -> Any:
    return diffusers.ControlNetModel.from_unet(unet(), conditioning_embedding_out_channels=SMALL)


def controlnet_union() -> Any:
    config, small = unet_xl().config, {"num_trans_channel": WIDTH, "num_trans_head": 2, "num_proj_channel": WIDTH}
    return diffusers.ControlNetUnionModel.from_config({**config, "conditioning_embedding_out_channels": SMALL, **small})


def controlnet_xs(unet: Any) -> dict[str, Any]:
    """Its blocks have two resnets, whatever those of the U-Net have."""
    deeper = partial(unet, layers_per_block=2)
    made = diffusers.ControlNetXSAdapter.from_unet
    return {
        "unet": deeper,
        "controlnet": lambda: made(deeper(), size_ratio=0.5, conditioning_embedding_out_channels=SMALL),
    }


def image_encoder() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=TEXT,
            intermediate_size=TEXT,
            num_hidden_layers=1,
            num_attention_heads=2,
            projection_dim=TEXT,
            image_size=16,
            patch_size=8,
        )
    )


def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


CONTROL = {"controlnet": partial(controlnet, tiny.unet)}
CONTROL_XL = {"controlnet": partial(controlnet, unet_xl)}
CONTROL_UNION = {"controlnet": controlnet_union}
CONTROL_XS, CONTROL_XS_XL = controlnet_xs(tiny.unet), controlnet_xs(unet_xl)
ADAPTER = {"adapter": lambda: diffusers.T2IAdapter(channels=[WIDTH, 2 * WIDTH], num_res_blocks=1, downscale_factor=2)}
ADAPTER_XL = {
    "adapter": lambda: diffusers.T2IAdapter(
        channels=[WIDTH, 2 * WIDTH], num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter_xl"
    )
}
DEPTH = {
    "depth_estimator": depth_estimator,
    "feature_extractor": lambda: DPTImageProcessor(size={"height": 16, "width": 16}),
}
UPSCALE = {
    "vae": partial(vae, scaling_factor=0.08333),
    "unet": partial(tiny.unet, in_channels=7, num_class_embeds=1000),
    "low_res_scheduler": partial(diffusers.DDPMScheduler, **tiny.BETAS),
    "scheduler": partial(diffusers.DDIMScheduler, **tiny.BETAS, prediction_type="v_prediction", clip_sample=False),
}
LATENT_UPSCALE = {
    "unet": partial(tiny.unet, out_channels=5, time_cond_proj_dim=128 + TEXT, in_channels=8),
    "scheduler": partial(diffusers.EulerDiscreteScheduler, **tiny.BETAS),
}
# The refiner has the second text encoder alone, and five numbers beside it.
REFINER = {
    "text_encoder": lambda: None,
    "tokenizer": lambda: None,
    "requires_aesthetics_score": lambda: True,
    "unet": partial(unet_xl, cross_attention_dim=TEXT, projection_class_embeddings_input_dim=5 * 8 + TEXT),
}
GLIGEN = {"unet": partial(tiny.unet, attention_type="gated")}
GLIGEN_INPUTS = {"gligen_phrases": ["a hat"], "gligen_boxes": [[0.1, 0.1, 0.6, 0.6]]}


def safety_checker() -> Any:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 16,
        "patch_size": 8,
    }
    return StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))


def image_projection() -> Any:
    from diffusers.pipelines.stable_diffusion.clip_image_project_model import CLIPImageProjection

    return CLIPImageProjection(TEXT)


SAFETY = {"safety_checker": safety_checker, "feature_extractor": image_processor}
GLIGEN_IMAGES = {
    **SAFETY,
    "unet": partial(tiny.unet, attention_type="gated-text-image"),
    "processor": lambda: CLIPProcessor(image_processor(), tiny.clip_tokenizer()),
    "image_encoder": image_encoder,
    "image_project": image_projection,
}


def prior() -> Any:
    return diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=12, embedding_dim=TEXT, num_embeddings=77, num_layers=1
    )


def image_normalizer() -> Any:
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    return StableUnCLIPImageNormalizer(embedding_dim=TEXT)


STABLE_UNCLIP = {
    "prior_tokenizer": tiny.clip_tokenizer,
    "prior_text_encoder": partial(tiny.clip, projection=TEXT),
    "prior": prior,
    "prior_scheduler": partial(
        diffusers.DDPMScheduler, variance_type="fixed_small_log", prediction_type="sample", clip_sample=True
    ),
    "image_normalizer": image_normalizer,
    "image_noising_scheduler": partial(diffusers.DDPMScheduler, beta_schedule="squaredcos_cap_v2"),
    "feature_extractor": image_processor,
    "image_encoder": image_encoder,
    "unet": partial(tiny.unet, class_embed_type="projection", projection_class_embeddings_input_dim=2 * TEXT),
}


def bert() -> Any:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    return LDMBertModel(
        LDMBertConfig(
            vocab_size=128,
            d_model=TEXT,
            encoder_layers=1,
            encoder_ffn_dim=TEXT,
            encoder_attention_heads=2,
            head_dim=8,
            max_position_embeddings=77,
        )
    )


def bert_tokenizer() -> BertTokenizer:
    letters = [chr(code) for code in range(97, 123)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})


LDM = {"bert": bert, "tokenizer": bert_tokenizer, "vqvae": tiny.vae}


def qwen_vl() -> Any:
    letters = len(tiny.qwen_tokenizer())
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            text_config={
                "vocab_size": letters,
                "hidden_size": TEXT,
                "intermediate_size": TEXT,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 12,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]},
                "bos_token_id": None,
                "eos_token_id": 256,
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": TEXT,
                "deepstack_visual_indexes": [],
            },
            image_token_id=256,
            video_token_id=256,
            vision_start_token_id=256,
            vision_end_token_id=256,
        )
    )


def vae_tiny() -> Any:
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    )


def dream_lite() -> Any:
    """Its first level attends to the text alone, and several queries share a key."""
    return diffusers.DreamLiteUNetModel(
        block_out_channels=(WIDTH, 2 * WIDTH),
        down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteCrossAttnNoSelfAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=TEXT,
        attention_head_dim=8,
        addition_embed_type="time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=2 * 8,
    )


DREAM_LITE = {
    "text_encoder": qwen_vl,
    "tokenizer": tiny.qwen_tokenizer,
    "processor": image_processor,  # reads pictures to edit, and there are none
    "vae": vae_tiny,
    "unet": dream_lite,
    "scheduler": partial(diffusers.FlowMatchEulerDiscreteScheduler, use_dynamic_shifting=True),
}
