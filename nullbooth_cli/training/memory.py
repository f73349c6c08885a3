"""The memory that training takes on its device, from the config files of a model: nothing is loaded.

1. `text_encoders()` and `before_loading.without_weights()` are a pipeline on the meta device.
2. `training_memory()` counts weights, gradients and states by their shapes, and what forward and backward take with
   `live_memory`, for each phase of a run.

Not in the count: the workspace of single operations, what an allocator loses between blocks, the context of a device (about half
a GB of CUDA), and the activations of text encoders.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from nullbooth_cli.model.conditioning import Conditioning, capture
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.denoising_loss import NoiseProcess, predict
from nullbooth_cli.model.projections import find_projections
from nullbooth_cli.model.protocols import LatentPipeline, config_of
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.resizing import Size
from nullbooth_cli.training import live_memory, optimizers, precision
from nullbooth_cli.training.examples import guidance_of
from nullbooth_cli.training.trainable import make_trainable

META = torch.device("meta")
FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes on the device of training.

    `weights` are the denoiser's, `constraint` the starts of its constrained weights and the factors of P, `teacher` the first
    values of what trains, for distillation. `activations` is what a step takes at most beside all of these; `kept_plain` and
    `kept_checkpointed` are what one forward leaves for the backward without gradient checkpointing and with it. `helpers` are
    text encoders and autoencoder, by name. `phases` has the most of each phase of a run, by its name, in their order.
    """

    weights: int
    constraint: int
    teacher: int
    gradients: int
    optimizer: int
    averages: int
    activations: int
    kept_plain: int
    kept_checkpointed: int
    helpers: Mapping[str, int]
    phases: Mapping[str, int]

    @property
    def peak(self) -> int:
        """The most of all phases."""
        return max(self.phases.values())

    def document(self) -> dict[str, Any]:
        """The bytes as JSON."""
        return {**asdict(self), "peak": self.peak}


def text_encoders(folder: str) -> dict[str, nn.Module]:
    """The text encoders of a model's folder of config files, on the meta device, by name."""
    import diffusers
    import transformers

    found = {}
    for name, part in diffusers.DiffusionPipeline.load_config(folder).items():
        if name.startswith("text_encoder") and isinstance(part, list) and part[0] == "transformers":
            kind = getattr(transformers, part[1])
            with META:
                found[name] = kind(kind.config_class.from_pretrained(folder, subfolder=name, local_files_only=True))
    return found


def empty_denoiser(recipe: Recipe, pipe: LatentPipeline) -> nn.Module:
    """The pipeline's denoiser as `recipe` trains it, on the meta device, without a constraint."""
    with META:
        made: nn.Module = type(denoiser_of(pipe)).from_config(config_of(denoiser_of(pipe)))  # type: ignore[attr-defined]  # ConfigMixin
        make_trainable(made, find_projections(made, tuple(recipe.features), "all", recipe.linear_layers), recipe)
    precision.cast(made, getattr(torch, recipe.dtype))
    return made.train()


