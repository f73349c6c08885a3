"""The recipe of a training run: one YAML file, such as configs/train/toy.yaml."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from nullbooth_cli.settings import limits
from nullbooth_cli.settings.resizing import Resize
from nullbooth_cli.settings.schema import CONFIG, RECIPE, Kind, Section, refusal

Feature = Literal["q", "k", "v", "out"]
Method = Literal["full", "lora"]
Dtype = Literal["float32", "float16", "bfloat16"]
MIXED = {"float16": "fp16", "bfloat16": "bf16"}  # the precision in which a forward runs on frozen weights of a dtype
OptimizerName = Literal["adamw", "adamw8bit", "prodigy"]
Density = Literal["uniform", "logit_normal", "mode", "sigma_shift"]
# Those of diffusers.optimization.get_scheduler, without piecewise_constant, which needs rules.
LearningRates = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]

# Those of accelerate.tracking.
Tracker = Literal["tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "trackio"]


class Recipe(Section):
    """All settings of a training run."""

    places: ClassVar[tuple[str, ...]] = (
        "model",
        "pipeline_config",
        "after",
        "output",
        "store",
        "instance_images",
        "class_prompts",
        "distill_pictures",
    )
    file_kind: ClassVar[Kind | None] = RECIPE
    other_kind: ClassVar[Kind | None] = CONFIG
    former: ClassVar[Mapping[str, str]] = {
        "tensorboard": "write report_to: tensorboard",
        "prior": "leave it out for pictures; for distill write distill_captions: own and distill_pictures: class",
    }

    model: str = Field("toy", description="the model to train: toy, a pipeline folder, or a hub id")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    variant: str | None = Field(None, description="weight variant, such as fp16")
    local_files_only: bool = Field(False, description="never contact the hub")
    allow_pickle: bool = Field(False, description="read pickled weights, which can run any code: only if you trust their author")
    pipeline_config: str | None = Field(
        None, description="for a single file of weights: the pipeline folder or hub id that completes it"
    )
    after: str | None = Field(
        None,
        description="where training starts in place of the untrained model: the output of a training run, a LoRA, or a "
        "pipeline folder; the store must remember it",
    )
    output: str = Field("runs/trained", description="folder for the result, its checkpoints, pictures and logs")
    store: str | None = Field(None, description="store with the projectors that constrain training; null for no constraint")
    instance_images: str = Field(
        "nullbooth:instances/toy",
        description="folder of pictures of the subject, with captions in metadata.jsonl, beside each, or as the name of a "
        "folder; nullbooth:NAME is a shipped one",
    )
    instance_prompt: str | None = Field(None, description="one caption for all pictures instead of their own")
    resize: Resize = Field(
        "crop",
        description="how pictures get the model's size: crop: their middle; letterbox: whole, margins have their sides' colour; "
        "buckets: of several sizes the one with the nearest aspect; none: another size is an error",
    )
    resolution: int | None = Field(
        None, ge=1, le=limits.PIXELS, description="pixels of the shorter side of a picture; null for the model's own size"
    )
    method: Method = Field("full", description="full: the weights themselves; lora: adapters, made by PEFT")
    features: list[Feature] = Field(
        ["k", "v"],
        description="which projections of the layers that attend to text are trained; in SD3 and Flux k is to_k and add_k_proj, "
        "of picture and prompt, and so on",
    )
    linear_layers: list[str] = Field(
        [],
        description="linear layers that are trained beside those: attn1, ff_in, ff_out, proj_in, proj_out, modulation, all, or "
        "glob patterns of module names",
    )
    rank: int = Field(8, ge=1, le=limits.RANK, description="lora: its rank; alpha is the same")
    class_prompts: str | list[str] | None = Field(
        None, description="prior preservation: prompts of the class, a file or a list; null for none"
    )
    class_images: int = Field(
        64, ge=1, le=limits.COUNT, description="prior preservation: number of pictures that the model draws of them, once"
    )
    prior_weight: float = Field(1.0, ge=0.0, le=limits.FACTOR, description="prior preservation: its weight in the loss")
    distill_captions: Literal["own", "class", "empty"] | list[str] | None = Field(
        None,
        description="distillation: keep what the untrained model predicts for these captions: own: those of distill_pictures; "
        "class: theirs with class_word in place of the trigger; empty: no words; or a list; null for no distillation",
    )
    distill_pictures: str = Field(
        "instance",
        description="distillation: the pictures: instance: those of the subject, noised as for training; class: those drawn of "
        "class_prompts, whose noise is then no target; or a folder of pictures with captions",
    )
    distill_weight: float = Field(
        1.0, ge=0.0, le=limits.FACTOR, description="distillation: its weight in the loss; others advise 1, or 10 to 1000"
    )
    trigger: str | None = Field(
        None, description="distillation: the word of the captions that stands for the subject; null for the word that trains"
    )
    class_word: str = Field("", description="distillation: what stands in its place, such as dog; empty leaves the trigger out")
    learning_rate: float = Field(
        1e-3,
        gt=0.0,
        le=limits.RATE,
        description="of the optimizer, 1.0 for prodigy; with a constraint, 3 to 10 times higher than without",
    )
    optimizer: OptimizerName = Field(
        "adamw",
        description="adamw; adamw8bit: its state in 8 bits, by bitsandbytes; prodigy: finds its step size itself, by prodigyopt",
    )
    ema_decay: float | None = Field(
        None,
        ge=0.0,
        lt=1.0,
        description="the result, validation pictures and trained files have moving averages of what trains, with this decay, "
        "such as 0.999; null for the last values",
    )
    word: str | None = Field(
        None,
        description="also train the embedding of this word of the captions, which no preserved prompt has; a word of several "
        "tokens becomes one of its own, and with method lora a word of one token is trained as <word>",
    )
    word_learning_rate: float = Field(
        1e-2,
        gt=0.0,
        le=limits.RATE,
        description="of that embedding in the first text encoder; larger in one of larger embeddings; no weight decay",
    )
    word_encoders: Literal["clip", "all"] = Field(
        "clip",
        description="the text encoders in which the word trains: clip: CLIP (T5 where there is no CLIP); all: T5 too, which is "
        "larger and is what Flux reads word by word",
    )
    snr_gamma: float | None = Field(
        None,
        gt=0.0,
        le=limits.FACTOR,
        description="min-SNR weights of the loss, usually 5, for models that predict noise or velocity; null for equal weights",
    )
    timestep_density: Density | None = Field(
        None,
        description="how timesteps are drawn: uniform, logit_normal, mode, or (Stable Diffusion 3, Flux) sigma_shift, shifted as "
        "the model draws; null for the default of diffusers' scripts: logit_normal for Stable Diffusion 3, uniform for others",
    )
    training_guidance: float | None = Field(
        None,
        ge=0.0,
        le=limits.FACTOR,
        description="the guidance that Flux receives as an input; null for 3.5, the default of diffusers' scripts",
    )
    lr_scheduler: LearningRates = Field("constant", description="how the learning rate changes: a name of diffusers' schedulers")
    lr_warmup_steps: int = Field(0, ge=0, le=limits.COUNT, description="optimizer steps until the full learning rate")
    adam_weight_decay: float = Field(
        1e-2, ge=0.0, le=limits.RATE, description="decoupled; with a constraint it pulls towards the old weights"
    )
    max_grad_norm: float = Field(1.0, gt=0.0, description="gradients are clipped to this norm")
    max_train_steps: int = Field(200, ge=1, le=limits.COUNT, description="optimizer steps")
    train_batch_size: int = Field(4, ge=1, le=limits.BATCH, description="pictures per forward")
    gradient_accumulation_steps: int = Field(1, ge=1, le=limits.COUNT, description="forwards per optimizer step")
    gradient_checkpointing: bool = Field(False, description="less memory for more time")
    mixed_precision: Literal["no", "fp16", "bf16"] = Field("no", description="as accelerate takes it; projections stay float32")
    dtype: Dtype = Field(
        "float32",
        description="of all weights that do not train: float32, or the half precision that mixed_precision has; what trains is "
        "float32",
    )
    checkpointing_steps: int = Field(
        100, ge=1, le=limits.COUNT, description="steps between two checkpoints; a run resumes from the last"
    )
    checkpoints_total_limit: int | None = Field(
        None,
        ge=1,
        le=limits.COUNT,
        description="how many checkpoints stay; null keeps all that have at most 100 MB each, and the last 5 of larger ones",
    )
    validation_prompts: list[str] = Field([], description="prompts to draw at every checkpoint")
    validation_inference_steps: int = Field(25, ge=1, le=limits.STEPS, description="denoising steps of those pictures")
    guidance_scale: float | None = Field(
        None,
        ge=0.0,
        le=limits.FACTOR,
        description="of those pictures, and of the class pictures; null for the default of the model's pipeline",
    )
    report_to: Tracker | list[Tracker] | None = Field(
        None,
        description="also send loss and learning rate to one tracker or several: tensorboard, wandb, comet_ml, aim, mlflow, "
        "clearml, dvclive, swanlab, trackio",
    )
    seed: int = Field(0, ge=0, le=limits.SEED, description="of noise, order and timesteps")

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `report_to`."""
        return (self.report_to,) if isinstance(self.report_to, str) else tuple(self.report_to or ())

    @model_validator(mode="after")
    def _combinations(self) -> "Recipe":
        if not (self.features or self.linear_layers) or len(set(self.features)) < len(self.features):
            raise refusal(f"features is {self.features}", "name each projection once, and at least one or linear_layers")
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            raise refusal("lr_scheduler: constant has no warmup", "set it to constant_with_warmup, or lr_warmup_steps to 0")
        if self.dtype != "float32" and self.mixed_precision != MIXED[self.dtype]:
            raise refusal(
                f"dtype: {self.dtype} cannot run with mixed_precision: {self.mixed_precision}, because what trains is float32",
                f"set mixed_precision to {MIXED[self.dtype]}, or dtype to float32",
            )
        if self.optimizer == "prodigy" and self.word is not None and self.word_learning_rate != self.learning_rate:
            raise refusal(
                f"optimizer: prodigy has one learning rate, and word_learning_rate is {self.word_learning_rate:g} where "
                f"learning_rate is {self.learning_rate:g}",
                "set both to 1.0",
            )
        if self.instance_prompt is not None and not self.instance_prompt.strip():
            raise refusal("instance_prompt is empty", "write a caption, or null for the pictures' own")
        return self

    @model_validator(mode="after")
    def _distillation(self) -> "Recipe":
        captions, pictures = self.distill_captions, self.distill_pictures
        if captions is None:
            if pictures != "instance":
                raise refusal(f"distill_pictures is {pictures}, and distill_captions is null", "set distill_captions: own")
            return self
        if captions == []:
            raise refusal("distill_captions is an empty list", "name captions, or null for no distillation")
        if captions == "own" and pictures == "instance":
            raise refusal(
                "distill_captions: own of distill_pictures: instance would undo the training",
                "set distill_captions to class or empty, or distill_pictures to class or a folder",
            )
        if captions == "class" and pictures == "class":
            raise refusal("captions of class pictures have no trigger to replace", "set distill_captions: own")
        if captions == "class" and not (self.trigger or self.word):
            raise refusal("distill_captions: class needs the word that it replaces", "set trigger, such as sks")
        if pictures == "class" and self.class_prompts is None:
            raise refusal("distill_pictures: class needs class_prompts", "name prompts of the class, a file or a list")
        return self
