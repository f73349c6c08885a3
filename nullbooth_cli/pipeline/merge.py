"""Stores that were collected apart, added up: the moments of all of them in one new store."""

from collections.abc import Iterator, Sequence

from nullbooth_cli.datatypes import Prompt, Sums
from nullbooth_cli.errors import ConfigError, StoreError
from nullbooth_cli.nullspace.pooling import add_up
from nullbooth_cli.pipeline.run import Run, start_stage
from nullbooth_cli.pipeline.stages import execute
from nullbooth_cli.pipeline.state import require, stage_states
from nullbooth_cli.progress import Event
from nullbooth_cli.settings.config import Config, build_config
from nullbooth_cli.settings.fingerprints import fingerprint
from nullbooth_cli.store import Layout, Store, create_collection, pack_sums

PART = "merged"


def check_mergeable(sources: Sequence[Store]) -> None:
    """Raise StageError for moments that are not complete, ConfigError for stores that do not agree or share a prompt."""
    for source in sources:
        require(stage_states(build_config(source.config), source.prompts(), source), "covariance", source.url)
    first = sources[0]
    differences, seen = [], dict.fromkeys(first.prompts(), first.url)
    for other in sources[1:]:
        differences += [
            f"\n  {field}: {old} in {first.url}, {new} in {other.url}" for field, old, new in _differences(first, other)
        ]
        twice = [prompt for prompt in other.prompts() if prompt in seen]
        if twice:
            raise ConfigError(
                f"{len(twice)} prompts are in {seen[twice[0]]} and in {other.url}, such as '{twice[0].text}'",
                "each prompt may count once: collect them apart",
            )
        seen |= dict.fromkeys(other.prompts(), other.url)
    if differences:
        raise ConfigError(f"the stores do not agree{''.join(differences)}", "merge stores of one model, schedule and settings")


def _differences(one: Store, other: Store) -> Iterator[tuple[str, object, object]]:
    for name, values in (
        ("schedule", [fingerprint([(step.timestep, step.sigma) for step in store.schedule()]) for store in (one, other)]),
        ("model weights", [store.records["collect"]["weights"] for store in (one, other)]),
        ("layers and sharing", [fingerprint([site.name for site in store.sites]) for store in (one, other)]),
    ):
        if values[0] != values[1]:
            yield name, *values
    settings = [{**store.records["collect"]["settings"], **store.records["covariance"]["settings"]} for store in (one, other)]
    for field in dict.fromkeys([*settings[0], *settings[1]]):
        # A store that keeps no features has no precision for them.
        if field in settings[0] and field in settings[1] and settings[0][field] != settings[1][field]:
            yield field, settings[0][field], settings[1][field]


def merge(sources: Sequence[Store], out: Store) -> Iterator[Event]:
    """Add the moments of the sources up into a new store, which then counts as collected with `keep: moments`.

    Raises what `check_mergeable` does, and StoreError if the new store holds something already. A prompt keeps the noise it was
    collected with. Cost: one read of all moments.
    """
    check_mergeable(sources)
    if "collect" in out.records:
        raise StoreError(f"{out.url} holds a collection already", "name another place with -s; nothing was changed")
    first = sources[0]
    steps, sites = first.schedule(), first.sites
    batch_size = max(source.layout.batch_size for source in sources)
    rows: list[Prompt | None] = []
    for source in sources:
        rows += [None] * (-len(rows) % batch_size) + list(source.rows)
    prompts = tuple(prompt for prompt in rows if prompt is not None)
    layout = Layout("moments", batch_size, first.layout.dtype)
    run = Run(_config_of(first, out, prompts), prompts, out)

    out.write_schedule(steps)
    schedule = first.records["schedule"]
    start_stage(run, "schedule", {name: schedule[name] for name in ("scheduler", "noise", "values")})
    create_collection(out, sites=sites, num_steps=len(steps), num_rows=len(rows), layout=layout)
    out.write_rows(0, rows)
    part, units = out.moments.part(PART), range(-(-len(rows) // batch_size))
    part.create(sites, len(steps))
    sums = (
        (site, [pack_sums(add_up(of_step)) for of_step in zip(*_moments(sources, number), strict=True)])
        for number, site in enumerate(sites)
    )
    part.checkpoint(sums, units)
    out.progress.commit("collect", units)
    collected = first.records["collect"]
    start_stage(
        run,
        "collect",
        {"weights": collected["weights"]},
        layout=vars(layout),
        tensors=collected.get("tensors", {}),
        model=collected["model"],
    )
    yield from execute("covariance", run)


def _moments(sources: Sequence[Store], number: int) -> Iterator[Iterator[Sums]]:
    """The sums of every timestep of a site, by its number, from each source."""
    for source in sources:
        site = source.sites[number]
        yield source.moments.read(site, range(site.num_recorded(source.num_steps)))


def _config_of(first: Store, out: Store, prompts: Sequence[Prompt]) -> Config:
    config = build_config(first.config)
    return config.model_copy(
        update={
            "store": out.url,
            "original_knowledge_prompts": [prompt.text for prompt in prompts],
            "heldout_prompts": None,
            "collect": config.collect.model_copy(update={"keep": "moments"}),
        }
    )
