"""A second subject after a LoRA: its own LoRA goes on top, and the verdicts are against the model with the first."""

import json
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

import nullbooth_cli as nb
from nullbooth_cli.collect.edited_model import read_place
from nullbooth_cli.progress import Event, Note
from nullbooth_cli.store import tasks_of
from nullbooth_cli.teaching import teach
from nullbooth_cli.teaching.decision import read
from tests.support.subjects import loaded
from tests.support.teaching import FAST


def not_measured(*_: object) -> Generator[Event, None, tuple[()]]:
    yield Note("not measured")
    return ()


def test_a_second_subject_after_a_lora(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dog, cat = tmp_path / "dog", tmp_path / "cat"
    with monkeypatch.context() as patched:
        patched.setattr(teach, "_measure", not_measured)  # it takes seconds, and what comes after does not need it
        nb.teach(photos, output=dog, method="lora", device="cpu", **FAST)
    report = nb.teach(photos, output=cat, word="zwx", after=str(dog), device="cpu")
    opened = nb.open_store(report.store)
    [task] = tasks_of(opened.store)
    digest = read_place(opened.config, str(dog)).digest
    assert (task.source, task.digest) == (str(dog), digest)
    beside = json.loads((cat / "lora/base.json").read_text())["after"]
    assert (beside["relative"], beside["digest"]) == ("../../dog", digest)
    decision = read(str(cat))
    assert decision is not None
    assert decision.earlier[0] == "a photo of <sks> circle on a red background"
    assert [verdict.question for verdict in report.verdicts] == ["learned", "forgotten", "earlier"]
    evaluation = json.loads((cat / "evaluation.json").read_text())["report"]
    assert (evaluation["base"], evaluation["preservation"]["earlier"]["pictures"]) == (str(dog), 4)
    first, second = (loaded(opened.config, place) for place in (dog, cat))
    site = opened.sites()[0]
    one, two = (pipe.unet.get_parameter(site.weights[0]).detach().double().numpy() for pipe in (first, second))
    change = two - one
    assert np.linalg.norm(change) > 0
    np.testing.assert_allclose(change @ opened.projector(site).dense(), change, atol=1e-6, err_msg="within the null space")
    assert len(second.tokenizer) == len(first.tokenizer) + 1, "both words are there"
