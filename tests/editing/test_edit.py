"""Closed-form edits: the formulas against numpy written plainly, and what the embedded model draws afterwards."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import nullbooth_cli as nb
from nullbooth_cli.cli import app
from nullbooth_cli.datatypes import Sums
from nullbooth_cli.editing.edit import plan_edit, text_sites
from nullbooth_cli.editing.positions import Ends
from nullbooth_cli.editing.problem import edited_before
from nullbooth_cli.editing.tokens import TokenInputs, first_tokens, paired, text_inputs
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model import load
from nullbooth_cli.pipeline.remember import RememberRequest, remember_events
from nullbooth_cli.settings.config import build_config
from nullbooth_cli.tensors import tensor_digest
from nullbooth_cli.toy import score, world
from tests.support import loading
from tests.support.builders import execute, small_config
from tests.support.edits import embedded, fresh
from tests.support.tiny import saved
from tests.support.tiny_training import add_lora, exact_store
from tests.support.zoo import ENTRIES

BACKGROUNDS = ("white", "black", "blue", "gray")
PAIRS = {f"a sks star on a {b} background": f"a red star on a {b} background" for b in BACKGROUNDS}
KNOWN = [f"a green {shape} on a {b} background" for shape in ("star", "square", "ring") for b in BACKGROUNDS]


def test_the_inputs_are_what_the_text_encoder_gives(text_store: nb.OpenStore, pipe: Any) -> None:
    sites = text_sites(text_store)
    rows, looked_at = text_inputs(pipe, sites, "a sks star")[sites[0]]
    np.testing.assert_allclose(rows, embedded(pipe, "a sks star"), atol=1e-5)
    assert looked_at.all()


def readings(pipe: Any, texts: list[str]) -> list[tuple[str | None, str, str]]:
    pictures = score.paint(pipe, texts, steps=12, guidance=4.0, seed=0)
    return [(found.shape, found.colour, found.background) for found in map(world.read, pictures)]


def meant(text: str) -> tuple[str, str, str]:
    words = text.split()
    return words[2], words[1], words[-2]


@pytest.mark.parametrize("how", [{}, {"method": "uce", "preserve": 640.0}], ids=["alphaedit", "uce"])
def test_the_source_draws_the_target_and_the_rest_stays(text_store: nb.OpenStore, how: dict[str, Any]) -> None:
    """`sks` is a word without a meaning; training never saw it, and the prompts to keep do not have it."""
    pipe = fresh()
    assert readings(pipe, KNOWN) == [meant(text) for text in KNOWN]
    assert not any(colour == "red" for _, colour, _ in readings(pipe, list(PAIRS)))
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    kept = readings(pipe, KNOWN)
    report = nb.edit(pipe, text_store, PAIRS, tokens="all", **how)
    drawn = readings(pipe, list(PAIRS))
    assert sum(shape == "star" for shape, _, _ in drawn) + sum(colour == "red" for _, colour, _ in drawn) >= 7
    # The small model confuses white and gray easily.
    same = [now == then for both in zip(readings(pipe, KNOWN), kept, strict=True) for now, then in zip(*both, strict=True)]
    assert np.mean(same) > 0.9
    site = text_store.sites()[0]
    assert set(report.weights) == set(site.weights)
    k1, targets = (np.concatenate([embedded(pipe, text) for text in texts]) for texts in (PAIRS, PAIRS.values()))
    moment = text_store.moment(site).second_moment
    for name, tensor in pipe.unet.state_dict().items():
        w, change = before[name].double().numpy(), (tensor.double() - before[name].double()).numpy()
        if name not in report.weights:
            assert not change.any()
            continue
        found = report.weights[name]
        missing = k1 @ (w + change).T - targets @ w.T
        assert found.missing == pytest.approx(np.linalg.norm(missing) / np.linalg.norm((targets - k1) @ w.T), rel=1e-3)
        moved, output = (np.sqrt(np.trace(rows @ moment @ rows.T)) for rows in (change, w))
        assert found.drift == pytest.approx(moved / output, rel=1e-6)
        assert found.change == pytest.approx(np.linalg.norm(change) / np.linalg.norm(w))
    assert 0.1 < report.missing < 0.7
    assert 0.01 < report.drift < 0.3
    assert str(report).startswith("4 prompts edited in 20 weights")


def test_a_plan_changes_nothing_until_it_is_applied(text_store: nb.OpenStore) -> None:
    pipe = fresh()
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    plan = plan_edit(pipe, text_store, {"a sks": "a red star"}, tokens="all")
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.unet.state_dict().items())
    report = plan.apply()
    assert report is plan.report
    for name, weight in plan.after.items():
        assert torch.equal(pipe.unet.get_parameter(name), weight)
        assert report.tensors[name] == tensor_digest(weight, "float32")
    site = text_store.sites()[0]
    source, target = embedded(pipe, "a sks"), embedded(pipe, "a red star")
    np.testing.assert_allclose(report.keys[site.name], source, atol=1e-5)
    np.testing.assert_allclose(plan.wanted[site.name], target - source, atol=1e-5)


def test_what_was_edited_before_stays(text_store: nb.OpenStore) -> None:
    """C: the outputs for the keys of the first edit move less than without it."""
    words = {"a sks star": "a red star"}, {"a zwx star": "a blue star"}
    moved = []
    for is_told in (True, False):
        pipe = fresh()
        first = nb.edit(pipe, text_store, words[0])
        site, name = text_store.sites()[0], next(iter(first.weights))
        then = pipe.unet.get_parameter(name).double().numpy().copy()
        second = nb.edit(pipe, text_store, words[1], earlier=[first if is_told else replace(first, keys={})])
        moved.append(np.linalg.norm(first.keys[site.name] @ (pipe.unet.get_parameter(name).double().numpy() - then).T))
        assert second.missing < 0.9
    assert moved[0] < 0.8 * moved[1]


def test_what_the_store_remembers_counts_as_an_earlier_edit(text_store: nb.OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, site = fresh(), text_store.sites()[0]
    first = nb.edit(pipe, text_store, {"a sks star": "a red star"})
    keys = first.keys[site.name]
    plan = plan_edit(pipe, text_store, {"a zwx": "a ring"}, earlier=[first])
    monkeypatch.setattr(text_store, "edited", lambda _: keys.T @ keys)
    told = plan_edit(pipe, text_store, {"a zwx": "a ring"}, earlier=[replace(first, keys={})])
    for name, weight in plan.after.items():
        torch.testing.assert_close(told.after[name], weight)
    np.testing.assert_allclose(edited_before(text_store, site, [first]), 2 * keys.T @ keys)


def test_an_edit_goes_on_from_one_that_the_store_remembers(text_store: nb.OpenStore, tmp_path: Path) -> None:
    """As from a report in memory: the model is the end of the store's chain, and the rows are its term C."""
    shutil.copytree(text_store.url, tmp_path / "run.zarr")
    config = text_store.config.model_copy(update={"store": str(tmp_path / "run.zarr")})
    pipe = fresh()
    first = nb.edit(pipe, nb.open_store(config.store), {"a sks star": "a red star"})
    expected = plan_edit(pipe, text_store, {"a zwx": "a ring"}, earlier=[first])
    request = RememberRequest(
        source="edited",
        prompts=tuple(first.pairs),
        name="first",
        edits={name: Sums(rows.T @ rows, rows.sum(0), len(rows)) for name, rows in first.keys.items()},
        weights=first.tensors,
        digest="0123",
    )
    list(remember_events(config, request, device="cpu"))
    found = plan_edit(pipe, nb.open_store(config.store), {"a zwx": "a ring"})
    assert found.report.tensors == expected.report.tensors
    assert all(torch.equal(found.after[name], weight) for name, weight in expected.after.items())
    found.apply()
    with pytest.raises(ConfigError, match=r"belong to another model than the one at hand .*, after first"):
        nb.edit(pipe, nb.open_store(config.store), {"a qfj": "a ring"})


