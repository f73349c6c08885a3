"""The keys of a JSON document in one line, as the golden key structures are written."""

from typing import Any


def keys_of(document: Any) -> str:
    """`{store sites[{layer dim}]}`: keys in their order, the first item of each list, and no values."""
    if isinstance(document, dict):
        return "{" + " ".join(key + keys_of(value) for key, value in document.items()) + "}"
    if isinstance(document, list):
        return "[" + (keys_of(document[0]) if document else "") + "]"
    return ""