def inputs_of(recipe: Recipe, pipe: LatentPipeline, size: Size, batch: int, device: torch.device) -> dict[str, Any]:
    """Arguments of `predict` for a batch of pictures of a size: latents and texts of ones."""
    width, height = (side // pipe.vae_scale_factor for side in size)
    process = NoiseProcess.of(pipe)
    given = capture(pipe, [""], size=size, guidance=process.family.guidance).rows([0] * batch)
    given = given.to(META, getattr(torch, recipe.dtype))

    def filled(value: Any) -> Any:
        return torch.ones_like(value, device=device) if isinstance(value, torch.Tensor) else value

    return {
        "process": process,
        "noisy": torch.ones(batch, pipe.vae.config["latent_channels"], height, width, device=device),
        "timesteps": torch.full((batch,), 500, device=device),
        "conditioning": Conditioning(
            by_row={name: filled(value) for name, value in given.by_row.items()},
            shared={name: filled(value) for name, value in given.shared.items()},
        ),
    }


def training_memory(
    recipe: Recipe,
    pipe: LatentPipeline,
    encoders: Mapping[str, nn.Module],
    size: Size,
    *,
    on_cpu: bool = False,
    factors: int = 0,
) -> TrainingMemory:
    """The memory of training with a recipe on pictures of a size; `pipe` is its pipeline without weights.

    `factors`: the bytes of the projectors that constrain it. `on_cpu`: host memory is the device, and has all parts from the
    start. Cost: two forwards and backwards without their arithmetic, up to half a minute for Flux.
    """
    half = precision.HALF[recipe.mixed_precision]
    denoiser = empty_denoiser(recipe.model_copy(update={"gradient_checkpointing": False}), pipe)
    given = inputs_of(recipe, pipe, size, recipe.train_batch_size, META)

    def step() -> torch.Tensor:
        return predict(denoiser, **given)

    plain = live_memory.of_step(denoiser, step, half)
    checkpointed = live_memory.of_step(denoiser, step, half, checkpointing=True)
    sizes = [parameter.numel() for parameter in denoiser.parameters() if parameter.requires_grad]
    weights, trained = _bytes([denoiser]), FLOAT * sum(sizes)
    frozen = getattr(torch, recipe.dtype).itemsize
    is_full, is_constrained = recipe.method == "full", recipe.store is not None
    made = {
        "weights": weights,
        "constraint": factors + (trained if is_full and is_constrained else 0),
        "teacher": 0 if recipe.distill_captions is None else trained,
        "gradients": trained,
        "optimizer": optimizers.state_bytes(recipe.optimizer, sizes),
        "averages": 0 if recipe.ema_decay is None else trained,
    }
    step_memory = checkpointed if recipe.gradient_checkpointing else plain
    activations = step_memory.peak + (losses_of(recipe) - 1) * step_memory.kept
    if is_full and is_constrained and half is None:
        activations += trained  # W0 + X P itself is kept for the backward pass
    helpers = {name: frozen * _count(module) for name, module in encoders.items()} | {"vae": FLOAT * _count(pipe.vae)}
    resident = sum(made.values())
    stays = recipe.word is not None or (on_cpu and (is_full or bool(recipe.validation_prompts)))
    loaded = sum(helpers.values()) + weights if on_cpu else 0
    phases = {
        "encode captions": max(loaded, *(helpers[name] for name in encoders)),
        "encode pictures": max(loaded, helpers["vae"]) + _encoding(pipe, size),
    }
    if recipe.class_prompts is not None:
        phases["draw the class"] = max(loaded, weights) + _drawing(recipe, pipe, size, recipe.train_batch_size, half)
    # The optimizer's step comes when activations are gone, and takes a temporary copy of what trains.
    phases["train"] = resident + max(activations, trained) + (sum(helpers.values()) if stays else 0)
    if count := len(recipe.validation_prompts):
        drawing = max(_drawing(recipe, pipe, size, count, half), _decoding(pipe, size, count))
        phases["draw validation pictures"] = resident - trained + sum(helpers.values()) + drawing
    return TrainingMemory(
        **made,
        activations=activations,
        kept_plain=plain.kept,
        kept_checkpointed=checkpointed.kept,
        helpers=helpers,
        phases=phases,
    )


def losses_of(recipe: Recipe) -> int:
    """The losses of a batch that a step adds up before its backward pass: of the subject, its class, and distillation."""
    has_prior = recipe.class_prompts is not None and recipe.distill_pictures != "class"
    return 1 + has_prior + (recipe.distill_captions is not None)


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _bytes(modules: Iterable[nn.Module]) -> int:
    return sum(parameter.nbytes for module in modules for parameter in module.parameters())


def _drawing(recipe: Recipe, pipe: LatentPipeline, size: Size, count: int, half: torch.dtype | None) -> int:
    """The activations of one denoising step of `count` pictures, with guidance."""
    branches = 2 if guidance_of(recipe, type(pipe)) > 1 and not NoiseProcess.of(pipe).family.takes_guidance else 1
    given = inputs_of(recipe, pipe, size, branches * count, META)
    denoiser = empty_denoiser(recipe.model_copy(update={"gradient_checkpointing": False}), pipe).eval()
    return live_memory.of_call(lambda: predict(denoiser, **given), half)


def _encoding(pipe: LatentPipeline, size: Size) -> int:
    """The activations of encoding one picture in float32."""
    width, height = size
    return live_memory.of_call(lambda: pipe.vae.encode(torch.empty(1, 3, height, width, device=META)))


def _decoding(pipe: LatentPipeline, size: Size, count: int) -> int:
    """The activations of decoding `count` pictures in float32."""
    width, height = (side // pipe.vae_scale_factor for side in size)
    latents = torch.empty(count, pipe.vae.config["latent_channels"], height, width, device=META)
    return live_memory.of_call(lambda: pipe.vae.decode(latents))
