"""A sample of the tokens of a tensor: random, and the same on every machine."""

import zlib
from collections.abc import Sequence
from functools import cache

import torch


def sample_tokens(
    values: torch.Tensor,
    num_tokens: int,
    *,
    seed: int,
    rows: Sequence[int],
    step: int,
    site: str,
    padding: torch.Tensor | None = None,
) -> torch.Tensor:
    """`[B, n, D]` of `[B, L, D]`: n tokens of each prompt, uniformly and without replacement, so that means stay unbiased.

    The choice depends on seed, row, step and site alone, not on the batch, the process or the run. With n >= L all tokens. Of
    tokens that are `padding` (`[B, L]` bool) only as many are chosen as others are missing.
    """
    if values.shape[1] <= num_tokens:
        return values
    # Each token draws a number on the vectors' device, and the smallest are chosen: a generator per prompt would slow a GPU down.
    of_rows = _draw(_key(seed, step, site), torch.tensor(rows, device=values.device)[:, None])
    if padding is None:
        drawn = _draw(of_rows, torch.arange(values.shape[1], device=values.device))
    else:  # a token's number counts no padding, whose length depends on the batch
        drawn = _draw(of_rows, (~padding).cumsum(1) - 1).masked_fill(padding, torch.iinfo(torch.int64).max)
    index = drawn.topk(num_tokens, dim=1, largest=False, sorted=False).indices.sort(dim=1).values
    first_of_rows = torch.arange(0, drawn.numel(), values.shape[1], device=values.device)[:, None]
    chosen: torch.Tensor = values.flatten(0, 1).index_select(0, (first_of_rows + index).flatten()).unflatten(0, index.shape)
    return chosen


@cache  # every unit draws with the same keys
def _key(seed: int, step: int, site: str) -> int:
    key = torch.zeros((), dtype=torch.int64)
    for part in (seed, step, zlib.crc32(site.encode())):
        key = _draw(key, torch.tensor(part))
    return int(key)


def _draw(key: torch.Tensor | int, number: torch.Tensor) -> torch.Tensor:
    """Output `number` of the SplitMix64 generator (Steele, Lea and Flood 2014) that starts at `key`: 64 uniform bits as int64."""
    mixed = key + (number + 1) * (0x9E3779B97F4A7C15 - 2**64)
    # Shifts of signed integers copy the sign: the masks remove it.
    mixed = (mixed ^ (mixed >> 30 & 2**34 - 1)) * (0xBF58476D1CE4E5B9 - 2**64)
    mixed = (mixed ^ (mixed >> 27 & 2**37 - 1)) * (0x94D049BB133111EB - 2**64)
    return mixed ^ (mixed >> 31 & 2**33 - 1)