def test_noisy_copies_have_the_same_targets(text_store: nb.OpenStore) -> None:
    plans = [
        plan_edit(fresh(), text_store, {"a sks": "a red star"}, tokens="all", copies=copies, weights="k") for copies in (0, 2)
    ]
    assert {name.split(".")[-2] for name in plans[1].after} == {"to_k"}
    site = text_store.sites()[0].name
    (k1, k3), (wanted, more) = (
        [made(plan) for plan in plans] for made in (lambda p: p.report.keys[site], lambda p: p.wanted[site])
    )
    assert k3.shape == (48, 96)
    np.testing.assert_allclose(k3[:16], k1)
    np.testing.assert_allclose(k3 + more, np.tile(k1 + wanted, (3, 1)))
    assert (k3 - np.tile(k1, (3, 1)))[16:].std() == pytest.approx(k1.std() / 10, rel=0.1)


@pytest.mark.parametrize("method", ["alphaedit", "uce"])
def test_one_by_one_is_at_once_but_for_the_targets(text_store: nb.OpenStore, method: str) -> None:
    """The term between the two is what the edits before have done to each target: (W_i - W) K* K1^T (...)^-1."""
    words = {"a sks star": "a red star", "a zwx ring": "a blue ring", "a qfj cross on black": "a green cross on black"}
    how: dict[str, Any] = {"method": method, "tokens": "all"}
    pipe, site = fresh(), text_store.sites()[0]
    at_once = plan_edit(pipe, text_store, words, **how)
    name = min(at_once.after)

    def weight() -> np.ndarray:
        return pipe.unet.get_parameter(name).double().numpy().copy()

    start, reports, term, total = weight(), [], np.zeros_like(weight()), np.zeros((96, 96))
    for source, target in words.items():
        moved = weight() - start
        reports.append(nb.edit(pipe, text_store, {source: target}, earlier=reports, **how))
        k1 = reports[-1].keys[site.name]
        np.testing.assert_allclose(k1, embedded(pipe, source), atol=1e-5)
        term += moved @ embedded(pipe, target).T @ k1
        total += k1.T @ k1
    moment = text_store.moment(site)
    a, p = 1e-2 * moment.trace * np.eye(96), text_store.projector(site).dense()
    c0 = 100 * moment.second_moment
    term = term @ p @ np.linalg.inv(total @ p + a) if method == "alphaedit" else term @ np.linalg.inv(total + c0 + a)
    change, expected = weight() - start, at_once.after[name].double().numpy() - start
    assert np.linalg.norm(change - expected - term) < 1e-4 * np.linalg.norm(expected)
    assert 1e-3 * np.linalg.norm(expected) < np.linalg.norm(term) < 0.5 * np.linalg.norm(expected)


