"""Using projectors: constrained training, DreamBooth, refits."""
