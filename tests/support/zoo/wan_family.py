"""Tiny pipelines of video around the transformer of Wan, or one like it, and its autoencoder."""

import sys
from types import SimpleNamespace
from typing import Any

import diffusers

from tests.support.tiny import TEXT, t5, t5_tokenizer
from tests.support.zoo.language_models import gemma, gemma_tokenizer
from tests.support.zoo.video_unets import vision

HEADS = {"num_attention_heads": 2}


def flow(**settings: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings)


def with_t5() -> dict[str, Any]:
    return {"text_encoder": t5(), "tokenizer": t5_tokenizer()}


def unipc(shift: float = 3.0) -> Any:
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def wan_vae(**changes: Any) -> Any:
    settings = {"base_dim": 2, "z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "num_res_blocks": 1}
    return diffusers.AutoencoderKLWan(**{**settings, **changes})


def wan_transformer(made: Any = diffusers.WanTransformer3DModel, **changes: Any) -> Any:
    settings = {
        **HEADS,
        "patch_size": (1, 2, 2),
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": TEXT,
        "freq_dim": 8,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return made(**{**settings, **changes})


def with_ftfy(made: Any) -> Any:
    """Give the module of a pipeline class what it takes from the package ftfy, which mends the encoding of prompts."""
    sys.modules[made.__module__].ftfy = SimpleNamespace(fix_text=str)  # type: ignore[attr-defined]
    return made


def parts() -> dict[str, Any]:
    return {**with_t5(), "vae": wan_vae(), "transformer": wan_transformer(), "scheduler": flow(shift=7.0)}


def wan(**changes: Any) -> Any:
    return diffusers.WanPipeline(**{**parts(), **changes})


def wan22() -> Any:
    """Two denoisers: one above 87.5 % of the noise, the other below."""
    return wan(transformer_2=wan_transformer(), boundary_ratio=0.875, scheduler=unipc())


def wan_video_to_video() -> Any:
    return with_ftfy(diffusers.WanVideoToVideoPipeline)(**{**parts(), "scheduler": unipc()})


def wan_vace() -> Any:
    made = wan_transformer(diffusers.WanVACETransformer3DModel, vace_layers=[0], vace_in_channels=2 * 4 + 64)
    return with_ftfy(diffusers.WanVACEPipeline)(**{**parts(), "transformer": made})


def wan_image_to_video() -> Any:
    """Layers of cross-attention have keys of the image beside those of the text."""
    image = vision()
    encoder = {"image_encoder": image["image_encoder"], "image_processor": image["feature_extractor"]}
    made = wan_transformer(in_channels=2 * 4 + 4, image_dim=TEXT, added_kv_proj_dim=24)
    return with_ftfy(diffusers.WanImageToVideoPipeline)(**{**parts(), "transformer": made}, **encoder)


def skyreels() -> Any:
    made = wan_transformer(diffusers.SkyReelsV2Transformer3DModel)
    return with_ftfy(diffusers.SkyReelsV2Pipeline)(**{**parts(), "transformer": made, "scheduler": unipc(8.0)})


def skyreels_image_to_video() -> Any:
    image = vision()
    encoder = {"image_encoder": image["image_encoder"], "image_processor": image["feature_extractor"]}
    made = wan_transformer(diffusers.SkyReelsV2Transformer3DModel, in_channels=2 * 4 + 4, image_dim=TEXT, added_kv_proj_dim=24)
    return with_ftfy(diffusers.SkyReelsV2ImageToVideoPipeline)(
        **{**parts(), "transformer": made, "scheduler": unipc(8.0)}, **encoder
    )


def lucy_edit() -> Any:
    made = wan_transformer(in_channels=2 * 4)
    return with_ftfy(diffusers.LucyEditPipeline)(**{**parts(), "transformer": made})


def chrono_edit() -> Any:
    image = vision()
    encoder = {"image_encoder": image["image_encoder"], "image_processor": image["feature_extractor"]}
    made = wan_transformer(diffusers.ChronoEditTransformer3DModel, in_channels=2 * 4 + 4, image_dim=TEXT, added_kv_proj_dim=24)
    return with_ftfy(diffusers.ChronoEditPipeline)(**{**parts(), "transformer": made}, **encoder)


def anyflow() -> Any:
    made = wan_transformer(diffusers.AnyFlowTransformer3DModel)
    return diffusers.AnyFlowPipeline(**{**parts(), "transformer": made, "scheduler": diffusers.FlowMapEulerDiscreteScheduler()})


def sana_video() -> Any:
    """Blocks are of Sana, cross-attention to Gemma's tokens."""
    made = diffusers.SanaVideoTransformer3DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=TEXT,
        sample_size=8,
        rope_max_seq_len=32,
    )
    return diffusers.SanaVideoPipeline(
        **{**parts(), "text_encoder": gemma(), "tokenizer": gemma_tokenizer(), "transformer": made, "scheduler": flow(shift=3.0)}
    )
