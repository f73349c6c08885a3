"""A richer world than the embedded model's, for dozens of edits: `python docs/studies/names_world.py OUT`, from a checkout.

100 names, invented words of one token, each denote one of the 48 pairs of colour and shape: "a mita on a white background"
is an orange square. Training starts from the embedded model and has two stages:

1. *Reading*. A text encoder of 240 entries learns, from texts alone, to give in its first 96 what the embedded model's gives: of
   the same caption, and of a name what that gives of its pair, from the last token of the pair on. In the other 144 it gives a
   random code of the name that was read, so that names of one meaning differ.
2. *Drawing*. The embedded U-Net, whose k and v read those 96 entries and with zeros the others, learns to draw captions of both
   kinds, as in `nullbooth_cli/toy/train.py`, until plain captions and names are drawn exactly. The text encoder stays.

OUT is then a StableDiffusionPipeline folder. The seed decides data, order and noise. `NamesWorld` says what `sequence_edits.py`
edits there.
"""

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from transformers import CLIPTextModel, CLIPTokenizer

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script has only its own folder on the path

from docs.studies.cuts import PROMPTS
from docs.studies.edit_pairs import MOST, SEARCH_SEED, Caption, Edit
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.toy import FOLDER, score, train, world
from nullbooth_cli.toy.parts import (
    NOISE,
    NUM_TOKENS,
    WIDTH,
    PatchCode,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    save_tokenizer,
    tokenize,
)

WIDER, COUNT, SEARCHED, PRESERVED = 240, 100, 20, 20
RIGHT = 0.97  # the shares at which training ends
READING_STEPS, DRAWING_STEPS, CHECKED_EVERY = 3_000, 3_000, 500
Pair = tuple[str, str]


@cache
def names() -> dict[str, Pair]:
    """100 names and the (colour, shape) that each denotes; every pair has two names or three."""
    rng = np.random.default_rng(0)
    syllables = ["".join(pair) for pair in product("bdfgklmnprtvz", "aeiou")]
    words = [first + second for first, second in product(syllables, syllables) if first != second]
    chosen = [words[i] for i in rng.permutation(len(words))[:COUNT]]
    pairs = list(product(world.COLOURS, world.SHAPES))
    return {name: pairs[place % len(pairs)] for name, place in zip(chosen, rng.permutation(COUNT), strict=True)}


def vary(drawing: world.Drawing, rng: np.random.Generator) -> str:
    """A caption with `{}` for the thing, in one of the forms of `world.vary`."""
    while "{}" not in (text := world.vary(replace(drawing, colour="", shape="{}"), rng)):
        pass
    return text


class Captions:
    """Captions of drawings, one in two with a name."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._names: dict[Pair, list[str]] = {}
        for name, pair in names().items():
            self._names.setdefault(pair, []).append(name)

    def draw(self, drawings: Sequence[world.Drawing]) -> tuple[list[str], list[str]]:
        """What the new model is to understand, and the same in the embedded model's words."""
        made = [self._draw(drawing) for drawing in drawings]
        return [text for text, _ in made], [plain for _, plain in made]

    def _draw(self, drawing: world.Drawing) -> Pair:
        if self._rng.random() < 0.5:
            text = world.vary(drawing, self._rng)
            return text, text
        name, text = self._rng.choice(self._names[drawing.colour, drawing.shape]), vary(drawing, self._rng)
        return text.format(name), text.format(f"{drawing.colour} {drawing.shape}")


