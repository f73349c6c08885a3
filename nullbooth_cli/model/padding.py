"""Which tokens of a projection's tensor are padding, by the masks that its layer is given.

Padding are the tokens that no token attends to. The attention layer's own mask says which, or that of a block around it, or that
of the denoiser: the innermost one that takes a mask decides. Masks are found by their names and read in every shape: `[B, L]`,
`[B, 1, L]`, `[B, 1, 1, L]`, `[B, 1, L, L]`, of bool, of 0 and 1, or added to the logits; also the lengths of the rows.

A mask may cover the tensor's tokens, those of text and image, of which the tensor has the text, or the text of such a sequence.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch

from nullbooth_cli.datatypes import ATTENTION_FEATURES
from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.projections import Projection

TEXT_ARGUMENT = "encoder_hidden_states"  # diffusers' name of a denoiser's text `[rows, L, D]`
_IMAGE_ARGUMENT = "hidden_states"
_MASK = re.compile(r"(?!padding_|hidden_states_|.*(image|img|noise|adapter|pixel))\w*masks?(_\w+)?")
_LENGTHS = re.compile(r"\w*(txt|text|encoder|prompt|cap|caption|context)\w*_len(s|gths?)")
_OF_TEXT = re.compile(r"txt|text|context|caption|cap_|encoder|add_")  # in the path of a part of the text
_HIDDEN = -1.0  # what a mask adds to the logits of a token that is not attended to is less


class _Given(NamedTuple):
    """What a module was given: its masks `[b, M]` by name (None for one that it may take), and the lengths of image and text.

    `text` is the text itself, `[b, M, D]`.
    """

    masks: Mapping[str, torch.Tensor | None]
    num_image: int | None
    text: torch.Tensor | None


class Padding:
    """The padding of one forward, from the arguments of the denoiser and, by `enter`, from those of its blocks and layers."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._read: dict[int, tuple[Any, torch.Tensor]] = {}  # masks that were read, with what they were read from
        self._given = {"": self._take(arguments)}

    def enter(self, path: str, arguments: Mapping[str, Any]) -> None:
        """Note the arguments of a block or layer that is about to run, by name; a mask that it may take is there as None."""
        self._given[path] = self._take(arguments)

    def attended(self, projection: Projection, tensor: torch.Tensor) -> torch.Tensor | None:
        """`[rows, L]` bool, False for padding, of a projection's tensor `[rows, L, D]`; None if nothing in it is padding.

        Raises ModelError if the masks do not show which of its tokens are padding.
        """
        if not (projection.from_text or projection.from_both):
            return None
        given = self._innermost(projection)
        masks = {name: _by_row(mask, len(tensor)) for name, mask in given.masks.items() if mask is not None}
        if not masks or _is_of_image(projection, tensor, given, masks):
            return None
        for fitting in (_whole, _of_text, _around_text):
            for mask in masks.values():
                if len(mask) in (1, len(tensor)) and (found := fitting(mask, projection, tensor, given)) is not None:
                    return found.expand(tensor.shape[:2])
        shapes = ", ".join(f"{name} {list(mask.shape)}" for name, mask in masks.items())
        raise ModelError(
            f"{projection} receives {tensor.shape[1]} tokens in {len(tensor)} rows, and the masks of this pipeline do not "
            f"show which are padding: {shapes}",
            "leave it out of collect.cross_attention_layers and collect.linear_layers, or choose another model: padding must not "
            "count as preserved",
        )

    def _innermost(self, projection: Projection) -> _Given:
        """What the innermost module around a projection was given that takes masks."""
        path = projection.weight.removesuffix(".weight")
        while path:
            if (given := self._given.get(path)) is not None and given.masks:
                return given
            path = path.rpartition(".")[0]
        return self._given[""]

    def _take(self, arguments: Mapping[str, Any]) -> _Given:
        image, text = arguments.get(_IMAGE_ARGUMENT), arguments.get(TEXT_ARGUMENT)
        return _Given(
            dict(self._masks(arguments)),
            image.shape[1] if isinstance(image, torch.Tensor) and image.dim() == 3 else None,
            text if isinstance(text, torch.Tensor) and text.dim() == 3 else None,
        )

    def _masks(self, arguments: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor | None]]:
        """The masks of text among arguments, and in the dictionaries among them."""
        for name, value in arguments.items():
            # Control networks give blocks by their numbers.
            may_be_mask, may_be_lengths = _meaning(name) if isinstance(name, str) else (False, False)
            if may_be_mask and (value is None or _is_mask(value)):
                yield name, None if value is None else self._once(value, _of_keys)
            elif may_be_lengths and _is_lengths(value):
                yield name, self._once(value, _of_lengths)
            elif value is not None and isinstance(value, Mapping):
                yield from self._masks(value)

    def _once(self, value: Any, read: Any) -> torch.Tensor:
        """A mask `[b, M]`, read once in a forward: layers share it."""
        if id(value) not in self._read:
            self._read[id(value)] = value, read(value)
        return self._read[id(value)][1]


