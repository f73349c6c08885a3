"""Bytes that a stage needs against those that are free, checked before it starts."""

from collections.abc import Sequence

import torch

from nullbooth_cli.datatypes import WHOLE, Factoring, Site
from nullbooth_cli.errors import ResourceError
from nullbooth_cli.model.device import free_memory
from nullbooth_cli.nullspace.moments import sums_nbytes
from nullbooth_cli.store import Store

DEVICE_SHARE = 0.5  # of the free device memory, for sums; the model's own work needs the rest
HOST_SHARE = 0.8


def ensure_room(store: Store, needed: int) -> None:
    """Raise ResourceError unless `needed` bytes are free where the store is."""
    require_room(store.url, needed, store.free_nbytes())


def require_room(url: str, needed: int, free: int | None) -> None:
    """Raise ResourceError unless `needed` bytes are free; `free` is None where the backend cannot report it."""
    if free is not None and needed > free:
        raise ResourceError(
            f"{url} needs {needed:,} bytes, {free:,} are free",
            "free some space, choose fewer prompts, layers or steps, or set store to another place",
        )


def decompositions_nbytes(units: Sequence[tuple[Site, int]], factoring: Factoring = WHOLE, num_tasks: int = 0) -> int:
    """Bytes of the decompositions that are the units of stage project, with so many hard tasks."""
    return sum(8 * site.dim * (factoring.rows(site.dim) + 3 + 5 * num_tasks) for site, _ in units)


def place_for_sums(sites: Sequence[Site], num_steps: int, device: torch.device, factoring: Factoring = WHOLE) -> torch.device:
    """The device for the sums of a run: the model's if they leave it room, else the CPU.

    Raises ResourceError if they fit in neither.
    """
    needed = sums_nbytes(sites, num_steps, factoring, in_memory=True)
    host = torch.device("cpu")
    for place, share in ((device, DEVICE_SHARE if device != host else HOST_SHARE), (host, HOST_SHARE)):
        if needed <= share * free_memory(place):
            return place
    raise ResourceError(
        f"the sums of {len(sites)} sites and {num_steps} steps need {needed:,} bytes; {free_memory(host):,} are free",
        "choose fewer layers (collect.cross_attention_layers) or steps, set covariance.factor_above, or collect.keep to features",
    )
