"""A sample of the tokens of a tensor: random, and the same on every machine."""

import zlib
from collections.abc import Sequence
from functools import cache

import torch

DRAWN_AT_ONCE = 1 << 17  # numbers, of several steps: a small tensor costs no more than the call that makes it


class TokenSampler:
    """Chooses n = `num_tokens` tokens of each prompt of a unit, uniformly and without replacement, so that means stay unbiased.

    The choice depends on seed, row, step and site alone, not on the batch, the process or the run. With None, or n >= L, all.
    """

    def __init__(self, num_tokens: int | None, seed: int, rows: Sequence[int], num_steps: int) -> None:
        self._num_tokens, self._seed, self._rows, self._num_steps = num_tokens, seed, rows, num_steps
        # Of each site and L: some steps, and the places of their tokens in `[B L]`, `[S, B n]`.
        self._chosen: dict[tuple[str, int], tuple[range, torch.Tensor]] = {}

    def sample(self, values: torch.Tensor, step: int, site: str, padding: torch.Tensor | None = None) -> torch.Tensor:
        """`[B, n, D]` of `[B, L, D]`. Of tokens that are `padding` (`[B, L]` bool) only as many as others are missing."""
        num_prompts, num_tokens = values.shape[:2]
        if self._num_tokens is None or num_tokens <= self._num_tokens:
            return values
        steps, places = self._chosen.get((site, num_tokens), (range(0), values))
        if padding is not None:
            steps = range(step, step + 1)
            places = self._choose(self._num_tokens, steps, site, values, padding)
        elif step not in steps:
            at_once = max(1, DRAWN_AT_ONCE // (num_prompts * num_tokens))
            steps = range(step, max(step + 1, min(step + at_once, self._num_steps)))
            places = self._choose(self._num_tokens, steps, site, values)
            self._chosen[site, num_tokens] = steps, places
        chosen = values.flatten(0, 1).index_select(0, places[step - steps.start])
        return chosen.reshape(num_prompts, self._num_tokens, -1)

    def _choose(
        self, num_tokens: int, steps: range, site: str, values: torch.Tensor, padding: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The places of the tokens that are chosen in S steps, `[S, B n]`."""
        # Each token draws a number on the vectors' device, and the smallest are chosen: a generator for each prompt would slow a
        # GPU down.
        keys = torch.tensor([_key(self._seed, step, site) for step in steps], device=values.device)[:, None, None]
        of_rows = _draw(keys, torch.tensor(self._rows, device=values.device)[:, None])
        if padding is None:
            drawn = _draw(of_rows, torch.arange(values.shape[1], device=values.device))
        else:  # a token's number counts no padding, whose length depends on the batch
            drawn = _draw(of_rows, (~padding).cumsum(1) - 1).masked_fill(padding, torch.iinfo(torch.int64).max)
        index = drawn.topk(num_tokens, largest=False, sorted=False).indices.sort().values
        first_of_rows = torch.arange(0, values.shape[0] * values.shape[1], values.shape[1], device=values.device)[:, None]
        return (first_of_rows + index).flatten(1)


@cache  # every unit draws with the same keys
def _key(seed: int, step: int, site: str) -> int:
    key = torch.zeros((), dtype=torch.int64)
    for part in (seed, step, zlib.crc32(site.encode())):
        key = _draw(key, torch.tensor(part))
    return int(key)


def _draw(key: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Output `number` of the SplitMix64 generator (Steele, Lea and Flood 2014) that starts at `key`: 64 uniform bits as int64."""
    mixed = key + (number + 1) * (0x9E3779B97F4A7C15 - 2**64)
    # Shifts of signed integers copy the sign: the masks remove it.
    mixed = (mixed ^ (mixed >> 30 & 2**34 - 1)) * (0xBF58476D1CE4E5B9 - 2**64)
    mixed = (mixed ^ (mixed >> 27 & 2**37 - 1)) * (0x94D049BB133111EB - 2**64)
    return mixed ^ (mixed >> 31 & 2**33 - 1)
