"""The prompts that a config names: preserved, held out, and those with attention maps."""

from collections.abc import Iterable, Sequence

from nullbooth_cli.datatypes import HELDOUT, Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings import limits
from nullbooth_cli.settings.captions import load_captions
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.prompts import load_prompts

PROMPTS_FIELD = "original_knowledge_prompts"
HELDOUT_FIELD = "heldout_prompts"
# Added to collect.seed, so that no held-out prompt starts from the noise of a preserved one. torch takes 32 bits of a seed.
HELDOUT_SEED = 1 << 31


def heldout_prompts(config: Config) -> tuple[Prompt, ...]:
    """The prompts that only leakage is measured on; none if the config names none."""
    return () if config.heldout_prompts is None else load_prompts(config.heldout_prompts, HELDOUT_FIELD)


def require_disjoint(heldout: Iterable[Prompt], prompts: Iterable[Prompt]) -> None:
    """Raise ConfigError if a held-out prompt is also preserved."""
    both = set(heldout) & set(prompts)
    if both:
        raise ConfigError(
            f"{len(both)} of the held-out prompts are also preserved, such as '{min(p.text for p in both)}'",
            "take them out of heldout_prompts: leakage on preserved prompts proves nothing",
        )


def heldout_config(config: Config, batch_size: int | None = None) -> Config:
    """The config for collecting the held-out prompts: the same schedule, other noise, and only moments.

    `batch_size` is the number of prompts per forward, None for the config's own.
    """
    section = config.collect
    collect = section.model_copy(
        update={
            "keep": "moments",
            "seed": (section.seed + HELDOUT_SEED) % (limits.SEED + 1),
            "visual_attention_map": False,
            "batch_size": batch_size or section.batch_size,
        }
    )
    place = f"{config.store.rstrip('/')}/{HELDOUT}"
    return config.model_copy(
        update={"store": place, PROMPTS_FIELD: config.heldout_prompts, HELDOUT_FIELD: None, "collect": collect}
    )


def task_config(config: Config, place: str, prompts: Sequence[str]) -> Config:
    """The config for recording a task at a place inside the store: the same schedule and path, its own prompts, only sums.

    It starts from noise, even if real images were collected: nobody has images of what was taught under every prompt.
    """
    unused = {"keep": "moments", "visual_attention_map": False, "latents": "path", "images": None}
    return config.model_copy(
        update={
            "store": f"{config.store.rstrip('/')}/{place}",
            PROMPTS_FIELD: list(prompts),
            HELDOUT_FIELD: None,
            "collect": config.collect.model_copy(update=unused),
        }
    )


def with_heldout_texts(config: Config) -> Config:
    """The config with its held-out prompts as a list of texts: a store that carries this config needs no prompt file."""
    if config.heldout_prompts is None:
        return config
    return config.model_copy(update={HELDOUT_FIELD: [prompt.text for prompt in heldout_prompts(config)]})


def attention_prompts(config: Config, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The collected prompts that get attention maps. Raises ConfigError for one that is not collected."""
    chosen = config.collect.attention_prompts
    if isinstance(chosen, int):
        return list(prompts[:chosen])
    texts = {prompt.text for prompt in prompts}
    missing = [text for text in chosen if text not in texts]
    if missing:
        raise ConfigError(
            f"collect.attention_prompts: '{missing[0]}' is not one of the {len(prompts)} prompts that are collected",
            f"add it to {PROMPTS_FIELD}, or name one of its prompts",
        )
    return [prompt for text in dict.fromkeys(chosen) for prompt in prompts if prompt.text == text]


def knowledge_prompts(config: Config) -> tuple[Prompt, ...]:
    """The preserved prompts: those that the config names, or the captions of its images.

    Raises ConfigError naming the file that is wrong. Cost for images: one read of every file, for its digest.
    """
    folder = config.collect.images
    return load_prompts(config.original_knowledge_prompts) if folder is None else load_captions(folder)
