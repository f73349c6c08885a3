"""What is measured: the embedded model, Stable Diffusion 1.5 in full size with random weights, and stores to fill."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from nullbooth_cli.collect.branches import ALONE
from nullbooth_cli.collect.find_sites import FoundSites, RecordableModel, find_sites
from nullbooth_cli.collect.sinks import FeatureSink
from nullbooth_cli.collect.units import collect_units
from nullbooth_cli.datatypes import Prompt, Site
from nullbooth_cli.model.denoise import DenoisingPath, use_schedule
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.load import freeze, load_pipeline
from nullbooth_cli.model.projections import find_projections
from nullbooth_cli.model.scheduler import build_scheduler, compute_schedule
from nullbooth_cli.progress import Interrupts
from nullbooth_cli.store import Layout, Store, create_collection
from nullbooth_cli.store.background import Writer
from tests.benchmarks.training import TINY as TINY_DENOISERS
from tests.benchmarks.training import cut_depth
from tests.support.builders import ROOT

STRATEGY = "DPM++ 2M Karras"
SD15_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False}
SD15_UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
}
SD15_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
TINY = {"block_out_channels": (16,) * 4, "layers_per_block": 1, "cross_attention_dim": 32, "norm_num_groups": 8, "sample_size": 8}
TINY_SDXL = {**TINY_DENOISERS["sdxl"], "cross_attention_dim": 64, "projection_class_embeddings_input_dim": 6 * 256 + 32}
TINY_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
Recorded = list[tuple[Site, int, torch.Tensor]]


def toy_pipeline() -> Any:
    """The embedded model as `nullbooth collect` loads it."""
    return load_pipeline("toy", revision=None, variant=None, dtype="float32", local_files_only=True, device=torch.device("cpu"))


def sd15_pipeline(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, tiny: bool = False) -> Any:
    """Stable Diffusion 1.5's own sizes, weights at random: time does not depend on them. Its tokenizer knows bytes only."""
    torch.manual_seed(0)
    tokenizer = _bytes_tokenizer()
    marks = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = transformers.CLIPTextConfig(vocab_size=len(tokenizer), **(TINY_TEXT if tiny else SD15_TEXT), **marks)
    pipe = diffusers.StableDiffusionPipeline(
        vae=None,
        text_encoder=transformers.CLIPTextModel(text).to(dtype),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(**{**SD15_UNET, **(TINY if tiny else {})}).to(dtype),
        scheduler=diffusers.DDIMScheduler(**SD15_NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return freeze(pipe.to(device))


def _bytes_tokenizer() -> Any:
    letters = [chr(i) for i in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def sdxl_pipeline(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, tiny: bool = False, depth: int | None = None
) -> Any:
    """SDXL's own sizes, from its config files, weights at random; the tokenizer knows bytes only.

    `depth` is the number that is left of the 2 or 10 transformer blocks in a row.
    """
    torch.manual_seed(0)
    folder = ROOT / "tests/architectures/sdxl"
    parts: dict[str, Any] = {}
    unet = dict(diffusers.UNet2DConditionModel.load_config(folder, subfolder="unet"))
    unet |= TINY_SDXL if tiny else {}
    if depth:
        cut_depth(unet, depth)
    with torch.device(device):  # 3.4 billion values are drawn where they are used
        for part, kind in (
            ("text_encoder", transformers.CLIPTextModel),
            ("text_encoder_2", transformers.CLIPTextModelWithProjection),
        ):
            config = transformers.CLIPTextConfig.from_pretrained(folder / part)
            config.update(TINY_TEXT | {"projection_dim": 32} if tiny else {})
            parts[part] = kind(config)
        parts["unet"] = diffusers.UNet2DConditionModel.from_config(unet)
    tokenizer = _bytes_tokenizer()
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=None, tokenizer=tokenizer, tokenizer_2=tokenizer, scheduler=diffusers.DDIMScheduler(**SD15_NOISE), **parts
    )
    return freeze(pipe.to(device, dtype))


PIPELINES = {"sd15": sd15_pipeline, "sdxl": sdxl_pipeline}


@dataclass(frozen=True)
class Subject:
    """A pipeline on a schedule, its sites, and prompts for some units."""

    pipe: Any
    path: DenoisingPath
    found: FoundSites
    batch_size: int
    prompts: tuple[Prompt, ...]

    @property
    def model(self) -> RecordableModel:
        return RecordableModel(self.pipe, self.path, self.found)

    @property
    def num_units(self) -> int:
        return len(self.prompts) // self.batch_size

    @property
    def num_steps(self) -> int:
        return len(self.path.steps)

    def with_tokens(self, tokens: int | None) -> "Subject":
        """The same, with so many tokens a prompt of q and out."""
        few = {
            s: replace(s, num_tokens=min(s.num_tokens, tokens)) if tokens and s.feature in ("q", "out") else s
            for s in self.found.sites
        }
        owners = {projection: few[site] for projection, site in self.found.site_of.items()}
        arguments = frozenset(few[site] for site in self.found.arguments)
        return replace(
            self,
            found=replace(
                self.found, sites=tuple(few.values()), site_of=owners, arguments=arguments, tokens_per_prompt=tokens or None
            ),
        )

    def new_store(self, place: Path, keep: str) -> Store:
        """A store in which collection has begun, as stage collect leaves it before the first unit."""
        store = Store.create(place, {})
        layout = Layout(keep, self.batch_size, "float16")
        store.write_schedule(self.path.steps)
        create_collection(store, sites=self.found.sites, num_steps=self.num_steps, num_rows=len(self.prompts), layout=layout)
        store.write_rows(0, self.prompts)
        store.write_record("collect", {"layout": vars(layout)})
        if layout.keeps_moments:
            store.moments.partial_sums("0").create(self.found.sites, self.num_steps)
        return store

    def record(self) -> Recorded:
        """What one unit's projections receive, as float16."""
        sink = _Keep()
        store = _Unstored(self)
        units = collect_units(store, self.model, [0], sinks=[sink], interrupts=Interrupts())  # type: ignore[arg-type]
        for _ in units:
            pass
        return sink.recorded


class _Keep:
    dtype: str | None = "float16"

    def __init__(self) -> None:
        self.recorded: Recorded = []

    def lacks(self, unit: int) -> bool:
        return True

    def receive(self, site: Site, step: int, rows: Sequence[int], values: torch.Tensor) -> None:
        self.recorded.append((site, step, values.to(torch.float16, copy=True)))

    def due(self) -> bool:
        return False

    def checkpoint(self, units: Sequence[int]) -> None:
        pass


class _Unstored:
    """As much of a store as `collect` asks for."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.progress = self

    def members(self, unit: int) -> list[tuple[int, Prompt]]:
        return list(enumerate(self._subject.prompts[: self._subject.batch_size]))

    def commit(self, stage: str, units: object) -> None:
        pass


def subject(
    pipe: Any, *, num_steps: int, batch_size: int, num_units: int, latents: int | None = None, guidance_scale: float = 7.5
) -> Subject:
    """Hold a pipeline to a schedule and find its sites (two steps of one prompt, which also warm it up)."""
    scheduler = build_scheduler(STRATEGY, pipe.scheduler)
    steps = compute_schedule(STRATEGY, build_scheduler(STRATEGY, pipe.scheduler), num_steps)
    use_schedule(pipe, scheduler, steps)
    size = latents and latents * 8
    path = DenoisingPath(
        num_inference_steps=num_steps, steps=steps, guidance_scale=guidance_scale, height=size, width=size, seed=0
    )
    prompts = tuple(Prompt(f"a photo of thing {i}") for i in range(batch_size * num_units))
    projections = find_projections(denoiser_of(pipe), ("q", "k", "v", "out"), "all")
    return Subject(
        pipe, path, find_sites(pipe, path, projections, side="input", branches="both", prompts=prompts), batch_size, prompts
    )


def random_subject(
    sites: Iterable[tuple[int, int]], *, num_steps: int, batch_size: int, num_units: int
) -> tuple[Subject, Recorded]:
    """Sites of so many (tokens, dim) with normal vectors, and no model."""
    torch.manual_seed(0)
    made = tuple(Site(f"layer_{i}", "q", "input", (f"layer_{i}.to_q.weight",), False, n, d) for i, (n, d) in enumerate(sites))
    prompts = tuple(Prompt(f"a photo of thing {i}") for i in range(batch_size * num_units))
    steps = compute_schedule(STRATEGY, build_scheduler(STRATEGY, diffusers.DDIMScheduler(**SD15_NOISE)), num_steps)
    path = DenoisingPath(num_inference_steps=num_steps, steps=steps, guidance_scale=7.5, height=None, width=None, seed=0)
    recorded = [
        (site, step, torch.randn(batch_size, site.num_tokens, site.dim, dtype=torch.float16))
        for step in range(num_steps)
        for site in made
    ]
    return Subject(
        None, path, FoundSites(sites=made, site_of={}, arguments=frozenset(), branches=ALONE), batch_size, prompts
    ), recorded


def store_features(store: Store, subject: Subject, recorded: Recorded) -> None:
    """Store one unit's vectors as every unit's, by way of the sink that collect uses; durable and marked unit by unit."""
    with Writer() as writer:
        sink = FeatureSink(store, writer)
        for unit in range(subject.num_units):
            rows = [row for row, _ in store.members(unit)]
            for site, step, values in recorded:
                sink.receive(site, step, rows, values)
            sink.checkpoint([unit])
            store.progress.commit("collect", [unit])


def multiply_operations(recorded_sites: Iterable[Site], num_steps: int, num_prompts: int) -> int:
    """Operations of x x^T over all vectors: 2 N D^2."""
    return sum(s.num_recorded(num_steps) * num_prompts * s.num_tokens * 2 * s.dim**2 for s in recorded_sites)
