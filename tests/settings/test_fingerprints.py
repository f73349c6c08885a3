"""Fingerprints: the same for the same settings, and for no others."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.settings.fingerprints import fingerprint


@given(st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.none())))
def test_fingerprints_ignore_the_order_of_keys_and_nothing_else(values: dict[str, Any]) -> None:
    assert fingerprint(values) == fingerprint(dict(reversed(values.items())))
    assert fingerprint(values) != fingerprint({**values, "one more": 1})
