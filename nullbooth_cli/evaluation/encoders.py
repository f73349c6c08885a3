"""Feature spaces in which pictures are compared, beside the model's own latents: CLIP, DINO and LPIPS, from weights on this disk.

Nothing is downloaded. A space without its weights is not measured; `FeatureSpaces.missing` has the reason.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.load import ONE_LOAD
from nullbooth_cli.model.prompt_length import cut_off_note_of
from nullbooth_cli.model.quiet import quiet_libraries

Images = NDArray[np.uint8]
ENCODERS = {"clip": "openai/clip-vit-base-patch32", "dino": "facebook/dinov2-base"}
ALEXNET = "alexnet-owt-7be5be79.pth"  # the file of torchvision's weights in torch.hub's folder: the backbone of LPIPS
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class FeatureSpaces:
    """Functions of images `[N, H, W, 3]`; None or absent for a space whose weights are missing.

    `encoders` give vectors `[N, D]` float32. `alignment` takes the vectors of CLIP and the prompts, and gives the cosine of each
    image with its prompt (CLIP-T), `[N]`; `cut_off_note` names the prompts that are too long for that, None if all fit. `lpips`
    gives the distance between two sets of images, `[N]`. `missing` has the reason for each space that cannot be measured.
    """

    encoders: Mapping[str, Callable[[Images], NDArray[np.float32]]] = field(default_factory=dict)
    alignment: Callable[[NDArray[np.float32], list[str]], NDArray[np.float32]] | None = None
    cut_off_note: Callable[[Iterable[str]], str | None] = lambda _: None
    lpips: Callable[[Images, Images], NDArray[np.float32]] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)


def load_feature_spaces(given: Mapping[str, str], device: torch.device) -> FeatureSpaces:
    """CLIP and DINO from the folders `given` by name, else from the hub's cache; LPIPS if its package and AlexNet are installed.

    Raises ConfigError for a folder that cannot be loaded and for a name that is not an encoder.
    """
    for name in given:
        if name not in ENCODERS:
            raise ConfigError(f"no feature space {name}", f"name one of {', '.join(ENCODERS)}")
    encoders, missing, texts = {}, {}, _Texts()
    for name, hub_id in ENCODERS.items():
        folder = Path(given[name]) if name in given else _cached(hub_id)
        if folder is None:
            missing[name] = f"no {name.upper()} weights: no folder was given, and {hub_id} is not in the hub's cache"
            continue
        model, processor = _load(name, folder, device)
        encoders[name] = _encoder(name, model, processor)
        if name == "clip":
            texts = _texts(model, folder)
    lpips = None
    checkpoint = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if find_spec("lpips") is None:
        missing["lpips"] = "the package lpips is not installed (pip install lpips)"
    elif not checkpoint.is_file():
        missing["lpips"] = f"no AlexNet weights at {checkpoint}"
    else:
        lpips = _lpips(device)
    return FeatureSpaces(
        encoders=encoders, alignment=texts.alignment, cut_off_note=texts.cut_off_note, lpips=lpips, missing=missing
    )


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


@quiet_libraries()
def _load(name: str, folder: Path, device: torch.device) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModel

    hint = f"give the folder of a transformers model with its preprocessor_config.json, such as {ENCODERS[name]}"
    if not (folder / "config.json").is_file():
        raise ConfigError(f"no {name.upper()} model at {folder}: it has no config.json", hint)
    try:
        with ONE_LOAD:
            model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).to(device).eval()
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"cannot load the {name.upper()} model at {folder}: {str(error).splitlines()[0]}", hint) from error
    if name == "clip" and not hasattr(model, "get_image_features"):
        raise ConfigError(f"{folder} is a {type(model).__name__}, which has no common space of images and texts", hint)
    return model, processor


def batches(count: int, size: int = BATCH) -> Iterator[slice]:
    """Slices of at most `size` that cover `count` items."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _encoder(name: str, model: Any, processor: Any) -> Callable[[Images], NDArray[np.float32]]:
    @torch.no_grad()
    def encode(images: Images) -> NDArray[np.float32]:
        vectors = []
        for batch in batches(len(images)):
            pixels = processor(images=list(images[batch]), return_tensors="pt").to(model.device)
            found = model.get_image_features(**pixels) if name == "clip" else model(**pixels)
            vectors.append(found.pooler_output.float().cpu())
        return np.asarray(torch.cat(vectors).numpy())

    return encode


@dataclass(frozen=True)
class _Texts:
    """What CLIP does with texts, as in `FeatureSpaces`; nothing without a tokenizer."""

    alignment: Callable[[NDArray[np.float32], list[str]], NDArray[np.float32]] | None = None
    cut_off_note: Callable[[Iterable[str]], str | None] = lambda _: None


def _texts(model: Any, folder: Path) -> _Texts:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return _Texts()
    with quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    longest = model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def align(vectors: NDArray[np.float32], texts: list[str]) -> NDArray[np.float32]:
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(model.device)
        embedded = normalize(model.get_text_features(**tokens).pooler_output.float().cpu(), dim=-1)
        return np.asarray((normalize(torch.from_numpy(vectors), dim=-1) * embedded).sum(-1).numpy())

    return _Texts(align, partial(cut_off_note_of, tokenizer, longest))


def _lpips(device: torch.device) -> Callable[[Images, Images], NDArray[np.float32]]:
    """The distance of Zhang et al. (2018), by their own network on AlexNet; it takes images in [-1, 1]."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision in a deprecated way
        model = lpips.LPIPS(net="alex", verbose=False).to(device).eval()

    def tensor(images: Images) -> torch.Tensor:
        return torch.from_numpy(images).permute(0, 3, 1, 2).to(device, torch.float32) / 127.5 - 1

    @torch.no_grad()
    def distance(x: Images, y: Images) -> NDArray[np.float32]:
        found = [model(tensor(x[batch]), tensor(y[batch])).flatten().cpu() for batch in batches(len(x))]
        return np.asarray(torch.cat(found).numpy())

    return distance
