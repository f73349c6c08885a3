"""The edited models of an evaluation, named by their places, and what is wrong with them before anything is drawn.

    trained                             a pipeline folder, or the hub id of one
    lora.safetensors                    a LoRA of diffusers or kohya, or the folder that has it
    adapter                             a folder that PEFT's `save_pretrained` wrote
    runs/toy-sks                        the output of a training run, or one of its checkpoints, on what it was trained after
    lora.safetensors@0.8                at another strength
    lora.safetensors@0.8+style@0.5      several, each added to the base

`read_place()` finds what a place names, from the headers of files; `require_fits()` tries it on the base; `load_edited()` loads
the model, `load_before()` what it was trained after. `base_of()` finds the base that a training run names.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path

from nullbooth_cli.collect.open_model import load_model, open_base
from nullbooth_cli.datatypes import CHECKPOINT
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import listed
from nullbooth_cli.model.base_weights import BaseWeights
from nullbooth_cli.model.chain import Addition, Chain, digest_of
from nullbooth_cli.model.load import config_folder
from nullbooth_cli.model.protocols import Pipeline
from nullbooth_cli.model.sources import PIPELINE_INDEX, Source
from nullbooth_cli.model.trained_files import Base, Located, TrainedFiles, locate, trained_checkpoints
from nullbooth_cli.model.words import has_word
from nullbooth_cli.settings.config import Config

Check = Callable[[Pipeline], None]


@dataclass(frozen=True, kw_only=True)
class EditedModel:
    """What a place names: additions, in their order, on the folder or hub id of a `pipeline`, or (None) on the base.

    `tokens` are the words that training runs taught, as prompts write them. `notes` are for the user.
    """

    pipeline: str | None = None
    additions: tuple[Addition, ...] = ()
    tokens: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def word_note(self, prompts: Sequence[str]) -> str | None:
        """A sentence for the user if the model was taught a word that no prompt has; None otherwise."""
        lacking = [token for token in self.tokens if not any(has_word(prompt, token) for prompt in prompts)]
        return f"no prompt has the word that was taught: write {' or '.join(lacking)}" if lacking else None

    @property
    def digest(self) -> str | None:
        """The digest of its additions; None without any. Cost: one read of them."""
        return digest_of(self.additions)


def read_place(config: Config, place: str) -> EditedModel:
    """What a place names.

    Raises ConfigError if there is no model, for adapters that cannot be loaded whole, for a scale of a pipeline, for a training
    run on another base than the config's, and for two that taught the same word. Cost: headers of files; for a hub id, its
    config files.
    """
    parts = parts_of(place)
    located = [locate(Path(name).expanduser()) if _exists(name) else None for name, _ in parts]
    chains = [_chain(config, scale, at) for (_, scale), at in zip(parts, located, strict=True)]
    for (name, scale), chain in zip(parts, chains, strict=True):
        if (len(parts) > 1 or scale != 1) and not (chain and chain.additions[-1].is_lora):
            raise ConfigError(
                f"{name} is not a LoRA, and only LoRAs can have a scale or be added up",
                "name the model alone, without @ and +",
            )
    found = [at for at in located if at is not None]
    tokens = [at.token for at in found if at.token is not None]
    if len(set(tokens)) < len(tokens):
        raise ConfigError(f"two of {place} taught the same word, {tokens[0]}", "name one of them")
    pipeline, additions = _joined(place, [chain for chain in chains if chain is not None])
    return EditedModel(
        pipeline=pipeline if additions else _pipeline(config, place, located[0]),
        additions=additions,
        tokens=tuple(tokens),
        notes=tuple(at.note for at in found if at.note is not None),
    )


def _joined(place: str, chains: Sequence[Chain]) -> tuple[str | None, tuple[Addition, ...]]:
    """The pipeline that LoRAs were trained on, None for the base, and all additions; a chain brings along what is before it."""
    pipelines = {str(chain.pipeline) for chain in chains if chain.pipeline is not None}
    if len(pipelines) > 1:
        raise ConfigError(f"{place} was trained on several models: {' and '.join(sorted(pipelines))}", "name one of them")
    additions = tuple(addition for chain in chains for addition in chain.additions)
    paths = [addition.path for addition in additions]
    before = [addition.path for chain in chains for addition in chain.additions[:-1]]
    if twice := next((path for path in before if paths.count(path) > 1), None):
        raise ConfigError(f"{twice} is in {place} twice: one of them was trained after it, and brings it along", "leave it out")
    return next(iter(pipelines), None), additions


def _chain(config: Config, scale: float, at: Located | None) -> Chain | None:
    """What is at a place that exists, after what it started from; None for a pipeline."""
    if at is None or (chain := Chain.at(at.path, allow_pickle=config.allow_pickle)).pipeline == at.path:
        return None
    for addition in chain.additions:
        if isinstance(addition.files, TrainedFiles):
            addition.files.require_base(Base.of(config))
    *before, last = chain.additions
    return replace(chain, additions=(*before, replace(last, scale=scale)))


def _pipeline(config: Config, name: str, at: Located | None) -> str:
    """The folder or hub id of a pipeline."""
    path = Path(name).expanduser()
    if at is None and CHECKPOINT.fullmatch(path.name) and (others := trained_checkpoints(path.parent)):
        raise ConfigError(f"no checkpoint at {name}", f"{path.parent} has those of {listed(sorted(others), 20)} steps")
    if at is None and name.startswith((".", "/", "~")):
        raise ConfigError(f"no model at {name}", "name a pipeline folder, the file or folder of a LoRA, or a hub id (owner/name)")
    pipeline = name if at is None else str(at.path)
    config_folder(Source(pipeline, local_files_only=config.local_files_only))
    return pipeline


def base_of(place: str) -> Base | None:
    """The base that a training run names in what it wrote at a place; None for anything else."""
    located = [locate(Path(name).expanduser()) for name, _ in parts_of(place) if _exists(name)]
    return next((at.base for at in located if at.base is not None), None)


def parts_of(place: str) -> list[tuple[str, float]]:
    """The names and scales in a place; a name that exists may have the signs in it."""
    words, parts = place.split("+"), []
    while words:
        # The longest beginning that exists, else the first word.
        joined = {count: "+".join(words[:count]) for count in range(len(words), 0, -1)}
        count = next((count for count, name in joined.items() if _exists(_scaled(name)[0])), 1)
        parts.append(_scaled(joined[count]))
        words = words[count:]
    if not all(name for name, _ in parts):
        raise ConfigError(
            f"'{place}' has a '+' or a scale without a name", "write it as lora.safetensors@0.8+style.safetensors@0.5"
        )
    return parts


def _scaled(part: str) -> tuple[str, float]:
    name, sign, scale = part.rpartition("@")
    if sign and not _exists(part):
        with suppress(ValueError):
            if isfinite(float(scale)):
                return name, float(scale)
            raise ConfigError(f"the scale of {name} is {scale}", "give a number")
    return part, 1.0


def _exists(place: str) -> bool:
    return place != "" and Path(place).expanduser().exists()


def require_fits(config: Config, pipe: Pipeline, place: str) -> None:
    """Raise ConfigError for additions that do not fit the base `pipe`, which stays as it was. Cost: one read of each file."""
    for each in read_place(config, place).additions:
        each.require_fits(pipe)


def stored_shapes(place: str) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the denoiser's weights in a pipeline folder, by name, from the headers of its files; None elsewhere."""
    path = Path(place).expanduser()
    folder = locate(path).path if path.exists() else path
    found = BaseWeights.in_folder(folder, None) if (folder / PIPELINE_INDEX).is_file() else None
    return None if found is None else dict(found.shapes)


