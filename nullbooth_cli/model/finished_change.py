"""Where a finished change of a base model is: the one look at a place that a user names, from headers alone.

lora.safetensors, a folder of PEFT      an adapter
runs/toy-sks, .../lora, a checkpoint    trained files: an adapter, or the weights of the denoiser that were trained
a pipeline folder                       all weights of the denoiser; of a run of method full, those of its last checkpoint

found = FinishedFiles.find(Path("lora.safetensors"), allow_pickle=False)
found.modules(base)            # what it changes, of whatever kind
"""

from dataclasses import dataclass
from pathlib import Path

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.adapter_files import AdapterFile, metadata_in, notes_in
from nullbooth_cli.model.base_weights import BaseWeights
from nullbooth_cli.model.lora_file import LoraFile
from nullbooth_cli.model.lora_module import LoraModule
from nullbooth_cli.model.sources import PIPELINE_INDEX
from nullbooth_cli.model.trained_files import Located, TrainedFiles, locate, trained_checkpoints
from nullbooth_cli.model.whole_change import weights_of_denoiser_file, whole_changes


@dataclass(frozen=True, kw_only=True)
class FinishedFiles:
    """A finished change: an `adapter`, a `denoiser` file of trained weights, or, with neither, the pipeline folder at `path`.

    `files` are the trained files that either is in, None for what no training run wrote. `at` says what the place names, and what
    it was trained after: the base of what is found here.
    """

    at: Located
    files: TrainedFiles | None
    adapter: AdapterFile | None
    allow_pickle: bool

    @classmethod
    def find(cls, place: Path, *, allow_pickle: bool) -> "FinishedFiles":
        """What is at a place. Raises ConfigError if there is no change, or it cannot be read. Cost: the headers of files."""
        path = place.expanduser()
        if not path.exists():
            raise ConfigError(f"nothing at {place}", "name a LoRA, or the output of a training run; a LoRA counts at scale 1")
        located = locate(path)
        if (located.path / PIPELINE_INDEX).is_file():
            steps = trained_checkpoints(located.path.parent) if located.base is not None else {}
            if steps:
                located = locate(steps[max(steps)])  # the weights of the result, without the base
        files = TrainedFiles.find(located.path)
        is_trained = files is not None and files.denoiser is not None
        adapter = files.adapter if files is not None else AdapterFile.find(located.path, allow_pickle=allow_pickle, plain=False)
        return cls(
            at=located,
            files=files,
            adapter=None if is_trained else adapter,
            allow_pickle=allow_pickle,
        )

    @property
    def path(self) -> Path:
        """The folder or file."""
        return self.at.path

    @property
    def token(self) -> str | None:
        """The word that was taught."""
        return self.at.token

    @property
    def message(self) -> str | None:
        """A sentence for the user on what was chosen."""
        return self.at.note

    @property
    def denoiser(self) -> Path | None:
        """The file of trained weights, if it is one."""
        return None if self.files is None else self.files.denoiser

    @property
    def notes(self) -> tuple[str, ...]:
        """What nullbooth noted in its metadata, the oldest first."""
        if self.adapter is not None:
            return notes_in(self.adapter.metadata)
        return notes_in(metadata_in(self.denoiser or sorted(self.whole_weights().files.values())[0]))

    def lora(self, base: BaseWeights) -> LoraFile:
        """The LoRA of an adapter, read for a base. Raises ConfigError as `LoraFile.read` does. Cost: one read."""
        assert self.adapter is not None
        place = self.adapter.peft or self.adapter.path
        return LoraFile.read(place, base.pipeline_class, base.shapes, allow_pickle=self.allow_pickle)

    def whole_weights(self) -> BaseWeights:
        """The weights of the denoiser in a pipeline folder. Raises ConfigError if it has no safetensors files of them."""
        if (trained := BaseWeights.in_folder(self.path, variant=None)) is None:
            raise ConfigError(
                f"{self.path} has no safetensors files of its denoiser",
                "save the pipeline again, as safetensors without a variant",
            )
        return trained

    def modules(self, base: BaseWeights) -> tuple[LoraModule, ...]:
        """The modules that it changes. Raises ConfigError for what does not fit the base. Cost: one read of both."""
        if self.adapter is not None:
            return self.lora(base).modules
        trained = self.whole_weights() if self.denoiser is None else weights_of_denoiser_file(self.denoiser, base)
        return whole_changes(trained, base, self.denoiser or self.path)
