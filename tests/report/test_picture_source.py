"""The sites of a picture source are those of its report."""

import pytest

from nullbooth_cli.report.inspection import inspect_store
from nullbooth_cli.report.picture_source import PictureSource
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import prompts_of


@pytest.mark.parametrize(("filters", "count"), [({}, 21), ({"site": "mid_block*"}, 2), ({"feature": "v"}, 1)])
def test_its_sites_are_those_that_pass_the_filters(finished: tuple[Config, Store], filters: dict[str, str], count: int) -> None:
    config, store = finished
    source = PictureSource(config, store, prompts_of(config), inspect_store(config, store, **filters))
    assert len(source.sites) == count
    assert [site.name for site in source.sites] == [entry.site_name for entry in source.report.sites]
