"""The answer of stage schedule."""

from dataclasses import dataclass

from nullbooth_cli.datatypes import Step
from nullbooth_cli.report.json_document import Document
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store


@dataclass(frozen=True, kw_only=True)
class ScheduleReport(Document):
    """The steps of a store, and the settings that made them. A sigma is NaN if the scheduler has none."""

    store: str
    strategy: str | None
    mode: str
    scheduler: str
    seed: int | None
    steps: tuple[Step, ...]


def schedule_report(config: Config, store: Store) -> ScheduleReport:
    """The schedule of a store whose stage schedule is complete under `config`."""
    section = config.schedule
    return ScheduleReport(
        store=store.url,
        strategy=section.sampler_strategy,
        mode=section.timestep_mode,
        scheduler=store.records["schedule"]["scheduler"],
        seed=section.seed,
        steps=store.schedule(),
    )
