"""Finding the newest checkpoint, and every kind of damage to it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nullbooth_cli.errors import ConfigError, StoreError
from nullbooth_cli.training import checkpoint_files
from nullbooth_cli.training.checkpoint_files import MANIFEST, folder_of
from nullbooth_cli.training.record import RunRecord

RECORD = RunRecord(decides={"learning_rate": 1e-3}, steps=400, history=({"step": 100, "learning_rate": [1e-2, 1e-3]},))
FILES = ("model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "inner/state.json")


def checkpoint(output: Path, step: int) -> Path:
    folder = folder_of(str(output), step)
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"{name} after {step} steps".encode())
    checkpoint_files.describe(folder, step, RECORD)
    return folder


def check(output: Path) -> checkpoint_files.Checkpoint:
    found = checkpoint_files.find(str(output))
    assert found is not None
    found.require_whole()
    return found


def test_none(tmp_path: Path) -> None:
    assert checkpoint_files.find(str(tmp_path)) is None
    assert checkpoint_files.find(str(tmp_path / "nowhere")) is None


def test_the_newest_by_its_number(tmp_path: Path) -> None:
    """As text, 1000000 comes before 999999."""
    for step in (999_999, 1_000_000, 200):
        checkpoint(tmp_path, step)
    found = check(tmp_path)
    assert (found.step, found.folder, found.record) == (1_000_000, tmp_path / "checkpoint-1000000", RECORD)
    assert set(found.files) == set(FILES)


def test_others_of_a_similar_name_are_left_alone(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 4)
    for name in ("checkpoint-best", "checkpoint-", "checkpoint-000009.partial", "checkpoint-12", "my-checkpoint-000009"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-notes").write_text("mine")
    assert check(tmp_path).step == 4
    checkpoint_files.remove_old(str(tmp_path), 4, 1)
    assert len(list(tmp_path.iterdir())) == 7
    assert not (tmp_path / "checkpoint-000002").exists()


def test_an_older_one_that_is_a_link_or_a_file_is_removed_alone(tmp_path: Path) -> None:
    shutil.move(checkpoint(tmp_path, 2), tmp_path / "elsewhere")
    (tmp_path / "checkpoint-000002").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "checkpoint-000003").write_text("")
    checkpoint(tmp_path, 4)
    checkpoint_files.remove_old(str(tmp_path), 4, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-000004", "elsewhere"}
    assert len(list((tmp_path / "elsewhere").iterdir())) == len(FILES) + 1


def test_as_many_stay_as_were_asked_for(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 1_000_001, 200):
        checkpoint(tmp_path, step)
    checkpoint_files.remove_old(str(tmp_path), 1_000_001, None)
    assert checkpoint_files.steps(str(tmp_path)) == [200, 999_999, 1_000_000, 1_000_001]
    checkpoint_files.remove_old(str(tmp_path), 1_000_001, 3)
    assert checkpoint_files.steps(str(tmp_path)) == [999_999, 1_000_000, 1_000_001]
    checkpoint_files.remove_old(str(tmp_path), 1_000_001, 3)
    assert checkpoint_files.steps(str(tmp_path)) == [999_999, 1_000_000, 1_000_001]


def test_a_removal_that_was_killed_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be found, and be damaged."""
    for step in (2, 4):
        checkpoint(tmp_path, step)
    calls = []

    def killed(path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_files, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint_files.remove_old(str(tmp_path), 4, 1)
    assert checkpoint_files.steps(str(tmp_path)) == [4]
    assert (tmp_path / "checkpoint-000002.partial").is_dir()


@pytest.mark.parametrize(
    ("asked", "num_bytes", "limit"), [(None, 100_000_000, None), (None, 100_000_001, 5), (3, 1, 3), (3, 10**9, 3)]
)
def test_how_many_stay(asked: int | None, num_bytes: int, limit: int | None) -> None:
    assert checkpoint_files.limit_of(asked, num_bytes) == limit


def test_one_by_its_step(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        checkpoint(tmp_path, step)
    found = checkpoint_files.find(str(tmp_path), 4)
    assert found is not None
    assert (found.step, found.folder) == (4, tmp_path / "checkpoint-000004")
    with pytest.raises(ConfigError, match=r"has checkpoints of 2, 4, 6 steps, and none of 5"):
        checkpoint_files.find(str(tmp_path), 5)
    with pytest.raises(ConfigError, match=r"has no checkpoint, and none of 5"):
        checkpoint_files.find(str(tmp_path / "new"), 5)


def test_damage_to_one_that_is_not_the_newest(tmp_path: Path) -> None:
    """A run does not resume from it, so no other takes its place by itself."""
    for step in (2, 4, 6):
        checkpoint(tmp_path, step)
    flip(tmp_path / "checkpoint-000004/model.safetensors")
    found = checkpoint_files.find(str(tmp_path), 4)
    assert found is not None
    with pytest.raises(StoreError, match="its digest is wrong") as caught:
        found.require_whole()
    assert caught.value.hint == f"move {found.folder} away, and name another checkpoint: there are those of 2, 6 steps"


def test_the_one_before_by_its_number(tmp_path: Path) -> None:
    for step in (999_998, 999_999, 1_000_000):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-1000000/manifest.json").unlink()
    with pytest.raises(StoreError) as caught:
        check(tmp_path)
    assert "to resume from checkpoint-999999" in caught.value.hint


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = (
    cut,
    flip,
    Path.unlink,
    make_a_folder,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"longer" * 99),
)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("damage", DAMAGES, ids=["cut", "flipped", "missing", "folder", "empty", "other"])
def test_damage_names_the_file_and_the_way_out(tmp_path: Path, name: str, damage: Callable[[Path], object]) -> None:
    folder = checkpoint(tmp_path, 4)
    if (name, damage) == (MANIFEST, cut):
        flip(folder / name)  # without its last line break it is the same document
    damage(folder / name)
    with pytest.raises(StoreError) as caught:
        check(tmp_path)
    assert str(folder / name) in caught.value.message
    assert caught.value.hint.startswith(f"move {folder} away, and run this again to train from the first step")
    checkpoint(tmp_path, 2)
    with pytest.raises(StoreError) as caught:
        check(tmp_path)
    assert "run this again to resume from checkpoint-000002" in caught.value.hint
    shutil.move(folder, tmp_path / "away")
    assert check(tmp_path).step == 2


def test_an_empty_folder(tmp_path: Path) -> None:
    folder_of(str(tmp_path), 4).mkdir()
    with pytest.raises(StoreError, match=r"checkpoint-000004/manifest\.json is missing: .* an earlier nullbooth"):
        check(tmp_path)


def test_a_file_of_its_name(tmp_path: Path) -> None:
    folder_of(str(tmp_path), 4).write_text("")
    with pytest.raises(StoreError, match="checkpoint-000004 is not a folder"):
        check(tmp_path)


def test_a_renamed_one(tmp_path: Path) -> None:
    """Its weights have had as many steps as its manifest says."""
    checkpoint(tmp_path, 4).rename(folder_of(str(tmp_path), 400))
    with pytest.raises(StoreError, match="checkpoint-000400 has 4 steps: it was renamed"):
        check(tmp_path)
