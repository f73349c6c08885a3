"""The denoisers of a pipeline, by the prefix of their weights."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from torch import nn

from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.denoisers import denoiser_of, denoisers_of


def pipeline(**parts: object) -> Any:
    return cast(Any, SimpleNamespace(**parts))


def test_the_main_one_has_no_prefix_and_a_second_one_its_name() -> None:
    unet, transformer, second = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
    assert denoisers_of(pipeline(unet=unet, prior=second)) == {"": unet}
    assert denoisers_of(pipeline(unet=None, transformer=transformer, transformer_2=None)) == {"": transformer}
    assert denoisers_of(pipeline(transformer=transformer, transformer_2=second)) == {"": transformer, "transformer_2.": second}
    assert denoiser_of(pipeline(prior=second)) is second


def test_a_pipeline_without_a_denoiser_is_refused() -> None:
    with pytest.raises(ModelError, match="SimpleNamespace has none of unet, transformer, decoder, prior") as caught:
        denoiser_of(pipeline(unet=None, transformer=None))
    assert "set model to a text-to-image pipeline" in caught.value.hint


def test_a_compiled_second_denoiser_is_refused() -> None:
    second: Any = nn.Linear(1, 1)
    second._compiled_call_impl = lambda *_: None
    with pytest.raises(ModelError, match=r"pipe\.transformer_2 is compiled"):
        denoisers_of(pipeline(transformer=nn.Linear(1, 1), transformer_2=second))
