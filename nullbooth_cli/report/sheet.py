"""A sheet of pictures: a row for each prompt, a column for each model and seed, with prompts, models and seeds written on it.

    write_sheet(Path("sheet.png"), Sheet.of(samples))

Small pictures are enlarged by whole factors, pixel by pixel; large ones are reduced. `write_pictures()` writes each as it is.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import visible
from nullbooth_cli.report.files import require_writable, writing
from nullbooth_cli.report.json_document import Document

if TYPE_CHECKING:
    from nullbooth_cli.evaluation.samples import Samples

SMALLEST, LARGEST = 256, 512  # pixels of the longer side of a picture in a sheet
BACKGROUND, INK, FAINT = "white", "#222222", "#666666"
Images = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Pictures `[P, S, H, W, 3]` of P prompts and S seeds, by the name of their model, in the order of the columns."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    models: Mapping[str, Images]

    @classmethod
    def of(cls, samples: "Samples") -> "Sheet":
        """The sheet of samples."""
        return cls(prompts=samples.prompts, seeds=samples.seeds, models={model.name: model.images for model in samples.models})


@dataclass(frozen=True, kw_only=True)
class DrawnModelAnswer:
    """One model of a sheet; `base` and `tokens` as far as its files tell."""

    name: str
    base: str | None
    tokens: Sequence[str]
    num_inference_steps: int
    guidance_scale: float | None


@dataclass(frozen=True, kw_only=True)
class SampleAnswer(Document):
    """The files that were written; `images` are single pictures by prompt, then model, then seed."""

    sheet: str
    images: Sequence[str]
    prompts: Sequence[str]
    seeds: Sequence[int]
    models: Sequence[DrawnModelAnswer]

    @classmethod
    def of(cls, samples: "Samples", sheet: Path, images: Sequence[Path]) -> "SampleAnswer":
        """The answer about samples that were written."""
        return cls(
            sheet=str(sheet),
            images=[str(path) for path in images],
            prompts=samples.prompts,
            seeds=samples.seeds,
            models=[
                DrawnModelAnswer(
                    name=model.name,
                    base=model.base,
                    tokens=model.tokens,
                    num_inference_steps=model.num_inference_steps,
                    guidance_scale=model.guidance_scale,
                )
                for model in samples.models
            ],
        )


def require_sheet(path: Path) -> None:
    """Raise ConfigError for a name that is not a PNG's, ResourceError for a folder that cannot be written: drawing takes time."""
    if path.suffix.lower() != ".png":
        raise ConfigError(f"a sheet is a PNG, and {path} does not end in .png", "name a file that does")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder", "name a file")
    require_writable(path.parent)


def write_sheet(path: Path, sheet: Sheet) -> Path:
    """Write a sheet as a PNG. Raises as `require_sheet`."""
    require_sheet(path)
    drawn = draw_sheet(sheet)
    with writing(str(path)):
        drawn.save(path)
    return path


def write_pictures(folder: Path, sheet: Sheet) -> list[Path]:
    """Write every picture as `<prompt number>-<model>-seed<seed>.png`, in its own size. Raises ResourceError if that fails."""
    require_writable(folder)
    names = _file_names(tuple(sheet.models))
    written = []
    with writing(f"into {folder}"):
        for row in range(len(sheet.prompts)):
            for name, images in zip(names, sheet.models.values(), strict=True):
                for column, seed in enumerate(sheet.seeds):
                    written.append(folder / f"{row + 1:02d}-{name}-seed{seed}.png")
                    Image.fromarray(images[row, column]).save(written[-1])
    return written


def _file_names(models: Sequence[str]) -> list[str]:
    """Names that a file may have; a number keeps those apart that would be the same."""
    names = [re.sub(r"[^\w.@+]+", "-", model).strip("-.")[-80:] for model in models]
    return [name if names.count(name) == 1 else f"{i + 1}-{name}" for i, name in enumerate(names)]


def draw_sheet(sheet: Sheet) -> Image.Image:
    """A sheet as an RGB image."""
    return _Layout(sheet).drawn()


