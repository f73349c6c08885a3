"""The pipelines that can be trained here, by class name: how each mixes noise into latents, and how it is asked.

This is what no call of a pipeline tells. What its denoiser receives beside latents and a timestep is captured from a call
(`conditioning.py`), so a family needs no more than this. Needs no weights, and no heavy import.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.pipeline_folder import read_json, read_pipeline_folder
from nullbooth_cli.settings.recipe import Density

if TYPE_CHECKING:
    from nullbooth_cli.model.protocols import LatentPipeline

PREDICTIONS = ("epsilon", "v_prediction")  # of a denoiser of the process ddpm


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one class of pipelines is trained.

    `noise`: ddpm mixes sqrt(a) x + sqrt(1 - a) n and predicts noise or velocity, flow mixes (1 - s) x + s n and predicts n - x.
    `timestep_unit`: what the denoiser receives for one timestep of its scheduler. `density`: of timesteps, unless a recipe names
    another. `guidance`: the guidance_scale of a call in which the denoiser sees each prompt once; `takes_guidance`: the denoiser
    may receive it. `reads_texts`: its to_k and to_v of cross-attention receive the encoded text as it is. `loads_lora`: it has
    `load_lora_weights`; PEFT loads adapters into the others.
    """

    noise: Literal["ddpm", "flow"]
    packed: bool = False  # 2 x 2 places of the latents are one token
    timestep_unit: float = 1.0
    density: Density = "uniform"
    guidance: float = 1.0
    takes_guidance: bool = False
    reads_texts: bool = False
    loads_lora: bool = True


_UNET = Family(noise="ddpm", reads_texts=True)
_PIXART = Family(noise="ddpm", loads_lora=False)
# Densities and Flux's guidance are the defaults of diffusers' scripts: train_dreambooth_lora_sdxl.py and _flux.py draw uniformly,
# _sd3.py from a logit-normal of mean 0 and deviation 1 (Esser et al., arXiv 2403.03206). PixArt trains as DDPM does.
FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": _UNET,
    "StableDiffusionXLPipeline": _UNET,
    "StableDiffusion3Pipeline": Family(noise="flow", density="logit_normal"),
    "FluxPipeline": Family(noise="flow", packed=True, timestep_unit=1e-3, guidance=3.5, takes_guidance=True),
    "PixArtAlphaPipeline": _PIXART,
    "PixArtSigmaPipeline": _PIXART,
}


def family_of(pipeline_class: str) -> Family:
    """The family of a pipeline class. Raises ModelError for one that cannot be trained here."""
    if pipeline_class not in FAMILIES:
        raise untrainable(pipeline_class)
    return FAMILIES[pipeline_class]


def training_scheduler(pipe: "LatentPipeline") -> Any:
    """A DDPMScheduler or a FlowMatchEulerDiscreteScheduler with the settings of a pipeline's scheduler, freshly built.

    One that has drawn has the sigmas of that picture; the sigmas of training are those of the constructor. Raises ModelError as
    `family_of` does.
    """
    import diffusers

    is_flow = family_of(type(pipe).__name__).noise == "flow"
    made = diffusers.FlowMatchEulerDiscreteScheduler if is_flow else diffusers.DDPMScheduler
    return made.from_config(pipe.scheduler.config)


def untrainable(name: str, why: str | None = None) -> ModelError:
    """The error for a model, or a kind of models, that cannot be trained here, and perhaps why."""
    known = "the text-to-image pipelines of Stable Diffusion 1, 2, XL, 3 and 3.5, Flux and PixArt can"
    return ModelError(
        f"{name} cannot be trained here: {why or known}",
        "put nb.constrain into a training script for this model: docs/how-to/constrain-training.md",
    )


def require_trainable_folder(folder: str | Path) -> None:
    """Raise ModelError for a pipeline folder that cannot be trained here. Cost: some small files; torch is not imported."""
    place, name = Path(folder), read_pipeline_folder(folder, weights=False).class_name
    family_of(name)
    part = "unet" if (place / "unet").is_dir() else "transformer"
    denoiser, vae = (read_json(place / each / "config.json") for each in (part, "vae"))
    scheduler = read_json(place / "scheduler" / "scheduler_config.json")
    require_trainable(name, denoiser, vae.get("latent_channels", 4), scheduler)


def require_trainable(pipeline_class: str, denoiser: Mapping[str, Any], latents: int, scheduler: Mapping[str, Any]) -> None:
    """Raise ModelError for a model whose configs ask for more than noisy latents, a timestep and a text.

    `denoiser` and `scheduler` are their configs, `latents` the channels of the autoencoder.
    """
    family = family_of(pipeline_class)
    if denoiser.get("time_cond_proj_dim"):
        raise untrainable(pipeline_class, "its U-Net takes a guidance scale (LCM), which its training would have to draw")
    channels = latents * (4 if family.packed else 1)
    if denoiser.get("in_channels") != channels:
        raise untrainable(
            pipeline_class,
            f"its denoiser takes {denoiser.get('in_channels')} channels and latents have {channels}: it needs a picture as well",
        )
    prediction = scheduler.get("prediction_type", "epsilon")
    if family.noise == "ddpm" and prediction not in PREDICTIONS:
        raise untrainable(pipeline_class, f"it predicts {prediction}, not {' or '.join(PREDICTIONS)}")
    if family.noise == "ddpm" and "sigma_data" in scheduler:
        raise untrainable(pipeline_class, "its scheduler scales noise as EDM does, not as DDPM")
