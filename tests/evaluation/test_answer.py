"""The answer of an evaluation, by model and by set."""

import pytest

from tests.support.evaluations import report


@pytest.mark.parametrize(
    ("places", "names"), [(["a/model", "b/model"], ["a/model", "b/model"]), (["a/one", "two"], ["one", "two"])]
)
def test_models_of_one_name_keep_their_places(places: list[str], names: list[str]) -> None:
    assert report(["p"], places, [1.0, 2.0]).model_names == names


def test_the_first_model_is_one_of_the_models() -> None:
    found = report(["p"], ["one", "two"], [1.0, 2.0])
    assert [model.edited for model in found.models] == ["one", "two"]
    assert [model.on("preserved").latent_mse for model in found.models] == [1.0, 2.0]
    assert found.models[0].on("subject") is found.subject
    with pytest.raises(KeyError):
        found.models[0].on("nothing")
