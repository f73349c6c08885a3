"""Everything that a training run needs before its first step: model, pictures, captions and constraint.

The order in `set_up()` matters. What the run starts from is put onto the model. The class pictures are drawn by that. Then
parameters are marked to train. Then they are constrained. Then the teacher of distillation takes their first values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import nn

from nullbooth_cli.api import OpenStore, open_store
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model import load
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.denoising_loss import NoiseProcess
from nullbooth_cli.model.device import pick_device
from nullbooth_cli.model.families import require_trainable_folder
from nullbooth_cli.model.projections import find_projections
from nullbooth_cli.model.prompt_length import cut_off_note
from nullbooth_cli.model.protocols import LatentPipeline
from nullbooth_cli.model.sources import Source
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.settings.captions import CaptionedImage
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.resizing import Resizing
from nullbooth_cli.training import checkpoint_files, optimizers, precision
from nullbooth_cli.training.before_loading import Inputs, read_inputs, with_own_guidance
from nullbooth_cli.training.checkpoint_files import Checkpoint
from nullbooth_cli.training.constraint import Constraint, constrain
from nullbooth_cli.training.distillation import Distillation, Teacher
from nullbooth_cli.training.earlier import Earlier, source_of
from nullbooth_cli.training.ema import Averages
from nullbooth_cli.training.estimate import Estimate, estimate_learning
from nullbooth_cli.training.examples import EncodedTexts, Examples, TextEncoding, draw_class, encode_pictures
from nullbooth_cli.training.output import Preserved, require_steps_left
from nullbooth_cli.training.placement import settle
from nullbooth_cli.training.projector_source import ProjectorSource
from nullbooth_cli.training.record import CHANGEABLE, RunRecord, require_changeable
from nullbooth_cli.training.trainable import make_trainable
from nullbooth_cli.training.word_embedding import WordEmbedding

if TYPE_CHECKING:
    from accelerate import Accelerator

FREE_AT_THE_END = (*CHANGEABLE, "processes")  # of a run that trains no more


class TrainingStore(ProjectorSource, Protocol):
    """The source of a run's constraint, with the prompts that it preserves. `nb.OpenStore` is one."""

    @property
    def url(self) -> str:
        """Its folder or URL, which the result records."""

    def prompts(self) -> Sequence[str]:
        """The texts of the preserved prompts."""

    def projectors(self, model: Mapping[str, torch.Tensor] | None = None) -> Mapping[str, Projector]:
        """As in ProjectorSource; without a model they are compared with none."""


@dataclass(kw_only=True)
class TrainingRun:
    """A run that is ready to start; `steps_done` counts the optimizer steps that its weights have had.

    `trained`: the names of the denoiser's parameters that train. `process` is its noise, `guidance` the guidance_scale that it
    trains with, `texts` all captions, encoded once. `constraint` and `preserved` are None without a store, `prior`
    without prior preservation, `distillation` without any, `word` if no embedding trains, `earlier` if it starts from its model.
    `record` is what decides the weights, `checkpoint` where the run resumes (None: it starts). `averages` are made with the
    optimizer, if the recipe has `ema_decay`. `validation_prompts` are the recipe's, with the token of the word. `estimate` is
    None if no constrained weight that trains reads the text. `notes` are for the user.
    """

    recipe: Recipe
    pipe: LatentPipeline
    accelerator: "Accelerator"
    denoiser: nn.Module
    trained: tuple[str, ...]
    process: NoiseProcess
    guidance: float
    texts: EncodedTexts
    subject: Examples
    prior: Examples | None
    distillation: Distillation | None
    constraint: Constraint | None
    word: WordEmbedding | None
    preserved: Preserved | None
    record: RunRecord
    earlier: Earlier | None
    checkpoint: Checkpoint | None
    averages: Averages | None = None
    steps_done: int = 0
    validation_prompts: tuple[str, ...] = ()
    estimate: Estimate | None = None
    notes: tuple[str, ...] = ()


