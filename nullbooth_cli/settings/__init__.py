"""The files that a user writes: the config, a training recipe, prompts, images with captions."""
