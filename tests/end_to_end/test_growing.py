"""A collection that changes: prompts are added and taken out, features released, damage repaired."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nullbooth_cli.errors import Rerun, StageError, StoreError
from nullbooth_cli.nullspace.covariance import STAGED
from nullbooth_cli.pipeline import collect, stages
from nullbooth_cli.pipeline import run as run_module
from nullbooth_cli.pipeline.state import stage_states
from nullbooth_cli.progress import Note
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from nullbooth_cli.store.feature_arrays import FeatureArrays
from nullbooth_cli.store.moment_arrays import MomentArrays
from nullbooth_cli.store.verify import Damage, run_checks
from nullbooth_cli.tensors import unpack
from tests.support.builders import PROMPTS, execute, features_at, prompts_of, states_of
from tests.support.stages import config_of

pytestmark = pytest.mark.usefixtures("fast")
PIPELINE = ("schedule", "collect", "covariance", "project")


def notes(config: Config, stage: str, **control: Any) -> str:
    """Run one stage and return its notes."""
    store = Store.open(config.store, write=True)
    with store.lock():
        said = list(
            stages.execute(stage, run_module.Run(config=config, prompts=prompts_of(config), store=store, device="cpu", **control))
        )
    return "\n".join(event.text for event in said if isinstance(event, Note))


def assert_moments_are_numpys(store: Store, rows: set[str]) -> None:
    """Every moment is the plain sum over the stored features of exactly these prompts."""
    assert {prompt.text for prompt in store.prompts()} == rows
    for site in store.sites:
        for t in range(site.num_recorded(store.num_steps)):
            units = [u for u in range(len(store.progress.cells("collect"))) if store.members(u)]
            x = np.concatenate([unpack(features_at(store, site, t, u), store.layout.dtype).numpy() for u in units])
            x = x.reshape(-1, site.dim).astype(np.float64)
            sum_xxt, sum_x, count = store.moments.read_one(site, t)
            assert count == len(x) == len(rows) * site.num_tokens
            np.testing.assert_allclose(sum_xxt, x.T @ x, rtol=1e-9, atol=1e-9 * np.abs(x.T @ x).max())
            np.testing.assert_allclose(sum_x, x.sum(0), rtol=1e-7, atol=1e-9 * np.abs(x).sum())


def assert_same_moments(one: Store, other: Store, tolerance: float = 1e-5) -> None:
    assert [site.name for site in one.sites] == [site.name for site in other.sites]
    for site, twin in zip(one.sites, other.sites, strict=True):
        for t in range(site.num_recorded(one.num_steps)):
            mine, theirs = one.moments.read_one(site, t), other.moments.read_one(twin, t)
            assert mine[2] == theirs[2]
            for a, b in zip(mine[:2], theirs[:2], strict=True):
                assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


class TestAdding:
    @pytest.mark.parametrize("keep", ["features", "moments", "both"])
    def test_only_new_prompts_are_collected_and_added(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str) -> None:
        """Five prompts, then eight in another order: rows of old prompts stay, the tail unit is not redone."""
        first = config_of(tmp_path / "run.zarr", PROMPTS[:5], collect__keep=keep)
        store = execute(first, *PIPELINE)
        more = config_of(tmp_path / "run.zarr", PROMPTS[::-1], collect__keep=keep)
        assert states_of(more) == {"schedule": "complete", "collect": "partial", "covariance": "partial", "project": "stale"}
        ran: list[str] = []
        read: list[int] = []
        read_features = FeatureArrays.read
        monkeypatch.setattr("nullbooth_cli.collect.units.denoise", self._noting(ran))
        monkeypatch.setattr(
            FeatureArrays, "read", lambda self, site, block, unit: (read.append(unit), read_features(self, site, block, unit))[1]
        )
        assert "3 prompts are new" in notes(more, "collect")
        notes(more, "covariance")
        monkeypatch.undo()
        assert ran == PROMPTS[:4:-1]
        assert set(read) == ({3, 4} if keep == "features" else set())
        assert states_of(more)["project"] == "stale"
        execute(more, "project", force=True)
        assert set(states_of(more).values()) == {"complete"}
        store.reload()
        assert [prompt and prompt.text for prompt in store.rows] == [*PROMPTS[:5], None, *PROMPTS[:4:-1]]
        if keep != "moments":
            assert_moments_are_numpys(store, set(PROMPTS))
        if keep == "moments":
            assert store.moments.counts(store.sites[0])[0] == 8 * store.sites[0].num_tokens

    @staticmethod
    def _noting(ran: list[str]) -> Any:
        from nullbooth_cli.model.denoise import denoise

        def noting(pipe: Any, path: Any, members: Any, **settings: Any) -> Any:
            ran.extend(prompt.text for _, prompt in members)
            return denoise(pipe, path, members, **settings)

        return noting

    def test_the_same_file_in_another_order_is_complete(self, tmp_path: Path) -> None:
        execute(config_of(tmp_path / "run.zarr", PROMPTS[:3]), "collect")
        turned = config_of(tmp_path / "run.zarr", PROMPTS[2::-1])
        assert "collect is complete" in notes(turned, "collect")

    def test_moments_grow_beside_the_ones_in_force(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stopped between the chunks of a moment that grows: the old one or the new one is there, never a mixture."""
        execute(config_of(tmp_path / "run.zarr", PROMPTS[:4]), "collect", "covariance")
        more = config_of(tmp_path / "run.zarr", PROMPTS[:6])
        execute(more, "collect")
        real = MomentArrays.write

        def stopped(self: Store, site: Any, block: range, sums: Any) -> None:
            self._write_block(f"moments/{site.name}/sum_xxT", block, np.stack([of_step[0] for of_step in sums]))
            raise StoreError("stopped here", "go on")

        monkeypatch.setattr(MomentArrays, "write", stopped)
        with pytest.raises(StoreError, match="stopped here"):
            execute(more, "covariance")
        monkeypatch.setattr(MomentArrays, "write", real)
        assert ((Store.open(more.store).progress.cells("covariance") & STAGED) > 0).sum() > 1
        execute(more, "covariance", limit=1)  # which leaves the staged moments of the other units
        store = execute(more, "covariance")
        assert_moments_are_numpys(store, set(PROMPTS[:6]))
        assert not (store.path / "staged").exists()


