"""Draw held-out captions with the embedded model and score the pictures exactly: `python -m nullbooth_cli.toy.score`.

Held-out captions are combinations of shape, colour and background that training never saw. Every caption is drawn in three ways:
as it is, with an unknown word, and after "a photo of". The scorer (`world.read`) reads the picture back.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from nullbooth_cli.tensors import generators
from nullbooth_cli.toy import FOLDER, world

if TYPE_CHECKING:
    from PIL import Image

WAYS: dict[str, Callable[[str, np.random.Generator], str]] = {
    "plain": lambda text, rng: text,
    "unknown word": lambda text, rng: text.replace("a ", f"a {unknown_word(rng)} ", 1),
    "a photo of": lambda text, rng: f"a photo of {text}",
}


@dataclass(frozen=True)
class Scores:
    """The share of pictures (0 to 1) in which each part is right."""

    colour: float
    background: float
    shape: float


def unknown_word(rng: np.random.Generator) -> str:
    """A reserved word (one token, never trained) or random letters that become several tokens, with equal chance."""
    return str(rng.choice(world.RESERVED_WORDS)) if rng.random() < 0.5 else world.unknown_word(rng)


def paint(
    pipe: Any, texts: Sequence[str], *, steps: int, guidance: float, seed: int, batch_size: int = 50, output_type: str = "np"
) -> NDArray[np.float32]:
    """Draw captions, caption i from the noise of `seed + i`; RGB in [0, 1], `[N, 32, 32, 3]`, or latents `[N, C, h, w]`."""
    pictures = []
    for start in range(0, len(texts), batch_size):
        batch = list(texts[start : start + batch_size])
        noise = generators(range(seed + start, seed + start + len(batch)))
        drawn = pipe(batch, num_inference_steps=steps, guidance_scale=guidance, generator=noise, output_type=output_type)
        pictures.append(np.asarray(drawn.images))
    return np.concatenate(pictures)


def held_out_triples(count: int, seed: int = 0) -> list[world.Triple]:
    """`count` held-out (shape, colour, background), each as often as the others."""
    _, held_out = world.split()
    rng = np.random.default_rng(seed)
    rounds = -(-count // len(held_out))
    return [held_out[i] for _ in range(rounds) for i in rng.permutation(len(held_out))][:count]


def score(pictures: NDArray[np.float32], triples: Sequence[world.Triple]) -> Scores:
    """The share of pictures that show each part of their caption."""
    readings = [world.read(picture) for picture in pictures]
    pairs = list(zip(readings, triples, strict=True))
    return Scores(
        colour=float(np.mean([reading.colour == colour for reading, (_, colour, _) in pairs])),
        background=float(np.mean([reading.background == background for reading, (_, _, background) in pairs])),
        shape=float(np.mean([reading.shape == shape for reading, (shape, _, _) in pairs])),
    )


def share_right(pictures: NDArray[np.float32], triples: Sequence[world.Triple]) -> float:
    """The share of pictures that show all parts of their caption."""
    readings = [world.read(picture) for picture in pictures]
    return float(np.mean([(r.shape, r.colour, r.background) == each for r, each in zip(readings, triples, strict=True)]))


def grid(pictures: NDArray[np.float32], columns: int, scale: int = 3) -> "Image.Image":
    """The pictures in rows, each pixel `scale` wide, with white gutters, as a PIL image."""
    from PIL import Image

    gutter = 2
    rows = -(-len(pictures) // columns)
    canvas = np.ones((rows * (world.SIZE + gutter) - gutter, columns * (world.SIZE + gutter) - gutter, 3), np.float32)
    for i, picture in enumerate(pictures):
        y, x = (i // columns) * (world.SIZE + gutter), (i % columns) * (world.SIZE + gutter)
        canvas[y : y + world.SIZE, x : x + world.SIZE] = picture
    image = Image.fromarray((canvas.clip(0, 1) * 255).round().astype(np.uint8))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def main(
    folder: Annotated[Path, typer.Argument(help="Pipeline folder.")] = FOLDER,
    count: Annotated[int, typer.Option(help="Number of held-out captions.")] = 100,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 25,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 4.0,
    seed: int = 0,
    picture: Annotated[Path | None, typer.Option("--grid", help="Write the first pictures of each way into this PNG.")] = None,
) -> None:
    """Score the model on held-out captions; prints one JSON document."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    triples = held_out_triples(count)
    found, shown = {}, []
    for way, phrase in WAYS.items():
        rng = np.random.default_rng(seed)
        texts = [phrase(world.caption(world.Drawing(*triple)), rng) for triple in triples]
        pictures = paint(pipe, texts, steps=steps, guidance=guidance, seed=seed)
        found[way] = asdict(score(pictures, triples))
        shown.append(pictures[:12])
    if picture is not None:
        grid(np.concatenate(shown), columns=12).save(picture)
    typer.echo(json.dumps({"count": count, "steps": steps, "guidance": guidance, "seed": seed, "scores": found}, indent=2))


if __name__ == "__main__":
    typer.run(main)
