"""Image files: finding them in a folder, telling them apart by their content, and reading them.

Every file of a folder is accounted for. It is an image if Pillow can open it, whatever its name; it holds captions (.txt,
.caption, metadata.csv, metadata.jsonl); or it is known to be neither (`OTHERS`). Anything else is an error, which names it.

An image is read as RGB with 8 bits a channel, as it is seen: turned upright by its EXIF data, transparency over white. Palettes,
grays and CMYK are converted as Pillow does. Of 16 bits a channel the upper 8 remain. Colour profiles are not applied.
"""

import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import listed
from nullbooth_cli.settings.shipped import picture_folder

if TYPE_CHECKING:
    from PIL import Image

BESIDE = (".txt", ".caption")
TABLES = ("metadata.csv", "metadata.jsonl")
# What systems, trainers, photo programs and authors leave beside images: hidden files, lists of previews, cached latents, edits
# of a picture, descriptions.
OTHERS = re.compile(r"\..*|thumbs\.db|desktop\.ini|__macosx|.*\.(npz|aae|xmp)|(readme|license)(\.(md|txt))?", re.IGNORECASE)
WHOLE_FIRST_FRAME = ("MPO", "PSD")  # formats whose other frames are previews or layers of the first
HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis")  # its brands: HEIC and AVIF
SIXTEEN_BITS_IN_I = ("PNG", "PPM")  # formats whose grays of 16 bits Pillow may give as 32-bit integers
REDUCED, DNG_VERSION, BITS_PER_SAMPLE = 254, 50706, 258  # tags of TIFF


@dataclass(frozen=True)
class ImageFolder:
    """The files of a folder and the folders inside it, each list sorted: images, captions beside them, and tables of captions."""

    images: tuple[Path, ...]
    beside: tuple[Path, ...]
    tables: tuple[Path, ...]


def image_files(source: str) -> dict[str, Path]:
    """The image files of a folder by their digests. Cost: one read of every file."""
    return {digest(path): path for path in read_image_folder(picture_folder(source, "collect.images")).images}


def file_of(files: Mapping[str, Path], prompt: Prompt) -> Path:
    """The file of a prompt's image, found by its digest. Raises ConfigError if the file is gone or was edited."""
    if prompt.image is None or prompt.image not in files:
        raise ConfigError(
            f"the image of '{prompt.text}' ({prompt.image}) is no longer in collect.images",
            "put it back, or set collect.images to the folder that has it",
        )
    return files[prompt.image]


def read_image_folder(folder: Path, key: str = "collect.images") -> ImageFolder:
    """The files of a folder; `key` is the setting that names it. Links are followed.

    Raises ConfigError if there is no folder or no image, for a folder that cannot be listed or is met twice, and for files that
    are neither images nor captions. Cost: opens every file.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"no folder of images at {folder} (in {Path.cwd()})",
            f"set {key} to a folder that exists; relative paths start at the current folder",
        )
    images, beside, tables, unknown = [], [], [], []
    for path in sorted(_files(folder)):
        if path.name in TABLES:
            tables.append(path)
        elif path.suffix.lower() in BESIDE:
            beside.append(path)
        elif _is_image(path):
            images.append(path)
        else:
            unknown.append(path)
    if unknown:
        heif = [path for path in unknown if _is_heif(path)]
        export = (
            f"export {listed([path.name for path in heif])} as JPEG, which every photo program and phone can; " if heif else ""
        )
        raise ConfigError(
            f"{listed(unknown)} in {folder}: neither images that can be read nor captions",
            f"{export}save damaged images as .png or .jpg again, and move films and other files elsewhere",
        )
    if not images:
        raise ConfigError(f"{folder} has no image", f"put images there, or set {key} to the folder that has them")
    return ImageFolder(tuple(images), tuple(beside), tuple(tables))


def _files(folder: Path) -> Iterator[Path]:
    met: dict[str, str] = {}

    def refuse(error: OSError) -> None:
        raise ConfigError(f"cannot list {error.filename}: {error.strerror}", "check its permissions") from error

    for place, inner, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        if real in met:
            raise ConfigError(f"{place} and {met[real]} are one folder", "remove the link")
        met[real] = place
        inner[:] = [name for name in inner if not OTHERS.fullmatch(name)]
        yield from (Path(place, name) for name in names if not OTHERS.fullmatch(name))


def _is_image(path: Path) -> bool:
    from PIL import Image, UnidentifiedImageError

    try:
        with _decoding(path), Image.open(path):
            return True
    except ConfigError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            return False
        raise


def _is_heif(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:] in HEIF


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Raise whatever a decoder raises as ConfigError: for damaged files it is any exception, of a dozen types."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except ConfigError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ConfigError(f"cannot read the image {path}: {error}", "put a smaller copy in its place") from error
    except Exception as error:  # of a dozen types, without a common base class
        raise ConfigError(f"cannot read the image {path}: {error}", "save it again as .png, or remove it") from error


def read_image(path: Path) -> "Image.Image":
    """An image in RGB.

    Raises ConfigError for a file that is not a whole image, an animation, a raw photo (of which Pillow reads a preview), and
    values that have no known range: 32-bit integers and floats.
    """
    from PIL import Image, ImageOps

    with _decoding(path), Image.open(path) as opened:
        frames = getattr(opened, "n_frames", 1)
        if frames > 1 and opened.format not in WHOLE_FIRST_FRAME:
            raise ConfigError(f"{path} has {frames} frames, not one", "save the frame that you mean as .png")
        tags = getattr(opened, "tag_v2", {})
        if DNG_VERSION in tags or tags.get(REDUCED, 0) & 1:
            raise ConfigError(f"{path} is a raw photo, of which only a preview can be read", "export it as JPEG")
        image = ImageOps.exif_transpose(opened)
        image.load()
        if image.mode.startswith("I;16") or (image.mode == "I" and opened.format in SIXTEEN_BITS_IN_I):
            (bits,) = tags.get(BITS_PER_SAMPLE, (16,))
            image = _upper_8_bits(image, bits)
        elif image.mode[0] in "IF":
            raise ConfigError(
                f"{path} has 32 bits a channel (PIL calls it {image.mode}), and their range is not known",
                "save it with 8 or 16 bits a channel",
            )
        if image.has_transparency_data:
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
        return image.convert("RGB")


def _upper_8_bits(image: "Image.Image", bits: int) -> "Image.Image":
    """Gray of `bits` bits as gray of 8, or with the transparency of one of its values."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    gray = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    if "transparency" not in image.info:
        return gray
    seen = Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8))
    return Image.merge("LA", (gray, seen))


def require_readable(paths: Sequence[Path]) -> tuple[int, int]:
    """The (width, height) of images. Raises ConfigError for one that cannot be read, or whose size differs from the first.

    Cost: that of `sizes_of`.
    """
    sizes = sizes_of(paths)
    for path, found in zip(paths, sizes, strict=True):
        if found != sizes[0]:
            raise ConfigError(
                f"{path} is {found[0]} x {found[1]} pixels, {paths[0]} is {sizes[0][0]} x {sizes[0][1]}",
                "crop or resize the images to one size, for example with PIL's ImageOps.fit",
            )
    return sizes[0]


def sizes_of(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """The (width, height) of images as they are seen. Raises ConfigError for one that cannot be read.

    Cost: decodes every image; 50 ms for a PNG of 1024 x 1024 pixels, 20 ms for a JPEG.
    """
    return [read_image(path).size for path in paths]


def digest(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"cannot read the image {path}: {error}", "check its permissions") from error