def load_edited(config: Config, place: str, device: str | None) -> Pipeline:
    """The pipeline of an edited model, its additions put onto the base. Raises ConfigError unless all of it can be loaded."""
    edited = read_place(config, place)
    return _loaded(config, edited.pipeline, edited.additions, device)


def load_before(config: Config, at: Located, device: str | None, check: Check = lambda _: None) -> Pipeline:
    """The pipeline that the model at a place started from: the base, or all that was trained before it, in order.

    `check` is called before anything is put onto the pipeline that is loaded. Raises ConfigError as `load_edited` does.
    """
    before = Chain.before(at, allow_pickle=config.allow_pickle)
    return _loaded(config, None if before.pipeline is None else str(before.pipeline), before.additions, device, check)


def open_before(config: Config, at: Located, device: str | None) -> BaseWeights:
    """The weights that the model at a place started from: those of the base, unless it was trained after another model.

    Raises ConfigError as `load_edited` does. Cost: headers of the base's files; the load of a model that is not the base.
    """
    return open_base(config, device) if at.after is None else BaseWeights.of_pipeline(load_before(config, at, device))


def _loaded(
    config: Config, pipeline: str | None, additions: Sequence[Addition], device: str | None, check: Check = lambda _: None
) -> Pipeline:
    pipe = load_model(config if pipeline is None else config.model_copy(update=asdict(Base(model=pipeline))), device)
    check(pipe)
    for each in additions:
        each.load_into(pipe)
    return pipe
