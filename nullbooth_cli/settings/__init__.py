"""The files that a user writes: the config, the recipe of a training run, prompts, images with captions."""
