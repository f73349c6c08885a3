"""Constrained training inside of other trainers: kohya's sd-scripts and ai-toolkit."""
