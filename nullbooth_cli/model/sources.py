"""The place of a model: the embedded one, a pipeline folder, a hub id, or a single file of weights.

1. `Source` is the config's `model` with the settings beside it; `located()` finds it, without the network.
2. `fetch()` returns the pipeline folder; it downloads that of a hub id once, then takes it from the cache.
3. A single file has weights only: `completing()` names the model that everything else is taken from.

Pickled weights can run any code when they are read, so they are refused unless `allow_pickle` is set.
"""

from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any

from nullbooth_cli import toy
from nullbooth_cli.errors import ConfigError

SAFE = ".safetensors"
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
PIPELINE_INDEX = "model_index.json"
# The files of a pipeline folder beside weights.
CONFIG_FILES = ["*.json", "*.txt", "*.model"]
ALLOW_PICKLE = "convert it to .safetensors, or, if you trust its author, set allow_pickle: true"


@dataclass(frozen=True)
class Source:
    """A model as the config names it; the fields are the config's keys."""

    model: str
    _: KW_ONLY
    revision: str | None = None
    variant: str | None = None
    local_files_only: bool = False
    allow_pickle: bool = False
    pipeline_config: str | None = None

    @classmethod
    def of(cls, settings: Any) -> "Source":
        """The model that a config or a recipe names."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})

    def located(self) -> str:
        """A pipeline folder, a single file, or a hub id. Raises ConfigError for anything else."""
        place = self._located()
        if self.pipeline_config is not None and not Path(place).is_file():
            raise ConfigError(
                f"pipeline_config is only for single-file models; {self.model} is a folder or hub id",
                "set pipeline_config to null",
            )
        return place

    def _located(self) -> str:
        if self.model == "toy":
            return str(toy.FOLDER)
        path = Path(self.model).expanduser()
        if path.is_dir():
            _require_pipeline(path, str(path))
            return str(path)
        if path.suffix in (SAFE, *PICKLED) and "://" not in self.model:
            self._require_usable(path)
            return str(path)
        if path.exists():
            raise ConfigError(
                f"{path} is not a model", f"set model to a {SAFE} file, or to a pipeline folder, which has a {PIPELINE_INDEX}"
            )
        if "://" in self.model:
            raise ConfigError(
                f"model: {self.model} is an address",
                "set model to the hub id (owner/name); for a single file run hf download owner/name FILE, and set model to the "
                "path that it prints",
            )
        if self.model.startswith((".", "/", "~")) or self.model.count("/") != 1:
            raise ConfigError(
                f"no model folder at {path}", f"set model to toy, a pipeline folder, a {SAFE} file, or a hub id (owner/name)"
            )
        return self.model

    @property
    def is_single_file(self) -> bool:
        """Whether it is one file of weights. Raises ConfigError as `located` does."""
        return Path(self.located()).is_file()

    def _require_usable(self, file: Path) -> None:
        if not file.is_file():
            raise ConfigError(f"no model file at {file}", "set model to its path from the current folder, or to the whole path")
        if file.suffix in PICKLED and not self.allow_pickle:
            raise ConfigError(f"{file} is pickled, and reading a pickle can run any code", ALLOW_PICKLE)
        if self.revision or self.variant:
            raise ConfigError("revision and variant mean nothing for a single file", "set both to null")


def _require_pipeline(folder: Path, name: str) -> None:
    if (folder / PIPELINE_INDEX).is_file():
        return
    files = sorted(folder.glob(f"*{SAFE}"))
    hint = f"set model to the file {files[0]}" if files else "set model to a folder that save_pretrained of a pipeline wrote"
    if (folder / "config.json").is_file():
        hint = f"set model to the folder with {PIPELINE_INDEX}: this is only one part of a pipeline"
    raise ConfigError(f"{name} is not a pipeline folder: it has no {PIPELINE_INDEX}", hint)


def fetch(source: Source, *, weights: bool = True) -> str:
    """The pipeline folder of a folder or hub id; with `weights=False` only the config files of a hub id are downloaded.

    Cost: the download, the first time.
    """
    name = source.located()
    if Path(name).is_dir():
        return name
    if not weights:
        from huggingface_hub import snapshot_download

        patterns = [*CONFIG_FILES, *(f"*/{files}" for files in CONFIG_FILES)]
        folder = snapshot_download(
            name, revision=source.revision, allow_patterns=patterns, local_files_only=source.local_files_only
        )
        _require_pipeline(Path(folder), name)
        return folder
    from diffusers import DiffusionPipeline

    return str(
        DiffusionPipeline.download(
            name,
            revision=source.revision,
            variant=source.variant,
            local_files_only=source.local_files_only,
            use_safetensors=None if source.allow_pickle else True,
        )
    )


def completing(source: Source) -> Source:
    """The model from which a single file takes everything but its weights: `pipeline_config`, or the one that its layout implies.

    diffusers itself would ask the hub for it even if `local_files_only` is set, so we fetch it by name.
    """
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

    named = source.pipeline_config
    if named is None:
        named = fetch_diffusers_config(load_single_file_checkpoint(source.located()))["pretrained_model_name_or_path"]
    base = Source(named, local_files_only=source.local_files_only)
    if base.is_single_file:
        raise ConfigError(f"pipeline_config: {named} is a single file as well", "set it to a pipeline folder or a hub id")
    return base


def pickled_weights(folder: Path) -> list[Path]:
    """The weights of a pipeline folder that exist only as pickles."""
    return [file for file in sorted(folder.glob("*/*.bin")) if not any(file.parent.glob(f"*{SAFE}"))]
