"""The study of evidence: models in one batch are what `nullbooth train` makes one by one, and the page has what was measured."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from docs.studies import evidence, evidence_report, evidence_search, evidence_sets
from docs.studies.cuts import ROOT, other_captions
from docs.studies.evidence import reports, searches
from docs.studies.evidence_ground import Ground, Pictures, fisher, moments, pictures_of
from docs.studies.evidence_models import Models
from docs.studies.evidence_overlaps import judged, mask_of, overlaps_of
from docs.studies.evidence_runs import PACKED, Point, Searched, Setting, read, write
from docs.studies.evidence_score import Scorer, drifts, preserved_inputs
from docs.studies.evidence_sets import shared_sets
from docs.studies.evidence_train import BLOCK, Run, Trained, Training, _AdamW, _clipped, rotation
from docs.studies.evidence_ways import LENGTHS, Way, short
from docs.studies.refit import fresh
from docs.studies.refit_subjects import TAUGHT, write_pictures
from docs.studies.sequence_ways import StoreWithTasks
from nullbooth_cli.api import OpenStore
from nullbooth_cli.settings.config import load_settings
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.resizing import Framing
from nullbooth_cli.settings.shipped import shipped
from nullbooth_cli.store import Store
from nullbooth_cli.teaching.request import THRESHOLD, TOY
from nullbooth_cli.toy import score, subject, world
from nullbooth_cli.training import dreambooth, estimate, setup
from nullbooth_cli.training.distillation import Distillation, Teacher
from nullbooth_cli.training.examples import EncodedTexts, Examples

CIRCLE, SQUARE = TAUGHT[:2]
STEPS = 5
BESIDE = ["a red star on a blue background", "a cyan ring on a white background", ""]


@dataclass(frozen=True)
class World:
    """A small ground, and the store that it was made from."""

    folder: Path
    models: Models
    ground: Ground
    store: Path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("ground")
    models = Models("cpu")
    found = moments(folder / "known.zarr", BESIDE[:2], other_captions()[:2])
    beside = Pictures(latents=torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(0)), captions=tuple(BESIDE))
    pictures = {f"{each.name} {seed}": pictures_of(models, each, seed) for each in (CIRCLE, SQUARE) for seed in (0, 1)}
    fisher = {name: torch.ones_like(each) for name, each in models.start.items()}
    return World(folder, models, Ground(**found, pictures={**pictures, "pictures": beside}, fisher=fisher), folder / "known.zarr")


@dataclass(frozen=True)
class One:
    """A model after `STEPS` steps of `nullbooth train`: its weights, the row of its word, and what the A of its LoRA began as."""

    weights: dict[str, torch.Tensor]
    row: torch.Tensor | None
    started: dict[str, torch.Tensor]


def _train_one(small: World, run: Run, folder: Path) -> One:
    way = run.way
    write_pictures(run.taught, folder / "pictures", subject.TAUGHT_ON * 5, run.seed)
    recipe = Recipe(
        model="toy",
        output=str(folder / "run"),
        instance_images=str(folder / "pictures"),
        method="full" if way.rank is None else "lora",
        rank=way.rank or 8,
        features=["k", "v"],
        word=run.taught.word if way.word else None,
        learning_rate=run.rate,
        train_batch_size=8,
        max_train_steps=STEPS,
        checkpointing_steps=STEPS,
        distill_captions={"own": None, "class or empty": "class"}.get(way.distilled, way.distilled),
        distill_weight=way.weight,
        guidance_scale=4.0,
        seed=run.seed,
    )
    store = None if way.cut is None else StoreWithTasks(OpenStore(Store.open(small.store)), [], way.cut)
    ready = setup.set_up(recipe, "cpu", store)
    if way.has_two_captions:  # no recipe can ask for it: every picture gets the empty caption beside that without the word
        both = {caption: (*texts, "") for caption, texts in ready.distillation.captions.items()}
        ready.distillation = replace(ready.distillation, captions=both)
        every = [text for texts in both.values() for text in texts]
        ready.texts = EncodedTexts.of(ready.pipe, [*ready.subject.captions, *every], ready.subject.sizes, ready.guidance)
    if way.extra == "pictures":
        found = small.ground.pictures["pictures"]
        [size] = ready.subject.sizes
        ready.texts = EncodedTexts.of(ready.pipe, [*ready.subject.captions, *found.captions], [size], ready.guidance)
        framings = [Framing(size=size, original=size)] * len(found.captions)
        examples = Examples(latents=[*found.latents], captions=found.captions, framings=framings)
        if way.prior is not None:
            ready.prior = examples
        else:
            captions = {caption: (caption,) for caption in found.captions}
            ready.distillation = Distillation(pictures=examples, captions=captions, teacher=Teacher(ready.denoiser))
    parameters = dict(ready.denoiser.named_parameters())
    layers = {name: name.removesuffix(".weight") for name in small.models.start}
    lora_a = {
        name: next((each.detach().clone() for key, each in parameters.items() if key.startswith(f"{layer}.lora_A")), None)
        for name, layer in layers.items()
    }
    for _ in dreambooth.train(ready):
        pass
    row = None if ready.word is None else next(iter(ready.word.rows.values())).detach().clone()
    if ready.constraint is not None:
        ready.constraint.merge()
    weights = {}
    for name, layer in layers.items():
        module = ready.denoiser.get_submodule(layer)
        weights[name] = (
            (module.weight if way.rank is None else module.weight + module.get_delta_weight("default")).detach().clone()
        )
    return One(weights, row, {name: each for name, each in lora_a.items() if each is not None})


def _train_many(small: World, runs: list[Run], started: list[dict[str, torch.Tensor]] | None = None) -> Trained:
    training = Training(small.models, small.ground, runs)
    for i, of_run in enumerate(started or []):
        for name, each in of_run.items():
            training._parameters[f"{name} A"].data[i] = each
    [trained] = training.train([STEPS])
    return trained


@pytest.mark.parametrize(
    "ways",
    [
        (Way(name="free"), Way(name="free, no word", word=False), Way(name="constrained 1e-2", cut=1e-2)),
        (
            Way(name="distilled", distilled="own", weight=10.0, cut=1e-2),
            Way(name="prior", prior="pictures"),
            Way(name="DOP", distilled="class", weight=3.0),
        ),
        (
            Way(name="DOP and empty", distilled="class or empty", weight=10.0),
            Way(name="DOP and empty, weight 1", distilled="class or empty"),
            Way(name="empty", distilled="empty", weight=10.0),
        ),
        (Way(name="LoRA", rank=4, word=False), Way(name="LoRA, constrained", rank=4, cut=1e-2)),
    ],
    ids=lambda ways: ways[0].name,
)
def test_models_in_a_batch_are_those_of_single_runs(small: World, tmp_path: Path, ways: tuple[Way, ...]) -> None:
    kinds = [(CIRCLE, 1e-3, 0), (SQUARE, 3e-3, 1), (CIRCLE, 1e-2, 1)]
    runs = [Run(way=way, taught=taught, rate=rate, seed=seed) for way, (taught, rate, seed) in zip(ways, kinds, strict=False)]
    singles = [_train_one(small, run, tmp_path / str(i)) for i, run in enumerate(runs)]
    many = _train_many(small, runs, [single.started for single in singles])
    for i, (run, single) in enumerate(zip(runs, singles, strict=True)):
        row = single.row
        for name, one in single.weights.items():
            moved = float((one - small.models.start[name]).norm())
            assert moved > 0
            assert float((many.weights[name][i] - one).norm()) < 0.02 * moved, (run.way.name, name)
        start = small.models.table[small.models.word_number(run.taught.word)]
        if row is None:
            assert torch.equal(many.rows[i], start)
        else:
            assert float((many.rows[i] - row).norm()) < 0.02 * float((row - start).norm())


def test_pictures_of_a_batch_are_those_of_the_pipeline(small: World) -> None:
    texts = ["a sks circle on a red background", *BESIDE]
    latents = score.paint(fresh(), texts, steps=25, guidance=4.0, seed=3, output_type="latent")
    models = small.models
    numbers = torch.tensor([models.word_number("sks")] * 2)
    encoded = models.encode(models.tokens(texts).expand(2, -1, -1), numbers, models.table[numbers])
    with models.using(models.untrained(2)):
        drawn = models.draw(encoded, models.noise(range(3, 7)), together=8)
    np.testing.assert_allclose(drawn[1].numpy(), latents, atol=1e-4)


def test_a_rotation_is_that_of_peft() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(96, 32, bias=False))
    config = peft.OFTConfig(target_modules=["0"], oft_block_size=BLOCK, use_cayley_neumann=False)
    turned = peft.get_peft_model(layer, config)
    free = torch.randn(1, 3, BLOCK, BLOCK, generator=torch.Generator().manual_seed(0)) / 10
    rows, columns = torch.triu_indices(BLOCK, BLOCK, 1)
    [parameter] = [each for each in turned.parameters() if each.requires_grad]
    parameter.data.copy_(free[0][:, rows, columns])
    inputs = torch.randn(4, 96, generator=torch.Generator().manual_seed(1))
    start = turned.base_model.model[0].base_layer.weight
    found = rotation(free)[0]
    np.testing.assert_allclose((found @ found.T).detach(), np.eye(96), atol=1e-5)
    np.testing.assert_allclose((inputs @ (start @ found.T).T).detach(), turned(inputs).detach(), atol=1e-5)


def test_a_lora_of_lower_rank_is_filled_up_and_stays_within_its_rank(small: World) -> None:
    ways = (Way(name="LoRA 2", rank=2), Way(name="LoRA 4, constrained", rank=4, cut=1e-2), Way(name="halved", rank=4, scale=0.5))
    trained = _train_many(small, [Run(way=way, taught=CIRCLE, rate=1e-2, seed=0) for way in ways])
    projector = small.ground.projector(ways[1])
    for name, start in small.models.start.items():
        two, four, halved = (trained.weights[name] - start).unbind()
        assert torch.linalg.matrix_rank(two, rtol=1e-4) == 2
        assert torch.linalg.matrix_rank(halved, rtol=1e-4) == 4
        assert (four @ projector - four).norm() < 1e-4 * four.norm()


def test_a_penalty_keeps_weights_near(small: World) -> None:
    ways = (Way(name="free"), Way(name="L2", pull=1.0), Way(name="EWC", fisher=1.0))
    trained = _train_many(small, [Run(way=way, taught=CIRCLE, rate=1e-2, seed=0) for way in ways])
    change = torch.stack(
        [(trained.weights[name] - start).square().sum((1, 2)) for name, start in small.models.start.items()]
    ).sum(0)
    assert change[1] < 0.9 * change[0]
    assert torch.allclose(change[1], change[2], rtol=1e-3)  # the information of this ground is 1 everywhere


def test_fisher_information_is_the_mean_square_of_single_gradients(small: World) -> None:
    models, pictures = small.models, small.ground.pictures["pictures"]
    found = fisher(models, pictures, samples=4, together=2)
    generator, total = torch.Generator().manual_seed(0), dict.fromkeys(models.start, 0.0)
    for _ in range(2):
        chosen = torch.randint(3, (2,), generator=generator)
        noising = models.process.draw(pictures.latents[chosen], generator)
        for i, picture in enumerate(chosen.tolist()):
            weights = {name: each.clone()[None].requires_grad_() for name, each in models.start.items()}
            alone = replace(noising, noise=noising.noise[i : i + 1], timesteps=noising.timesteps[i : i + 1])
            latents, text = pictures.latents[picture][None], models.encode_plain([BESIDE[picture]])[None]
            with models.using(weights):
                predicted = models.predict(models.process.noised(latents, alone)[None], alone.timesteps[None], text)
            (predicted[0] - models.process.target(latents, alone)).square().mean().backward()
            total = {name: total[name] + each.grad[0].square() for name, each in weights.items()}
    mean = sum(each.sum() for each in total.values()) / sum(each.numel() for each in total.values())
    for name, each in total.items():
        torch.testing.assert_close(found[name], each / mean, rtol=1e-3, atol=1e-4)


def test_the_optimizer_is_that_of_torch_with_clipping_for_each_model() -> None:
    draw, rates = torch.Generator().manual_seed(0), torch.tensor([1e-3, 1e-2, 3e-1])
    many = {"w": torch.randn(3, 4, 5, generator=draw), "word": torch.randn(3, 5, generator=draw)}
    ones = [{name: torch.nn.Parameter(each[i].clone()) for name, each in many.items()} for i in range(3)]
    optimizers = [
        torch.optim.AdamW(
            [
                {"params": [one["w"]], "lr": float(rate), "weight_decay": 1e-2},
                {"params": [one["word"]], "lr": 1e-2, "weight_decay": 0.0},
            ]
        )
        for one, rate in zip(ones, rates, strict=True)
    ]
    ours = _AdamW(many, {"w": rates, "word": torch.full((3,), 1e-2)}, plain=("word",))
    for _ in range(100):
        gradients = {
            name: torch.randn(each.shape, generator=draw) * 10 ** float(torch.randn((), generator=draw))
            for name, each in many.items()
        }
        ours.step(_clipped(gradients))
        for i, (one, optimizer) in enumerate(zip(ones, optimizers, strict=True)):
            for name, parameter in one.items():
                parameter.grad = gradients[name][i].clone()
            torch.nn.utils.clip_grad_norm_([*one.values()], 1.0)
            optimizer.step()
    for i, one in enumerate(ones):
        for name, parameter in one.items():
            torch.testing.assert_close(many[name][i], parameter.detach(), rtol=1e-3, atol=1e-4)


def test_a_change_is_scaled_or_solved_again_after_training(small: World) -> None:
    ways = (Way(name="free"), Way(name="half", scale=0.5), Way(name="refitted", refit=10.0))
    trained = _train_many(small, [Run(way=way, taught=CIRCLE, rate=1e-2, seed=0) for way in ways])
    texts = [CIRCLE.caption(background) for background in world.BACKGROUNDS]
    inputs = (
        small.models.encode(small.models.tokens(texts)[None], trained.numbers[2:], trained.rows[2:])
        .flatten(0, 2)
        .double()
        .numpy()
    )
    one, other = inputs.T @ inputs, small.ground.preserved
    one, other = one / np.trace(one), other / np.trace(other) + 1e-7 * np.eye(96)
    solved = one @ np.linalg.inv(one + 10.0 * other)
    for name, start in small.models.start.items():
        whole, half, refitted = ((each - start).double().numpy() for each in trained.weights[name])
        np.testing.assert_allclose(half, whole / 2, atol=1e-6)
        np.testing.assert_allclose(refitted, whole @ solved, atol=1e-4 * np.abs(whole).max())


def test_a_soft_constraint_scales_every_direction(small: World) -> None:
    ground = small.ground
    found = ground.projector(Way(name="soft", cut=1e-2, soft=True)).double().numpy()
    scaled = np.diag(ground.vectors.T @ found @ ground.vectors)
    np.testing.assert_allclose(scaled, 1e-2 / (1e-2 + np.clip(ground.values, 0, None) / ground.values[-1]), atol=1e-5)


def test_a_batch_of_the_report_is_its_runs_one_by_one(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {each.name: each for each in shared_sets()}
    few = [replace(sets[name], captions=sets[name].captions[:2]) for name in ("held-out", "guidance 7.5", "another sampler")]
    monkeypatch.setattr(evidence, "shared_sets", lambda: few)
    monkeypatch.setattr(evidence, "own_sets", lambda _: few[:0])
    monkeypatch.setattr(evidence_sets, "ASKED", 2)
    monkeypatch.setattr(evidence_sets, "OTHERS", 2)
    batch = [
        (Run(way=Way(name="constrained 1e-2", cut=1e-2), taught=CIRCLE, rate=1e-2, seed=0), 1),
        (Run(way=Way(name="constrained 1e-3", cut=1e-3), taught=SQUARE, rate=3e-3, seed=1), 3),
    ]
    scorer = Scorer(small.models)
    together = [*evidence.report(small.models, small.ground, batch, scorer)]
    alone = [point for one in batch for point in evidence.report(small.models, small.ground, [one], scorer)]
    for ours, one in zip(together, alone, strict=True):
        assert (ours.way, ours.subject, ours.seed, ours.rate, ours.steps) == (one.way, one.subject, one.seed, one.rate, one.steps)
        assert ours.moved == pytest.approx(one.moved, rel=0.02)
        assert ours.outlook == pytest.approx(one.outlook, rel=0.01)
        assert ours.drifts["predicted"] == pytest.approx(one.drifts["predicted"], rel=0.02)
        assert len({f"{value:.2g}" for value in ours.moved.values()}) == 3
    assert together[0].outlook["dimension"] == small.ground.null_dim(1e-2)


def test_moved_is_the_squared_distance_over_that_of_another_seed(small: World) -> None:
    [held_out] = [replace(each, captions=each.captions[:2]) for each in shared_sets() if each.name == "held-out"]
    weights = {name: each[None] * 1.1 for name, each in small.models.start.items()}
    numbers = torch.tensor([small.models.word_number("sks")])
    trained = Trained(step=1, weights=weights, numbers=numbers, rows=small.models.table[numbers])
    run = Run(way=Way(name="free"), taught=CIRCLE, rate=1e-3, seed=0)
    [found] = Scorer(small.models).measure([run], trained, lambda _: [held_out], lambda _: {}, reads=False)
    pipe = fresh()
    before, another = (
        score.paint(pipe, held_out.captions, steps=25, guidance=4.0, seed=seed, output_type="latent")
        for seed in (2000, 1_002_000)
    )
    for name, each in weights.items():
        pipe.unet.get_parameter(name).data.copy_(each[0])
    now = score.paint(pipe, held_out.captions, steps=25, guidance=4.0, seed=2000, output_type="latent")
    expected = np.square(now - before).mean() / np.square(another - before).mean()
    assert found["moved"]["held-out"] == pytest.approx(expected, rel=1e-3)


def test_a_set_judges_every_part_that_its_caption_names() -> None:
    sets = {each.name: each for each in shared_sets()}
    for name in ("held-out", "few words", "a thing"):
        asked = world.named(sets[name].captions[0])
        right = {"shape": "star", "background": "gray", **asked}
        assert sets[name].judge(0, world.draw(world.Drawing(right["shape"], right["colour"], right["background"])))()
        for part, wrong in (("shape", "ring"), ("colour", "pink"), ("background", "purple")):
            drawn = {**right, part: wrong}
            picture = world.draw(world.Drawing(drawn["shape"], drawn["colour"], drawn["background"]))
            assert sets[name].judge(0, picture)() == (part not in asked)
    asked_for = evidence_sets.asked_of(CIRCLE, validates=False)["learned"]
    assert asked_for.judge(0, CIRCLE.draw(asked_for.backgrounds[0], x=0.0, y=0.0, radius=10.0))()
    assert not asked_for.judge(1, CIRCLE.draw(asked_for.backgrounds[0], x=0.0, y=0.0, radius=10.0))()
    searched = evidence_sets.asked_of(CIRCLE, validates=True)["learned"]
    assert searched.captions == asked_for.captions
    assert not set(range(searched.seed, searched.seed + 24)) & set(range(asked_for.seed, asked_for.seed + 24))


def test_overlaps_are_those_of_the_scorer() -> None:
    rng = np.random.default_rng(0)
    judges = []
    for number, taught in enumerate(TAUGHT):
        background = ("red", "green", "blue", "yellow")[number % 4]
        drawn = taught.draw(background, x=rng.uniform(-2, 2), y=rng.uniform(-2, 2), radius=rng.uniform(8.5, 12), number=number)
        for picture in (drawn, world.draw(world.Drawing(world.SHAPES[number], "pink", background))):
            judges.append(partial(taught.is_drawn, picture, background, number))
            judges.append(partial(_is_star, picture))
    masks = {i: mask for i, judge in enumerate(judges) if (mask := mask_of(judge)) is not None}
    assert len(masks) > len(judges) / 2
    found = dict(zip(masks, overlaps_of([*masks.values()], "cpu", together=5), strict=True))
    assert [judged(judge, found.get(i, {})) for i, judge in enumerate(judges)] == [bool(judge()) for judge in judges]
    for i, mask in masks.items():
        for shape in world.SHAPES:
            assert found[i][shape] == pytest.approx(world.best_overlap(mask, shape), abs=1e-12)


def _is_star(picture: np.ndarray) -> bool:
    return world.read(picture).shape == "star"


def test_an_untrained_model_moves_nothing_and_shows_no_subject(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [replace(each, captions=each.captions[:3]) for each in shared_sets() if each.name in ("held-out", "two things")]
    monkeypatch.setattr(evidence, "shared_sets", lambda: sets)
    monkeypatch.setattr(evidence, "own_sets", lambda _: sets[:0])
    monkeypatch.setattr(evidence_sets, "ASKED", 2)
    monkeypatch.setattr(evidence_sets, "OTHERS", 2)
    found = {point.subject: point for point in evidence.untouched(small.models, Scorer(small.models), TAUGHT[3:5])}
    assert found.keys() == {"crescent", "style"}
    for point in found.values():
        assert max(point.moved.values()) < 1e-9
        assert point.learned == point.other == 0.0
        assert point.right == {"held-out": 1.0}


def test_drift_is_measured_as_it_is_predicted_and_below_its_bound(small: World) -> None:
    run = Run(way=Way(name="constrained", cut=1e-2), taught=CIRCLE, rate=1e-2, seed=0)
    trained = _train_many(small, [run])
    weights = {name: each[0] for name, each in trained.weights.items()}
    found = drifts(small.models, small.ground, run, weights, preserved_inputs(small.models, small.ground))
    assert min(found.measured) > 1e-4
    np.testing.assert_allclose(found.measured, found.predicted, rtol=1e-3)
    assert all(bound >= predicted for bound, predicted in zip(found.bound, found.predicted, strict=True))
    assert found.bfloat16 > found.float16 >= max(found.predicted) / 2


def _searched(way: str, rate: float, learned: float, moved: float) -> list[Searched]:
    lengths = len(LENGTHS)
    return [
        Searched(way=way, subject=subject, rate=rate, learned=(0.0,) * (lengths - 1) + (learned,), moved=(moved,) * lengths)
        for subject in evidence_search.SEARCHED_ON
    ]


def test_of_settings_that_learn_enough_the_least_moved_is_chosen() -> None:
    found = [*_searched("free", 1e-3, 0.8, 0.5), *_searched("free", 3e-3, 1.0, 0.6), *_searched("free", 1e-2, 0.74, 0.1)]
    assert evidence_search.chosen(found, "free") == (Setting(rate=1e-3, steps=LENGTHS[-1]), 0.8, 0.5)
    assert evidence_search.chosen(found[4:], "free") == (Setting(rate=1e-2, steps=LENGTHS[-1]), 0.74, 0.1)
    # A setting that one subject lacks does not count.
    assert evidence_search.chosen(found[1:], "free")[0].rate == 3e-3


@given(st.permutations(range(7)), st.permutations(range(7)))
def test_rank_correlation_without_ties_is_spearmans_formula(one: list[int], other: list[int]) -> None:
    apart = sum((left - right) ** 2 for left, right in zip(one, other, strict=True))
    expected = 1 - 6 * apart / (7 * (7**2 - 1))
    assert evidence_report.rank_correlation(one, [3.0**value for value in other]) == pytest.approx(expected)


def test_rank_correlation_gives_ties_their_mean_rank() -> None:
    assert evidence_report.rank_correlation([1, 1, 2], [5, 7, 9]) == pytest.approx(np.corrcoef([0.5, 0.5, 2], [0, 1, 2])[0, 1])
    assert np.isnan(evidence_report.rank_correlation([1, 1], [1, 2]))


def test_runs_are_kept_with_four_digits(tmp_path: Path) -> None:
    point = Point(
        way="free", subject="circle", seed=0, rate=1e-3, steps=5, learned=1 / 3, other=0.0, moved={"a": 0.0}, right={"a": 1.0}
    )
    searched = _searched("free", 1e-3, 2 / 3, 0.1)
    write(tmp_path / "runs.jsonl", [*searched, point])
    assert read([tmp_path / "runs.jsonl"]) == ([*_searched("free", 1e-3, 0.6667, 0.1)], [replace(point, learned=0.3333)])


@pytest.fixture(scope="module")
def packed() -> tuple[list[Searched], list[Point]]:
    return read([PACKED])


def test_the_page_has_what_the_runs_say(packed: tuple[list[Searched], list[Point]]) -> None:
    pages = "\n".join((ROOT / "docs" / name).read_text() for name in ("explanation/forgetting.md", "explanation/guarantee.md"))
    for name, lines in evidence_report.tables(*packed).items():
        assert "\n".join(lines) in pages, name


def test_every_way_was_searched_and_reported(packed: tuple[list[Searched], list[Point]]) -> None:
    searched, points = packed
    assert {(each.way, each.subject, each.rate) for each in searched} == {
        (run.way.name, run.taught.name, run.rate) for run, _ in searches()
    }
    assert {(point.way, point.subject, point.seed, point.rate, point.steps) for point in points if point.steps} == {
        (run.way.name, run.taught.name, run.seed, run.rate, steps) for run, steps in reports(searched)
    }


def test_the_estimate_counts_what_was_learned(packed: tuple[list[Searched], list[Point]]) -> None:
    points = packed[1]
    assert evidence_report.count_learned(points, word=True) == estimate.WITH_WORD
    assert evidence_report.count_learned(points, word=False, least=estimate.SMALL_RATIO) == estimate.WITHOUT_WORD
    below = [p.learned for p in points if p.way.endswith("no word") and p.outlook and p.outlook["ratio"] < estimate.SMALL_RATIO]
    assert len(below) == 9
    assert max(below) < evidence_report.NOT_LEARNED
    found, learned, _ = evidence_search.chosen(packed[0], "constrained 1e-6")
    assert learned == 0.0, found


def test_teach_trains_as_the_search_chose(packed: tuple[list[Searched], list[Point]]) -> None:
    found, learned, _ = evidence_search.chosen(packed[0], f"constrained {short(THRESHOLD)}")
    assert learned >= evidence_search.ENOUGH
    assert found.steps == TOY.settings["max_train_steps"]
    assert found.rate == load_settings(Recipe, shipped("train/toy")).learning_rate
