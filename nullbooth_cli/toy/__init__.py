"""The embedded model: a small trained StableDiffusionPipeline, the world it draws, its training and its exact scorer.

This folder is itself the pipeline folder: `StableDiffusionPipeline.from_pretrained` opens it as it is.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
