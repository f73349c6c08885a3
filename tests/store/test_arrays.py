"""Arrays of a group: damage never reads as data, and its error names array, chunk and the stage that writes it again."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullbooth_cli.datatypes import HELDOUT
from nullbooth_cli.errors import Rerun, StoreError
from nullbooth_cli.store import Store
from nullbooth_cli.store.arrays import TEXT_CHUNK, ArrayGroup
from nullbooth_cli.store.format import create_root
from nullbooth_cli.store.open_backing import open_backing
from tests.support.stores import TIMED, write_features


@pytest.fixture
def arrays(tmp_path: Path) -> ArrayGroup:
    backing = open_backing(tmp_path / "group.zarr")
    return ArrayGroup(create_root(backing, {}), backing)


class TestDamage:
    def chunk(self, store: Store) -> Path:
        write_features(store, 1)
        return store.path / "features/mid.attn2.q/c.0.1.0.0"

    def assert_refused(self, store: Store) -> None:
        with pytest.raises(StoreError, match=r"features/mid\.attn2\.q chunk c\.0\.1\.0\.0 is damaged") as caught:
            Store.open(store.path).features.read(TIMED, range(1), 1)
        assert caught.value.rerun == Rerun("collect", repair=True, store=str(store.path))

    def test_one_flipped_bit(self, store: Store) -> None:
        path = self.chunk(store)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        self.assert_refused(store)

    @pytest.mark.parametrize("keep", [0, 10, -4])
    def test_truncated(self, store: Store, keep: int) -> None:
        path = self.chunk(store)
        path.write_bytes(path.read_bytes()[:keep])
        self.assert_refused(store)

    def test_missing(self, store: Store) -> None:
        self.chunk(store).unlink()
        self.assert_refused(store)


@pytest.mark.parametrize(
    ("name", "rerun"),
    [
        ("schedule/sigmas", Rerun("schedule", force=True)),
        ("prompts/text", Rerun("collect", force=True)),
        ("parts/0", Rerun("collect", force=True)),
        ("parts/0/site", Rerun("collect", repair=True)),
        ("moments/site/count", Rerun("covariance", force=True)),
        ("projectors/site/null_dim", Rerun("project", force=True)),
        ("progress/covariance", Rerun("covariance", force=True)),
        ("progress/decomposition", Rerun("project", force=True)),
    ],
)
def test_a_missing_array_names_the_stage_that_writes_it(arrays: ArrayGroup, name: str, rerun: Rerun) -> None:
    with pytest.raises(StoreError, match=f"has no array {name}") as caught:
        arrays.array(name)
    assert caught.value.rerun is not None
    assert caught.value.rerun.store == arrays.url
    assert {**vars(caught.value.rerun), "store": None} == vars(rerun)


def test_what_rebuilds_heldout_prompts_names_the_store_that_they_are_in(store: Store) -> None:
    with pytest.raises(StoreError, match=r"run\.zarr/heldout has no array moments/a") as caught:
        store.inside_or_create(HELDOUT, {}).arrays.array("moments/a")
    assert caught.value.rerun is not None
    assert caught.value.rerun.store == store.url


def test_a_chunk_of_another_shape_is_refused(arrays: ArrayGroup) -> None:
    arrays.create("a", shape=(4,), chunks=(2,), dtype="f4", fill=0)
    with pytest.raises(ValueError, match=r"a: a chunk is \(2,\), got \(3,\)"):
        arrays.write_chunk("a", (0,), np.zeros(3, np.float32))


def test_an_array_grows_and_never_shrinks(arrays: ArrayGroup) -> None:
    arrays.create("a", shape=(1, 2), chunks=(1, 2), dtype="f4", fill=0)
    arrays.resize("a", 5, axis=1)
    arrays.resize("a", 3, axis=1)
    assert arrays.array("a").shape == (1, 5)


def test_what_was_removed_is_gone_with_all_below_it(arrays: ArrayGroup) -> None:
    arrays.create("a/b", shape=(1,), chunks=(1,), dtype="f4", fill=0)
    arrays.create("a/c", shape=(1,), chunks=(1,), dtype="f4", fill=0)
    assert arrays.children("a") == ["b", "c"]
    assert arrays.has("a")
    arrays.delete("a")
    arrays.delete("a")
    assert not arrays.has("a")
    assert arrays.find("a/b") is None
    assert arrays.children("a") == []


def test_attributes_of_the_group_and_of_one_inside_it(arrays: ArrayGroup) -> None:
    arrays.update_attributes(one=1, two=[2])
    assert arrays.group_attributes("inner") is None
    arrays.create_group("inner", {"three": 3})
    arrays.update_group_attributes("inner", four=4)
    arrays.reload()
    assert (arrays.attribute("one"), arrays.attribute("two")) == (1, [2])
    assert arrays.group_attributes("inner") == {"three": 3, "four": 4}


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 40), st.lists(st.text(max_size=3), max_size=20)), max_size=5))
def test_texts_come_back_whatever_rows_are_written(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, list[str]]]
) -> None:
    backing = open_backing(tmp_path_factory.mktemp("texts") / "group.zarr")
    arrays, expected = ArrayGroup(create_root(backing, {}), backing), list[str]()
    arrays.write_texts("texts", 0, [])
    for start, texts in writes:
        arrays.write_texts("texts", start, texts)
        expected += [""] * (start + len(texts) - len(expected))
        expected[start : start + len(texts)] = texts
    assert arrays.read_texts("texts") == expected


@pytest.mark.parametrize("texts", [["a", "b"], ["", ""]], ids=["some", "empty"])
def test_a_missing_chunk_of_texts_is_damage_even_if_its_rows_were_empty(arrays: ArrayGroup, texts: list[str]) -> None:
    arrays.write_texts("prompts/text", 0, ["x"] * TEXT_CHUNK + texts)
    assert arrays.read_texts("prompts/text")[TEXT_CHUNK:] == texts
    (Path(arrays.url) / "prompts/text/c.1").unlink()
    with pytest.raises(StoreError, match=r"prompts/text chunk c\.1 is damaged: it is missing"):
        arrays.read_texts("prompts/text")


def test_a_torn_chunk_of_texts_is_damage(arrays: ArrayGroup) -> None:
    arrays.write_texts("prompts/text", 0, ["a", "b"])
    path = Path(arrays.url) / "prompts/text/c.0"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"prompts/text chunk c\.0 is damaged"):
        arrays.read_texts("prompts/text")
