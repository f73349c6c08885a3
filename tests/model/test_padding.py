"""Which tokens are padding: masks under every name, in every shape and place; and an error where they do not show it."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.padding import Padding
from nullbooth_cli.model.projections import Projection

TEXT = Projection("block.attn2", "k", "block.attn2.to_k.weight", nn.Identity(), from_text=True)
IMAGE = Projection("block.attn2", "q", "block.attn2.to_q.weight", nn.Identity())
BOTH = Projection("block.attn", "k", "block.attn.to_k.weight", nn.Identity(), from_both=True)
FEED = Projection("block.ff.0", "linear", "block.ff.0.weight", nn.Identity(), from_both=True)
FEED_TEXT = Projection("block.txt_mlp.0", "linear", "block.txt_mlp.0.weight", nn.Identity(), from_both=True)
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
EXPECTED = [[True, True, False], [True, False, False]]
ALL = [[True] * 3] * 2
IMAGE_TOKENS = 4


def tokens(count: int) -> torch.Tensor:
    return torch.zeros(2, count, 5)


def shapes_of(mask: torch.Tensor) -> dict[str, Any]:
    """The same mask `[B, L]` in every form that diffusers has: of every number of dimensions and every kind of number."""
    keys = mask.bool()
    pairs = keys[:, None, :, None] & keys[:, None, None]
    added = (1 - mask) * -10000.0
    return {
        "bool": keys,
        "int": mask.long(),
        "half": mask.half(),
        "keys": keys[:, None, None],
        "pairs": pairs,
        "pairs of ints": pairs[:, 0].long(),
        "pairs of numbers": pairs.float(),
        "heads": pairs.expand(-1, 3, -1, -1),
        "added": added[:, None],
        "added to heads": added[:, None, None].expand(-1, 3, -1, -1),
        "added in two dimensions": added,
        "infinite": torch.zeros_like(mask).masked_fill(~keys, -torch.inf)[:, None, None],
        "rows": [row.bool() for row in mask],
        "causal": pairs & torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool).tril(),
    }


@pytest.mark.parametrize("shape", shapes_of(MASK))
@pytest.mark.parametrize("where", ["denoiser", "dictionary", "block", "layer"])
def test_a_mask_in_every_shape_and_place(shape: str, where: str) -> None:
    mask = {"attention_mask": shapes_of(MASK)[shape]}
    of_denoiser = mask if where == "denoiser" else {"joint_attention_kwargs": mask} if where == "dictionary" else {}
    padding = Padding({"hidden_states": tokens(IMAGE_TOKENS), **of_denoiser})
    if where == "layer":
        padding.enter("block", {"attention_mask": torch.zeros(2, 3)})  # the innermost decides
    if where in ("block", "layer"):
        padding.enter({"block": "block", "layer": "block.attn2"}[where], mask)
    found = padding.attended(TEXT, tokens(3))
    assert found is not None
    assert found.tolist() == EXPECTED
    assert padding.attended(IMAGE, tokens(IMAGE_TOKENS)) is None


@pytest.mark.parametrize(
    "name",
    [
        "encoder_attention_mask",
        "encoder_hidden_states_mask",
        "attention_mask",
        "attn_mask",
        "text_embedding_mask",
        "text_embedding_mask_t5",
        "encoder_mask",
        "encoder_attention_mask_2",
        "context_mask",
    ],
)
def test_a_mask_of_the_text_by_every_name(name: str) -> None:
    found = Padding({"hidden_states": tokens(IMAGE_TOKENS), name: MASK}).attended(TEXT, tokens(3))
    assert found is not None
    assert found.tolist() == EXPECTED


@pytest.mark.parametrize("name", ["txt_seq_lens", "encoder_hidden_states_lens", "prompt_lengths"])
@pytest.mark.parametrize("lengths", [[3, 1], (3, 1), torch.tensor([3, 1])])
def test_lengths_of_the_rows(name: str, lengths: Any) -> None:
    found = Padding({name: lengths}).attended(TEXT, tokens(3))
    assert found is not None
    assert found.tolist() == [[True, True, True], [True, False, False]]


@pytest.mark.parametrize("shape", ["keys", "added", "half", "int"])
def test_a_mask_without_padding_hides_nothing(shape: str) -> None:
    found = Padding({"attention_mask": shapes_of(torch.ones(2, 3))[shape]}).attended(TEXT, tokens(3))
    assert found is not None
    assert found.tolist() == ALL


def test_a_mask_repeated_for_the_heads_of_a_layer() -> None:
    """As `PriorTransformer` gives it: causal, added to the logits, `[rows heads, L, L]`."""
    causal = torch.full((3, 3), -10000.0).triu(1)
    mask = (((1 - MASK) * -10000.0)[:, None] + causal).repeat_interleave(4, dim=0)
    padding = Padding({"hidden_states": tokens(IMAGE_TOKENS)})
    padding.enter("block.attn2", {"attention_mask": mask})
    found = padding.attended(TEXT, tokens(3))
    assert found is not None
    assert found.tolist() == EXPECTED
    mask[5, :, 1] = 0.0  # one head sees more than the others of its row
    padding = Padding({"hidden_states": tokens(IMAGE_TOKENS), "attention_mask": mask})
    with pytest.raises(ModelError, match="do not show which are padding"):
        padding.attended(TEXT, tokens(3))


def test_one_row_for_all_rows() -> None:
    found = Padding({"attention_mask": MASK[:1]}).attended(TEXT, tokens(3))
    assert found is not None
    assert found.tolist() == [EXPECTED[0]] * 2


def test_one_vector_for_the_whole_image_has_no_padding() -> None:
    padding = Padding({"hidden_states": tokens(IMAGE_TOKENS), "encoder_attention_mask": MASK})
    assert padding.attended(BOTH, tokens(1)) is None


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    room=st.integers(0, 2),
    image=st.integers(7, 9),
    text_first=st.booleans(),
    pads_left=st.booleans(),
)
def test_the_text_of_a_mask_of_text_and_image(
    lengths: list[int], room: int, image: int, text_first: bool, pads_left: bool
) -> None:
    of_text = torch.arange(max(lengths) + room) < torch.tensor(lengths)[:, None]
    of_text = of_text.flip(1) if pads_left else of_text
    of_image = torch.ones(len(lengths), image, dtype=torch.bool)
    whole = torch.cat([of_text, of_image] if text_first else [of_image, of_text], dim=1)
    padding = Padding({"hidden_states": torch.zeros(len(lengths), image, 5), "attention_mask": whole[:, None, None]})
    found = padding.attended(TEXT, torch.zeros(*of_text.shape, 5))
    assert found is not None
    assert found.tolist() == of_text.tolist()
    both = padding.attended(BOTH, torch.zeros(*whole.shape, 5))
    assert both is not None
    assert both.tolist() == whole.tolist()
    assert padding.attended(BOTH, torch.zeros(len(lengths), image, 5)) is None, "a block of the image alone"


@pytest.mark.parametrize("text_first", [True, False])
def test_a_layer_that_joins_text_and_image_itself(text_first: bool) -> None:
    """As CogView4 does: its mask is of the text, and the text is where its values are."""
    text, image = torch.randn(2, 3, 5), torch.randn(2, IMAGE_TOKENS, 5)
    padding = Padding({})
    padding.enter("block.attn", {"hidden_states": image, "encoder_hidden_states": text, "attention_mask": MASK})
    found = padding.attended(BOTH, torch.cat([text, image] if text_first else [image, text], dim=1))
    rest = [[True] * IMAGE_TOKENS] * 2
    assert found is not None
    assert found.tolist() == [a + b if text_first else b + a for a, b in zip(EXPECTED, rest, strict=True)]
    with pytest.raises(ModelError, match="do not show which are padding"):
        padding.attended(BOTH, torch.cat([text + 1, image], dim=1))


def test_a_layer_that_takes_a_mask_and_is_given_none_attends_to_everything() -> None:
    """As HunyuanDiT: it replaces the padding by a vector that it has learned, and attends to that."""
    padding = Padding({"text_embedding_mask": MASK, "text_embedding_mask_t5": MASK})
    padding.enter("block", {"text_embedding_mask": MASK})
    padding.enter("block.attn2", {"attention_mask": None})
    assert padding.attended(TEXT, tokens(6)) is None


def test_both_streams_of_a_block_that_are_equally_long() -> None:
    padding = Padding({})
    given = {"hidden_states": tokens(3), "encoder_hidden_states": tokens(3), "encoder_hidden_states_mask": MASK}
    padding.enter("block", given)
    found = padding.attended(FEED_TEXT, tokens(3))
    assert found is not None
    assert found.tolist() == EXPECTED
    assert padding.attended(FEED, tokens(3)) is None, "the image's"


def test_a_block_of_the_text_that_is_as_long_as_the_image() -> None:
    padding = Padding({"hidden_states": tokens(3), "encoder_attention_mask": MASK})
    padding.enter("block", {"hidden_states": tokens(3), "attention_mask": MASK})
    found = padding.attended(FEED, tokens(3))
    assert found is not None
    assert found.tolist() == EXPECTED


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"attention_mask": None},
        {"padding_mask": MASK, "img_mask": MASK, "hidden_states_masks": MASK, "image_attention_mask": MASK},
        {"txt_seq_lens": None},
    ],
)
def test_without_a_mask_of_text_every_token_counts(arguments: dict[str, Any]) -> None:
    assert Padding({"hidden_states": tokens(IMAGE_TOKENS), **arguments}).attended(TEXT, tokens(3)) is None


@pytest.mark.parametrize(
    ("mask", "projection", "count"),
    [
        (torch.ones(2, 3), TEXT, 5),  # two texts in one tensor
        (torch.ones(3, 3), TEXT, 3),
        (torch.ones(2, 3), BOTH, 7),  # text and image in one sequence, in an order that does not show
        (torch.ones(2, 9), BOTH, 7),
        (torch.tensor([[1, 1, 0, 1, 0, 1, 1]] * 2), TEXT, 3),  # a text that is not one piece
    ],
)
def test_a_mask_that_does_not_show_the_padding_is_an_error(mask: torch.Tensor, projection: Projection, count: int) -> None:
    padding = Padding({"hidden_states": tokens(IMAGE_TOKENS), "attention_mask": mask})
    words = rf"{projection} receives {count} tokens in 2 rows, and the masks .* do not show .* attention_mask \[{mask.shape[0]}, "
    with pytest.raises(ModelError, match=words):
        padding.attended(projection, tokens(count))