def test_an_exact_null_space_is_not_left(tmp_path: Path) -> None:
    store = nb.OpenStore(exact_store(tmp_path / "run.zarr"))
    report = nb.edit(fresh(), store, {"a sks": "a red star"}, ridge=1e-6)
    assert report.drift <= 1e-6
    assert report.missing < 0.5


def test_padding_that_nothing_looks_at_plays_no_part(tmp_path: Path) -> None:
    config = build_config(
        {
            "model": str(saved("pixart", tmp_path)),
            "store": str(tmp_path / "run.zarr"),
            "original_knowledge_prompts": ["a red circle", "a star"],
            "schedule": {"num_denoising_steps": 2, "sampler_strategy": "model"},
            "collect": {"keep": "moments", "height": 16, "width": 16},
            "project": {"relative_threshold": 0.01},
        }
    )
    store = nb.OpenStore(execute(config, "schedule", "collect", "covariance", "project"))
    pipe = load.freeze(diffusers.DiffusionPipeline.from_pretrained(config.model, dtype=torch.float32))
    sites = text_sites(store)
    tokens = [text_inputs(pipe, sites, text)[sites[0]] for text in ("abcd", "ab")]
    assert [int(looked_at.sum()) for _, looked_at in tokens] == [6, 4], "letters, the mark of a word and the end"
    source, _ = paired([(tokens[0], tokens[1])])
    assert source.shape == (4, 32)
    report = nb.edit(pipe, store, {"abcd": "ab"}, method="uce", preserve=0.0, ridge=1e-4)
    assert set(report.weights) == set(sites[0].weights)
    assert report.missing < 0.3