class NamesWorld:
    """The names as `edit_pairs.World` has them: 39 of 80 are edited and 20 preserved, 20 are left for the search."""

    thresholds = (1e-2, 1e-3, 1e-4, 1e-5)
    searched_at = 20

    def model(self, folder: Path) -> str:
        """Trained the first time."""
        if not (folder / "model").exists():
            build(folder / "model")
        return str(folder / "model")

    def edits(self, seed: int) -> list[Edit]:
        """39 edits, 20 of the search: each name gets a pair other than its own."""
        return [self._edit(name, seed) for name in self._split(seed)[0]]

    def store(self, seed: int) -> str:
        """One for each seed, as each has other preserved names."""
        return f"texts{seed}.zarr"

    def preserved(self, seed: int) -> list[str]:
        """The embedded model's prompts, and each preserved name on four backgrounds."""
        named = [
            f"a {name} on a {background} background"
            for name in self._split(seed)[1]
            for background in backgrounds(name, seed)[:4]
        ]
        return [*(prompt.text for prompt in load_prompts(str(PROMPTS))), *named]

    def names(self, seed: int) -> dict[str, list[Caption]]:
        """Captions of each name in words that no preserved prompt has."""
        _, preserved, others = self._split(seed)
        return {
            kind: [meant(name, seed).paraphrase(i) for i, name in enumerate([*chosen, *chosen])]
            for kind, chosen in (("preserved", preserved), ("other", others))
        }

    def _split(self, seed: int) -> tuple[list[str], list[str], list[str]]:
        """Names that are edited, that are preserved, and neither."""
        every, rng = list(names()), np.random.default_rng(seed)
        own, rest = every[:SEARCHED], every[SEARCHED:]
        turned = [rest[i] for i in rng.permutation(len(rest))]
        if seed == SEARCH_SEED:
            return own, turned[:PRESERVED], turned[PRESERVED:]
        return turned[:MOST], turned[MOST:][:PRESERVED], [*turned[MOST:][PRESERVED:], *own]

    def _edit(self, name: str, seed: int) -> Edit:
        rng = np.random.default_rng([seed, list(names()).index(name)])
        others = [pair for pair in product(world.COLOURS, world.SHAPES) if pair != names()[name]]
        colour, shape = others[rng.integers(len(others))]
        behind = [background for background in world.BACKGROUNDS if background != colour]
        return Edit(name, shape, colour, str(rng.choice(behind)), name=True)


def meant(name: str, seed: int) -> Edit:
    """What a name denotes, as if it were an edit."""
    colour, shape = names()[name]
    return Edit(name, shape, colour, backgrounds(name, seed)[0], name=True)


def backgrounds(name: str, seed: int) -> list[str]:
    """The backgrounds of a name, in an order of its own."""
    behind = [background for background in world.BACKGROUNDS if background != names()[name][0]]
    return [behind[i] for i in np.random.default_rng([seed, list(names()).index(name)]).permutation(len(behind))]


def train_reading(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, rng: np.random.Generator, steps: int) -> None:
    """Train the text encoder to give what the embedded model's does, on texts alone; batch 64."""
    teacher = CLIPTextModel.from_pretrained(FOLDER / "text_encoder", dtype=torch.float32).requires_grad_(False)
    known = CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
    captions, training, started = Captions(rng), world.split()[0], time.monotonic()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, 100, steps)
    spread = teacher(tokenize(known, ["a red star on a white background"]))[0].std()
    own = spread * torch.randn(len(names()) + 1, 3, WIDER - WIDTH)
    own[0] = 0.0  # before a name, and in texts without one
    place, numbers = torch.arange(NUM_TOKENS), {name: number for number, name in enumerate(names(), start=1)}
    for step in range(1, steps + 1):
        drawings = [world.sample(training[rng.integers(len(training))], rng) for _ in range(64)]
        texts, plain = captions.draw(drawings)
        ids, theirs = tokenize(tokenizer, texts), tokenize(known, plain)
        split = [text.split() for text in texts]
        found = [next(((i, numbers[word]) for i, word in enumerate(words, 1) if word in numbers), (0, 0)) for words in split]
        first, number = torch.tensor(found)[..., None].unbind(1)
        end = torch.tensor([[len(words) + 1] for words in split])
        since = (number > 0) & (place >= first)
        # A pair is one token longer than a name, which takes the place of its last.
        same = (place + since).clamp(max=NUM_TOKENS - 1)
        meaning = teacher(theirs)[0].gather(1, same[..., None].expand(-1, -1, WIDTH))
        which = own[number * since, (place > first).int() + (place >= end)]
        loss = F.mse_loss(encoder(ids)[0], torch.cat([meaning, which], dim=-1))
        train.take_step(loss, encoder.parameters(), optimizer, schedule)
        if step % CHECKED_EVERY == 0:
            typer.echo(f"reading {step}/{steps} loss {loss:.4f} {time.monotonic() - started:.0f} s", err=True)


