"""Will the subject be learned? Shares of energy against float64 sums by hand, what is said of them, the table of the evidence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import nullbooth_cli as nb
from nullbooth_cli.datatypes import Site
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.projector import Projector
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from nullbooth_cli.toy import subject
from nullbooth_cli.training import setup
from nullbooth_cli.training.estimate import Estimate, estimate_learning
from tests.support.tiny_dreambooth import encoded, recipe

DIM = 12
RNG = np.random.default_rng(0)
BASES = [np.linalg.qr(RNG.normal(size=(DIM, DIM)))[0] for _ in range(3)]
NULL_DIMS = (4, 9, 5)  # the second projector is stored by its complement
COLLECTED, HELDOUT = ([RNG.normal(size=(50, DIM)) @ RNG.normal(size=(DIM, DIM)) for _ in range(3)] for _ in range(2))
TEXTS = torch.from_numpy(RNG.normal(size=(3, 5, DIM))).float()
GOOD = Estimate(subject=0.004, preserved=0.0006, measured_on="held-out prompts", null_dim=44, dim=96, trains_word=False)


class Source:
    """A store of three sites, of which each is read by two weights."""

    def __init__(self, heldout: bool = True) -> None:
        self.has_heldout = heldout

    def sites(self) -> list[Site]:
        return [Site(f"layer{i}", "k", "input", (f"{i}.k", f"{i}.v"), True, 5, DIM) for i in range(3)]

    def moment(self, site: Site) -> Moment:
        return moment(COLLECTED[int(site.layer[-1])])

    def heldout_moment(self, site: Site) -> Moment | None:
        return moment(HELDOUT[int(site.layer[-1])]) if self.has_heldout else None


def moment(rows: NDArray[np.float64]) -> Moment:
    return Moment(rows.T @ rows / len(rows), rows.mean(axis=0), len(rows))


def share(i: int, rows: NDArray[np.float64]) -> float:
    """Of the energy, in the null space of a site: by the dense projector."""
    null = BASES[i][:, : NULL_DIMS[i]]
    return float(np.square(rows @ (null @ null.T)).sum() / np.square(rows).sum())


@pytest.mark.parametrize("heldout", [True, False])
def test_shares_are_those_of_the_vectors(heldout: bool) -> None:
    texts = TEXTS.double().numpy().reshape(-1, DIM)
    other = (HELDOUT if heldout else COLLECTED)[1]
    found = estimate_learning(Source(heldout), {"1.v": Projector.of(BASES[1], NULL_DIMS[1])}, TEXTS, trains_word=True)
    assert found is not None
    assert found.subject == pytest.approx(share(1, texts), rel=1e-12)
    assert found.preserved == pytest.approx(share(1, other), rel=1e-12)
    assert found.ratio == pytest.approx(share(1, texts) / share(1, other), rel=1e-12)
    assert (found.null_dim, found.dim, found.trains_word) == (9, 12, True)
    assert found.measured_on == ("held-out prompts" if heldout else "collected prompts")


def test_of_several_sites_the_one_with_the_smallest_ratio_counts() -> None:
    texts = TEXTS.double().numpy().reshape(-1, DIM)
    projectors = {f"{i}.k": Projector.of(BASES[i], NULL_DIMS[i]) for i in range(3)}
    found = estimate_learning(Source(), projectors, TEXTS, trains_word=False)
    assert found is not None
    assert found.ratio == pytest.approx(min(share(i, texts) / share(i, HELDOUT[i]) for i in range(3)), rel=1e-12)
    assert estimate_learning(Source(), {"other.k": projectors["0.k"]}, TEXTS, trains_word=False) is None


def test_its_line() -> None:
    assert GOOD.text == (
        "the null space has 44 of 96 dimensions and 0.4 % of the energy of the subject's captions, 6.67 times as much as "
        "0.06 % of held-out prompts"
    )
    exact = replace(GOOD, preserved=0.0)
    assert exact.ratio is None
    assert exact.text.endswith("captions; 0 % of held-out prompts")
    assert GOOD.lines == (GOOD.text, GOOD.answer)
    assert GOOD.document()["ratio"] == GOOD.ratio


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, None),
        ({"trains_word": True}, None),
        ({"preserved": 0.0}, None),
        ({"subject": 0.00121}, None),
        ({"subject": 0.00119}, "will probably not be learned: 1.98 times is less than 2, and no word trains"),
        ({"subject": 0.0007}, "will probably not be learned: 1.16 times is less than 2, and no word trains; set word"),
        ({"subject": 0.0007, "trains_word": True}, None),
        ({"null_dim": 16, "trains_word": True}, None),
        ({"null_dim": 15, "trains_word": True}, "15 of 96 dimensions may be too few, even with a trained word"),
        ({"null_dim": 1}, "1 of 96 dimensions may be too few"),
        ({"null_dim": 0, "subject": 0.0, "preserved": 0.0}, "will probably not be learned: there is no null space"),
    ],
)
def test_it_warns_where_the_evidence_does(changes: dict[str, Any], warned: str | None) -> None:
    found = replace(GOOD, **changes)
    assert (found.warning is None) == (warned is None)
    assert (warned or "") in (found.warning or "")
    assert found.lines == (found.text, found.answer)
    assert (found.answer == found.warning) == (warned is not None)


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        (
            {},
            "the subject may be learned: without a trained word and at 2 times or more, 14 of 21 pairs of subject and threshold",
        ),
        ({"preserved": 0.0}, "the subject may be learned: without a trained word and at 2 times or more, 14 of 21"),
        (
            {"subject": 0.0007, "trains_word": True},
            "the subject may be learned: with a trained word, 18 of 24 pairs of subject and",
        ),
    ],
)
def test_it_answers_where_nothing_warns(changes: dict[str, Any], answer: str) -> None:
    assert replace(GOOD, **changes).answer.startswith(answer)


def test_a_run_has_it_where_text_is_constrained(tmp_path: Path, finished: tuple[Config, Store]) -> None:
    ready = setup.set_up(recipe(tmp_path, store=str(finished[1].path)), "cpu")
    assert ready.estimate is not None
    assert ready.notes == ready.estimate.lines
    assert setup.set_up(recipe(tmp_path, store=str(finished[1].path), features=["q"]), "cpu").estimate is None
    assert setup.set_up(recipe(tmp_path), "cpu").estimate is None


def test_the_ratios_of_the_evidence(tmp_path: Path, pipe: Any) -> None:
    """On the shipped prompts: the ratios of five subjects that were trained are 6.3 to 7.8 at 1e-4, and 10 to 12 at 1e-5.

    Of the held-out prompts the store's own moments count, with the empty prompt that guidance adds.
    """
    captions = {
        "circle": [subject.caption(background) for background in (*subject.TAUGHT_ON, "pink")],
        "square": [f"a zwx square on a {background} background" for background in (*subject.TAUGHT_ON, "pink")],
    }
    config = {
        "store": str(tmp_path / "words.zarr"),
        "original_knowledge_prompts": "nullbooth:toy.txt",
        "heldout_prompts": "nullbooth:toy_heldout.txt",
        "schedule": {"num_denoising_steps": 4},
        "collect": {"batch_size": 48, "collect_features": {"q_features": False, "out_features": False}},
    }
    for threshold, null_dim, expected in (
        (1e-4, 44, {"circle": 6.4, "square": 7.6}),
        (1e-5, 16, {"circle": 10.1, "square": 11.2}),
    ):
        store = nb.run({**config, "project": {"relative_threshold": threshold}}, force=True)
        for name, texts in captions.items():
            found = estimate_learning(store, store.projectors(), encoded(pipe, texts), trains_word=False)
            assert found is not None
            assert found.null_dim == null_dim
            assert found.ratio == pytest.approx(expected[name], rel=0.03)
            assert found.warning is None
            assert found.preserved == pytest.approx(
                (store.store.projectors.read_cut(store.sites()[0], 0).heldout_leakage or 0) ** 2
            )