def set_up(
    recipe: Recipe,
    device: str | None = None,
    store: TrainingStore | None = None,
    changes: Sequence[str] = (),
    at: int | None = None,
) -> TrainingRun:
    """Load the model and prepare everything that the loop needs. `store` replaces the recipe's.

    With `at`, prepare `dreambooth.restore` from the checkpoint of that step instead: no class pictures are drawn, and settings
    that may change, the number of steps and of processes do not matter.

    Raises, before the model is loaded: ModelError for a model that cannot be trained here, before all else, ResourceError for a
    device that is not there, StageError for a store without projectors, StoreError for a damaged checkpoint, what `read_inputs`
    raises, and ConfigError for a step without a checkpoint and for a run that resumes with other settings or inputs that decide
    its weights (`changes` names settings that have changed on purpose). Then: every error of `nb.constrain`.
    Cost: one read of the model's weights and of the checkpoint for their digests; with class prompts, `class_images` pictures are
    drawn.
    """
    earlier = Earlier.of(recipe)
    folder = load.config_folder(source_of(recipe, earlier))
    require_trainable_folder(folder)
    recipe = with_own_guidance(recipe, folder)
    _require_packages(recipe)
    require_changeable(changes)
    accelerator = _accelerator(recipe, device)
    if store is not None:
        recipe = recipe.model_copy(update={"store": store.url})
    elif recipe.store is not None:
        store = open_store(recipe.store)
    record = RunRecord.of(recipe, store, accelerator.num_processes)  # raises before the projectors are complete
    checkpoint = checkpoint_files.find(recipe.output, at)
    changes = FREE_AT_THE_END if at is not None else changes
    _require_resumable(recipe, record, checkpoint, changes, trains=at is None)
    projectors = store.projectors() if store else {}
    remembered = earlier.require_remembered(store) if earlier and store else ()
    preserved = (*store.prompts(), *remembered) if store else ()
    inputs = read_inputs(recipe, preserved, projectors.keys() if store else None)
    first = accelerator.is_main_process  # it writes and compares; the others load the same files
    if first and checkpoint is not None:
        checkpoint.require_whole()
    pipe = _load(recipe, source_of(recipe, earlier), accelerator.device, None if store is None else _dtype_of(store))
    if first:
        record = record.with_model(load.weights_digest(pipe, encodes=True))
        if checkpoint is not None:
            resumed = record.resumed(recipe.output, checkpoint.record, checkpoint.step, changes)
            record = resumed if at is None else checkpoint.record
    compared = store if earlier is None else earlier.load_into(pipe, store)
    word = None if inputs.word is None else WordEmbedding(pipe, inputs.word)  # before texts are encoded: it may add a token
    denoiser, process = denoiser_of(pipe), NoiseProcess.of(pipe, recipe.timestep_density)
    subject = _examples(pipe, inputs.pictures, inputs.captions, inputs.resizing)
    draws = inputs.class_captions and at is None
    with precision.autocast(recipe, accelerator):
        prior = draw_class(recipe, pipe, inputs.class_captions, inputs.resizing.size) if draws else None
    guidance = process.family.guidance if recipe.training_guidance is None else recipe.training_guidance
    kept = _pictures_to_distill(recipe, pipe, inputs, prior) if at is None else None
    texts = _encoded(pipe, guidance, *filter(None, [subject, prior, kept]), others=inputs.distilled_captions)
    settle(
        pipe,
        accelerator.device,
        in_every_step=word is not None,
        later=recipe.method == "full" or bool(recipe.validation_prompts),
    )
    projections = find_projections(denoiser, tuple(recipe.features), "all", recipe.linear_layers)
    estimate = None
    if store is not None:
        of_text = {each.weight: projectors[each.weight] for each in projections if each.from_text}
        if process.family.reads_texts:
            estimate = estimate_learning(store, of_text, _texts_of(subject, texts), trains_word=word is not None)
    make_trainable(denoiser, projections, recipe)
    constraint = None if compared is None else constrain(denoiser, compared, unprotected="refuse")
    precision.cast(denoiser, getattr(torch, recipe.dtype))
    distillation = None
    if inputs.distilled is not None and at is None:
        distillation = Distillation(pictures=kept, captions=inputs.distilled, teacher=Teacher(denoiser))
    validation_prompts = inputs.written(recipe.validation_prompts)
    cut_off = cut_off_note(
        pipe, [*subject.captions, *inputs.class_captions, *inputs.distilled_captions, *validation_prompts], "caption"
    )
    return TrainingRun(
        recipe=recipe,
        pipe=pipe,
        accelerator=accelerator,
        denoiser=denoiser,
        trained=tuple(name for name, parameter in denoiser.named_parameters() if parameter.requires_grad),
        process=process,
        guidance=guidance,
        texts=texts,
        subject=subject,
        prior=None if recipe.distill_pictures == "class" else prior,
        distillation=distillation,
        constraint=constraint,
        word=word,
        preserved=None if store is None else _preserved(store),
        record=record,
        earlier=earlier,
        checkpoint=checkpoint,
        validation_prompts=tuple(validation_prompts),
        estimate=estimate,
        notes=(*inputs.notes, *filter(None, [cut_off, optimizers.rate_note(recipe)]), *(estimate.lines if estimate else ())),
    )


