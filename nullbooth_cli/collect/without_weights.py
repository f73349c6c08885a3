"""A pipeline without weights: what a model's projections would receive, and what its pipeline asks of the scheduler.

1. `build_pipeline()` makes the model's own pipeline from its config files (a few kB). The denoiser is on the meta device, where
   tensors have shapes and no values. Text encoders are replaced by the shapes of their outputs.
2. `find_shapes()` finds its sites, as `find_sites.find_sites()` does for a loaded model.
3. `count_operations()` counts the work of one forward.

Packing, guidance, masks, ids and sizes stay the pipeline's own. Cost: a second or two, a few MB of memory.
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

from nullbooth_cli.collect.find_sites import FoundSites, find_sites
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.denoise import DenoisingPath, begin_denoising
from nullbooth_cli.model.load import denoiser_of
from nullbooth_cli.model.projections import Projection

Tokenizer = Mapping[str, Any]
ANY_PROMPT = Prompt("any words")  # they play no part: a text is as long as its encoder makes all of them


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def _stable_diffusion(pipe: Any, tokenizer: Tokenizer) -> tuple[torch.Tensor, ...]:
    text = _empty(1, tokenizer["model_max_length"], pipe.unet.config.cross_attention_dim)
    return text, text


def _stable_diffusion_xl(pipe: Any, tokenizer: Tokenizer) -> tuple[torch.Tensor, ...]:
    config = pipe.unet.config
    text = _empty(1, tokenizer["model_max_length"], config.cross_attention_dim)
    # What is embedded beside the pooled text are the six numbers of the image's sizes and crop.
    pooled = _empty(1, config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)
    return text, text, pooled, pooled


def _pixart(pipe: Any, _: Tokenizer) -> tuple[torch.Tensor, ...]:
    text, mask = _empty(1, _t5_tokens(pipe), pipe.transformer.config.caption_channels), _empty(1, _t5_tokens(pipe))
    return text, mask, text, mask


def _stable_diffusion_3(pipe: Any, tokenizer: Tokenizer) -> tuple[torch.Tensor, ...]:
    config = pipe.transformer.config
    text = _empty(1, tokenizer["model_max_length"] + _t5_tokens(pipe), config.joint_attention_dim)
    pooled = _empty(1, config.pooled_projection_dim)
    return text, text, pooled, pooled


def _flux(pipe: Any, _: Tokenizer) -> tuple[torch.Tensor, ...]:
    config = pipe.transformer.config
    text = _empty(1, _t5_tokens(pipe), config.joint_attention_dim)
    return text, _empty(1, config.pooled_projection_dim), _empty(text.shape[1], 3)


def _t5_tokens(pipe: Any) -> int:
    """The length that a pipeline pads its T5 text to, if it is not told another."""
    tokens: int = inspect.signature(type(pipe).__call__).parameters["max_sequence_length"].default
    return tokens


# What `encode_prompt` of each pipeline returns for one prompt, from the pipeline and the config of its first tokenizer: a text of
# CLIP is as long as that takes, one of T5 as the pipeline says.
TEXT_SHAPES: dict[str, Callable[[Any, Tokenizer], tuple[torch.Tensor, ...]]] = {
    "StableDiffusionPipeline": _stable_diffusion,
    "LatentConsistencyModelPipeline": _stable_diffusion,
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
    "PixArtAlphaPipeline": _pixart,
    "PixArtSigmaPipeline": _pixart,
    "StableDiffusion3Pipeline": _stable_diffusion_3,
    "FluxPipeline": _flux,
}


def pipeline_class(folder: str) -> str:
    """The name of a model's pipeline class (in `TEXT_SHAPES` if `build_pipeline` can make it); reads one small JSON file."""
    import diffusers

    with _readable(folder):
        name: str = diffusers.DiffusionPipeline.load_config(folder)["_class_name"]
        return name