@cache
def _meaning(name: str) -> tuple[bool, bool]:
    """Whether an argument of this name may be a mask, and whether it may be lengths."""
    return _MASK.fullmatch(name) is not None, _LENGTHS.fullmatch(name) is not None


def _is_mask(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(each, torch.Tensor) and each.dim() == 1 for each in value)
    return isinstance(value, torch.Tensor) and value.dim() >= 2


def _of_keys(mask: Any) -> torch.Tensor:
    """`[b, M]` bool: the tokens that any query of any head attends to."""
    if isinstance(mask, list | tuple):
        return torch.nn.utils.rnn.pad_sequence([*map(_of_row, mask)], batch_first=True)
    attended = _of_row(mask)
    return attended.flatten(1, -2).any(1) if mask.dim() > 2 else attended


def _of_row(mask: torch.Tensor) -> torch.Tensor:
    """The tokens that are attended to, bool. A mask of numbers is added to the logits if it has negative ones or, from three
    dimensions on, no positive ones; else they are 0 and 1."""
    if not mask.is_floating_point():
        return mask > 0
    is_added = (mask < 0).any() if mask.dim() < 3 else ~(mask > 0).any()
    return torch.where(is_added, mask > _HIDDEN, mask > 0)


def _by_row(mask: torch.Tensor, num_rows: int) -> torch.Tensor:
    """A mask `[rows heads, M]`, repeated for each head of a layer, as `[rows, M]`; any other one as it is."""
    if len(mask) <= num_rows or len(mask) % num_rows:
        return mask
    of_heads = mask.unflatten(0, (num_rows, -1))
    return of_heads[:, 0] if (of_heads == of_heads[:, :1]).all() else mask


def _is_lengths(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dim() == 1 and not value.is_floating_point()
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, int) for each in value)


def _of_lengths(lengths: torch.Tensor | Sequence[int]) -> torch.Tensor:
    """`[b, M]` bool of rows with so many tokens each."""
    every = torch.as_tensor(lengths)
    return torch.arange(int(every.max()), device=every.device) < every[:, None]


def _is_of_image(projection: Projection, tensor: torch.Tensor, given: _Given, masks: Mapping[str, torch.Tensor]) -> bool:
    """Whether a projection that may receive both streams has the image's, or one vector for all of it."""
    if projection.from_text:
        return False
    num_tokens = tensor.shape[1]
    fits = any(mask.shape[1] == num_tokens for mask in masks.values())
    is_attention = projection.feature in ATTENTION_FEATURES.values()
    if fits and (is_attention or given.text is None or _OF_TEXT.search(projection.weight)):
        return False
    return num_tokens in (1, given.num_image)


def _whole(mask: torch.Tensor, projection: Projection, tensor: torch.Tensor, given: _Given) -> torch.Tensor | None:
    """A mask of the tensor's own tokens."""
    return mask if mask.shape[1] == tensor.shape[1] else None


def _of_text(mask: torch.Tensor, projection: Projection, tensor: torch.Tensor, given: _Given) -> torch.Tensor | None:
    """The text's part of a mask of text and image, in whichever order: no token of the image is padding.

    If both orders are possible, that in which the text of every row is one piece; if both still are, that which is padded at its
    end.
    """
    num_text = tensor.shape[1]
    if not projection.from_text or mask.shape[1] <= num_text:
        return None
    orders = ((mask[:, :num_text], mask[:, num_text:]), (mask[:, -num_text:], mask[:, :-num_text]))
    possible = [text for text, image in orders if image.all()]
    for fits in (_is_one_piece, lambda text: text[:, 0].all()):
        if len(possible) == 2 and not torch.equal(*possible):
            possible = [text for text in possible if fits(text)]
    return possible[0] if len(possible) == 1 or (possible and torch.equal(*possible)) else None


def _is_one_piece(text: torch.Tensor) -> torch.Tensor:
    return ((text[:, 1:] != text[:, :-1]).sum(1) <= 1).all()


def _around_text(mask: torch.Tensor, projection: Projection, tensor: torch.Tensor, given: _Given) -> torch.Tensor | None:
    """The mask of text in a tensor of text and image, which the layer joins itself: the text is found where its values are."""
    num_text, num_image = mask.shape[1], tensor.shape[1] - mask.shape[1]
    if not projection.from_both or num_image <= 0 or given.text is None or given.text.shape[:2] != (len(tensor), num_text):
        return None
    mask = mask.expand(len(tensor), num_text)
    image = mask.new_ones(len(tensor), num_image)
    if torch.equal(tensor[:, :num_text], given.text):
        return torch.cat([mask, image], dim=1)
    return torch.cat([image, mask], dim=1) if torch.equal(tensor[:, num_image:], given.text) else None
