"""Train the embedded model from nothing: `python -m nullbooth_cli.toy.train OUT`.

Two processes of one thread each work side by side, which is faster here than two threads in one:

1. The *autoencoder* learns a latent code that was computed beforehand: the first eight principal components of the 4 x 4 patches
   of the drawings. The encoder regresses the code; the decoder learns to paint from it.
2. The *denoiser* (U-Net and text encoder together) therefore starts at once, on that code. It first sees one plain caption for
   each picture, until it draws them right, then varied captions: parts left out, prefixes, other orders, unknown words. Varied
   captions from the start learn far slower; plain ones alone fail at the first unknown word.

`OUT` is then a StableDiffusionPipeline folder. Its text encoder is stored in float32, because transformers loads weights in the
dtype in which they are stored; the other weights are in float16, which diffusers loads in float32. The seed decides data, order
and noise.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from numpy.typing import NDArray
from transformers import CLIPTextModel, CLIPTokenizer

from nullbooth_cli.toy import world
from nullbooth_cli.toy.parts import (
    NOISE,
    NUM_COMPONENTS,
    PatchCode,
    build_autoencoder,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    save_tokenizer,
    tokenize,
)

NUM_PICTURES = 30_000
PipeParts = tuple[CLIPTokenizer, CLIPTextModel, UNet2DConditionModel]


@dataclass(frozen=True)
class Steps:
    """Lengths in optimizer steps: of the autoencoder (batch 16) and of the denoiser's two stages (batch 32)."""

    autoencoder: int = 3_500
    plain: int = 4_500
    varied: int = 4_500


def make_data(seed: int) -> tuple[list[world.Drawing], torch.Tensor]:
    """The training drawings and their pictures, `[N, 3, 32, 32]` float32 in [-1, 1]; held-out triples are not among them."""
    rng = np.random.default_rng(seed)
    training, _ = world.split()
    drawings = [world.sample(training[rng.integers(len(training))], rng) for _ in range(NUM_PICTURES)]
    pictures = torch.from_numpy(np.stack([world.draw(drawing) for drawing in drawings]))
    return drawings, pictures.permute(0, 3, 1, 2) * 2 - 1


def train_autoencoder(out: Path, seed: int, steps: int) -> float:
    """Train and save the autoencoder; returns the seconds it took."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    started = time.monotonic()
    _, pictures = make_data(seed)
    codes = PatchCode.fit(pictures).encode(pictures)
    vae = build_autoencoder()
    with torch.no_grad():
        # A sampled latent is then its mean: exp(-12 / 2) is far below the code's own precision.
        vae.quant_conv.weight[NUM_COMPONENTS:] = 0.0
        vae.quant_conv.bias[NUM_COMPONENTS:] = -12.0
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 100, steps)
    for step in range(steps):
        index = torch.randint(len(pictures), (16,))
        picture, code = pictures[index], codes[index]
        noisy = code + 0.3 * torch.rand(len(index), 1, 1, 1) * torch.randn_like(code)
        painted = vae.decode(noisy).sample
        loss_encoder = F.mse_loss(vae.encode(picture).latent_dist.mean, code)
        loss_decoder = F.l1_loss(painted, picture) + F.mse_loss(painted, picture)
        take_step(loss_encoder + loss_decoder, vae.parameters(), optimizer, schedule)
        if step % 500 == 0:
            typer.echo(
                f"autoencoder {step}/{steps} encoder {loss_encoder:.4f} decoder {loss_decoder:.4f} "
                f"{time.monotonic() - started:.0f} s",
                err=True,
            )
    vae.half().save_pretrained(out)
    return time.monotonic() - started


def draw_timesteps(count: int, textured: bool) -> torch.Tensor:
    """Uniform timesteps; when `textured`, 40 % of them by log sigma ~ N(-0.8, 1), where small strokes are decided."""
    timesteps = torch.randint(1000, (count,))
    if textured:
        alphas = DDPMScheduler(**NOISE).alphas_cumprod
        sigmas = ((1 - alphas) / alphas).sqrt()
        wanted = torch.exp(torch.randn(count) - 0.8)
        nearest = torch.searchsorted(sigmas, wanted).clamp(max=999)
        timesteps = torch.where(torch.rand(count) < 0.4, nearest, timesteps)
    return timesteps


def velocity_loss(
    unet: UNet2DConditionModel, process: DDPMScheduler, clean: torch.Tensor, texts: torch.Tensor, *, textured: bool
) -> torch.Tensor:
    """The mean squared error of the predicted velocity, of latents `[B, C, h, w]` with texts `[B, L, D]`.

    Noise and timesteps are drawn from torch's own generator, in this order.
    """
    noise = torch.randn_like(clean)
    timesteps = draw_timesteps(len(clean), textured)
    predicted = unet(process.add_noise(clean, noise, timesteps), timesteps, texts).sample
    return F.mse_loss(predicted, process.get_velocity(clean, noise, timesteps))


def take_step(
    loss: torch.Tensor,
    parameters: Iterable[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """One step of the optimizer, its gradient clipped to norm 1."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


