"""Collections of a model that is only pretended: two sites, whose vectors follow from a prompt, a site and a step.

Stages, store and resuming are the real ones, so every rule about what is counted when is tested, in milliseconds a run. The
vectors do not depend on a prompt's row: a collection that grew and shrank has the moments of one that was made at once.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nullbooth_cli.collect import units
from nullbooth_cli.collect.branches import ALONE
from nullbooth_cli.collect.find_sites import FoundSites, RecordableModel
from nullbooth_cli.datatypes import AnySums, FactoredSums, Prompt, Site, Step
from nullbooth_cli.model import load
from nullbooth_cli.pipeline import collect, heartbeat, prepare_collect, schedule
from nullbooth_cli.store import Store
from tests.support.stores import FREE, TIMED

SITES = (FREE, TIMED)
STEPS = tuple(Step(t, f"timestep_{999 - t:04d}", 999.0 - t, 2.0 - t) for t in range(2))


def vectors(site: Site, step: int, prompt: Prompt) -> NDArray[np.float32]:
    """`[L, D]`: small whole numbers, so that sums are exact in any order."""
    seed = zlib.crc32(f"{site.name} {step} {prompt.id}".encode())
    return np.random.default_rng(seed).integers(-8, 8, (site.num_tokens, site.dim)).astype(np.float32)


class PretendedRecorder:
    """Hands the vectors of a unit to the sinks, as the hooks of a model would."""

    def __init__(self, _: object, members: list[tuple[int, Prompt]], *, sinks: list[Any]) -> None:
        self.members, self.sinks = members, sinks

    def run(self) -> None:
        rows = [row for row, _ in self.members]
        for site in SITES:
            for step in range(site.num_recorded(len(STEPS))):
                values = torch.from_numpy(np.stack([vectors(site, step, prompt) for _, prompt in self.members]))
                for sink in self.sinks:
                    sink.receive(site, step, rows, values)

    def check(self) -> None:
        """Nothing is wrong with whole numbers."""


@contextmanager
def pretended_model() -> Iterator[pytest.MonkeyPatch]:
    """Runs inside collect from the pretended model."""
    pipe, path = cast(Any, SimpleNamespace(scheduler=None)), cast(Any, SimpleNamespace(images=None))
    found = FoundSites(sites=SITES, site_of={}, arguments=frozenset(), branches=ALONE)
    loaded = RecordableModel(pipe, path, found)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(schedule, "compute_steps", lambda *_: (None, STEPS))
        patched.setattr("nullbooth_cli.model.scheduler.is_flow_matching", lambda _: False)
        patched.setattr("nullbooth_cli.model.scheduler.noise_digest", lambda *_: "none")
        patched.setattr(collect, "load_recordable", lambda *_, **__: loaded)
        patched.setattr(collect, "_own_guidance", lambda *_: [])
        patched.setattr(load, "weights_digest", lambda *_, **__: "none")
        patched.setattr("nullbooth_cli.model.prompt_length.cut_off_note", lambda *_: None)
        patched.setattr(prepare_collect, "require_same_noise", lambda *_: None)
        patched.setattr(units, "Recorder", PretendedRecorder)
        patched.setattr(units, "run_unit", lambda _, recorder: recorder.run())
        patched.setattr(heartbeat, "BEAT_SECONDS", 3600.0)
        yield patched


def moments_of(store: Store) -> list[AnySums]:
    """The sums of each site and recorded timestep, as they are stored."""
    return [sums for site in SITES for sums in store.moments.read(site, range(site.num_recorded(len(STEPS))))]


def expected_moments(prompts: list[str]) -> list[tuple[NDArray[np.float64], NDArray[np.float64], int]]:
    """The same of a fresh collection of these prompts."""
    expected = []
    for site in SITES:
        for step in range(site.num_recorded(len(STEPS))):
            x = np.concatenate([vectors(site, step, Prompt(text)) for text in prompts]).astype(np.float64)
            expected.append((x.T @ x, x.sum(0), len(x)))
    return expected


def assert_fresh(place: str | Path, prompts: list[str]) -> None:
    """The moments of a store are those of a fresh collection, every value and count; of a factor its bounds hold."""
    for found, wanted in zip(moments_of(Store.open(place)), expected_moments(prompts), strict=True):
        assert found[2] == wanted[2], f"{found[2]} vectors, not {wanted[2]}"
        if isinstance(found, FactoredSums):
            assert found.trace == np.trace(wanted[0])
            np.testing.assert_array_equal(found.sum_x, wanted[1])
            lost = np.linalg.eigvalsh(wanted[0] - found.factor.T @ found.factor)
            assert -1e-12 * found.trace <= lost[0] <= lost[-1] <= found.delta + 1e-12 * found.trace
            continue
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
