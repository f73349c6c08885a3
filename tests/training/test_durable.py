"""Files that get their name when all of them is on disk, and records with a checksum."""

import errno
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from nullbooth_cli.errors import ResourceError, StoreError
from nullbooth_cli.training import durable

DOCUMENT = {"version": 1, "step": 200, "run": {"learning_rate": 1e-3, "word": "sks"}}


class TestReplacing:
    @pytest.fixture
    def old(self, tmp_path: Path) -> Path:
        (tmp_path / "pipeline").mkdir()
        (tmp_path / "pipeline/weights").write_text("old")
        (tmp_path / "pipeline/only_old").write_text("old")
        return tmp_path / "pipeline"

    def test_a_folder_replaces_a_folder(self, old: Path) -> None:
        with durable.replacing(old) as partial:
            partial.mkdir()
            (partial / "weights").write_text("new")
            assert (old / "weights").read_text() == "old"
        assert {path.name: path.read_text() for path in old.iterdir()} == {"weights": "new"}
        assert list(old.parent.iterdir()) == [old]

    def test_a_file_replaces_a_file(self, tmp_path: Path) -> None:
        for text in ("old", "new"):
            with durable.replacing(tmp_path / "new/train.json") as partial:
                partial.write_text(text)
        assert (tmp_path / "new/train.json").read_text() == "new"

    def test_what_a_killed_run_left_is_no_part_of_it(self, old: Path) -> None:
        durable.partial_of(old).mkdir()
        (durable.partial_of(old) / "leftover").write_text("")
        with durable.replacing(old) as partial:
            partial.mkdir()
        assert list(old.iterdir()) == []

    def test_all_is_on_disk_before_it_has_the_name(self, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        done: list[str] = []
        fsync, rename = os.fsync, Path.rename

        def note_fsync(descriptor: int) -> None:
            done.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
            fsync(descriptor)

        def note_rename(path: Path, target: Path) -> Path:
            done.append(f"{path.name} becomes {target.name}")
            return rename(path, target)

        monkeypatch.setattr(os, "fsync", note_fsync)
        monkeypatch.setattr(Path, "rename", note_rename)
        with durable.replacing(old) as partial:
            (partial / "unet").mkdir(parents=True)
            (partial / "unet/weights").write_text("new")
        assert set(done[:3]) == {"fsync weights", "fsync unet", "fsync pipeline.partial"}
        assert done[3:5] == ["pipeline becomes pipeline.before", "pipeline.partial becomes pipeline"]
        assert done[5] == f"fsync {old.parent.name}"

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
            (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "No space left"),
            (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "a file was cut short"),
        ],
        ids=["python", "safetensors", "torch"],
    )
    def test_a_full_disk_keeps_the_old_one(self, old: Path, error: Exception, said: str) -> None:
        def write() -> None:
            with durable.replacing(old) as partial:
                partial.mkdir()
                raise error

        with pytest.raises(ResourceError, match=said) as caught:
            write()
        assert "bytes are free without it" in caught.value.message
        assert "it resumes from the last checkpoint" in caught.value.hint
        assert (old / "weights").read_text() == "old"
        assert list(old.parent.iterdir()) == [old]

    def test_another_error_stays_what_it_is(self, old: Path) -> None:
        with pytest.raises(RuntimeError, match="a peer is gone"), durable.replacing(old):
            raise RuntimeError("a peer is gone")

    @pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
    def test_a_disk_that_is_full(self, tmp_path: Path) -> None:
        """As torch and safetensors really say it."""
        from safetensors.torch import save_file

        disk = tmp_path / "disk"
        disk.mkdir()
        if os.system(f"mount -t tmpfs -o size=1m tmpfs {disk}") != 0:
            pytest.skip("no right to mount")
        try:
            large = {"a": torch.zeros(1_000_000)}
            for write in (lambda path: save_file(large, path), lambda path: torch.save(large, path)):
                with pytest.raises(ResourceError, match="cannot write to"), durable.replacing(disk / "file") as partial:
                    write(partial)
                assert list(disk.iterdir()) == []
        finally:
            os.system(f"umount {disk}")


class TestRecord:
    def test_round_trip(self, tmp_path: Path) -> None:
        (tmp_path / "r.json").write_text(durable.record_text(DOCUMENT))
        assert durable.read_record(tmp_path / "r.json", "") == DOCUMENT

    @given(position=st.integers(0, len(durable.record_text(DOCUMENT)) - 2), flip=st.integers(1, 255))
    def test_a_changed_byte_is_an_error_or_changes_nothing(
        self, tmp_path_factory: pytest.TempPathFactory, position: int, flip: int
    ) -> None:
        data = bytearray(durable.record_text(DOCUMENT).encode())
        data[position] ^= flip
        path = tmp_path_factory.getbasetemp() / "flipped.json"
        path.write_bytes(data)
        try:
            found = durable.read_record(path, "do this")
        except StoreError as error:
            found = {"error": error.message, "hint": error.hint}
        assert found == DOCUMENT or (str(path) in found["error"] and found["hint"] == "do this")

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"step": 1}', "[" * 100_000, '{"checksum": []}'])
    def test_other_files(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(StoreError, match=r"r\.json"):
            durable.read_record(tmp_path / "r.json", "")

    def test_a_folder_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "r.json").mkdir()
        with pytest.raises(StoreError, match=r"cannot read .*r\.json: Is a directory"):
            durable.read_record(tmp_path / "r.json", "")
