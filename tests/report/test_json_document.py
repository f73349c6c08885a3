"""Dataclasses become JSON in one place."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.report.json_document import OPTIONAL, SCHEMA_VERSION, Document, to_json


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Anything inside of a document."""

    value: float
    extra: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class Outer(Document):
    """A document with everything that one can have."""

    name: str | None
    items: tuple[Inner, ...]
    by_name: Mapping[str, Inner]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def test_fields_are_keys_in_their_order() -> None:
    found = to_json(Outer(name=None, items=(Inner(value=1.5),), by_name={"a": Inner(value=2, extra="x")}))
    assert found == {
        "schema_version": SCHEMA_VERSION,
        "name": None,
        "items": [{"value": 1.5}],
        "by_name": {"a": {"value": 2, "extra": "x"}},
    }
    assert list(found) == ["schema_version", "name", "items", "by_name"]


@given(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
def test_numbers_that_are_not_finite_are_null(value: float) -> None:
    assert to_json(Inner(value=value)) == {"value": None}
    assert to_json([value, (value,)]) == [None, [None]]


@given(plain)
def test_what_is_json_stays_as_it_is(value: Any) -> None:
    assert to_json(value) == value
    assert json.loads(json.dumps(to_json(value), allow_nan=False)) == value
