"""What inspect draws and compares: the numbers behind it against plain numpy, and the files as a user gets them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

from nullbooth_cli.cli import app
from nullbooth_cli.model.device import pick_device
from nullbooth_cli.nullspace import spectrum
from nullbooth_cli.nullspace.pooling import pooled, second_moment
from nullbooth_cli.nullspace.projector import Projector, expected_overlap, leakage_on, overlap
from nullbooth_cli.nullspace.usable import load_projector
from nullbooth_cli.report import over_timesteps
from nullbooth_cli.report.inspection import inspect_store, most_leaking
from nullbooth_cli.report.plots.canvas import short
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, execute, small_config

CPU = pick_device("cpu")


def inspect(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["inspect", *arguments])


def basis(dim: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


@given(st.integers(2, 12), st.data())
@settings(deadline=None)
def test_overlap_is_the_mean_squared_cosine_of_the_principal_angles(dim: int, data: st.DataObject) -> None:
    k, m = (data.draw(st.integers(1, dim)) for _ in range(2))
    one, two = basis(dim, 0), basis(dim, 1)
    cosines = np.linalg.svd(one[:, :k].T @ two[:, :m], compute_uv=False)
    projectors = Projector.of(one, k), Projector.of(two, m)
    assert overlap(*projectors) == pytest.approx((cosines**2).mean(), abs=1e-10)
    assert overlap(*projectors) == pytest.approx(overlap(*projectors[::-1]), abs=1e-10)
    assert overlap(projectors[0], projectors[0]) == pytest.approx(1.0)
    inside = Projector.of(one, min(k, m))
    assert overlap(projectors[0], inside) == pytest.approx(1.0)


def test_random_null_spaces_overlap_by_chance() -> None:
    pairs = [(Projector.of(basis(60, 2 * i), 20), Projector.of(basis(60, 2 * i + 1), 35)) for i in range(20)]
    assert np.mean([overlap(*pair) for pair in pairs]) == pytest.approx(expected_overlap(*pairs[0]), abs=0.02)


def test_an_empty_null_space_overlaps_with_nothing() -> None:
    assert np.isnan(overlap(Projector.of(basis(4, 0), 0), Projector.of(basis(4, 1), 2)))


@given(st.integers(1, 10))
def test_leakage_on_other_data_is_that_of_the_vectors(null_dim: int) -> None:
    rng = np.random.default_rng(null_dim)
    vectors, projector = rng.normal(size=(50, 10)), Projector.of(basis(10, 7), null_dim)
    expected = np.linalg.norm(vectors @ projector.dense()) / np.linalg.norm(vectors)
    assert leakage_on(projector, vectors.T @ vectors / 50) == pytest.approx(expected, abs=1e-12)
    assert leakage_on(projector, np.zeros((10, 10))) == 0.0


def test_short_names_stay_apart() -> None:
    names = ["down_blocks.0.attentions.1.transformer_blocks.0.attn2", "mid_block.attentions.0.transformer_blocks.0.attn2"]
    assert short(names) == ["down 0.1.0", "mid 0.0"]
    alike = ["a.b.attn2", "a.c.attn2"]
    assert short(alike) == alike


class TestCourses:
    def test_each_timestep_is_cut_alone(self, finished: tuple[Config, Store]) -> None:
        config, store = finished
        found = list(over_timesteps.over_timesteps(store, CPU, config, store.sites))
        varying = [site for site in store.sites if not site.timestep_free]
        assert [course.site for course in found] == varying
        for course in found[:3]:
            bases = []
            for t in range(4):
                sum_xxt, _, count = store.moments.read_one(course.site, t)
                values, vectors = np.linalg.eigh(sum_xxt / count)
                null_dim = int((values < 0.05 * values[-1]).sum())
                bases.append(vectors[:, :null_dim])
                assert course.null_dim[t] == null_dim
                assert course.leakage[t] == pytest.approx(np.sqrt(values[:null_dim].clip(0).sum() / values.sum()), rel=1e-6)
                assert course.effective_rank[t] == pytest.approx(spectrum.effective_rank(values), rel=1e-9)
                np.testing.assert_allclose(course.eigenvalues[t], values, atol=1e-9 * values[-1])
            for i in range(4):
                for j in range(4):
                    shared = np.linalg.norm(bases[i].T @ bases[j]) ** 2 / min(bases[i].shape[1], bases[j].shape[1])
                    assert course.overlap[i, j] == pytest.approx(shared, abs=1e-6)
            assert course.timesteps.tolist() == [step.timestep for step in store.schedule()]
            assert np.isnan(course.heldout_leakage).all()

    def test_stored_decompositions_give_the_same(self, finished: tuple[Config, Store], tmp_path: Path) -> None:
        config, store = finished
        shutil.copytree(store.path, tmp_path / "run.zarr")
        per_step = config.model_copy(
            update={"store": str(tmp_path / "run.zarr"), "project": config.project.model_copy(update={"scope": "timestep"})}
        )
        stepwise = execute(per_step, "project", force=True)
        pooled_scope = list(over_timesteps.over_timesteps(store, CPU, config, store.sites))
        for one, other in zip(pooled_scope, over_timesteps.over_timesteps(stepwise, CPU, per_step, store.sites), strict=True):
            np.testing.assert_array_equal(one.null_dim, other.null_dim)
            np.testing.assert_allclose(one.overlap, other.overlap, atol=1e-6)

    def test_between_layers_of_one_width(self, finished: tuple[Config, Store]) -> None:
        store = finished[1]
        found = list(over_timesteps.between_layers(store, store.sites))
        assert {(of.feature, of.dim) for of in found} >= {("q", 80), ("out", 32)}
        for of in found:
            sites = [site for site in store.sites if (site.feature, site.dim) == (of.feature, of.dim)]
            assert list(of.layers) == [site.layer for site in sites]
            projectors = [load_projector(store, site).dense() for site in sites]
            expected = np.trace(projectors[0] @ projectors[1]) / min(np.trace(projectors[0]), np.trace(projectors[1]))
            assert of.overlap[0, 1] == pytest.approx(expected, abs=1e-9)


@pytest.fixture(scope="module")
def drawn(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pictures")
    shown = inspect(str(finished[1].path), "--plots", str(folder), "--json")
    assert shown.exit_code == 0, shown.stderr
    return folder, json.loads(shown.stdout)


class TestPlots:
    def test_every_kind_is_there_and_listed(self, drawn: Any) -> None:
        folder, document = drawn
        names = sorted(path.name for path in folder.iterdir())
        assert sorted(Path(path).name for path in document["files"]) == names
        kinds = {name.split(".")[0].rstrip("-0123456789") for name in names}
        assert kinds == {
            "spectra",
            "leakage",
            "timesteps-q",
            "timesteps-out",
            "evolution",
            "distribution",
            "similarity-timesteps",
            "similarity-layers",
        }

    def test_they_are_pictures_of_a_readable_size(self, drawn: Any) -> None:
        for path in drawn[0].iterdir():
            with Image.open(path) as picture:
                assert 600 <= picture.width <= 2000, path.name
                assert 300 <= picture.height <= 2500, path.name
                assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50, path.name

    def test_per_timestep_the_leakiest_of_each_site_is_drawn(self, finished: Any, tmp_path: Path) -> None:
        config, store = finished
        shutil.copytree(store.path, tmp_path / "run.zarr")
        stepwise = config.model_copy(
            update={"store": str(tmp_path / "run.zarr"), "project": config.project.model_copy(update={"scope": "timestep"})}
        )
        execute(stepwise, "project", force=True)
        shown = inspect(str(tmp_path / "run.zarr"), "--layer", "mid_block", "--plots", str(tmp_path / "p"), "--json")
        assert shown.exit_code == 0, shown.stderr
        document = json.loads(shown.stdout)
        report = inspect_store(stepwise, Store.open(stepwise.store), layer="mid_block")
        kept = most_leaking(report.sites)
        assert len(document["sites"]) == len(report.sites) > len(kept) == len({entry.site_name for entry in report.sites})
        for entry in kept:
            assert entry.leakage == max(other.leakage for other in report.sites if other.site_name == entry.site_name)
        assert (tmp_path / "p" / "spectra.png").exists()

    def test_a_site_gets_its_moment(self, finished: Any, tmp_path: Path) -> None:
        store = finished[1]
        name = next(site.name for site in store.sites if site.name.startswith("mid_block") and site.feature == "q")
        shown = inspect(str(store.path), "--plots", str(tmp_path), "--site", name, "--format", "svg", "--json")
        assert shown.exit_code == 0, shown.stderr
        assert len(json.loads(shown.stdout)["sites"]) == 1
        assert (tmp_path / f"moment-{name}.svg").read_text().lstrip().startswith("<?xml")
        assert not (tmp_path / "similarity-layers.svg").exists()

    def test_without_a_display(self, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DISPLAY", raising=False)
        monkeypatch.setenv("MPLBACKEND", "tkagg")  # would fail if anything asked for a window
        shown = inspect(str(finished[1].path), "--plots", str(tmp_path), "--site", "mid_block*q")
        assert shown.exit_code == 0, shown.stderr

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--plots", "x", "--format", "bmp"), "cannot draw picture.bmp"),
            (("--site", "nowhere.q"), "no site nowhere.q"),
            (("another.zarr", "third.zarr"), "one store, or two"),
        ],
    )
    def test_refused(self, finished: Any, arguments: tuple[str, ...], words: str) -> None:
        shown = inspect("-s", str(finished[1].path), *arguments)
        assert shown.exit_code == 2
        assert words in shown.stderr

    def test_a_folder_that_cannot_be_made(self, finished: Any, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        shown = inspect(str(finished[1].path), "--plots", str(tmp_path / "file" / "in"), "--site", "mid_block*q")
        assert shown.exit_code == 5
        assert "cannot write" in shown.stderr


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The other half of the prompts, another threshold."""
    config = small_config(
        tmp_path_factory.mktemp("other") / "run.zarr",
        original_knowledge_prompts=PROMPTS[:4],
        project__relative_threshold=0.02,
    )
    return execute(config, "collect", "covariance", "project")


