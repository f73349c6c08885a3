"""A pipeline without weights: the shapes that a model's projections receive, and the steps that its pipeline sets.

1. `build_pipeline()` makes the model's own pipeline from its config files (a few kB). The denoiser is on the meta device, where
   tensors have shapes and no values. Text encoders are replaced by the shapes of their outputs.
2. `find_shapes()` finds its sites, as `find_sites.find_sites()` does for a loaded model.
3. `count_operations()` counts the work of one forward.

The pipeline itself computes packing, guidance, masks, ids and sizes. Cost: a second or two, a few MB of memory.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from nullbooth_cli.collect.branches import named, recorded_of
from nullbooth_cli.collect.find_sites import FoundSites, sites_of
from nullbooth_cli.collect.probe import Probe
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.denoise import DenoisingPath, begin_denoising
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.hooks import Forward
from nullbooth_cli.model.pipeline_folder import read_pipeline_folder
from nullbooth_cli.model.projections import Projection
from nullbooth_cli.model.protocols import Pipeline, Scheduler, config_of
from nullbooth_cli.model.quiet import quiet_libraries

TokenizerConfig = Mapping[str, Any]
ANY_PROMPT = Prompt("any words")  # the text does not matter: every prompt is padded to the same length


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


# The shapes below follow `encode_prompt` of diffusers 0.42.1; tests/collect/test_without_weights.py compares each with a run.


def _stable_diffusion(pipe: Pipeline, tokenizer: TokenizerConfig) -> tuple[torch.Tensor, ...]:
    text = _empty(1, tokenizer["model_max_length"], config_of(denoiser_of(pipe))["cross_attention_dim"])
    return text, text


def _stable_diffusion_xl(pipe: Pipeline, tokenizer: TokenizerConfig) -> tuple[torch.Tensor, ...]:
    config = config_of(denoiser_of(pipe))
    text = _empty(1, tokenizer["model_max_length"], config["cross_attention_dim"])
    # The embedding takes the pooled text and six numbers: the sizes and the crop of the image.
    pooled = _empty(1, config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"])
    return text, text, pooled, pooled


def _pixart(pipe: Pipeline, _: TokenizerConfig) -> tuple[torch.Tensor, ...]:
    text = _empty(1, _t5_tokens(pipe), config_of(denoiser_of(pipe))["caption_channels"])
    mask = _empty(1, _t5_tokens(pipe))
    return text, mask, text, mask


def _stable_diffusion_3(pipe: Pipeline, tokenizer: TokenizerConfig) -> tuple[torch.Tensor, ...]:
    config = config_of(denoiser_of(pipe))
    text = _empty(1, tokenizer["model_max_length"] + _t5_tokens(pipe), config["joint_attention_dim"])
    pooled = _empty(1, config["pooled_projection_dim"])
    return text, text, pooled, pooled


def _flux(pipe: Pipeline, _: TokenizerConfig) -> tuple[torch.Tensor, ...]:
    config = config_of(denoiser_of(pipe))
    text = _empty(1, _t5_tokens(pipe), config["joint_attention_dim"])
    return text, _empty(1, config["pooled_projection_dim"]), _empty(text.shape[1], 3)


def _t5_tokens(pipe: Pipeline) -> int:
    """The length to which a pipeline pads its T5 text by default."""
    tokens: int = inspect.signature(type(pipe).__call__).parameters["max_sequence_length"].default
    return tokens


# By pipeline class: the outputs of `encode_prompt` for one prompt, from the pipeline and the config of its first tokenizer. A
# text of CLIP is as long as its tokenizer's maximum, one of T5 as the pipeline's default.
TEXT_SHAPES: dict[str, Callable[[Pipeline, TokenizerConfig], tuple[torch.Tensor, ...]]] = {
    "StableDiffusionPipeline": _stable_diffusion,
    "LatentConsistencyModelPipeline": _stable_diffusion,
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
    "PixArtAlphaPipeline": _pixart,
    "PixArtSigmaPipeline": _pixart,
    "StableDiffusion3Pipeline": _stable_diffusion_3,
    "FluxPipeline": _flux,
}


def pipeline_class(folder: str) -> str:
    """The name of a model's pipeline class; `build_pipeline` can make those in `TEXT_SHAPES`. Reads small JSON files."""
    return read_pipeline_folder(folder, weights=False).class_name


