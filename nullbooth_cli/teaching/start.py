"""The shipped config and recipe that teaching starts from, by the class of the model's pipeline.

The figures of those files are defaults of the trainers that people use, with their source beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nullbooth_cli.model.families import require_trainable_folder, untrainable
from nullbooth_cli.model.load import config_folder
from nullbooth_cli.model.nearest_config import nearest_config
from nullbooth_cli.model.sources import Source
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.schema import validate
from nullbooth_cli.settings.shipped import TOY, configs, shipped
from nullbooth_cli.settings.starter import RECIPES
from nullbooth_cli.settings.strict_yaml import parse_yaml

# Their to_k and to_v read the picture as well as the text, so the denoiser draws to collect for them.
JOINT = ("sd3", "flux")


@dataclass(frozen=True, kw_only=True)
class Start:
    """The keys of a shipped config and of a shipped recipe, and the model: a folder, a hub id, or toy."""

    model: str
    config: Mapping[str, Any]
    recipe: Mapping[str, Any]
    is_joint: bool

    @classmethod
    def of(cls, model: str, settings: Sequence[str]) -> "Start":
        """What to start from for a model: the name of a shipped config, a folder, or a hub id.

        `settings` are overrides of the recipe's keys, such as `revision`. Raises ModelError for a model that cannot be trained,
        ConfigError for one that is not there. Cost: some small files; those of a hub id are downloaded, the first time.
        """
        name = model
        if model not in configs():
            source = Source.of(validate(Recipe, {"model": model}, settings, "the settings"))
            require_trainable_folder(config_folder(source))
            _, name = nearest_config(source)
        if name not in RECIPES:
            raise untrainable(name)
        config = _keys(name)
        named = config["model"] if model in configs() and model != TOY else model
        return cls(model=named, config=config, recipe=_keys(RECIPES[name]), is_joint=name in JOINT)


def _keys(name: str) -> dict[str, Any]:
    """The keys of a shipped config or recipe."""
    path = shipped(name)
    data = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    assert isinstance(data, dict)
    return data
