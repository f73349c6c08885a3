"""Room for sums and decompositions is found before the work starts."""

import pytest
import torch

from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import ResourceError
from nullbooth_cli.pipeline.space import place_for_sums


def test_sums_that_fit_nowhere_are_refused() -> None:
    site = Site("l", "q", "input", ("w",), False, 1, 1000)
    assert place_for_sums([site], 1, torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ResourceError, match="the sums of 1 sites and 10000000 steps need"):
        place_for_sums([site], 10_000_000, torch.device("cpu"))
