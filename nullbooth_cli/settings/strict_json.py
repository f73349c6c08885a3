"""JSON, strictly: a repeated key is an error, and so is a document that is nested too deep to be read."""

import json
from typing import Any

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.texts import quoted


def parse_json(text: str, place: str, hint: str) -> Any:
    """Read a JSON document. Raises ConfigError that begins with its `place`, such as a file and a line."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except ValueError as error:
        raise ConfigError(f"{place} is not JSON: {error}", hint) from error
    except RecursionError:
        raise ConfigError(f"{place} is JSON that is nested too deep to be read", hint) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # None is what is wanted
        raise ValueError(f"the key {quoted(twice)} appears twice")
    return found
