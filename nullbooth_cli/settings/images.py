"""Image files: finding them in a folder, telling them apart by their content, and reading them."""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def image_files(source: str) -> dict[str, Path]:
    """The image files of a folder by their digests. Cost: one read of every file."""
    return {digest(path): path for path in find_images(Path(source))}


def file_of(files: Mapping[str, Path], prompt: Prompt) -> Path:
    """The file of a prompt's image, found by its digest. Raises ConfigError if the file is gone or was edited."""
    if prompt.image is None or prompt.image not in files:
        raise ConfigError(
            f"the image of '{prompt.text}' ({prompt.image}) is no longer in collect.images",
            "put it back, or set collect.images to the folder that has it",
        )
    return files[prompt.image]


def read_image(path: Path) -> "Image.Image":
    """An image in RGB, turned upright by its EXIF data. Raises ConfigError for a file that is not a whole image."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ConfigError(f"cannot read the image {path}: {error}", "save it again as .png, or remove it") from error
    if image.mode[0] in "IF":
        raise ConfigError(f"{path} has more than 8 bits a channel (PIL calls it {image.mode})", "save it with 8 bits a channel")
    return image.convert("RGB")


def require_readable(paths: Sequence[Path]) -> tuple[int, int]:
    """The (width, height) of images. Raises ConfigError for one that is not whole, or whose size differs from the first.

    Cost: decodes every image; 50 ms for a PNG of 1024 x 1024 pixels, 20 ms for a JPEG.
    """
    size = None
    for path in paths:
        found = read_image(path).size
        size = size or found
        if found != size:
            raise ConfigError(
                f"{path} is {found[0]} x {found[1]} pixels, {paths[0]} is {size[0]} x {size[1]}",
                "crop or resize the images to one size, for example with PIL's ImageOps.fit",
            )
    assert size is not None
    return size


def find_images(folder: Path) -> list[Path]:
    """The image files in a folder and the folders inside it, sorted. Raises ConfigError if there is none."""
    if not folder.is_dir():
        raise ConfigError(
            f"no folder of images at {folder} (in {Path.cwd()})", "set collect.images; relative paths start at the current folder"
        )
    found = [
        path
        for path in sorted(folder.rglob("*"))
        # macOS writes a ._a.png beside a.png: names that begin with a dot are not the user's images.
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise ConfigError(f"{folder} has no image", f"put images there; their names end in {', '.join(SUFFIXES)}")
    return found


def digest(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"cannot read the image {path}: {error}", "check its permissions") from error