def widened() -> UNet2DConditionModel:
    """The embedded U-Net for texts of the new width: k and v have zeros for all that the embedded model's text does not have."""
    old = UNet2DConditionModel.from_pretrained(FOLDER / "unet").state_dict()
    unet = build_unet(WIDER)
    for name, weight in unet.state_dict().items():
        if weight.shape == old[name].shape:
            weight.copy_(old[name])
        else:
            weight.zero_()[:, :WIDTH] = old[name]
    return unet


def scores(parts: train.PipeParts, code: PatchCode) -> tuple[float, float]:
    """The shares of 48 held-out captions and of 100 captions with a name that are drawn exactly."""
    plain = [(world.caption(world.Drawing(*triple)), triple) for triple in world.split()[1][:48]]
    named = [
        (f"a {name} on a {background} background", (shape, colour, background))
        for i, (name, (colour, shape)) in enumerate(names().items())
        for background in [[each for each in world.BACKGROUNDS if each != colour][i % 7]]
    ]
    shares = []
    for asked in (plain, named):
        texts, triples = zip(*asked, strict=True)
        shares.append(score.share_right(train.draw_quickly(parts, code, list(texts)), triples))
    return shares[0], shares[1]


def train_drawing(parts: train.PipeParts, rng: np.random.Generator, seed: int, steps: int) -> None:
    """Train the U-Net until both shares are `RIGHT`, the text encoder frozen; batch 32, weights averaged."""
    tokenizer, encoder, unet = parts
    started, noise_scheduler = time.monotonic(), DDPMScheduler(**NOISE)
    drawings, pictures = train.make_data(seed)
    code = PatchCode.fit(pictures)
    latents, captions = code.encode(pictures), Captions(rng)
    encoder.requires_grad_(False)
    parameters = list(unet.parameters())
    ema = EMAModel(parameters, decay=0.995)
    optimizer = torch.optim.AdamW(parameters, lr=5e-4, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, 100, steps)
    typer.echo(f"before drawing: plain, named {scores(parts, code)} {time.monotonic() - started:.0f} s", err=True)
    for step in range(1, steps + 1):
        index = rng.integers(len(drawings), size=32)
        texts, _ = captions.draw([drawings[i] for i in index])
        ids = tokenize(tokenizer, ["" if rng.random() < 0.1 else text for text in texts])
        clean = latents[torch.from_numpy(index)]
        loss = train.velocity_loss(unet, noise_scheduler, clean, encoder(ids)[0], textured=True)
        train.take_step(loss, parameters, optimizer, schedule)
        ema.step(parameters)
        if step % CHECKED_EVERY == 0 or step == steps:
            ema.store(parameters)
            ema.copy_to(parameters)
            found = scores(parts, code)
            typer.echo(
                f"drawing {step}/{steps} loss {loss:.4f} plain, named {found} {time.monotonic() - started:.0f} s", err=True
            )
            if min(found) >= RIGHT:
                return
            ema.restore(parameters)
    ema.copy_to(parameters)


def build(out: Path, seed: int = 0, reading_steps: int = READING_STEPS, drawing_steps: int = DRAWING_STEPS) -> None:
    """Train the model and save it as a pipeline folder, beside the embedded model's autoencoder."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = build_tokenizer((*world.WORDS, *names()))
    encoder = build_text_encoder(tokenizer, WIDER, WIDER)
    train_reading(encoder, tokenizer, rng, reading_steps)
    unet = widened()
    train_drawing((tokenizer, encoder, unet), rng, seed, drawing_steps)
    parts = out / "parts"
    unet.half().save_pretrained(parts / "unet")
    encoder.save_pretrained(parts / "text_encoder")
    save_tokenizer(tokenizer, parts / "tokenizer")
    shutil.copytree(FOLDER / "vae", parts / "vae", dirs_exist_ok=True)
    train.assemble(parts, out, text=torch.float16)
    shutil.rmtree(parts)


def main(out: Annotated[Path, typer.Argument(help="Folder for the finished pipeline.")], seed: int = 0) -> None:
    """Train the model of 100 names, on one core."""
    torch.set_num_threads(1)
    started = time.monotonic()
    build(out, seed)
    typer.echo(f"{(time.monotonic() - started) / 60:.0f} minutes", err=True)


if __name__ == "__main__":
    typer.run(main)
