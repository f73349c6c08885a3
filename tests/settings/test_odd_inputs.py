"""Whatever a user writes ends in settings, or in an error of ours with a hint; quickly, and in little memory.

Seeds 0 to 399 are run; `NULLBOOTH_INPUTS=10000` runs that many, and `NULLBOOTH_INPUT=SEED` the one of this seed.
"""

import json
import os
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from nullbooth_cli.commands.console import Terminal
from nullbooth_cli.errors import ConfigError, NullboothError
from nullbooth_cli.settings.captions import load_captions
from nullbooth_cli.settings.config import Config, load_config, public_settings
from nullbooth_cli.settings.fingerprints import fingerprint, stage_settings
from nullbooth_cli.settings.knowledge import heldout_prompts, knowledge_prompts
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.schema import load_settings
from tests.support.odd_inputs import Case, make_odd_places, odd_case

FIXED = 400
SECONDS, BYTES = 5.0, 300_000_000


def read(case: Case) -> None:
    """Read a case as the commands do before they load a model."""
    path = Path(case.name)
    if case.kind == "prompts":
        texts = load_captions(str(path.parent)) if path.name == "metadata.jsonl" else load_prompts(case.name)
        json.dumps([prompt.text for prompt in texts], ensure_ascii=False).encode()
    elif case.kind == "recipe":
        recipe = load_settings(Recipe, path, case.overrides)
        recipe.model_dump_json().encode()
        if recipe.class_prompts is not None:
            load_prompts(recipe.class_prompts)
    else:
        config = load_config(path, case.overrides)
        json.dumps(public_settings(config), allow_nan=False, ensure_ascii=False).encode()
        fingerprint([stage_settings(config, stage) for stage in ("schedule", "collect", "covariance", "project")])
        knowledge_prompts(config)
        heldout_prompts(config)


def outcome(case: Case, capsys: pytest.CaptureFixture[str]) -> str:
    """`read`, or the class of the error, whose text and hint must be fit for a terminal."""
    Path(case.name).parent.mkdir(exist_ok=True)
    Path(case.name).write_bytes(case.content)
    try:
        read(case)
    except NullboothError as error:
        assert_is_fit_for_people(error, capsys)
        return type(error).__name__
    finally:
        Path(case.name).unlink()
    return "read"


def assert_is_fit_for_people(error: NullboothError, capsys: pytest.CaptureFixture[str]) -> None:
    """An error has a text and a hint, is not a wall of text, and brings nothing to a terminal that steers it."""
    assert error.message
    assert error.hint
    assert len(error.message) < 10_000
    for as_json in (False, True):
        Terminal(as_json=as_json).error(error)
    shown = capsys.readouterr().err
    assert shown.encode()
    assert not set(shown) & {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160), 0x202E, 0x2028)}


@pytest.fixture
def odd_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder with the places that the cases name."""
    make_odd_places(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)


@pytest.mark.usefixtures("odd_places")
@pytest.mark.timeout(7200 if "NULLBOOTH_INPUTS" in os.environ else 120)
def test_no_input_ends_in_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = int(os.environ.get("NULLBOOTH_INPUTS", FIXED))
    seeds = [int(os.environ["NULLBOOTH_INPUT"])] if "NULLBOOTH_INPUT" in os.environ else range(wanted)
    counts = Counter[str]()
    slowest = (0.0, -1)
    for seed in seeds:
        case = odd_case(seed)
        began = time.process_time()
        try:
            counts[outcome(case, capsys)] += 1
        except Exception as error:
            pytest.fail(
                f"NULLBOOTH_INPUT={seed}: {type(error).__name__}: {str(error)[:500]}\n{case.name}: {case.content[:500]!r}"
            )
        slowest = max(slowest, (time.process_time() - began, seed))
        assert slowest[0] < SECONDS, f"NULLBOOTH_INPUT={slowest[1]} took {slowest[0]:.1f} s"
    print(f"{sum(counts.values())} inputs: {dict(counts)}; the slowest took {slowest[0]:.1f} s (seed {slowest[1]})")
    if len(seeds) > 1:
        assert counts["read"] > wanted // 50
        assert counts["ConfigError"] > wanted // 4


@pytest.mark.usefixtures("odd_places")
@pytest.mark.parametrize("depth", [3, 9, 40])
def test_an_alias_bomb_takes_little_memory(depth: int) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth))]
    Path("c.yaml").write_text("\n".join(lines))
    tracemalloc.start()
    try:
        with pytest.raises(NullboothError):
            load_config("c.yaml")
        assert tracemalloc.get_traced_memory()[1] < BYTES
    finally:
        tracemalloc.stop()


def test_the_defaults_are_within_their_limits() -> None:
    assert Config.model_validate(Config().model_dump()) == Config()
    assert Recipe.model_validate(Recipe().model_dump()) == Recipe()


@pytest.mark.parametrize("key", ["learning_rate", "word_learning_rate", "adam_weight_decay", "prior_weight", "guidance_scale"])
def test_numbers_that_overflow_in_training(tmp_path: Path, key: str) -> None:
    """torch raised RuntimeError for a learning rate of 1e38."""
    (tmp_path / "recipe.yaml").write_text(f"{key}: 1.0e+38")
    with pytest.raises(ConfigError, match=f"{key}: input should be less than or equal to 1000"):
        load_settings(Recipe, tmp_path / "recipe.yaml")
