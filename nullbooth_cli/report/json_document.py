"""Documents: frozen dataclasses whose fields are the keys of the JSON that users read. Only `to_json` makes that JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

SCHEMA_VERSION = 1
# For a field that is None by default: its key is then left out of the JSON.
OPTIONAL = {"optional": True}


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole answer. Its JSON begins with the version of its keys."""

    schema_version: int = SCHEMA_VERSION


def to_json(value: object) -> Any:
    """Dictionaries, lists, strings and numbers that `json.dumps` takes: a dataclass becomes its fields, in their order.

    Tuples become lists. Numbers that are not finite become null: JSON has no others.
    """
    if is_dataclass(value) and not isinstance(value, type):
        found = ((each, getattr(value, each.name)) for each in fields(value))
        return {each.name: to_json(of) for each, of in found if of is not None or not each.metadata.get("optional")}
    if isinstance(value, Mapping):
        return {str(key): to_json(of) for key, of in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(of) for of in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