def build_pipeline(folder: str, scheduler: Scheduler) -> Pipeline:
    """The pipeline of a model's folder of config files, without weights, with a scheduler.

    Raises ConfigError for a pipeline class that is not in `TEXT_SHAPES`, and for config files that cannot be read.
    """
    import diffusers
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    name = pipeline_class(folder)
    if name not in TEXT_SHAPES:
        raise ConfigError(
            f"the shapes of {name} cannot be found without its weights",
            f"load the model, or choose one of the classes that need no weights: {', '.join(TEXT_SHAPES)}",
        )
    with quiet_libraries(), _readable(folder):
        made = getattr(diffusers, name)  # imports modules that log
        index = diffusers.DiffusionPipeline.load_config(folder)
        parts = dict.fromkeys(inspect.signature(made).parameters.keys() & index.keys())
        for part in parts.keys() & {"unet", "transformer", "vae"}:
            kind = getattr(diffusers, index[part][1])
            with torch.device("meta"):
                parts[part] = kind.from_config(kind.load_config(folder, subfolder=part)).to("meta").eval()
        parts |= {key: index[key] for key in parts if not isinstance(index[key], list)}
        pipe = made(**{**parts, "scheduler": _set_steps_on_cpu(scheduler)})
        encoded = TEXT_SHAPES[name](pipe, get_tokenizer_config(folder, subfolder="tokenizer"))
    pipe.set_progress_bar_config(disable=True)
    pipe.encode_prompt = functools.partial(_for_each, encoded)
    denoiser_of(pipe).register_forward_pre_hook(
        lambda _, *given: tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), given), with_kwargs=True
    )
    built: Pipeline = pipe
    return built


def _for_each(encoded: tuple[torch.Tensor, ...], prompt: Sequence[str], *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
    """The outputs of `encode_prompt` for one prompt, for several; what has no row for a prompt stays."""
    return tuple(each.expand(len(prompt), *each.shape[1:]) if len(each) == 1 else each for each in encoded)


@contextmanager
def _readable(folder: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(f"cannot read the configs in {folder}: {first}", "check its name, revision and files") from error


def _set_steps_on_cpu(scheduler: Scheduler) -> Scheduler:
    """Set a scheduler's steps on the CPU, whatever device the pipeline names: their values are needed."""
    original = scheduler.set_timesteps

    @functools.wraps(original)
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        original(*args, **{**kwargs, "device": "cpu"})

    scheduler.set_timesteps = set_timesteps
    # Scaling looks up values, and changes no shape. Flow-matching schedulers do not scale.
    scheduler.scale_model_input = lambda sample, *_, **__: sample  # type: ignore[attr-defined]
    return scheduler


class DependenceTracker(TorchDispatchMode):
    """Context manager that marks every tensor that depends on a marked one, by its memory.

    An operation in place returns the tensor that it wrote, so marking results is enough.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch annotates only part of itself
        self._dependent: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address appears twice

    def mark(self, given: object) -> None:
        """Mark all tensors in a tree of lists, tuples and dictionaries."""
        for tensor in tree_leaves(given):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._dependent[storage._cdata] = storage

    def is_marked(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor was marked, or depends on one that was."""
        return tensor.untyped_storage()._cdata in self._dependent

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(tensor, torch.Tensor) and self.is_marked(tensor) for tensor in tree_leaves((args, kwargs))):
            self.mark(result)
        return result


CHANGING = ("sample", "hidden_states", "timestep")  # the arguments that differ between forwards of a path (the text does not)


def find_shapes(
    pipe: Pipeline,
    path: DenoisingPath,
    projections: tuple[Projection, ...],
    *,
    side: str,
    branches: str,
    tokens_per_prompt: int | None = None,
) -> FoundSites:
    """The sites of a pipeline without weights: the same that `find_sites` finds for a loaded one."""
    changing = DependenceTracker()

    def mark_arguments(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        changing.mark([*args, *(kwargs[name] for name in CHANGING if name in kwargs)])

    seen = Probe(pipe, projections, side, num_steps=1, changes=changing.is_marked)
    handle = denoiser_of(pipe).register_forward_pre_hook(mark_arguments, with_kwargs=True)
    try:
        with changing:
            seen.run(path, ANY_PROMPT, last=Forward("", 0, 0))
    finally:
        handle.remove()
    rows = next(iter(seen.num_rows.values()))
    every = named([rows], [False, True][-rows:])  # of the classes in TEXT_SHAPES: the empty prompt's row comes first
    num_steps = len(path.steps) or path.num_inference_steps
    return sites_of(seen, projections, side, recorded_of(every, branches), num_steps, tokens_per_prompt)


def count_operations(pipe: Pipeline, path: DenoisingPath) -> int:
    """Floating point operations of one forward for one prompt, guidance included; a multiplication and an addition are two.

    Matrix products, convolutions and attention are counted, operations element by element are not.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        begin_denoising(pipe, path, ANY_PROMPT, num_forwards=1)
    operations: int = counter.get_total_flops()
    return operations
