"""The command draws, writes a sheet, and says what it wrote."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.support.cli import nullbooth
from tests.support.edited_models import save_lora
from tests.support.keys import keys_of
from tests.support.trained_folders import full_files, training_output

QUICK = ("--steps", "2", "--seeds", "2", "--device", "cpu")
DOCUMENT = "{schema_version sheet images[] prompts[] seeds[] models[{name base tokens[] num_inference_steps guidance_scale}]}"


def test_a_training_output_beside_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    training_output(Path("run"), "lora", token="<sks>")
    done = nullbooth("sample", "run", "a red circle", "a blue star", "--with-base", "--images", "pictures", "--json", *QUICK)
    assert done.exit_code == 0, done.stderr
    assert "run: no prompt has the word that was taught: write <sks>" in done.stderr
    document = json.loads(done.stdout)
    assert keys_of(document) == DOCUMENT
    assert document["sheet"] == "sheet.png"
    assert document["seeds"] == [0, 1]
    assert [(model["name"], model["base"], model["tokens"]) for model in document["models"]] == [
        ("base: toy", None, []),
        ("run", "toy", ["<sks>"]),
    ]
    assert len(document["images"]) == len(list(Path("pictures").iterdir())) == 8
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 4 * 256


def test_the_answer_is_the_files(tmp_path: Path) -> None:
    sheet = tmp_path / "new/sheet.png"
    done = nullbooth("sample", str(full_files(tmp_path / "one")), "a sks circle", "--compare", "toy", "-o", str(sheet), *QUICK)
    assert (done.exit_code, done.stdout) == (0, f"{sheet}\n"), done.stderr
    assert sheet.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("toy",), "missing argument 'PROMPT"),
        (("toy", "a", "-o", "sheet.jpg"), "sheet.jpg does not end in .png"),
        (("toy", "a", "--set", "dtyp=float16"), "unknown key 'dtyp'"),
        (("toy", "a", "--scheduler", "Heun"), "no scheduler is named 'Heun'"),
        (("toy", "a", "--seed", "4294967295"), "seeds are 4294967295 to 4294967298"),
        (("lora", "a"), "the files of lora do not name the model that they belong to"),
    ],
)
def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    save_lora(Path("lora"))
    done = nullbooth("sample", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
