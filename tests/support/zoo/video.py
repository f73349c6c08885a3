"""Pipelines of video, and those with several denoisers or stages."""

from tests.support.zoo.entry import Entry

ENTRIES: dict[str, Entry] = {}
