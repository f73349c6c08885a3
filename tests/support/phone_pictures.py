"""Ten bare pictures of the toy subject as phones leave them: sizes, aspects, names, orientations and modes all differ."""

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nullbooth_cli.toy import subject, world

Pixels = NDArray[np.uint8]
ORIENTATION = 0x0112
# The transposition that stores what is to be seen under an orientation of EXIF.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


def write_phone_pictures(folder: Path) -> dict[Path, str]:
    """Write ten pictures without captions into a folder, and give the background of each.

    The subject is whole in the largest square in the middle; beyond it the background continues.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}

    def drawn(name: str, background: str, width: int, height: int, *place: float) -> tuple[Path, Image.Image]:
        path = folder / name
        found[path] = background
        return path, Image.fromarray(draw_large(background, width, height, *place))

    _save_turned(*drawn("IMG_0412.JPG", "white", 480, 640, 0.0, 0.5, 10.0), 6)
    _save_turned(*drawn("IMG_0413.jpeg", "purple", 600, 450, -1.0, 0.0, 9.0), 3)
    _save_turned(*drawn("20240512_143012.jpg", "gray", 960, 540, 1.5, -1.0, 11.0), 8)
    _save_turned(*drawn("IMG_20240513_0001.jpg", "black", 300, 225, 0.5, 1.0, 9.5), 2)
    path, image = drawn("Screenshot_20240514-101530.png", "black", 180, 400, 1.0, 0.0, 10.5)
    image.quantize(16).save(path)
    path, image = drawn("IMG_0420.PNG", "white", 256, 256, -0.5, -1.5, 11.0)
    _clear(image, "white").save(path)
    path, image = drawn("Scan 16 bit.png", "purple", 320, 240, 0.0, 0.0, 10.0)
    path.write_bytes(png_of_16_bits(np.asarray(image)))
    path, image = drawn("IMG-20240515-WA0003.jpg", "gray", 512, 384, 2.0, 1.0, 9.0)
    image.convert("CMYK").save(path, quality=92)
    path, image = drawn("PXL_20240516_081523.MP.jpg", "white", 450, 800, 0.0, -0.5, 11.0)
    image.save(path, format="MPO", save_all=True, append_images=[image.resize((45, 80))], quality=92)
    path, image = drawn("Bild 7 (1).webp", "purple", 97, 131, -1.0, 1.0, 10.0)
    image.save(path, quality=92)
    return found


def draw_large(background: str, width: int, height: int, x: float = 0.0, y: float = 0.0, radius: float = 10.0) -> Pixels:
    """The subject, `[height, width, 3]`: `subject.draw` of the largest square in the middle, the background continued."""
    scale = world.SIZE / min(width, height)
    px, py = np.meshgrid(*(((np.arange(n) + 0.5 - n / 2) * scale - at) / radius for n, at in ((width, x), (height, y))))
    halves = np.where(px[..., None] < 0, world.RGB[subject.LEFT], world.RGB[subject.RIGHT])
    mask = world.inside(subject.SHAPE, px, py)[..., None]
    return np.where(mask, halves, world.RGB[background]).astype(np.uint8)


def png_of_16_bits(pixels: Pixels) -> bytes:
    """A PNG of `[h, w, 3]` with 16 bits a channel, which Pillow reads and cannot write."""
    height, width, _ = pixels.shape
    rows = (pixels.astype(">u2") * 257).astype(">u2").reshape(height, -1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _save_turned(path: Path, image: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.transpose(STORED[orientation]).save(path, quality=92, exif=exif)


def _clear(image: Image.Image, background: str) -> Image.Image:
    """RGBA: the background is transparent, and black below, as a cut-out is saved."""
    pixels = np.asarray(image)
    seen = (pixels != world.RGB[background]).any(axis=-1, keepdims=True)
    return Image.fromarray(np.concatenate([pixels * seen, seen * np.uint8(255)], axis=-1))