class _Layout:
    """Where everything is: prompts over their rows, models over their columns, in pixels."""

    def __init__(self, sheet: Sheet) -> None:
        self.sheet = sheet
        sides = [_shown_size(images.shape[3], images.shape[2]) for images in sheet.models.values()]
        self.width, self.height = max(width for width, _ in sides), max(height for _, height in sides)  # of a cell
        self.size = max(16, max(self.width, self.height) // 24)  # of the letters
        self.gap, self.between = self.size // 4, 2 * self.size  # of two seeds, of two models
        group = len(sheet.seeds) * (self.width + self.gap) - self.gap
        self.left = [self.size + i * (group + self.between) for i in range(len(sheet.models))]
        self.right = self.left[-1] + group
        self.names = [_wrapped(visible(name), self.bold, group) for name in sheet.models]
        self.texts = [_wrapped(visible(prompt), self.plain, self.right - self.left[0]) for prompt in sheet.prompts]

    @cached_property
    def plain(self) -> ImageFont.FreeTypeFont:
        return _font("DejaVuSans.ttf", self.size)

    @cached_property
    def bold(self) -> ImageFont.FreeTypeFont:
        return _font("DejaVuSans-Bold.ttf", self.size)

    def drawn(self) -> Image.Image:
        line = self.size * 5 // 4
        head = self.size + max(map(len, self.names)) * line
        rows = [self.size + len(text) * line + self.size // 4 + self.height for text in self.texts]
        made = Image.new("RGB", (self.right + self.size, head + line + sum(rows) + self.size), BACKGROUND)
        pen = ImageDraw.Draw(made)
        for left, name in zip(self.left, self.names, strict=True):
            self._write(pen, left, head - len(name) * line, name, self.bold)
            for column, seed in enumerate(self.sheet.seeds):
                self._write(pen, self._column(left, column), head, [f"seed {seed}"], self.plain, FAINT)
        top = head + line
        for row, text in enumerate(self.texts):
            self._write(pen, self.left[0], top + self.size, text, self.plain)
            top += rows[row]
            for left, images in zip(self.left, self.sheet.models.values(), strict=True):
                for column in range(len(self.sheet.seeds)):
                    made.paste(_shown(images[row, column]), (self._column(left, column), top - self.height))
        return made

    def _column(self, left: int, column: int) -> int:
        return left + column * (self.width + self.gap)

    def _write(
        self,
        pen: ImageDraw.ImageDraw,
        left: int,
        top: int,
        lines: Sequence[str],
        font: ImageFont.FreeTypeFont,
        colour: str = INK,
    ) -> None:
        for number, line in enumerate(lines):
            pen.text((left, top + number * (self.size * 5 // 4)), line, fill=colour, font=font)


def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    """DejaVu, which comes with matplotlib and has most alphabets."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf" / file, size)


def _shown_size(width: int, height: int) -> tuple[int, int]:
    """The size of a picture in a sheet: enlarged by a whole factor to `SMALLEST` or more, or reduced to `LARGEST`."""
    longer = max(width, height)
    if longer > LARGEST:
        return max(1, round(width * LARGEST / longer)), max(1, round(height * LARGEST / longer))
    factor = -(-SMALLEST // longer)
    return factor * width, factor * height


def _shown(image: Images) -> Image.Image:
    made = Image.fromarray(image)
    size = _shown_size(*made.size)
    return made.resize(size, Image.Resampling.NEAREST if size[0] >= made.width else Image.Resampling.LANCZOS)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A text in lines of at most `width` pixels, broken at spaces and slashes, else anywhere."""
    lines = [""]
    for piece in re.findall(r"[^\s/]*[\s/]+|[^\s/]+", text):
        if lines[-1] and font.getlength(f"{lines[-1]}{piece.rstrip()}") > width:
            lines.append("")
        if font.getlength(piece.rstrip()) <= width:
            lines[-1] += piece
            continue
        for character in piece:
            if lines[-1] and font.getlength(f"{lines[-1]}{character}") > width:
                lines.append("")
            lines[-1] += character
    return [line.strip() for line in lines]
