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
    """The images of a folder by their digests. Cost: one read of every file."""
    return {digest(path): path for path in find_images(Path(source))}


def file_of(files: Mapping[str, Path], prompt: Prompt) -> Path:
    """The file of a prompt's image. Raises ConfigError if it is gone or was edited."""
    if prompt.image is None or prompt.image not in files:
        raise ConfigError(
            f"the image of '{prompt.text}' ({prompt.image}) is not in collect.images any more",
            "put it back, or name the folder that has it with --set collect.images=FOLDER",
        )
    return files[prompt.image]


def read_image(path: Path) -> "Image.Image":
    """An image in RGB, upright as its EXIF data says. Raises ConfigError for a file that does not hold a whole image."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ConfigError(f"cannot read the image {path}: {error}", "save it again as .png, or remove it") from error
    if image.mode[0] in "IF":
        raise ConfigError(f"{path} has more than 8 bits a channel (PIL calls it {image.mode})", "save it with 8 bits")
    return image.convert("RGB")


def require_readable(paths: Sequence[Path]) -> tuple[int, int]:
    """The (width, height) of images. Raises ConfigError for one that is not whole, or of another size than the first.

    Cost: decodes every image; 50 ms for a PNG of 1024 x 1024 pixels, 20 ms for a JPEG.
    """
    size = None
    for path in paths:
        found = read_image(path).size
        size = size or found
        if found != size:
            raise ConfigError(
                f"{path} is {found[0]} x {found[1]} pixels, {paths[0]} is {size[0]} x {size[1]}",
                "a collection is of one size: crop or resize the images, for example with PIL's ImageOps.fit",
            )
    assert size is not None
    return size


def find_images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(
            f"no folder of images at {folder} (in {Path.cwd()})", "set collect.images; relative paths start at the current folder"
        )
    found = [
        path
        for path in sorted(folder.rglob("*"))
        # A name that begins with a dot is no image of the user's: macOS leaves a ._a.png beside a.png.
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise ConfigError(f"{folder} holds no image", f"images end in {', '.join(SUFFIXES)}")
    return found


def digest(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"cannot read the image {path}: {error}", "check its permissions") from error
