"""Which projectors a model may use."""

from typing import Any

import pytest

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.nullspace.usable import usable_projectors
from tests.support.builders import project_again


def test_per_timestep_projectors_are_not_for_use(tiny: Any) -> None:
    config, store = tiny
    project_again(config, store, scope="timestep")
    with pytest.raises(ConfigError, match="per-timestep projectors cannot constrain a weight: it is the same at every timestep"):
        usable_projectors(store)
    project_again(config, store, scope="pooled")
    assert set(usable_projectors(store)) == {weight for site in store.sites for weight in site.weights}
