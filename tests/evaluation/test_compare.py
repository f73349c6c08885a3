"""Pictures are compared one by one, as sets, and with what their captions name."""

from dataclasses import replace

import numpy as np
import pytest

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.evaluation import compare, pictures
from nullbooth_cli.evaluation.answer import BaseAndEdited, FeatureDistances
from nullbooth_cli.evaluation.encoders import FeatureSpaces
from nullbooth_cli.evaluation.pictures import Pictures, PictureSpec
from nullbooth_cli.toy import subject, world


def features(seed: int, count: int) -> compare.PictureFeatures:
    """Random pictures with their pooled latents as the only feature space."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    drawn = Pictures(images, rng.normal(size=(count, 2, 4, 4)).astype(np.float32))
    return compare.PictureFeatures(drawn=drawn, vectors={"latents": drawn.pooled()}, right=None, shown=None, alignment=None)


def compared(base: compare.PictureFeatures, edited: compare.PictureFeatures) -> compare.ComparedPictures:
    specs = [PictureSpec(Prompt("p"), number) for number in range(len(base.drawn.images))]
    return compare.ComparedPictures(specs, base=base, another=features(9, len(specs)), edited=edited)


def test_a_picture_is_right_if_it_shows_all_that_is_named() -> None:
    texts = ["a red circle on a blue background", "a red square on a blue background", "a sks thing", "a sks circle"]
    image = (world.draw(world.Drawing("circle", "red", "blue")) * 255).astype(np.uint8)
    drawn = pictures.Pictures(np.stack([image] * 4), np.zeros((4, 8, 8, 8), np.float32))
    specs = [PictureSpec(Prompt(text)) for text in texts]
    np.testing.assert_array_equal(compare.extract_features(drawn, specs, FeatureSpaces(), is_toy=True).right, [1, 0, np.nan, 1])
    assert compare.extract_features(drawn, specs, FeatureSpaces(), is_toy=False).right is None


@pytest.mark.parametrize(
    ("spec", "right"),
    [
        (PictureSpec(Prompt("a sks star"), targets=("a red circle",)), 1),
        (PictureSpec(Prompt("a red circle"), targets=("a red star",)), 0),
        (PictureSpec(Prompt("a zwx thing"), targets=("a blue circle", "a red circle")), 1),
        (PictureSpec(Prompt("circle"), targets=("",)), 0),
        (PictureSpec(Prompt("star"), targets=("",)), 1),
        (PictureSpec(Prompt("a thing"), targets=("",)), np.nan),
        (PictureSpec(Prompt("a red star"), source="a sks star"), 0),
        (PictureSpec(Prompt(""), source="a red star"), 1),
        (PictureSpec(Prompt("a photo of"), source="a photo of circle"), 0),
    ],
)
def test_an_edited_prompt_is_right_as_its_target(spec: PictureSpec, right: float) -> None:
    """One target of several is enough; an erased prompt is right where what it names is not shown."""
    image = (world.draw(world.Drawing("circle", "red", "blue")) * 255).astype(np.uint8)
    drawn = pictures.Pictures(image[None], np.zeros((1, 8, 8, 8), np.float32))
    np.testing.assert_array_equal(compare.extract_features(drawn, [spec], FeatureSpaces(), is_toy=True).right, [right])


def test_the_subject_is_found_where_a_caption_asks_for_it() -> None:
    image = (subject.draw("red") * 255).astype(np.uint8)
    texts = [subject.caption("red"), "a photo of zwx circle", subject.caption("blue"), "a red circle on a blue background"]
    drawn = pictures.Pictures(np.stack([image] * 4), np.zeros((4, 8, 8, 8), np.float32))
    specs = [PictureSpec(Prompt(text)) for text in texts]
    found = compare.extract_features(drawn, specs, FeatureSpaces(), is_toy=True)
    np.testing.assert_array_equal(found.shown, [1, 1, 0, np.nan])
    assert compare.extract_features(drawn, specs, FeatureSpaces(), is_toy=False).shown is None


def test_a_subject_is_compared_with_its_pictures() -> None:
    base, edited, instances = features(0, 3), features(1, 3), {"latents": features(2, 4).vectors["latents"]}
    found = compare.compare_subject(compared(base, edited), FeatureSpaces(), instances, None)
    drawn, taught = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (edited.vectors["latents"], instances["latents"]))
    pairs = (taught @ taught.T)[np.triu_indices(4, 1)]
    assert found.instances is not None
    assert found.instances["latents"].edited == pytest.approx((drawn @ taught.T).mean())
    assert found.instances["latents"].among == pytest.approx(pairs.mean())
    assert found.latent_mse == compare.compare_pictures(compared(base, edited), FeatureSpaces()).latent_mse
    right, asked = np.array([1.0, 0.0, 1.0]), np.array([0.0, np.nan, 1.0])
    for shown, expected in ((asked, None), (np.full(3, np.nan), BaseAndEdited(2 / 3, 2 / 3))):
        pair = compared(*(replace(of, right=right, shown=shown) for of in (base, edited)))
        assert compare.compare_subject(pair, FeatureSpaces(), None, None).captions_right == expected
    one = compare.compare_subject(compared(base, edited), FeatureSpaces(), {"latents": instances["latents"][:1]}, None)
    assert one.instances is not None
    assert one.instances["latents"].among is None


def test_pictures_are_compared_one_by_one() -> None:
    base, edited, another = features(0, 3), features(1, 3), features(9, 3)
    found = compare.compare_pictures(compared(base, edited), FeatureSpaces())
    expected = [float(np.square(base.drawn.latents[i] - edited.drawn.latents[i]).mean()) for i in range(3)]
    assert [each.latent_mse for each in found.by_picture] == pytest.approx(expected, rel=1e-5)
    assert [each.number for each in found.by_picture] == [0, 1, 2]
    assert found.latent_mse == pytest.approx(np.mean(expected), rel=1e-5)
    baseline = float(np.square(base.drawn.latents - another.drawn.latents).mean())
    assert found.latent_mse_relative == pytest.approx(np.mean(expected) / baseline, rel=1e-5)
    assert found.pixel_mse == pytest.approx(np.square(base.drawn.images / 255 - edited.drawn.images / 255).mean())


def test_a_model_beside_itself_is_at_zero() -> None:
    found = compare.compare_pictures(compared(features(0, 12), features(0, 12)), FeatureSpaces())
    assert (found.latent_mse, found.pixel_mse, found.psnr) == (0, 0, None)
    distances = found.features["latents"]
    assert (distances.cosine, distances.precision, distances.recall) == pytest.approx((1, 1, 1))
    assert distances.frechet_distance == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("count", "enough"), [(compare.FEWEST - 1, False), (compare.FEWEST, True)])
def test_sets_are_compared_from_enough_pictures_on(count: int, enough: bool) -> None:
    found = compare.compare_pictures(compared(features(0, count), features(1, count)), FeatureSpaces()).features["latents"]
    whole = {name: value for name, value in vars(found).items() if name not in ("dim", "cosine")}
    assert {value is not None for value in whole.values()} == {enough}
    assert enough or found == FeatureDistances(dim=32, cosine=found.cosine)


def test_means_leave_out_captions_that_name_nothing() -> None:
    right = np.array([1.0, np.nan, 0.0])
    assert compare._means(right, np.array([0.0, np.nan, 0.0])) == BaseAndEdited(0.5, 0.0)
    assert compare._means(np.full(2, np.nan), np.full(2, np.nan)) is None