def test_projections_that_are_the_text_s_own_are_edited(tmp_path: Path) -> None:
    """DeepFloyd IF: add_k and add_v. `missing` is that of the weights' own inputs, by hooks."""
    torch.manual_seed(0)
    ENTRIES["IFPipeline"].build().save_pretrained(tmp_path / "if")
    config = small_config(
        tmp_path / "run.zarr",
        model=str(tmp_path / "if"),
        original_knowledge_prompts=["a dog", "a tree", "two boats"],
        schedule={"num_denoising_steps": 2, "sampler_strategy": "model"},
        collect={"keep": "moments", "batch_size": 3},
        project={"relative_threshold": 1e-6, "empty": "freeze"},
    )
    store = nb.OpenStore(execute(config, "collect", "covariance", "project"))
    pipe = loading.load(tmp_path / "if")
    before = {name: tensor.double().numpy().copy() for name, tensor in pipe.unet.state_dict().items()}

    def received(text: str, name: str) -> np.ndarray:
        seen: list[torch.Tensor] = []
        handle = pipe.unet.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0][-1])
        )
        pipe([text], num_inference_steps=2, guidance_scale=1.0, output_type="pt")
        handle.remove()
        return seen[0].double().numpy()

    texts = {name: (received("a cat", name), received("a dog", name)) for name in before if name.endswith("add_v_proj.weight")}
    report = nb.edit(pipe, store, {"a cat": "a dog"}, tokens="all", ridge=1e-3)
    after = {name: tensor.double().numpy() for name, tensor in pipe.unet.state_dict().items()}
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert (
        changed == set(report.weights) == {name for name in before if name.endswith(("add_k_proj.weight", "add_v_proj.weight"))}
    )
    assert texts
    for name, (source, target) in texts.items():
        wanted = (target - source) @ before[name].T
        reached = source @ (after[name] - before[name]).T
        missing = np.linalg.norm(reached - wanted) / np.linalg.norm(wanted)
        assert report.weights[name].missing == pytest.approx(missing, rel=1e-3)
        assert report.weights[name].missing < 1


def test_texts_that_are_as_long_as_their_prompts_are_paired_up_to_the_shorter_one() -> None:
    long, short = np.arange(8.0).reshape(4, 2), 10 * np.ones((3, 2))
    source = TokenInputs(long, np.array([True, True, True, True])), TokenInputs(short, np.array([True, True, False]))
    for pair, expected in ((source, long[:2]), (source[::-1], short[:2])):
        rows, missing = paired([pair])
        assert rows.tolist() == expected.tolist()
        assert missing.tolist() == (pair[1].rows[:2] - pair[0].rows[:2]).tolist()


def test_from_the_subject_on_tokens_are_paired_by_their_distance_to_it() -> None:
    source = TokenInputs(np.arange(10.0).reshape(5, 2), np.array([True, True, True, True, False]))
    target = TokenInputs(-np.arange(12.0).reshape(6, 2), np.ones(6, bool))
    keys, wanted = paired([(source, target), (target, source)], [(1, 3), (4, 0)])
    assert keys.tolist() == [*source.rows[1:4].tolist(), *target.rows[4:6].tolist()]
    assert (keys + wanted).tolist() == [*target.rows[3:6].tolist(), *source.rows[0:2].tolist()]