def quick_score(pipe_parts: PipeParts, code: PatchCode, prefix: str) -> float:
    """Share of 48 held-out captions whose shape is drawn right."""
    triples = world.split()[1][:48]
    pictures = draw_quickly(pipe_parts, code, [prefix.format(world.caption(world.Drawing(*t))) for t in triples])
    return float(np.mean([world.read(p).shape == t[0] for p, t in zip(pictures, triples, strict=True)]))


@torch.no_grad()
def draw_quickly(pipe_parts: PipeParts, code: PatchCode, texts: list[str]) -> NDArray[np.float32]:
    """The pictures of captions in 20 steps with guidance 4, decoded by the linear code (a little blurred), `[N, 32, 32, 3]`."""
    tokenizer, encoder, unet = pipe_parts
    state = encoder(tokenize(tokenizer, [*texts, *[""] * len(texts)]))[0]
    scheduler = DPMSolverMultistepScheduler(**NOISE, use_karras_sigmas=True)
    scheduler.set_timesteps(20)
    latents = torch.randn(len(texts), NUM_COMPONENTS, 8, 8, generator=torch.Generator().manual_seed(1))
    for timestep in scheduler.timesteps:
        with_text, without = unet(torch.cat([latents, latents]), timestep, state).sample.chunk(2)
        latents = scheduler.step(without + 4.0 * (with_text - without), timestep, latents).prev_sample
    pictures: NDArray[np.float32] = (code.decode(latents) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return pictures


def train_denoiser(out: Path, seed: int, plain: int, varied: int) -> float:
    """Train and save tokenizer, text encoder and U-Net; returns the seconds it took."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    started = time.monotonic()
    rng = np.random.default_rng(seed + 1)
    drawings, pictures = make_data(seed)
    code = PatchCode.fit(pictures)
    latents = code.encode(pictures)
    tokenizer = build_tokenizer()
    text_encoder, unet = build_text_encoder(tokenizer), build_unet()
    words = text_encoder.get_input_embeddings().weight
    reserved = torch.tensor(tokenizer.convert_tokens_to_ids([f"{word}</w>" for word in world.RESERVED_WORDS]))
    seen = torch.zeros(len(tokenizer), dtype=torch.bool)
    noise_scheduler = DDPMScheduler(**NOISE)
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    ema = EMAModel(parameters, decay=0.999)
    done, total = 0, plain + varied
    for stage, steps, rate in (("plain", plain, 1.5e-3), ("varied", varied, 1e-3)):
        optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
        schedule = get_cosine_schedule_with_warmup(optimizer, 100, steps)
        for _ in range(steps):
            index = rng.integers(NUM_PICTURES, size=32)
            if stage == "varied":
                with torch.no_grad():
                    words[reserved] = random_directions(words[seen], len(reserved))
            ids = tokenize(tokenizer, draw_captions([drawings[i] for i in index], rng, varied=stage == "varied"))
            seen[ids.unique()] = True
            seen[reserved] = False
            clean, textured = latents[torch.from_numpy(index)], done >= 0.4 * total
            loss = velocity_loss(unet, noise_scheduler, clean, text_encoder(ids)[0], textured=textured)
            take_step(loss, parameters, optimizer, schedule)
            ema.step(parameters)
            done += 1
            if done % 1000 == 0:
                ema.store(parameters)
                ema.copy_to(parameters)
                parts = (tokenizer, text_encoder, unet)
                scores = [quick_score(parts, code, prefix) for prefix in ("{}", "a photo of {}")]
                ema.restore(parameters)
                line = f"denoiser {stage} {done}/{total} loss {loss:.4f} shape {scores} {time.monotonic() - started:.0f} s"
                typer.echo(line, err=True)
    ema.copy_to(parameters)
    with torch.no_grad():
        words[~seen] = random_directions(words[seen], int((~seen).sum()))
    unet.half().save_pretrained(out / "unet")
    text_encoder.save_pretrained(out / "text_encoder")
    save_tokenizer(tokenizer, out / "tokenizer")
    return time.monotonic() - started


def draw_captions(drawings: Sequence[world.Drawing], rng: np.random.Generator, *, varied: bool) -> list[str]:
    """A caption for each drawing, plain or varied; one in ten is empty, for guidance."""
    if varied:
        texts = [world.vary(drawing, rng, draw_unknown_word(rng)) for drawing in drawings]
    else:
        texts = [world.caption(drawing) for drawing in drawings]
    return ["" if rng.random() < 0.1 else text for text in texts]


def draw_unknown_word(rng: np.random.Generator) -> str | None:
    """None three times out of four; else a reserved word or one that falls into pieces."""
    if rng.random() < 0.75:
        return None
    return str(rng.choice(world.RESERVED_WORDS)) if rng.random() < 0.5 else world.unknown_word(rng)


def random_directions(trained: torch.Tensor, count: int) -> torch.Tensor:
    """`count` random rows with the mean norm of the trained ones."""
    rows = torch.randn(count, trained.shape[1])
    directions: torch.Tensor = F.normalize(rows, dim=1) * trained.norm(dim=1).mean()
    return directions


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the finished pipeline.")],
    seed: int = 0,
    autoencoder_steps: int = Steps.autoencoder,
    plain_steps: int = Steps.plain,
    varied_steps: int = Steps.varied,
) -> None:
    """Train the embedded model; needs two cores, about 3 GB of memory and one to one and a half hours."""
    with tempfile.TemporaryDirectory() as scratch:
        parts = Path(scratch)
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            denoiser = pool.submit(train_denoiser, parts, seed, plain_steps, varied_steps)
            autoencoder = pool.submit(train_autoencoder, parts / "vae", seed, autoencoder_steps)
            typer.echo(f"autoencoder {autoencoder.result():.0f} s, denoiser {denoiser.result():.0f} s", err=True)
        assemble(parts, out)


def assemble(parts: Path, out: Path, text: torch.dtype = torch.float32) -> None:
    """Put the trained parts into one pipeline folder, the text encoder in the dtype `text`."""
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(parts / "vae", dtype=torch.float16),
        text_encoder=CLIPTextModel.from_pretrained(parts / "text_encoder", dtype=text),
        tokenizer=CLIPTokenizer.from_pretrained(parts / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(parts / "unet", dtype=torch.float16),
        scheduler=DPMSolverMultistepScheduler(**NOISE, use_karras_sigmas=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(out)
    save_tokenizer(pipe.tokenizer, out / "tokenizer")


if __name__ == "__main__":
    typer.run(main)