def _examples(pipe: LatentPipeline, pictures: Sequence[CaptionedImage], captions: Sequence[str], resizing: Resizing) -> Examples:
    latents, framings = encode_pictures(pipe, [picture.path for picture in pictures], resizing)
    return Examples(latents=latents, captions=captions, framings=framings, repeats=[picture.repeats for picture in pictures])


def _pictures_to_distill(recipe: Recipe, pipe: LatentPipeline, inputs: Inputs, prior: Examples | None) -> Examples | None:
    """The pictures of distillation; None for those of the subject, and without distillation."""
    if recipe.distill_pictures == "class":
        return prior
    own = inputs.distilled_pictures
    return _examples(pipe, own, [picture.prompt.text for picture in own], inputs.resizing) if own else None


def _encoded(pipe: LatentPipeline, guidance: float, *examples: Examples, others: Sequence[str]) -> EncodedTexts:
    """The captions of examples, and others, each for the sizes of all examples."""
    captions = [*(caption for each in examples for caption in each.captions), *others]
    return EncodedTexts.of(pipe, captions, [size for each in examples for size in each.sizes], guidance)


def _texts_of(examples: Examples, encode: TextEncoding) -> torch.Tensor:
    """The encoded captions of examples, `[N, L, D]`, as to_k and to_v receive them."""
    return encode(examples.captions, examples.sizes[0]).by_row["encoder_hidden_states"]


def _dtype_of(store: TrainingStore) -> str:
    """The dtype that a store was collected in; empty for one that does not tell."""
    return store.config.dtype if isinstance(store, OpenStore) else ""


def _preserved(store: TrainingStore) -> Preserved:
    """What a store preserves; only a store of nullbooth itself tells its threshold."""
    threshold = "{}: {}".format(*store.config.project.rule()) if isinstance(store, OpenStore) else None
    return Preserved(len(store.prompts()), threshold)


def _require_resumable(
    recipe: Recipe, record: RunRecord, checkpoint: Checkpoint | None, changes: Sequence[str], *, trains: bool
) -> None:
    """Raise ConfigError unless a run with this record may resume from the checkpoint in its output, or start without one."""
    if checkpoint is not None:
        if trains:
            require_steps_left(recipe, checkpoint.step)
        record.resumed(recipe.output, checkpoint.record, checkpoint.step, changes)
    elif changes:
        raise ConfigError(
            f"there is no run in {recipe.output} that could resume with another {', '.join(changes)}",
            "set them in the recipe of the new run",
        )


def _require_packages(recipe: Recipe) -> None:
    """Raise ConfigError if the recipe needs an optional package that is not installed."""
    from accelerate.tracking import get_available_trackers

    if recipe.method == "lora" and find_spec("peft") is None:
        raise ConfigError("method: lora needs peft", "pip install 'nullbooth[train]'")
    optimizers.require_package(recipe.optimizer)
    installed = [str(tracker) for tracker in get_available_trackers()]
    if lacking := [name for name in recipe.trackers if name not in installed]:
        packages = " ".join({"tensorboard": "tensorboardX"}.get(name, name) for name in lacking)
        raise ConfigError(
            f"report_to: {', '.join(lacking)} needs a package that is not installed, or an accelerate that knows it",
            f"pip install -U {packages} accelerate",
        )


def _accelerator(recipe: Recipe, device: str | None) -> "Accelerator":
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    wanted = None if device is None else pick_device(device)
    if wanted is not None and wanted.index is not None:
        torch.cuda.set_device(wanted)  # accelerate takes the current one
    precision.allow_another(recipe.mixed_precision)
    try:
        accelerator = Accelerator(
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            mixed_precision=recipe.mixed_precision,
            log_with=list(recipe.trackers) or None,
            project_config=ProjectConfiguration(project_dir=recipe.output, logging_dir=f"{recipe.output}/logs"),
            # Without it, the processes of a launch on CPUs would each train alone, into one output.
            cpu=(wanted or pick_device(None)).type == "cpu",
        )
    except ValueError as error:
        raise ConfigError(
            f"mixed_precision: {recipe.mixed_precision} cannot run on this device: {error}", "set mixed_precision to no"
        ) from error
    precision.require_there(recipe.mixed_precision, accelerator.device)
    return accelerator


def _load(recipe: Recipe, source: Source, device: torch.device, collected_in: str | None) -> LatentPipeline:
    """The pipeline, frozen; on an accelerator with one part there at a time."""
    pipe = load.load_pipeline(
        **asdict(source),
        dtype=recipe.dtype,
        in_float32=precision.loaded_in_float32(recipe, collected_in),
        model_cpu_offload=device.type != "cpu",
        device=device,
    )
    return cast(LatentPipeline, pipe)
