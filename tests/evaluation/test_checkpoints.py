"""The checkpoints of a training run side by side, and the rule that names the best."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import save_file

import nullbooth_cli as nb
from nullbooth_cli.commands.evaluate_checkpoints import draw_checkpoints
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.evaluation import checkpoints
from nullbooth_cli.evaluation.checkpoints import (
    LEAST_FORGOTTEN,
    MOST_LEARNED,
    CheckpointScore,
    CheckpointsReport,
    best_of,
    checkpoint_places,
)
from nullbooth_cli.evaluation.verdict import EXACT, earlier, forgotten, learned
from tests.support.cli import nullbooth, refused
from tests.support.edited_models import toy
from tests.support.keys import keys_of

SUBJECT = ("--subject", "a sks circle on a red background", "--subject-images", "2", "--num-prompts", "2")


def score(step: int, how_much_learned: float | None, how_much_forgotten: float) -> CheckpointScore:
    verdicts = [] if how_much_learned is None else [learned(how_much_learned, 0.0, EXACT)]
    verdicts.append(forgotten({"preserved": how_much_forgotten}))
    return CheckpointScore(step=step, place=f"checkpoint-{step:06d}", verdicts=tuple(verdicts), drift=0.1)


@pytest.mark.parametrize(
    ("scores", "step", "rule"),
    [
        ([score(1, 0.7, 0.001), score(2, 0.8, 0.02), score(3, 1.0, 0.03)], 2, LEAST_FORGOTTEN),
        ([score(1, 0.75, math.nan), score(2, 0.8, 9.0)], 2, LEAST_FORGOTTEN),
        ([score(1, 0.9, 0.02), score(2, 0.8, 0.02)], 1, LEAST_FORGOTTEN),
        ([score(1, 0.1, 0.001), score(2, 0.7, 0.02), score(3, 0.6, 0.03)], 2, MOST_LEARNED),
        ([score(1, 0.0, 0.001), score(2, 0.0, 0.02)], 1, MOST_LEARNED),
        ([score(1, None, 0.001), score(2, 0.2, 0.02)], 2, MOST_LEARNED),
        ([score(1, math.nan, math.nan), score(2, 0.2, 0.02), score(3, math.nan, math.nan)], 2, MOST_LEARNED),
    ],
    ids=["well", "not finite", "equal", "none well", "nothing", "one not measured", "most are not finite"],
)
def test_the_rule(scores: list[CheckpointScore], step: int, rule: str) -> None:
    found = best_of(scores)
    assert found is not None
    assert (found[0].step, found[1]) == (step, rule)


def test_what_was_taught_before_counts_as_well() -> None:
    first, second = score(1, 0.9, 0.01), score(2, 0.9, 0.02)
    changed = replace(first, verdicts=(*first.verdicts, earlier({"a sks dog": 0.3})))
    assert best_of([changed, second]) == (second, LEAST_FORGOTTEN)
    report = CheckpointsReport(
        store="s", base="b", run="r", checkpoints=(changed, second), best=None, not_measured={"learned": "x"}
    )
    with io.StringIO() as text:
        Console(file=text, width=200).print(draw_checkpoints(report)[0])
        rows = [line.split() for line in text.getvalue().splitlines()]
    assert rows[0] == ["step", "learned", "forgotten", "earlier", "drift"]
    assert " ".join(rows[2]) == "1 0.9 well 0.01 hardly anything 0.3 changed much 0.1"


def test_without_learned_there_is_no_best() -> None:
    assert best_of([score(1, None, 0.0)]) is None


@pytest.fixture(scope="module")
def trained_run(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three checkpoints: each has moved the protected weights further, inside of the null space."""
    output = tmp_path_factory.mktemp("trained")
    pipe = toy()
    for step in (100, 50, 200):
        tensors = {}
        for weight, projector in nb.open_store(run[1].path).projectors().items():
            value = pipe.unet.get_parameter(weight).detach()
            tensors[weight] = value + step / 100 * projector.apply(value)
        folder = output / f"checkpoint-{step:06d}" / "trained"
        folder.mkdir(parents=True)
        save_file(tensors, folder / "denoiser.safetensors")
        (folder / "base.json").write_text(json.dumps({"model": "toy", "step": step, "token": None, "instance_prompt": None}))
    (output / "checkpoint-000300").mkdir()  # of an earlier nullbooth
    return output


def test_checkpoints_are_in_their_order(trained_run: Path) -> None:
    assert list(checkpoint_places(str(trained_run)).values()) == [50, 100, 200]


def test_a_run_without_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no checkpoint to evaluate"):
        checkpoint_places(str(tmp_path))


def test_the_document(trained_run: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    evaluate = checkpoints.evaluation_events
    monkeypatch.setattr(checkpoints, "evaluation_events", lambda *a: asked.append(a[2]) or evaluate(*a))
    shown = nullbooth("evaluate", str(trained_run), "--checkpoints", "-s", str(run[1].path), *SUBJECT, "--json")
    assert shown.exit_code == 0, shown.stderr
    document = json.loads(shown.stdout)
    verdicts = "verdicts[{question value base word is_good measured_by advice}]"
    assert " ".join(document) == "schema_version store base run checkpoints best not_measured"
    assert keys_of(document["checkpoints"]) == f"[{{step place {verdicts} drift}}]"
    assert keys_of(document["best"]) == f"{{step place {verdicts} drift rule noise}}"
    rows = document["checkpoints"]
    assert [row["step"] for row in rows] == [50, 100, 200]
    assert rows[0]["drift"] < rows[1]["drift"] < rows[2]["drift"]
    # Nothing was learned, so the first is the best, and it is measured again from other noise.
    best = document["best"]
    assert (best["step"], best["rule"], best["noise"]) == (50, MOST_LEARNED, checkpoints.NOISE)
    assert best["verdicts"][1]["value"] != rows[0]["verdicts"][1]["value"]
    assert [(request.series, len(request.edited)) for request in asked] == [(0, 3), (1, 1)]


def test_the_table_names_the_best_and_what_finishes_it(trained_run: Path, run: Any) -> None:
    shown = nullbooth("evaluate", str(trained_run), "--checkpoints", "-s", str(run[1].path), *SUBJECT)
    assert shown.exit_code == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["step", "learned", "forgotten", "drift"]
    assert [line.split()[0] for line in lines[2:5]] == ["50", "100", "200"]
    assert [line.rstrip().endswith("best") for line in lines[2:5]] == [True, False, False]
    assert f"best: step 50, {MOST_LEARNED}; measured again from other noise:" in lines
    assert shown.stderr.splitlines()[-1] == "next: nullbooth train -c RECIPE --finish 50"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--html", "x.html"), "--checkpoints gives a table"),
        (("--against", "other"), "--checkpoints gives a table"),
    ],
)
def test_what_cannot_be_meant(trained_run: Path, run: Any, arguments: tuple[str, ...], words: str) -> None:
    refused(nullbooth("evaluate", str(trained_run), "--checkpoints", "-s", str(run[1].path), *arguments), 2, words)
