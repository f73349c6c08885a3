"""Pipelines of images whose denoiser is a transformer."""

from tests.support import tiny
from tests.support.zoo.entry import Entry, text_comes_first

ENTRIES: dict[str, Entry] = {
    "PixArtSigmaPipeline": Entry(
        build=tiny.pixart,
        attended=text_comes_first(lambda pipe, text: len(pipe.tokenizer(text).input_ids), text=300),
    ),
    "StableDiffusion3Pipeline": Entry(build=tiny.sd3),
    "FluxPipeline": Entry(build=tiny.flux),
}
