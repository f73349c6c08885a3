"""Which tokens are padding: masks under every name, in every place; and an error where they do not show it."""

from typing import Any

import pytest
import torch
from torch import nn

from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.padding import Padding
from nullbooth_cli.model.projections import Projection

TEXT = Projection("block.attn2", "k", "block.attn2.to_k.weight", nn.Identity(), from_text=True)
IMAGE = Projection("block.attn2", "q", "block.attn2.to_q.weight", nn.Identity())
BOTH = Projection("block.attn", "k", "block.attn.to_k.weight", nn.Identity(), from_both=True)
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
EXPECTED = [[True, True, False], [True, False, False]]
IMAGE_TOKENS = 4


def tokens(count: int) -> torch.Tensor:
    return torch.zeros(2, count, 5)


@pytest.mark.parametrize(
    "name",
    [
        "encoder_attention_mask",
        "encoder_hidden_states_mask",
        "attention_mask",
        "text_embedding_mask",
        "text_embedding_mask_t5",
        "encoder_mask",
        "encoder_attention_mask_2",
    ],
)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16])
def test_a_mask_of_the_text_by_every_name(name: str, dtype: torch.dtype) -> None:
    padding = Padding({"hidden_states": tokens(IMAGE_TOKENS), name: MASK.to(dtype)})
    assert padding.is_masked
    found = padding.attended(TEXT, tokens(3))
    assert found is not None
    assert found.tolist() == EXPECTED
    assert padding.attended(IMAGE, tokens(IMAGE_TOKENS)) is None


def test_one_vector_for_the_whole_image_has_no_padding() -> None:
    padding = Padding({"hidden_states": tokens(IMAGE_TOKENS), "encoder_attention_mask": MASK})
    assert padding.attended(BOTH, tokens(1)) is None


def test_a_mask_among_the_arguments_of_attention() -> None:
    found = Padding({"joint_attention_kwargs": {"attention_mask": MASK}}).attended(TEXT, tokens(3))
    assert found is not None
    assert found.tolist() == EXPECTED


def test_a_mask_over_text_and_image() -> None:
    whole = torch.cat([MASK, torch.ones(2, IMAGE_TOKENS)], dim=1)
    padding = Padding({"hidden_states": tokens(IMAGE_TOKENS), "attention_mask": whole})
    of_text, of_both = padding.attended(TEXT, tokens(3)), padding.attended(BOTH, tokens(3 + IMAGE_TOKENS))
    assert of_text is not None
    assert of_both is not None
    assert of_text.tolist() == EXPECTED
    assert of_both.tolist() == whole.bool().tolist()
    assert padding.attended(BOTH, tokens(IMAGE_TOKENS)) is None, "a block of the image alone"


@pytest.mark.parametrize("arguments", [{}, {"attention_mask": None}, {"padding_mask": MASK, "img_mask": MASK}])
def test_without_a_mask_every_token_counts(arguments: dict[str, Any]) -> None:
    padding = Padding({"hidden_states": tokens(IMAGE_TOKENS), **arguments})
    assert padding.is_masked == ("attention_mask" in arguments)
    assert padding.attended(TEXT, tokens(3)) is None


@pytest.mark.parametrize(
    ("mask", "projection", "count"),
    [
        (torch.ones(2, 3), TEXT, 5),  # two texts in one tensor, as in HunyuanDiT
        (torch.ones(1, 3), TEXT, 3),
        (torch.ones(2, 1, 3, 3), TEXT, 3),
        (torch.ones(2, 3), BOTH, 7),  # text and image packed, as in Lumina2
        (torch.cat([torch.ones(2, IMAGE_TOKENS), MASK], dim=1), TEXT, 3),  # image before text
    ],
)
def test_a_mask_that_does_not_show_the_padding_is_an_error(mask: torch.Tensor, projection: Projection, count: int) -> None:
    padding = Padding({"hidden_states": tokens(IMAGE_TOKENS), "attention_mask": mask})
    words = rf"{projection} receives {count} tokens in 2 rows, and the masks .* do not show .* attention_mask \[{mask.shape[0]}, "
    with pytest.raises(ModelError, match=words):
        padding.attended(projection, tokens(count))
