"""One denoising step, as it is written down. Apart from `schedule`, so that reading a store needs neither torch nor diffusers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One denoising step. `key` is a label; only `timestep` and `sigma` are computed with."""

    index: int
    key: str
    timestep: float
    sigma: float


def step_key(strategy: str | None, index: int, timestep: float) -> str:
    """`timestep_0999`, or `alpha_00_9e2` with a strategy: the timestep cut to one digit, the index making it unique."""
    whole = int(timestep)
    if strategy is None:
        return f"timestep_{whole:04d}"
    digits = str(whole)
    return f"alpha_{index:02d}_{digits[0]}e{len(digits) - 1}"
