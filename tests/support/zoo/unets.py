"""Pipelines of images whose denoiser is a U-Net."""

from tests.support import tiny
from tests.support.zoo.entry import Entry

ENTRIES: dict[str, Entry] = {
    "StableDiffusionPipeline": Entry(build=tiny.sd1),
    "LatentConsistencyModelPipeline": Entry(build=tiny.lcm),
    "StableDiffusionXLPipeline": Entry(build=tiny.sdxl),
}
