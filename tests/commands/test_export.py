"""`nullbooth export`: what it replaces, and flags that belong to another format."""

from pathlib import Path

import pytest

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
