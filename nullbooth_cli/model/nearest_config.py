"""The shipped config that fits a model, found from its config files."""

from pathlib import Path

from nullbooth_cli.errors import ModelError
from nullbooth_cli.model.load import config_folder
from nullbooth_cli.model.pipeline_folder import read_json, read_pipeline_folder
from nullbooth_cli.model.sources import Source

# By pipeline class. Stable Diffusion 1 and 2 are one class, told apart by the width of their text.
CONFIGS = {
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "LatentConsistencyModelPipeline": "lcm",
    "PixArtAlphaPipeline": "pixart",
    "PixArtSigmaPipeline": "pixart",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
}
_TEXT_OF_SD2 = 1024


def nearest_config(source: Source) -> tuple[str, str]:
    """The pipeline class of a folder or hub id, and the name of the shipped config that fits it.

    Raises ConfigError for a model that is not there or not a pipeline, ModelError for a class that no shipped config is for.
    Cost: some small files; those of a hub id are downloaded, the first time.
    """
    folder = config_folder(source)
    kind = read_pipeline_folder(folder, weights=False).class_name
    if kind not in CONFIGS:
        raise ModelError(
            f"{source.model} is a {kind}, and no shipped config is for that pipeline",
            f"name the config to start from, and set model in it; these have one: {', '.join(CONFIGS)}",
        )
    name = CONFIGS[kind]
    if name == "sd15" and read_json(Path(folder) / "unet/config.json").get("cross_attention_dim") == _TEXT_OF_SD2:
        name = "sd21"
    return kind, name