class TestTakingOut:
    def test_removed_and_edited_prompts_are_refused_with_the_list(self, tmp_path: Path) -> None:
        execute(config_of(tmp_path / "run.zarr", PROMPTS[:4]), *PIPELINE)
        edited = config_of(tmp_path / "run.zarr", [PROMPTS[0], PROMPTS[1] + " at night", PROMPTS[3]])
        with pytest.raises(StageError, match=rf"removed or edited: '{PROMPTS[1]}', '{PROMPTS[2]}'") as caught:
            notes(edited, "collect")
        assert "force=True) to take them out" in caught.value.hint
        assert set(states_of(config_of(tmp_path / "run.zarr", PROMPTS[:4])).values()) == {"complete"}

    @pytest.mark.parametrize("keep", ["features", "both"])
    def test_force_takes_them_out_and_covariance_is_recomputed(self, tmp_path: Path, keep: str) -> None:
        before = execute(config_of(tmp_path / "run.zarr", PROMPTS[:5], collect__keep=keep), "collect", "covariance")
        kept = features_at(before, before.sites[0], 0, 0)
        wanted = [PROMPTS[0], PROMPTS[3], PROMPTS[6]]
        config = config_of(tmp_path / "run.zarr", wanted, collect__keep=keep)
        said = notes(config, "collect", force=True)
        assert "3 prompts are taken out; force covariance" in said
        assert "1 prompts are new" in said
        assert states_of(config)["covariance"] == "stale"
        store = execute(config, "covariance", force=True)
        assert [prompt and prompt.text for prompt in store.rows] == [PROMPTS[0], None, None, PROMPTS[3], None, None, PROMPTS[6]]
        np.testing.assert_array_equal(features_at(store, store.sites[0], 0, 0), kept[:1])
        assert_moments_are_numpys(store, set(wanted))

    def test_all_of_them_can_be_replaced(self, tmp_path: Path) -> None:
        """Rows that are all empty are still rows."""
        execute(config_of(tmp_path / "run.zarr", PROMPTS[:2]), "collect")
        config = config_of(tmp_path / "run.zarr", PROMPTS[2:4])
        store = execute(config, "collect", "covariance", force=True)
        assert [prompt and prompt.text for prompt in store.rows] == [None, None, *PROMPTS[2:4]]
        assert_moments_are_numpys(store, set(PROMPTS[2:4]))

    def test_without_features_everything_is_collected_again_and_said_so(self, tmp_path: Path) -> None:
        execute(config_of(tmp_path / "run.zarr", PROMPTS[:4], collect__keep="moments"), "collect")
        config = config_of(tmp_path / "run.zarr", PROMPTS[:3], collect__keep="moments")
        assert "collecting again" in notes(config, "collect", force=True)
        store = Store.open(config.store)
        assert {prompt.text for prompt in store.prompts()} == set(PROMPTS[:3])
        assert store.moments.counts(store.sites[0])[0] == 3 * store.sites[0].num_tokens


