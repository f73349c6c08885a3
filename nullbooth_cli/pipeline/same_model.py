"""Whether a model is the one that a store was collected with: by its scheduler's noise, its weights and its layers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nullbooth_cli.collect.open_model import load_path
from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import Rerun, StageError
from nullbooth_cli.pipeline.differences import model_renamed
from nullbooth_cli.pipeline.run import Run
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.fingerprints import model_names
from nullbooth_cli.store import Store

if TYPE_CHECKING:
    from nullbooth_cli.model.protocols import Pipeline

ELSEWHERE = ", or set store to another place"


def require_same_noise(config: Config, store: Store, pipe: "Pipeline") -> None:
    """Raise StageError unless the stored schedule follows from the scheduler of a pipeline, as `follow_schedule` builds it."""
    from nullbooth_cli.model.scheduler import noise_digest
    from nullbooth_cli.model.stored_schedule import scheduler_in

    recorded = store.records["schedule"]["noise"]
    found = noise_digest(config.schedule.sampler_strategy, scheduler_in(pipe))
    if recorded != found:
        raise StageError(
            f"the schedule in {store.url} was made with another scheduler than that of the model {config.model}"
            f"\n  noise {recorded} -> {found}",
            Rerun("schedule", force=True, otherwise=ELSEWHERE),
        )


def require_same_model(config: Config, store: Store, weights: str, sites: tuple[Site, ...]) -> None:
    """Raise StageError unless a collection was started with this model (its weights, its layers and their sharing), and its
    arrays have room for the longest prompt."""
    recorded = store.records["collect"]["weights"]
    if recorded != weights or _without_lengths(sites) != _without_lengths(store.sites):
        changed = f"weights {recorded} -> {weights}" if recorded != weights else "the layers and their sharing"
        raise StageError(
            f"the model {config.model} is not the one this collection was started with\n  {changed}",
            Rerun("collect", force=True, otherwise=ELSEWHERE),
        )

    for site, stored in zip(sites, store.sites, strict=True):
        if store.layout.keeps_features and site.num_tokens > stored.num_tokens:
            raise StageError(
                f"a prompt is longer than those that this collection has room for: {site.name} has {site.num_tokens} tokens, and "
                f"{stored.num_tokens} fit",
                Rerun("collect", force=True, otherwise=", or keep moments alone: they have no lengths"),
            )


def _without_lengths(sites: Sequence[Site]) -> list[Site]:
    """Sites that are equal for prompts of other lengths, too."""
    return [replace(site, num_tokens=0) if site.masked else site for site in sites]


def recognise_model(run: Run) -> list[str]:
    """If the config has a new name for the model of a finished collection, check its weights, and record the name.

    Raises StageError if it is another model. Cost: none under the recorded name; else loads the model and reads its weights.
    """
    from nullbooth_cli.model import load

    if not model_renamed(run.config, run.store):
        return []
    config = run.config.model_copy(update={"model_cpu_offload": False})
    pipe, path = load_path(config, run.store.schedule(), "cpu")
    require_same_noise(config, run.store, pipe)
    require_same_model(config, run.store, load.weights_digest(pipe, encodes=path.images is not None), run.store.sites)
    return note_names(run)


def note_names(run: Run) -> list[str]:
    """Record the present names of a collection's model. Returns a sentence for each that is new."""
    differences = model_renamed(run.config, run.store)
    if differences:
        names = model_names(run.config)
        run.store.write_record("collect", {**run.store.records["collect"], "model": names})
        # With the settings that loading needs, so that the store alone is enough.
        loading = {key: getattr(run.config, key) for key in ("pipeline_config", "allow_pickle")}
        run.store.write_config({**run.store.config, **names, **loading})
    return [f"the same model by its weights: {difference}" for difference in differences]
