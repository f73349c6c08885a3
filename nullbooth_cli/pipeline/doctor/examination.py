"""The subject of `doctor`, and the results of its checks so far."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from nullbooth_cli.collect.find_sites import RecordableModel
    from nullbooth_cli.datatypes import Prompt, Step
    from nullbooth_cli.model.denoise import DenoisingPath
    from nullbooth_cli.model.projections import Projection
    from nullbooth_cli.model.protocols import Pipeline
    from nullbooth_cli.pipeline.state import StageState
    from nullbooth_cli.settings.config import Config
    from nullbooth_cli.store import Backing, Store


@dataclass(frozen=True)
class Caution:
    """Something that does not stop a run, and should be known before it."""

    text: str
    hint: str


@dataclass
class Examination:
    """The config to examine: `configure` returns it, a name for its source, and the prompts of the store that it is from.

    Those prompts are None if the config names the prompts. The other fields are results of the checks so far; a field without a
    default is set once its check has passed.
    """

    configure: "Callable[[], tuple[Config, str, tuple[Prompt, ...] | None]]"
    device_name: str | None = None
    config: "Config" = field(init=False)
    stored_prompts: "tuple[Prompt, ...] | None" = None
    prompts: "tuple[Prompt, ...]" = ()
    heldout: "tuple[Prompt, ...]" = ()
    device: "torch.device" = field(init=False)
    backing: "Backing" = field(init=False)
    store: "Store | None" = None
    states: "Mapping[str, StageState]" = field(default_factory=dict)
    steps: "tuple[Step, ...]" = field(init=False)
    pipe: "Pipeline" = field(init=False)
    path: "DenoisingPath" = field(init=False)
    projections: "tuple[Projection, ...]" = field(init=False)
    recordable: "RecordableModel" = field(init=False)
    seconds_per_unit: float | None = None
