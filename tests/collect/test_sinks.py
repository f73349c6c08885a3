"""What sinks store: every chunk once, and nothing of a unit whose write has failed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nullbooth_cli.collect import sinks
from nullbooth_cli.collect.sinks import MomentSink, features_nbytes, to_length
from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import ModelError, Rerun, ResourceError
from nullbooth_cli.nullspace.moments import sums_nbytes
from nullbooth_cli.store import PartialSums, Store
from nullbooth_cli.store.feature_arrays import FeatureArrays
from nullbooth_cli.store.local import LocalBacking
from tests.support.builders import execute, small_config
from tests.support.stores import FREE, TIMED, small_store


def test_every_chunk_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, int, int]] = []
    real = FeatureArrays.write

    def recorded(self: Store, site: Site, block: range, rows: list[int], values: Any) -> None:
        written.extend((site.name, step, rows[0] // 3) for step in block)
        real(self, site, block, rows, values)

    monkeypatch.setattr(FeatureArrays, "write", recorded)
    store = execute(small_config(tmp_path / "run.zarr", collect__cross_attention_layers=[0, "mid_block*"]), "collect")
    steps = {site.name: range(1 if site.timestep_free else 4) for site in store.sites}
    assert sorted(written) == sorted((name, t, unit) for name, ts in steps.items() for t in ts for unit in range(3))


def test_a_failed_write_stops_the_run_with_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ResourceError("the disk is gone", "plug it in")

    monkeypatch.setattr(FeatureArrays, "write", fail)
    config = small_config(tmp_path / "run.zarr", collect__cross_attention_layers=["mid_block*"])
    with pytest.raises(ResourceError, match="the disk is gone"):
        execute(config, "collect")
    assert not Store.open(config.store).progress.done("collect").any()


class TestLength:
    site = Site("l", "k", "input", ("l.to_k.weight",), False, 3, 2, masked=True)

    def test_tokens_come_first_in_order_and_then_padding_up_to_the_site_s_length(self) -> None:
        nan = float("nan")
        # Padding at the left of a text, between a text and an image, and none.
        given = torch.tensor([[nan, nan, 1.0, 2.0], [3.0, nan, 4.0, nan], [5.0, 6.0, 7.0, nan]])[..., None].expand(-1, -1, 2)
        expected = torch.tensor([[1.0, 2.0, nan], [3.0, 4.0, nan], [5.0, 6.0, 7.0]])[..., None].expand(-1, -1, 2)
        torch.testing.assert_close(to_length(self.site, given), expected, equal_nan=True)
        short = to_length(self.site, given[:2, :3])
        torch.testing.assert_close(
            short, torch.tensor([[1.0, nan, nan], [3.0, 4.0, nan]])[..., None].expand(-1, -1, 2), equal_nan=True
        )

    @pytest.mark.parametrize("masked", [True, False])
    def test_more_tokens_than_there_is_room_for(self, masked: bool) -> None:
        with pytest.raises(ModelError, match=r"l\.k has 4 tokens for these prompts, and its arrays have room for 3") as caught:
            to_length(replace(self.site, masked=masked), torch.zeros(1, 4, 2))
        assert caught.value.rerun == Rerun("collect", force=True, otherwise=", or keep moments alone: they have no lengths")

    def test_fewer_tokens_of_a_site_without_padding(self) -> None:
        with pytest.raises(ModelError, match="has 2 tokens"):
            to_length(replace(self.site, masked=False), torch.zeros(1, 2, 2))


class TestMoments:
    def sink(self, store: Store) -> MomentSink:
        partial = store.moments.partial_sums("one")
        if not partial.units:
            partial.create(store.sites, 3)
        return MomentSink(partial, store.sites, 3, device=torch.device("cpu"), accumulate="float64")

    def test_sums_are_numpys_and_go_on_after_a_kill(self, tmp_path: Path) -> None:
        """What was received after the last checkpoint is lost, and counted once when it comes again."""
        store = small_store(tmp_path)
        x = np.random.default_rng(0).standard_normal((2, 2, TIMED.num_tokens, TIMED.dim)).astype(np.float32)  # [units, b, L, D]
        first = self.sink(store)
        first.receive(TIMED, 1, [0, 1], torch.from_numpy(x[0]))
        first.checkpoint([0])
        first.receive(TIMED, 1, [2, 3], torch.from_numpy(x[1]))
        again = self.sink(store)
        again.receive(TIMED, 1, [2, 3], torch.from_numpy(x[1]))
        again.checkpoint([1])
        partial = store.moments.partial_sums("one")
        assert partial.units == (0, 1)
        found = list(partial.read(TIMED))
        vectors = x.reshape(-1, TIMED.dim).astype(np.float64)
        assert [of_step.count for of_step in found] == [0, len(vectors), 0]
        np.testing.assert_allclose(found[1].sum_xxt, vectors.T @ vectors, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found[1].sum_x, vectors.sum(0), rtol=1e-12, atol=1e-12)

    def test_a_checkpoint_is_due_when_it_is_cheap(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that took 2 s is due again after 40 s, so that it costs a twentieth of the time."""
        now = [0.0]
        monkeypatch.setattr("time.monotonic", lambda: now[0])
        sink = self.sink(small_store(tmp_path))
        real = PartialSums.replaced
        monkeypatch.setattr(PartialSums, "replaced", lambda *given: (now.__setitem__(0, now[0] + 2.0), real(*given))[1])
        sink.checkpoint([0])
        now[0] = 41.9
        assert not sink.due()
        now[0] = 42.0
        assert sink.due()

    @pytest.mark.parametrize(("takes", "comes_after"), [(3.0, 60.0), (1e9, 120.0)])
    def test_the_first_checkpoint_waits_until_its_share_pays_for_its_bytes_or_two_minutes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes: float, comes_after: float
    ) -> None:
        now = [0.0]
        monkeypatch.setattr("time.monotonic", lambda: now[0])
        store = small_store(tmp_path)
        monkeypatch.setattr(sinks, "CHECKPOINT_RATE", sums_nbytes(store.sites, 3) / takes)
        sink = self.sink(store)
        now[0] = comes_after - 0.1
        assert not sink.due()
        now[0] = comes_after
        assert sink.due()

    def test_a_write_that_fails_leaves_the_checkpoint_before(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also for a caller that tries again: the unit is not counted as written."""
        store = small_store(tmp_path)
        sink = self.sink(store)
        sink.checkpoint([0])
        with monkeypatch.context() as patched:
            patched.setattr(LocalBacking, "put", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(OSError, match="No space left"):
                sink.checkpoint([1])
        assert store.moments.partial_sums("one").units == (0,)
        assert sink.lacks(1)
        sink.checkpoint([1])
        assert store.moments.partial_sums("one").units == (0, 1)


def test_bytes_of_features_are_those_of_their_values() -> None:
    assert features_nbytes((FREE, TIMED), 3, 5, "float16") == 2 * 5 * (1 * 4 * 6 + 3 * 2 * 3)
    assert features_nbytes((FREE, TIMED), 3, 5, "float32") == 2 * features_nbytes((FREE, TIMED), 3, 5, "bfloat16")
