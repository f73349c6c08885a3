"""`nullbooth export`: what it replaces, and flags that belong to another format."""

from dataclasses import replace
from pathlib import Path

import pytest

from nullbooth_cli.store import Store
from tests.support.cli import exported, nullbooth, refused

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_nothing_is_replaced_without_force(done: str) -> None:
    Path("p.safetensors").write_text("mine")
    refused(nullbooth("export", "p.safetensors", "-s", done), 2, "p.safetensors exists", "--force")
    assert Path("p.safetensors").read_text() == "mine"
    exported("p.safetensors", "-s", done, "--force")
    assert list(Path().iterdir()) == [Path("p.safetensors")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["p.pt", "--dense"], "--dense and --dtype"),
        (["p.safetensors", "--layer", "mid"], "--layer and --feature"),
        (["p.safetensors", "--only-covariance"], "--only-covariance"),
        (["p.safetensors", "--dtype", "float16"], "float32 or float64"),
    ],
)
def test_flags_of_another_form(done: str, arguments: list[str], said: str) -> None:
    refused(nullbooth("export", *arguments, "-s", done), 2, said)


@pytest.mark.parametrize("name", ["foo.txt", "p.safetensor", "p.npz", "run.zarr"])
def test_an_ending_that_is_no_format_is_refused(done: str, name: str) -> None:
    refused(nullbooth("export", name, "-s", done), 2, "is not a format", ".safetensors or .pt, or a folder without an ending")
    assert list(Path().iterdir()) == []


def test_a_folder_with_a_dot_in_its_name_is_a_folder(done: str) -> None:
    Path("out.v2").mkdir()
    assert Path(exported("out.v2", "-s", done)["path"]).parent == Path("out.v2")


@pytest.mark.parametrize("wrong", ["../../outside", "OUTSIDE"])
@pytest.mark.parametrize("where", ["layer", "key"])
def test_a_foreign_store_writes_nothing_outside_of_the_folder(done: str, tmp_path: Path, wrong: str, where: str) -> None:
    wrong = wrong.replace("OUTSIDE", str(tmp_path / "outside"))
    store = Store.open(done, write=True)
    if where == "layer":
        sites = [replace(site, weights=tuple(w.replace("mid_block", wrong, 1) for w in site.weights)) for site in store.sites]
        store.write_sites(sites)
    else:
        store.write_schedule([replace(step, key=f"{wrong}{step.index}") for step in store.schedule()])
    before = {path for path in tmp_path.rglob("*") if "done.zarr" not in path.parts}
    answered = nullbooth("export", "out", "-s", done, "--only-covariance")
    assert answered.exit_code == 4, answered.stderr
    assert "which is a path" in answered.stderr
    assert {path for path in tmp_path.rglob("*") if "done.zarr" not in path.parts} <= before | {tmp_path / "here" / "out"}
