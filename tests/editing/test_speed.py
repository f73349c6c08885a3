"""SPEED's prior filter, noise and centres against the authors' steps, written one by one; and an edit of the embedded model."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import nullbooth_cli as nb
from nullbooth_cli.editing.speed import exact_rows, filtered_moment
from tests.support.edits import embedded, fresh


@given(noise=st.integers(0, 4), seed=st.integers(0, 99))
def test_the_moment_is_of_what_the_edit_moves_and_of_noisy_copies_of_it(noise: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, weight, effect = (rng.standard_normal(shape) for shape in ((12, 6), (9, 6), (9, 6)))
    norms = np.linalg.norm(rows @ effect.T, axis=1)
    kept = rows[norms > norms.mean()]
    v = np.linalg.svd(weight)[2][-1]
    drawn = np.random.default_rng(seed).standard_normal((len(kept), noise))
    copies = np.array([x + g * v for x, of_row in zip(kept, drawn, strict=True) for g in of_row]).reshape(-1, 6)
    norms = np.linalg.norm(copies @ effect.T, axis=1)
    every = np.vstack([kept, copies[norms > norms.mean()] if len(copies) else copies])
    expected = sum(np.outer(x, x) for x in every) / len(every)
    np.testing.assert_allclose(filtered_moment(rows, weight, effect, noise=noise, seed=seed), expected, rtol=1e-9, atol=1e-12)


def test_the_centres_of_the_empty_prompt() -> None:
    rng = np.random.default_rng(0)
    places = np.array([[0.0, 9.0], [9.0, 0.0], [-9.0, -9.0]])
    rows = np.vstack([place + 0.1 * rng.standard_normal((5, 2)) for place in places])
    found = exact_rows(np.vstack([[[50.0, 50.0]], rows]), seed=0)
    assert found[0].tolist() == [50, 50]
    expected = np.array([rows[i : i + 5].mean(0) for i in (0, 5, 10)])
    np.testing.assert_allclose(sorted(found[1:].tolist()), sorted(expected.tolist()))
    assert exact_rows(rows[:1], seed=0).tolist() == rows[:1].tolist()
    assert len(exact_rows(np.vstack([rows[:2], rows[1:2]]), seed=0)) == 2


def test_an_edit_of_the_embedded_model(text_store: nb.OpenStore, pipe: Any) -> None:
    """One weight, from the text encoder's outputs to the end, by the authors' formula; keys stay, and the start token exactly."""
    pairs = {"a sks [star]": "a sks [ring]"}
    how: dict[str, Any] = {"method": "speed", "tokens": "subject", "prompts": 12, "noise": 3, "seed": 5}
    edited = fresh()
    report = nb.edit(edited, text_store, pairs, **how)
    assert set(report.weights) == {name for name in text_store.sites()[0].weights if name.endswith("to_v.weight")}
    assert report.tensors.keys() == set(text_store.sites()[0].weights)

    others = [text for text in text_store.prompts() if "star" not in text.split()]
    rows = np.concatenate([embedded(pipe, others[i * len(others) // 12]) for i in range(12)])
    k1, target = embedded(pipe, "a sks star")[3:].T, embedded(pipe, "a sks ring")[3:].T
    a, one = 1e-2 * text_store.moment(text_store.sites()[0]).trace, np.eye(96)
    name = min(report.weights)
    w = pipe.unet.get_parameter(name).double().numpy()
    r = w @ target - w @ k1
    moment = filtered_moment(rows, w, r @ k1.T @ np.linalg.inv(k1 @ k1.T + a * one), noise=3, seed=5)
    values, vectors = np.linalg.eigh(moment)
    rule, value = text_store.config.project.rule()
    assert rule == "relative_threshold"
    null = vectors[:, values < value * values[-1]]
    p, k2 = null @ null.T, exact_rows(embedded(pipe, ""), 5).T
    m = np.linalg.inv(k1 @ k1.T @ p + a * one)
    of_speed = r @ k1.T @ p @ (one - m @ k2 @ np.linalg.pinv(k2.T @ p @ m @ k2) @ k2.T @ p) @ m
    change = edited.unet.get_parameter(name).double().numpy() - w
    assert np.linalg.norm(change - of_speed) < 1e-3 * np.linalg.norm(of_speed)
    assert np.linalg.norm(change @ k2) < 1e-5 * np.linalg.norm(w @ k2)
    assert 0.05 < report.missing < 1