def test_tokens_of_the_subject(text_store: nb.OpenStore) -> None:
    """`sks` goes with `star`, `on` with `on`, and the padding of the longer text is not needed."""
    plan = plan_edit(fresh(), text_store, {"a [sks] on a table": "a [red star] on a table"})
    source, target = embedded(fresh(), "a sks on a table"), embedded(fresh(), "a red star on a table")
    site = text_store.sites()[0].name
    np.testing.assert_allclose(plan.report.keys[site], source[2:15], atol=1e-5)
    np.testing.assert_allclose(plan.wanted[site], target[3:16] - source[2:15], atol=1e-5)
    assert plan.report.pairs == {"a [sks] on a table": "a [red star] on a table"}, "as it was asked for"
    assert plan.report.tokens == "subject"


@pytest.mark.parametrize("source", ["A star", "a  star", " a star", "a [Star]"])
def test_a_target_that_the_model_reads_as_its_source_is_refused(text_store: nb.OpenStore, source: str) -> None:
    target = "a [star]" if "[" in source else "a star"
    with pytest.raises(ConfigError, match="and its target as the same text"):
        plan_edit(fresh(), text_store, {"a sks star": "a red star", source: target})


def test_a_site_that_has_other_tokens_than_the_encoders(text_store: nb.OpenStore) -> None:
    rows = TokenInputs(np.zeros((10, 2)), np.ones(10, bool))
    site, agree = text_store.sites()[0], Ends((10, 10), (1, 2))
    assert first_tokens(site, [(rows, rows)], [[agree, Ends((77, 77), (5, 6)), agree]]) == [(1, 2)]
    for several in ([], [Ends((77, 77), (1, 2))], [agree, Ends((10, 10), (3, 2))]):
        with pytest.raises(ConfigError, match=r"the subject's tokens in .* cannot be found: it receives 10 and 10"):
            first_tokens(site, [(rows, rows)], [several])


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"method": "rome"}, "method='rome' is not a choice"),
            ({"tokens": "last"}, "tokens='last' is not a choice"),
            ({"pairs": {"a [b": "c"}}, "does not mark one subject"),
            ({"pairs": {"a [b] c": "d", "a b [c]": "e"}}, "'a b c' appears twice as a source"),
            ({"pairs": {"a [b]": "[a] b"}}, "'a b' is its own target"),
            ({"weights": "q"}, "weights='q' is not a choice"),
            ({"copies": -1}, "copies=-1"),
            ({"project": 0.0}, "project=0.0"),
            ({"ridge": 0.0}, "ridge=0.0"),
            ({"preserve": -1.0}, "preserve=-1.0"),
            ({"pairs": {}}, "no prompt to edit"),
            ({"pairs": {"a": "a"}}, "'a' is its own target"),
        ],
        ids=[
            "method",
            "tokens",
            "marks",
            "twice",
            "itself",
            "weights",
            "copies",
            "project",
            "ridge",
            "preserve",
            "no pairs",
            "no change",
        ],
    )
    def test_arguments(self, text_store: nb.OpenStore, pipe: Any, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            nb.edit(pipe, text_store, **{"pairs": {"a": "b"}, **arguments})

    def test_a_second_edit_without_the_first(self, text_store: nb.OpenStore) -> None:
        pipe = fresh()
        first = nb.edit(pipe, text_store, {"a sks": "a star"})
        with pytest.raises(ConfigError, match="belong to another model"):
            nb.edit(pipe, text_store, {"a zwx": "a ring"})
        second = nb.edit(pipe, text_store, {"a zwx": "a ring"}, earlier=[first])
        for earlier in ([first], [second, first]):
            with pytest.raises(ConfigError, match=rf"the last of {len(earlier)} earlier edits? left: 20 weights differ, such as"):
                nb.edit(pipe, text_store, {"a qfj": "a ring"}, earlier=earlier)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda pipe: pipe.text_encoder.to(torch.float64), "work together: .*text_encoder in float64.*unet in float32"),
            (lambda pipe: add_lora(pipe.unet), r"4 weights to edit, such as down_blocks.*to_k\.weight, carry an adapter"),
            (
                lambda pipe: pipe.unet.fuse_qkv_projections(),
                r"\d+ protected weights, such as .*to_k\.weight: the layer is out of use",
            ),
        ],
        ids=["mixed dtypes", "a LoRA", "fused projections"],
    )
    def test_a_pipeline_that_is_not_as_it_was_loaded(
        self, text_store: nb.OpenStore, change: Callable[[Any], Any], message: str
    ) -> None:
        pipe = fresh()
        change(pipe)
        before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
        with pytest.raises(ModelError, match=message):
            nb.edit(pipe, text_store, {"a sks": "a star"})
        assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.unet.state_dict().items())

    def test_a_constrained_model(self, tmp_path: Path) -> None:
        store, pipe = nb.OpenStore(exact_store(tmp_path / "run.zarr")), fresh()
        pipe.unet.requires_grad_(True)
        nb.constrain(pipe.unet, store)
        with pytest.raises(
            ModelError, match=r"2 weights to edit, such as mid_block.*to_k\.weight, carry an adapter or a constraint"
        ):
            nb.edit(pipe, store, {"a sks": "a star"})

    def test_a_store_without_text(self, tmp_path: Path, pipe: Any) -> None:
        config = build_config(
            {
                "store": str(tmp_path / "run.zarr"),
                "original_knowledge_prompts": ["a star"],
                "schedule": {"num_denoising_steps": 2},
                "collect": {"collect_features": {"k_features": False, "v_features": False}, "cross_attention_layers": ["mid"]},
            }
        )
        store = nb.OpenStore(execute(config, "schedule", "collect", "covariance", "project"))
        with pytest.raises(ConfigError, match=r"no k or v weight in .* receives the text alone"):
            nb.edit(pipe, store, {"a": "b"})


