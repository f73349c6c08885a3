"""Pictures of any size become pictures of the size that a model trains at; sizes are (width, height) in pixels.

- `crop`: the largest part in the middle that has the aspect of the model's pictures.
- `letterbox`: the whole picture, with a margin on two sides. Its colour is the median of the pixels along these two sides.
- `buckets`: of several sizes with about the model's area (`bucket_sizes`) the one with the nearest aspect, then as `crop`.
- `none`: the picture as it is. Any other size than the model's is an error.

Scaling uses a Lanczos filter over all pixels that it merges. A picture that has its size already is not touched.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nullbooth_cli.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

Resize = Literal["crop", "letterbox", "buckets", "none"]
Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How a picture of the size `original` became one of `size`: `corner` is the left and top edge of what stayed, when scaled.

    Stable Diffusion XL is told all three.
    """

    size: Size
    original: Size
    corner: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class Resizing:
    """How pictures become those of a model that draws `size`; `step` divides the sides of buckets."""

    how: Resize
    size: Size
    step: int

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes that pictures can get."""
        return bucket_sizes(self.size, self.step) if self.how == "buckets" else (self.size,)

    def target(self, size: Size) -> Size:
        """The size that a picture of this size gets: that of the nearest aspect."""
        return min(self.sizes, key=lambda each: abs(math.log(each[0] * size[1] / (each[1] * size[0]))))

    def require_taken(self, path: Path, size: Size) -> None:
        """Raise ConfigError for a picture of another size if none is changed."""
        if self.how == "none" and size != self.size:
            raise ConfigError(
                f"{path} is {size[0]} x {size[1]} pixels, the model trains at {self.size[0]} x {self.size[1]}",
                "set resize to crop, letterbox or buckets, or resize the pictures",
            )

    def is_far_too_small(self, size: Size) -> bool:
        """Whether the shorter side of a picture is less than half of what it is enlarged to."""
        return 2 * min(size) < min(self.target(size))

    def framing(self, size: Size) -> Framing:
        """What happens to a picture of this size."""
        target = self.target(size)
        if self.how == "letterbox":
            return Framing(size=target, original=size)
        scale = max(new / old for new, old in zip(target, size, strict=True))
        left, top = (round((old * scale - new) / 2) for new, old in zip(target, size, strict=True))
        return Framing(size=target, original=size, corner=(left, top))

    def apply(self, image: "Image.Image") -> "Image.Image":
        """A picture in RGB at the size that it gets."""
        size = self.target(image.size)
        return letterbox(image, size) if self.how == "letterbox" else crop(image, size)


def bucket_sizes(size: Size, step: int) -> tuple[Size, ...]:
    """The sizes whose sides are multiples of `step`, at least half the root of the area of `size`, to which no step can be added
    without more than that area. The size itself is one of them if `step` divides it, and each size is there upright and across.
    """
    area = size[0] * size[1]
    shortest = math.ceil(math.sqrt(area) / 2 / step) * step
    found = [(width, area // width // step * step) for width in range(shortest, area // shortest + 1, step)]
    return tuple((width, height) for width, height in found if height >= shortest and (width + step) * height > area)


def crop(image: "Image.Image", size: Size) -> "Image.Image":
    """The largest part in the middle with the aspect of `size`, scaled to it."""
    from PIL import Image, ImageOps

    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def letterbox(image: "Image.Image", size: Size) -> "Image.Image":
    """The whole picture, scaled to fit into `size`, in the middle of a margin of the colour of the sides that it extends."""
    from PIL import Image

    if image.size == size:
        return image
    scale = min(size[0] / image.width, size[1] / image.height)
    inside = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    inner = image.resize(inside, Image.Resampling.LANCZOS)
    found = Image.new("RGB", size, _colour_of_sides(inner, beside=inner.width < size[0]))
    found.paste(inner, ((size[0] - inner.width) // 2, (size[1] - inner.height) // 2))
    return found


def _colour_of_sides(image: "Image.Image", *, beside: bool) -> tuple[int, ...]:
    """The median colour of the left and right column of pixels (`beside`), or of the first and last row."""
    import numpy as np

    pixels = np.asarray(image)
    sides = pixels[:, [0, -1]] if beside else pixels[[0, -1]]
    return tuple(int(value) for value in np.median(sides, axis=(0, 1)))