class TestReleasing:
    def test_features_go_and_moments_stay(self, tmp_path: Path) -> None:
        config = config_of(tmp_path / "run.zarr", PROMPTS[:4])
        store = execute(config, *PIPELINE)
        before = {site.name: store.moments.read_one(site, 0) for site in store.sites}
        said = collect.release_features(store)
        assert "released" in said
        assert not list((store.path / "features").rglob("c.*"))
        assert states_of(config) == {
            "schedule": "complete",
            "collect": "released",
            "covariance": "complete",
            "project": "complete",
        }
        assert "were released; force collects them again" in notes(config, "collect")
        assert "covariance is complete" in notes(config, "covariance")
        execute(config, "project", force=True)
        with pytest.raises(StageError, match="were released"):
            notes(config, "covariance", force=True)
        more = config_of(tmp_path / "run.zarr", PROMPTS[:6])
        execute(more, "collect", "covariance")
        fresh = execute(config_of(tmp_path / "fresh.zarr", PROMPTS[:6]), "collect", "covariance")
        assert_same_moments(Store.open(more.store), fresh)
        execute(more, "collect", force=True)
        assert states_of(more)["collect"] == "complete"
        assert all(np.isfinite(values[0]).all() for values in before.values())

    def test_a_release_that_was_killed_looks_like_none_of_its_features(self, tmp_path: Path, monkeypatch: Any) -> None:
        config = config_of(tmp_path / "run.zarr", PROMPTS[:4])
        store = execute(config, "collect", "covariance")
        monkeypatch.setattr(type(store.arrays.backing), "delete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            collect.release_features(store)
        assert states_of(config)["collect"] == "released"
        monkeypatch.undo()
        collect.release_features(store)
        assert not list((store.path / "features").rglob("c.*"))


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "bit":
        data[len(data) // 2] ^= 1
    path.write_bytes(data if how == "bit" else data[: len(data) // 2 if how == "truncated" else 0])


@pytest.mark.usefixtures("one_chunk_a_timestep")
class TestRepairing:
    @pytest.mark.parametrize("how", ["bit", "truncated", "empty", "missing"])
    def test_covariance_names_the_chunk_and_repair_rebuilds_its_unit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        config = config_of(tmp_path / "run.zarr", PROMPTS[:6])
        store = execute(config, "collect")
        site = next(site for site in store.sites if site.feature == "q")
        chunk = store.path / f"features/{site.name}/c.2.1.0.0"
        whole = chunk.read_bytes()
        damage(chunk, how)
        with pytest.raises(StoreError, match=rf"features/{site.name} chunk c\.2\.1\.0\.0 is damaged") as caught:
            execute(config, "covariance")
        assert caught.value.rerun == Rerun("collect", repair=True, store=store.url)
        ran: list[str] = []
        monkeypatch.setattr("nullbooth_cli.collect.units.denoise", TestAdding._noting(ran))
        said = notes(config, "collect", repair=True)
        assert "1 damaged units of collect are done again" in said
        assert ran == PROMPTS[2:4]
        assert chunk.read_bytes() == whole
        store = execute(config, "covariance")
        assert_moments_are_numpys(store, set(PROMPTS[:6]))
        assert "nothing of collect is damaged" in notes(config, "collect", repair=True)

    def test_a_damaged_part_is_folded_again(self, tmp_path: Path) -> None:
        config = config_of(tmp_path / "run.zarr", PROMPTS[:4], collect__keep="moments")
        store = execute(config, "collect")
        expected = [store.moments.read_one(site, 0) for site in store.sites]
        part = store.moments.all_partial_sums()[0]
        damage(next((store.path / f"parts/{part.name}").rglob(f"c.{part.slot}.*")), "bit")
        with pytest.raises(StoreError, match=r"parts/.* is damaged") as caught:
            execute(config, "covariance", force=True)
        assert caught.value.rerun == Rerun("collect", repair=True, store=store.url)
        assert "2 damaged units" in notes(config, "collect", repair=True)
        execute(config, "covariance", force=True)
        store.reload()  # its arrays were made anew
        for site, (sum_xxt, _, count) in zip(store.sites, expected, strict=True):
            found = store.moments.read_one(site, 0)
            assert found[2] == count
            np.testing.assert_allclose(found[0], sum_xxt, rtol=1e-6, atol=1e-6 * np.abs(sum_xxt).max())

    def test_a_damaged_moment_and_a_damaged_cell(self, tmp_path: Path) -> None:
        config = config_of(tmp_path / "run.zarr", PROMPTS[:4])
        store = execute(config, "collect", "covariance")
        damage(store.path / f"moments/{store.sites[0].name}/sum_xxT/c.1.0.0", "bit")
        damage(store.path / "progress/covariance/c.0", "bit")
        with pytest.raises(StoreError, match="progress/covariance") as caught:
            execute(config, "project")
        assert caught.value.rerun == Rerun("covariance", repair=True, store=store.url)
        found = [result for result in run_checks(store, "covariance") if isinstance(result, Damage)]
        assert len(found) == 2
        assert "1 damaged units" in notes(config, "covariance", repair=True)
        assert_moments_are_numpys(store, set(PROMPTS[:4]))

    def test_all_checksums_of_a_whole_store_pass(self, finished: Any) -> None:
        _, store = finished
        results = [result for stage in PIPELINE for result in run_checks(store, stage)]
        assert not [result for result in results if isinstance(result, Damage)]
        assert len(results) > 2 * len(store.progress.cells("collect")) * len(store.sites)


def test_keeping_moments_serves_moments_only(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run.zarr", PROMPTS[:2], collect__keep="moments")
    store = execute(config, "collect")
    assert states_of(config)["covariance"] == "complete"
    assert not (store.path / "features").exists()
    wants_features = config_of(tmp_path / "run.zarr", PROMPTS[:2], collect__keep="features")
    found = stage_states(wants_features, prompts_of(wants_features), store)["collect"]
    assert [str(because) for because in found.stale_because] == ["collect.keep: moments -> features"]
    other_dtype = config_of(tmp_path / "run.zarr", PROMPTS[:2], collect__keep="moments", collect__feature_dtype="float16")
    assert states_of(other_dtype)["collect"] == "complete"
    other_sums = config_of(tmp_path / "run.zarr", PROMPTS[:2], collect__keep="moments", covariance__accumulate="float32")
    assert states_of(other_sums)["collect"] == "stale"


def test_collect_finishes_its_own_fold_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path / "run.zarr", PROMPTS[:2], collect__keep="moments")
    monkeypatch.setattr(stages, "run_covariance", lambda run: iter(()))
    execute(config, "collect")
    assert states_of(config)["covariance"] == "missing"
    monkeypatch.undo()
    assert "collect is complete" in notes(config, "collect")
    assert states_of(config)["covariance"] == "complete"


def test_taking_out_that_was_killed_leaves_no_sums_of_what_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before any of its writes: nothing is summed up before the same command has finished, and then only what stays."""
    wanted = [PROMPTS[0], PROMPTS[3]]
    for step in ("write_record", "delete", "write_rows"):
        place = tmp_path / f"{step}.zarr"
        execute(config_of(place, PROMPTS[:4], collect__keep="both"), "collect")
        config = config_of(place, wanted, collect__keep="both")
        with monkeypatch.context() as killed:
            killed.setattr(Store, step, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                execute(config, "collect", force=True)
        with pytest.raises(StageError, match=r"collect in .* is stale"):
            execute(config, "covariance", force=True)
        notes(config, "collect", force=True)
        assert_moments_are_numpys(execute(config, "covariance", force=True), set(wanted))
