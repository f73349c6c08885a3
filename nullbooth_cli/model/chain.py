"""Changes in the order in which they were made: what a training run trained, after all that it started from.

chain = Chain.at(Path("runs/cat"), allow_pickle=False)      # runs/cat was trained after runs/dog
chain.additions                                             # that of runs/dog, then that of runs/cat
for each in chain.additions:
    each.load_into(pipe)                                    # a pipeline of the base, or of chain.pipeline
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.adapter_files import PEFT_CONFIG, AdapterFile
from nullbooth_cli.model.adapters import attached, fuse
from nullbooth_cli.model.after import After
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.model.trained_files import Base, Located, TrainedFiles, locate


@dataclass(frozen=True)
class Addition:
    """What is put onto a model: an adapter times `scale`, or the files that a training run wrote."""

    files: AdapterFile | TrainedFiles
    scale: float = 1.0

    @property
    def is_lora(self) -> bool:
        """Whether it can have a scale, and others beside it."""
        return not isinstance(self.files, TrainedFiles) or self.files.adapter is not None

    def require_fits(self, pipe: Pipeline) -> None:
        """Raise ConfigError if it does not fit a pipeline, which stays as it was. Cost: one read of a LoRA."""
        if isinstance(self.files, TrainedFiles):
            self.files.require_fits(pipe)
        else:
            with attached(pipe, self.files):
                pass

    def load_into(self, pipe: Pipeline) -> None:
        """Put it onto a pipeline. Raises ConfigError as `require_fits` does."""
        if isinstance(self.files, TrainedFiles):
            self.files.load_into(pipe, self.scale)
        else:
            fuse(pipe, self.files, self.scale)

    @property
    def path(self) -> Path:
        """Its place."""
        return self.files.folder if isinstance(self.files, TrainedFiles) else self.files.path

    def read(self) -> Iterator[Path]:
        """Its files, in a fixed order."""
        files = self.files
        adapter = files.adapter if isinstance(files, TrainedFiles) else files
        if adapter is not None:
            yield adapter.path
            if adapter.peft is not None:
                yield adapter.peft / PEFT_CONFIG
        if isinstance(files, TrainedFiles):
            yield from filter(None, (files.denoiser, files.word and files.word.path))


def digest_of(additions: Sequence[Addition]) -> str | None:
    """SHA-256 of all files of additions, and of their scales, cut to 16 hexadecimal digits; None without any.

    Cost: one read of them.
    """
    digest = hashlib.sha256()
    for each in additions:
        digest.update(f"{each.scale!r}".encode())
        for path in each.read():
            with path.open("rb") as opened:
                digest.update(f"{path.name}:{hashlib.file_digest(opened, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()[:16] if additions else None


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A model as its files tell it: `additions`, in their order, on a `pipeline` folder, or (None) on the base.

    `base` is the model that its training run names, None for what no run wrote. `prompts` are those of all that was taught.
    """

    pipeline: Path | None = None
    additions: tuple[Addition, ...] = ()
    base: Base | None = None
    prompts: tuple[str, ...] = ()

    @classmethod
    def at(cls, place: Path, *, allow_pickle: bool) -> "Chain":
        """The model at a place that exists, with what it started from.

        Raises ConfigError for a place without a model, for one of the chain that is gone or has changed since, and as
        `TrainedFiles.find` does. Cost: the headers of files; one read of those that they start from.
        """
        return _at(place, allow_pickle, ())

    @classmethod
    def before(cls, located: Located, *, allow_pickle: bool) -> "Chain":
        """What the model at a place started from; an empty chain for one that was trained on its base, or by no run.

        Raises and costs as `at` does.
        """
        return _before(located.after, located.path, allow_pickle, ())


def _at(place: Path, allow_pickle: bool, seen: tuple[Path, ...]) -> Chain:
    if place.resolve() in seen:
        raise ConfigError(f"{place} was trained after itself, by its files", "copy the folders that the training runs wrote")
    located = locate(place)
    files = TrainedFiles.find(located.path) or AdapterFile.find(located.path, allow_pickle=allow_pickle)
    earlier = () if located.after is None else located.after.prompts
    found = Chain(base=located.base, prompts=tuple(dict.fromkeys((*earlier, *located.prompts))))
    if files is None:
        return replace(found, pipeline=located.path)
    before = _before(located.after, located.path, allow_pickle, (*seen, place.resolve()))
    return replace(found, pipeline=before.pipeline, additions=(*before.additions, Addition(files)))


def _before(after: After | None, folder: Path, allow_pickle: bool, seen: tuple[Path, ...]) -> Chain:
    if after is None:
        return Chain()
    place = after.find(folder)
    found = _at(place, allow_pickle, seen)
    if digest_of(found.additions) != after.digest:
        raise ConfigError(
            f"{folder} was trained after {place}, which has changed since: together they are another model",
            f"put {place} back as it was, or train again",
        )
    return found