class TestCompare:
    def test_numbers_are_those_of_the_arrays(self, finished: Any, other: Store) -> None:
        store = finished[1]
        shown = inspect(str(store.path), str(other.path), "--json")
        assert shown.exit_code == 0, shown.stderr
        document = json.loads(shown.stdout)
        fields = {row["field"]: row["values"] for row in document["differences"]}
        assert fields["project.relative_threshold"] == [0.05, 0.02]
        assert "original_knowledge_prompts" in fields
        assert "weights" not in fields
        theirs = {site.name: site for site in other.sites}
        for site, row in zip(store.sites, document["sites"], strict=True):
            pair = [(store, site), (other, theirs[site.name])]
            p, q = (load_projector(s, at).dense() for s, at in pair)
            c, d = (second_moment(pooled(s, at, range(at.num_recorded(4)))) for s, at in pair)
            assert row["null_dim"] == [s.projectors.read_cut(at, 0).null_dim for s, at in pair]
            assert row["overlap"] == pytest.approx(np.trace(p @ q) / min(row["null_dim"]), abs=1e-9)
            assert row["leakage"][0] == pytest.approx(np.sqrt(np.trace(p @ c @ p) / np.trace(c)), rel=1e-6)
            assert row["leakage_on_the_other"][0] == pytest.approx(np.sqrt(np.trace(p @ d @ p) / np.trace(d)), rel=1e-6)
            assert row["leakage_on_the_other"][1] == pytest.approx(np.sqrt(np.trace(q @ c @ q) / np.trace(c)), rel=1e-6)
        totals = document["totals"]
        assert totals["null_dim"] == [sum(row["null_dim"][i] for row in document["sites"]) for i in (0, 1)]
        assert totals["mean_overlap"] == pytest.approx(np.mean([row["overlap"] for row in document["sites"]]))

    def test_as_a_table(self, finished: Any, other: Store) -> None:
        shown = inspect("-s", str(finished[1].path), str(other.path), "--layer", "mid_block")
        assert shown.exit_code == 0, shown.stderr
        assert f"A = {finished[1].path}" in shown.stdout
        assert f"B = {other.path}" in shown.stdout
        assert "project.relative_threshold: 0.05 | 0.02" in shown.stdout
        assert "mean overlap" in shown.stdout
        assert "held-out" not in shown.stdout

    def test_a_store_equals_itself(self, finished: Any) -> None:
        document = json.loads(inspect(str(finished[1].path), str(finished[1].path), "--json").stdout)
        assert document["differences"] == []
        assert document["only_in"] == [[], []]
        for row in document["sites"]:
            assert row["overlap"] == pytest.approx(1.0)
            assert row["leakage_on_the_other"] == pytest.approx(row["leakage"], rel=1e-6)

    def test_sites_that_one_lacks_are_named(self, finished: Any, tmp_path: Path) -> None:
        config = small_config(
            tmp_path / "run.zarr", collect__cross_attention_layers=["mid_block*"], original_knowledge_prompts=PROMPTS[:3]
        )
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.model_dump()))
        part = execute(config, "collect", "covariance", "project")
        document = json.loads(inspect(str(finished[1].path), str(part.path), "--json").stdout)
        assert {row["layer"] for row in document["sites"]} == {"mid_block.attentions.0.transformer_blocks.0.attn2"}
        # The text's recording is named after the first layer that was looked at.
        assert document["only_in"][1] == ["mid_block.attentions.0.transformer_blocks.0.attn2.k"]
        assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2.q" in document["only_in"][0]

    def test_scopes_that_differ_are_refused(self, finished: Any, tmp_path: Path) -> None:
        config, store = finished
        shutil.copytree(store.path, tmp_path / "run.zarr")
        stepwise = config.model_copy(
            update={"store": str(tmp_path / "run.zarr"), "project": config.project.model_copy(update={"scope": "timestep"})}
        )
        execute(stepwise, "project", force=True)
        shown = inspect(str(store.path), str(tmp_path / "run.zarr"))
        assert shown.exit_code == 2
        assert "scope pooled" in shown.stderr
        again = inspect(str(tmp_path / "run.zarr"), str(tmp_path / "run.zarr"), "--json")
        assert len(json.loads(again.stdout)["sites"]) > len(store.sites)

    def test_unfinished_is_refused(self, finished: Any, tmp_path: Path) -> None:
        shown = inspect(str(finished[1].path), str(tmp_path / "none.zarr"))
        assert shown.exit_code in (2, 3)
        assert "error: " in shown.stderr