def build_pipeline(folder: str, scheduler: Any) -> Any:
    """The pipeline of a model's folder of config files, without weights, with a scheduler.

    Raises ConfigError for a pipeline class that is not in `TEXT_SHAPES`, and for config files that cannot be read.
    """
    import diffusers
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    name = pipeline_class(folder)
    if name not in TEXT_SHAPES:
        raise ConfigError(f"the shapes of {name} are known only once it is loaded", f"without loading: {', '.join(TEXT_SHAPES)}")
    made = getattr(diffusers, name)
    with _readable(folder):
        index = diffusers.DiffusionPipeline.load_config(folder)
        parts = dict.fromkeys(inspect.signature(made).parameters.keys() & index.keys())
        for part in parts.keys() & {"unet", "transformer", "vae"}:
            kind = getattr(diffusers, index[part][1])
            with torch.device("meta"):
                parts[part] = kind.from_config(kind.load_config(folder, subfolder=part)).to("meta").eval()
        parts |= {key: index[key] for key in parts if not isinstance(index[key], list)}
        pipe = made(**{**parts, "scheduler": _keep_values(scheduler)})
        encoded = TEXT_SHAPES[name](pipe, get_tokenizer_config(folder, subfolder="tokenizer"))
    pipe.set_progress_bar_config(disable=True)
    pipe.encode_prompt = lambda *_, **__: encoded
    denoiser_of(pipe).register_forward_pre_hook(
        lambda _, *given: tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), given), with_kwargs=True
    )
    return pipe


@contextmanager
def _readable(folder: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(f"cannot read the configs in {folder}: {first}", "check its name, revision and files") from error


def _keep_values(scheduler: Any) -> Any:
    """Leave the steps of a scheduler on the CPU, whatever device the pipeline names: they are wanted with their values."""
    original = scheduler.set_timesteps

    @functools.wraps(original)
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        original(*args, **{**kwargs, "device": "cpu"})

    scheduler.set_timesteps = set_timesteps
    scheduler.scale_model_input = lambda sample, *_, **__: sample  # it looks up values, and changes no shape
    return scheduler


class DependenceTracker(TorchDispatchMode):
    """Context manager that follows through every operation what depends on some tensors, by the memory that it is in.

    An operation in place returns what it wrote, so results are all that is to be marked.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch annotates only part of itself
        self._dependent: dict[int, Any] = {}  # storages, kept alive so that no address comes twice

    def start(self, given: Any) -> None:
        for tensor in tree_leaves(given):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._dependent[storage._cdata] = storage

    def holds(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._dependent

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(tensor, torch.Tensor) and self.holds(tensor) for tensor in tree_leaves((args, kwargs))):
            self.start(result)
        return result


CHANGING = ("sample", "hidden_states", "timestep")  # what differs between the forwards of a path; the text does not


def find_shapes(
    pipe: Any,
    path: DenoisingPath,
    projections: tuple[Projection, ...],
    side: str,
    branches: str,
    tokens_per_prompt: int | None = None,
) -> FoundSites:
    """The sites of a pipeline without weights, the same that `recording.find_sites` finds of a loaded one."""
    changing = DependenceTracker()

    def start(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        changing.start([*args, *(kwargs[name] for name in CHANGING if name in kwargs)])

    def is_timestep_free(tensors: Sequence[torch.Tensor]) -> bool:
        return not changing.holds(tensors[0])

    handle = denoiser_of(pipe).register_forward_pre_hook(start, with_kwargs=True)
    try:
        with changing:
            return find_sites(pipe, path, projections, side, branches, ANY_PROMPT, tokens_per_prompt, 1, is_timestep_free)
    finally:
        handle.remove()


def count_operations(pipe: Any, path: DenoisingPath) -> int:
    """Floating point operations of one forward for one prompt, guidance included; a multiplication and an addition are two.

    Counted are matrix products, convolutions and attention; what works element by element is not.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        begin_denoising(pipe, path, ANY_PROMPT, num_forwards=1)
    operations: int = counter.get_total_flops()
    return operations
