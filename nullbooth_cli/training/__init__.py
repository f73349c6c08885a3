"""Using projectors: constrained training, DreamBooth, closed-form edits."""
