"""What a config's `model` names, and the files it stands for: the embedded model, a folder, a hub id, or a single file.

1. `Source` is the name with what the config says beside it; `located()` says where it is, without the network.
2. `fetch()` gives the pipeline folder of a hub id, downloaded once and then cached; a folder is itself.
3. A single file holds weights only: `completing()` names the model that tells the rest.

Pickled weights can run any code when they are read, so they are refused unless `allow_pickle` is set.
"""

from dataclasses import dataclass
from pathlib import Path

from nullbooth_cli import toy
from nullbooth_cli.errors import ConfigError

SAFE = ".safetensors"
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
PIPELINE_INDEX = "model_index.json"
# What a pipeline folder holds beside weights.
CONFIG_FILES = ["*.json", "*.txt", "*.model"]
ALLOW_PICKLE = "convert it to .safetensors, or, if you trust who made it, set allow_pickle: true"


@dataclass(frozen=True)
class Source:
    """A model as the config names it; the fields are the config's keys."""

    model: str
    revision: str | None = None
    variant: str | None = None
    local_files_only: bool = False
    allow_pickle: bool = False
    pipeline_config: str | None = None

    def located(self) -> str:
        """A pipeline folder, a single file, or a hub id. Raises ConfigError for what can be none of them."""
        place = self._located()
        if self.pipeline_config is not None and not Path(place).is_file():
            raise ConfigError(
                f"pipeline_config says what a single file does not, and {self.model} is none", "set pipeline_config to null"
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
            raise ConfigError(f"{path} is no model", f"a single file ends in {SAFE}; a pipeline folder has a {PIPELINE_INDEX}")
        if "://" in self.model:
            raise ConfigError(
                f"model: {self.model} is an address",
                "set model to the hub id (owner/name); for a single file, hf download owner/name FILE --local-dir . and its path",
            )
        if self.model.startswith((".", "/", "~")) or self.model.count("/") != 1:
            raise ConfigError(
                f"no model folder at {path}", f"set model to toy, a pipeline folder, a {SAFE} file, or a hub id (owner/name)"
            )
        return self.model

    @property
    def is_single_file(self) -> bool:
        return Path(self.located()).is_file()

    def _require_usable(self, file: Path) -> None:
        if not file.is_file():
            raise ConfigError(f"no model file at {file}", "give its path from the current folder, or the whole path")
        if file.suffix in PICKLED and not self.allow_pickle:
            raise ConfigError(f"{file} is pickled, and reading a pickle can run any code", ALLOW_PICKLE)
        if self.revision or self.variant:
            raise ConfigError("revision and variant mean nothing for a single file", "set both to null")


def _require_pipeline(folder: Path, name: str) -> None:
    if (folder / PIPELINE_INDEX).is_file():
        return
    files = sorted(folder.glob(f"*{SAFE}"))
    hint = f"set model to the file {files[0]}" if files else "a pipeline folder is what save_pretrained of a pipeline writes"
    if (folder / "config.json").is_file():
        hint = f"this is one part of a pipeline: set model to the folder that holds {PIPELINE_INDEX}"
    raise ConfigError(f"{name} is not a pipeline folder: it has no {PIPELINE_INDEX}", hint)


def fetch(source: Source, *, weights: bool = True) -> str:
    """The pipeline folder that a folder or hub id stands for; of a hub id without weights if none are wanted.

    Cost: the download, the first time; only the files that are needed.
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
    """The model that a single file takes everything but its weights from: `pipeline_config`, or the one its layout tells.

    diffusers itself would ask the hub for it even if `local_files_only` is set, so it is fetched by name.
    """
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

    named = source.pipeline_config
    if named is None:
        named = fetch_diffusers_config(load_single_file_checkpoint(source.located()))["pretrained_model_name_or_path"]
    base = Source(named, local_files_only=source.local_files_only)
    if base.is_single_file:
        raise ConfigError(f"pipeline_config: {named} is a single file as well", "give a pipeline folder or a hub id")
    return base


def pickled_weights(folder: Path) -> list[Path]:
    """The weights of a pipeline folder that are there as pickles only."""
    return [file for file in sorted(folder.glob("*/*.bin")) if not any(file.parent.glob(f"*{SAFE}"))]
