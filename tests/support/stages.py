"""Stages run through the library on one layer of the embedded model, four units of two prompts."""

from pathlib import Path
from typing import Any

from nullbooth_cli.pipeline import run, stages
from nullbooth_cli.settings.config import Config, build_config
from nullbooth_cli.store import Store
from tests.support.builders import prompts_of, small_config

TINY = {"collect__cross_attention_layers": ["mid_block*"], "collect__batch_size": 2}


def config_of(store: Path, prompts: list[str], **changes: Any) -> Config:
    """A small run of these prompts."""
    return small_config(store, **{**TINY, "original_knowledge_prompts": prompts, **changes})


def changed(config: Config, **changes: Any) -> Config:
    data = config.model_dump()
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = data
        for section in sections:
            place = place[section]
        place[last] = value
    return build_config(data)


def events(config: Config, store: Store, stage: str, **control: Any) -> list:
    with store.lock():
        return list(
            stages.execute(stage, run.Run(config=config, prompts=prompts_of(config), store=store, device="cpu", **control))
        )
