"""The reason that a model cannot be loaded, with the next thing to do.

diffusers, transformers, huggingface_hub, safetensors and torch each raise errors of their own, often one from another, and
without a common base class. `explained()` turns all of them into a ConfigError.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from nullbooth_cli.errors import ConfigError, NullboothError
from nullbooth_cli.model.sources import ALLOW_PICKLE, SAFE, Source, pickled_weights

_GENERAL = "check the name, revision and variant; offline, give a local folder"


@contextlib.contextmanager
def explained(source: Source, place: str | None = None, completes: str | None = None) -> Iterator[None]:
    """Turn any error of the libraries on loading a model into a ConfigError.

    `place` is the folder or file that is loaded, once it is there. `completes` names a single file of weights, if the model is
    fetched only to complete it.
    """
    try:
        yield
    except NullboothError:
        raise
    except Exception as error:  # five libraries, without a common base class; an unknown error keeps its own text
        message, hint = _explain(source, None if place is None else Path(place), error)
        if completes is not None:
            message = f"{completes} has weights only, and the rest of its pipeline cannot be loaded: {message}"
            hint += "\nor set pipeline_config to the folder of a pipeline of the same kind"
        raise ConfigError(message, hint) from error


def _explain(source: Source, place: Path | None, error: Exception) -> tuple[str, str]:
    from huggingface_hub import errors as hub

    model, page = source.model, f"https://huggingface.co/{source.model}"
    causes = list(_causes(error))
    text = "\n".join(str(cause) for cause in causes)

    def caused_by(*kinds: type[Exception]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused_by(hub.GatedRepoError):
        return (
            f"{model} is gated: its owners ask for your consent first",
            f"accept their terms at {page}, then: hf auth login",
        )
    if caused_by(hub.RepositoryNotFoundError):
        return (
            f"the hub has no model {model}, or it is private",
            "check the spelling; for a private model run hf auth login; write a folder beside you as ./owner/name",
        )
    if caused_by(hub.RevisionNotFoundError):
        return f"{model} has no revision {source.revision}", f"set revision to a branch, tag or commit of {page}/commits"
    if caused_by(hub.OfflineModeIsEnabled):
        return f"{model} is not in the cache, and HF_HUB_OFFLINE forbids asking the hub", _download(model)
    if caused_by(hub.RemoteEntryNotFoundError):
        return (
            f"{model} is not a pipeline that diffusers can load: {_first_line(error)}",
            f"look at its files: {page}/tree/main",
        )
    # The errors of the network, whichever of requests, httpx and its successors a version of the hub's library uses.
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    if caused_by(hub.LocalEntryNotFoundError) or names & {"TransportError", "ConnectionError", "Timeout"}:
        if source.local_files_only:
            return f"{model} is not in the cache, and local_files_only forbids asking the hub", _download(model)
        return f"{model} is not in the cache, and the hub cannot be reached", f"check the network; {_download(model)}"
    pickled = f"{model} has pickled weights, and reading a pickle can run any code"
    if not source.allow_pickle and "necessary `safetensors` weights" in text:
        return pickled, ALLOW_PICKLE
    if "variant=" in text or (source.variant is not None and "no such modeling files" in text):
        return f"{model} has no weights of the variant {source.variant}", _variants(place)
    if place is not None and not source.allow_pickle and (files := pickled_weights(place)):
        return f"{pickled}: {files[0].relative_to(place)}", ALLOW_PICKLE
    if place is not None and (damaged := _damaged(place)):
        file, reason = damaged
        return f"{file} is damaged, perhaps by a download that was cut off: {reason}", "delete the file and get it again"
    if "missing in the checkpoint" in text:
        return (
            f"{model} is not a whole pipeline: {_first_line(error)}",
            "name a file with unet, text encoder and autoencoder; put single parts and adapters into a pipeline folder first",
        )
    if "Cannot copy out of meta tensor" in text:
        return f"{model} is not whole: weights are missing", "get the model again"
    if "ignore_mismatched_sizes" in text:
        detail = re.search(r"because (.*?)\. If you", text)
        which = f": {detail[1]}" if detail else ""
        return f"weights of {model} have other sizes than its config says{which}", "take config and weights from the same model"
    if missing := re.search(r"module diffusers has no attribute (\w+)", text):
        return f"this diffusers does not know the pipeline of {model}, {missing[1]}", "upgrade it: pip install -U diffusers"
    return f"cannot load the model {model}: {_first_line(error)}", _GENERAL


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all errors that led to it, by `raise ... from` or while they were handled."""
    if error is not None:
        yield error
        yield from _causes(error.__cause__)
        if error.__context__ is not error.__cause__:
            yield from _causes(error.__context__)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _download(model: str) -> str:
    return f"where there is a network, run hf download {model}, and set model to a copy of the folder that it prints"


def _variants(place: Path | None) -> str:
    files = [] if place is None else place.glob(f"*/*{SAFE}")
    there = sorted({match[1] for file in files if (match := re.fullmatch(rf"\w+\.(\w+)(-\d+-of-\d+)?{SAFE}", file.name))})
    return f"set variant to one of: {', '.join(there)}; or to null" if there else "set variant to null"


def _damaged(place: Path) -> tuple[Path, str] | None:
    """The first safetensors file of a pipeline folder, or the single file, that has no sound header, and why.

    A file that only cannot be opened now, as for want of memory or permission, is not damaged. Cost: reads the headers.
    """
    from safetensors import SafetensorError, safe_open

    for file in [place] if place.suffix == SAFE else sorted(place.glob(f"*/*{SAFE}")):
        try:
            with safe_open(file, "np"):
                pass
        except SafetensorError as error:
            return file, str(error)
        except OSError:
            continue
    return None