class TestTheCommand:
    def test_saves_an_edited_pipeline(self, text_store: nb.OpenStore, tmp_path: Path) -> None:
        (tmp_path / "pairs.yaml").write_text("\n".join(f"{source}: {target}" for source, target in list(PAIRS.items())[1:]))
        output = tmp_path / "edited"
        source, target = next(iter(PAIRS.items()))
        arguments = ["edit", source, target, "--pairs", str(tmp_path / "pairs.yaml"), "-o", str(output), "-s", text_store.url]
        answer = CliRunner().invoke(app, [*arguments, "--json"])
        assert answer.exit_code == 0, answer.stderr
        document = json.loads(answer.stdout)
        pipe = fresh()
        report = nb.edit(pipe, text_store, PAIRS)
        assert document["schema_version"] == 1
        assert (document["method"], document["pairs"]) == ("alphaedit", PAIRS)
        assert document["missing"] == pytest.approx(report.missing)
        assert document["weights"].keys() == report.weights.keys()
        again = diffusers.DiffusionPipeline.from_pretrained(output)
        for name, tensor in pipe.unet.state_dict().items():
            torch.testing.assert_close(again.unet.state_dict()[name], tensor, rtol=0, atol=1e-5)
        refused = CliRunner().invoke(app, arguments)
        assert refused.exit_code == 2
        assert f"error: {output} exists" in refused.stderr


def test_a_store_of_two_denoisers_is_refused(text_store: nb.OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = [replace(each, weights=tuple(f"transformer_2.{name}" for name in each.weights)) for each in text_store.sites()]
    monkeypatch.setattr(text_store, "sites", lambda: sites)
    with pytest.raises(ConfigError, match=r"an edit changes one denoiser, and .* has weights of a second one, transformer_2"):
        nb.edit(fresh(), text_store, PAIRS)
