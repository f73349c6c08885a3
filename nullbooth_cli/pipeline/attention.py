"""The attention maps of a collection: which are wanted, and which are recorded."""

from collections.abc import Iterator
from typing import Any

from nullbooth_cli.collect.attention_maps import find_attention, record
from nullbooth_cli.collect.open_model import load_path
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.load import denoiser_of
from nullbooth_cli.pipeline.run import Prepared, Run, report_units, units_to_do
from nullbooth_cli.pipeline.state import attention_settings
from nullbooth_cli.progress import Event, Note
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.fingerprints import fingerprint
from nullbooth_cli.settings.knowledge import attention_prompts
from nullbooth_cli.store import Store
from nullbooth_cli.store.verify import forget_damaged


def run_attention(run: Run) -> Iterator[Event]:
    """Record the maps that the config asks for and that are not there yet."""
    prepared = Prepared(**run.workers.agree(lambda: _begin(run)))
    run.store.reload()
    if not prepared.todo:
        return
    yield from map(Note, prepared.notes)
    prompts = attention_prompts(run.config, run.store.prompts())
    mine = (prompts[prepared.todo[i]] for i in run.workers.share(len(prepared.todo)))
    yield from report_units(run, "attention", prepared, _record_all(run, mine))


def _begin(run: Run) -> dict[str, Any]:
    store, notes = run.store, []
    store.reload()
    settings = attention_settings(run.config, store)
    record = {"settings": settings, "fingerprint": fingerprint(settings)}
    if store.records.get("attention") != record:
        if "attention" in store.records:
            notes.append("other attention maps are asked for than those that are there: they are recorded again")
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
        store.attention.write(prompt, record(pipe, path, rows[prompt], prompt, projections, steps))
        store.progress.commit("attention", numbers[prompt])
        yield f"attention maps of '{prompt.text}'"


def find_prompt(config: Config, store: Store, wanted: str) -> Prompt:
    """The prompt with maps that an id, the beginning of one, or a text means. Raises ConfigError listing those there are."""
    cells = store.progress.cells("attention")
    there = [prompt for prompt, cell in zip(attention_prompts(config, store.prompts()), cells, strict=False) if cell]
    if not there:
        raise ConfigError(
            f"{store.url} has no attention maps",
            "nullbooth collect --set collect.visual_attention_map=true records them; what is collected already stays",
        )
    found = [prompt for prompt in there if prompt.text == wanted or prompt.id.startswith(wanted)]
    if len(found) != 1:
        listed = "\n  ".join(f"{prompt.id}  {prompt.text}" for prompt in there)
        raise ConfigError(f"'{wanted}' means {len(found)} of the prompts with attention maps", f"they are\n  {listed}")
    return found[0]
