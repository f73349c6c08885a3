"""Records the attention maps of a collection, and finds those of a prompt."""

from collections.abc import Iterator

from nullbooth_cli.collect.attention_maps import find_attention, record
from nullbooth_cli.collect.open_model import load_path
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError, Rerun
from nullbooth_cli.formatting import listed
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.pipeline.differences import attention_settings
from nullbooth_cli.pipeline.run import Prepared, Run, my_units, prepare, report_units, units_to_do
from nullbooth_cli.progress import Event, Note
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.fingerprints import fingerprint
from nullbooth_cli.settings.knowledge import attention_prompts
from nullbooth_cli.settings.texts import cut, quoted
from nullbooth_cli.store import Store
from nullbooth_cli.store.verify import forget_damaged


def run_attention(run: Run) -> Iterator[Event]:
    """Record the maps that the config asks for and the store lacks. Cost: loads the model; one path for every prompt."""
    prepared = prepare(run, lambda: _prepare_attention(run))
    if not prepared.todo:
        return
    yield from map(Note, prepared.notes)
    prompts = attention_prompts(run.config, run.store.prompts())
    mine = (prompts[number] for number in my_units(run, prepared))
    yield from report_units(run, "attention", prepared, _record_all(run, mine))


def _prepare_attention(run: Run) -> Prepared:
    """Make room for the maps, unless the stored ones are those that the config asks for."""
    store, notes = run.store, list[str]()
    settings = attention_settings(run.config, store)
    record = {"settings": settings, "fingerprint": fingerprint(settings)}
    if store.records.get("attention") != record:
        if "attention" in store.records:
            notes.append("the settings of attention maps have changed: the maps are recorded again")
        store.write_record("attention", None)
        store.delete("attention")
        store.progress.create("attention", len(attention_prompts(run.config, store.prompts())))
        store.write_record("attention", record)
    elif run.repair:
        store.progress.reset_damaged("attention")
        notes.append(forget_damaged(store, "attention"))
    return units_to_do(run, "attention", bool, notes)


def _record_all(run: Run, prompts: Iterator[Prompt]) -> Iterator[str]:
    config, store = run.config, run.store
    pipe, path = load_path(config, store.schedule(), run.device or run.workers.device)
    section = config.collect
    projections = find_attention(denoiser_of(pipe), section.attention_layers)
    steps = attention_settings(config, store)["steps"]
    rows = {prompt: row for row, prompt in enumerate(store.rows) if prompt is not None}
    numbers = {prompt: number for number, prompt in enumerate(attention_prompts(config, store.prompts()))}
    for prompt in prompts:
        store.attention.write(prompt, record(pipe, path, rows[prompt], prompt, projections=projections, steps=steps))
        store.progress.commit("attention", numbers[prompt])
        yield f"attention maps of '{prompt.text}'"


def find_prompt(config: Config, store: Store, wanted: str) -> Prompt:
    """The prompt with maps that a text or an id (or its beginning) names. Raises ConfigError with a list of those prompts."""
    cells = store.progress.cells("attention")
    there = [prompt for prompt, cell in zip(attention_prompts(config, store.prompts()), cells, strict=False) if cell]
    if not there:
        raise ConfigError(
            f"{store.url} has no attention maps",
            Rerun(
                "collect",
                store=store.url,
                settings=("collect.visual_attention_map=true",),
                otherwise=" records them; the collection stays as it is",
            ),
        )
    found = [prompt for prompt in there if prompt.text == wanted or prompt.id.startswith(wanted)]
    if len(found) != 1:
        named = listed([f"{prompt.id}  {cut(prompt.text)}" for prompt in there], most=10, lines=True)
        raise ConfigError(f"{quoted(wanted)} names {len(found)} of the prompts with attention maps", f"name one of{named}")
    return found[0]
