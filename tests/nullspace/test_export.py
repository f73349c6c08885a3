"""Projectors and moments as files for other programs."""

import json
import re
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import nullbooth_cli as nb
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.cli import exported, nullbooth, refused
from tests.support.pages import python_of

pytestmark = pytest.mark.usefixtures("empty_folder")

NAME = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight"
FEATURES = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}


def projectors(store: str) -> dict[str, nb.Projector]:
    return nb.open_store(store).projectors()


class TestSafetensors:
    @pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
    @pytest.mark.parametrize(("kind", "null_dim"), [("dense", 5), ("null_basis", 3), ("complement", 25)])
    def test_every_weight_finds_its_projector(self, done: str, kind: str, null_dim: int, dtype: str, tolerance: float) -> None:
        rule = ("--set", "project.relative_threshold=null", "--set", f"project.null_dim={null_dim}")
        assert nullbooth("project", "-s", done, *rule, "--force").exit_code == 0
        exported("p.safetensors", "-s", done, "--dtype", dtype, *(["--dense"] if kind == "dense" else []))
        expected = projectors(done)
        with safe_open("p.safetensors", "np") as file:
            header = json.loads(file.metadata()["nullbooth"])
            assert set(header["weights"]) == set(expected)
            assert set(file.keys()) == {site.name for site in nb.open_store(done).sites()}
            kinds = []
            for weight, entry in header["weights"].items():
                stored = file.get_tensor(entry["tensor"])
                assert stored.dtype == dtype
                kinds.append(entry["kind"])
                p = {
                    "dense": lambda f: f,
                    "null_basis": lambda f: f @ f.T,
                    "complement": lambda f: np.eye(len(f)) - f @ f.T,
                }[entry["kind"]](stored.astype(np.float64))
                np.testing.assert_allclose(p, expected[weight].dense(), atol=tolerance)
                assert entry["null_dim"] == expected[weight].null_dim
        assert kind in kinds
        assert header["provenance"] == json.loads(json.dumps(nb.open_store(done).provenance()))

    def test_the_five_lines_of_the_page_need_no_nullbooth(self, done: str) -> None:
        exported("projectors.safetensors", "-s", done)
        [block] = python_of("docs/how-to/use-the-projectors.md")
        assert "nullbooth_cli" not in block
        names: dict[str, Any] = {}
        exec(block, names)
        np.testing.assert_allclose(names["P"].numpy(), projectors(done)[NAME].dense(), atol=1e-6)


class TestAlphaEdit:
    def test_the_stack_is_p_of_the_chosen_sites(self, done: str) -> None:
        document = exported("p.pt", "-s", done, "--layer", "up_blocks.1", "--feature", "out")
        stack = torch.load("p.pt", weights_only=True)
        assert stack.dtype == torch.float32
        assert len(document["sites"]) == len(stack) == 2
        for name, p in zip(document["sites"], stack, strict=True):
            np.testing.assert_allclose(p.numpy(), nb.open_store(done).projector(name).dense(), atol=1e-6)

    def test_sites_of_several_sizes(self, done: str) -> None:
        sizes = sorted({site.dim for site in nb.open_store(done).sites()})
        refused(nullbooth("export", "p.pt", "-s", done), 2, "have", ", ".join(map(str, sizes)))
        refused(nullbooth("export", "p.pt", "-s", done, "--layer", "none"), 2, "no layer matches none")
        assert not Path("p.pt").exists()


def run_folder(*arguments: str) -> Path:
    return Path(exported("out", *arguments)["path"])


class TestFolder:
    def test_pooled_projectors(self, done: str) -> None:
        run = run_folder("-s", done)
        assert re.fullmatch(r"out/run_\d{8}_\d{6}", str(run))
        assert [folder.name for folder in run.iterdir()] == ["pooled"]
        expected = projectors(done)
        for weight, projector in expected.items():
            layer, feature = next((weight.removesuffix(f".{of}.weight"), f) for f, of in FEATURES.items() if f".{of}." in weight)
            p = np.load(run / "pooled" / layer / f"{feature}_projection.npy")
            np.testing.assert_allclose(p, projector.dense(), atol=1e-12)
            described = json.loads((run / "pooled" / layer / f"{feature}_metadata.json").read_text())
            assert described["shape"] == list(p.shape)
            assert described["null_dim"] == projector.null_dim
            assert described["tokens"] > 0
            assert described["threshold"] > 0
            assert weight in described["weights"]
        assert len(list(run.rglob("*_projection.npy"))) == len(expected)

    def test_a_shared_input_is_written_once(self, done: str) -> None:
        run = run_folder("-s", done)
        assert len({path.stat().st_ino for path in run.rglob("[kv]_projection.npy")}) == 1
        assert len({path.stat().st_ino for path in run.rglob("q_projection.npy")}) == 10

    def test_per_timestep(self, done: str) -> None:
        assert nullbooth("project", "-s", done, "--set", "project.scope=timestep", "--force").exit_code == 0
        run = run_folder("-s", done)
        store = nb.open_store(done)
        assert sorted(folder.name for folder in run.iterdir()) == sorted(step.key for step in store.schedule())
        layer = "mid_block.attentions.0.transformer_blocks.0.attn2"
        for step in store.schedule():
            for feature in FEATURES:
                site = next(s for s in store.sites() if f"{layer}.{FEATURES[feature]}.weight" in s.weights)
                p = np.load(run / step.key / layer / f"{feature}_projection.npy")
                np.testing.assert_allclose(p, store.projector(site, step.index).dense(), atol=1e-12)
                described = json.loads((run / step.key / layer / f"{feature}_metadata.json").read_text())
                assert (described["timestep"], described["key"]) == (step.timestep, step.key)
        refused(nullbooth("export", "p.safetensors", "-s", done), 2, "cannot constrain a weight", "scope=pooled")
        refused(nullbooth("export", "p.pt", "-s", done), 2, "cannot constrain a weight")

    def test_a_failure_leaves_no_run(self, done: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "save", full)
        refused(nullbooth("export", "out", "-s", done), 5, "cannot write out/run_", "No space left")
        assert not list(Path("out").iterdir())


FORMATS = {"p.safetensors": (), "p.pt": ("--layer", "mid_block*", "--feature", "q"), "folder": ()}


class TestPlacesThatTakeNoFiles:
    @pytest.mark.parametrize("out", FORMATS)
    def test_they_are_named(self, finished: tuple[Config, Store], out: str) -> None:
        Path("file").write_text("not a folder")
        for folder in ("/proc", "/dev/null", "file", "n" * 300):
            result = nullbooth("export", f"{folder}/{out}", "-s", finished[1].url, *FORMATS[out])
            refused(result, 5, f"cannot write {folder}/{out}")

    @pytest.mark.parametrize("out", FORMATS)
    def test_a_disk_that_is_full_leaves_nothing(self, finished: tuple[Config, Store], out: str) -> None:
        """No file may grow past 1000 bytes."""
        limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            result = nullbooth("export", f"here/{out}", "-s", finished[1].url, *FORMATS[out])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        refused(result, 5, f"cannot write here/{out}")
        assert [path for path in Path("here").rglob("*") if path.is_file()] == []
