"""Prints the table of memory in docs/how-to/teach-other-models.md, from config files in tests/architectures, in minutes.

python docs/memory.py
"""

from pathlib import Path

from nullbooth_cli.model import load
from nullbooth_cli.model.sources import Source
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.training.before_loading import without_weights
from nullbooth_cli.training.memory import text_encoders, training_memory

ARCHITECTURES = Path(__file__).parent.parent / "tests/architectures"
MODELS = {  # side of a picture
    "sd15": ("Stable Diffusion 1.5", 512),
    "sdxl": ("SDXL", 1024),
    "sd3": ("SD 3.5 medium", 1024),
    "pixart": ("PixArt Sigma", 1024),
    "flux": ("Flux dev", 1024),
}
METHODS = ("lora", "full")
COLUMNS = (
    *("model, one picture of", "method", "weights", "text encoders", "training", "with gradient checkpointing"),
    *("with a word too", "float32, no checkpointing"),
)


def row(name: str, method: str) -> str:
    """The line of a model and method."""
    title, side = MODELS[name]

    def phase(**settings: object) -> tuple[int, int, int]:
        recipe = Recipe.model_validate(
            {"model": str(ARCHITECTURES / name), "method": method, "rank": 16, "train_batch_size": 1, "store": "any", **settings}
        )
        source = Source.of(recipe)
        encoders = text_encoders(load.config_folder(source))
        found = training_memory(recipe, without_weights(source), encoders, (side, side))
        return found.phases["train"], found.weights, sum(found.helpers.values()) - found.helpers["vae"]

    half = {"dtype": "bfloat16", "mixed_precision": "bf16"}
    plain, weights, texts = phase(**half)
    saving, *_ = phase(**half, gradient_checkpointing=True)
    word, *_ = phase(**half, gradient_checkpointing=True, word="sks")
    whole, *_ = phase()
    cells = [f"{num_bytes / 1e9:.1f}" for num_bytes in (weights, texts, plain, saving, word, whole)]
    return f"| {title}, {side} | {method} | {' | '.join(cells)} |"


def main() -> None:
    """Print it."""
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for name in MODELS:
        for method in METHODS:
            print(row(name, method), flush=True)


if __name__ == "__main__":
    main()
