"""Rows of a batch, told apart by branch of guidance."""

import pytest
import torch

from nullbooth_cli.collect.find_sites import split_branches
from nullbooth_cli.errors import ModelError


def test_branches_of_guidance() -> None:
    rows = torch.arange(4.0)[:, None, None].expand(4, 2, 1)
    assert split_branches(rows, 4, "both").shape == (4, 2, 1)
    both = split_branches(rows, 2, "both")
    assert both[:, :, 0].tolist() == [[0, 0, 2, 2], [1, 1, 3, 3]]
    assert split_branches(rows, 2, "cond")[:, :, 0].tolist() == [[2, 2], [3, 3]]
    with pytest.raises(ModelError, match="4 rows for 3 prompts"):
        split_branches(rows, 3, "both")
