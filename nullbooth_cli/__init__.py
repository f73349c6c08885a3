"""Null-space projectors for fine-tuning text-to-image models without forgetting."""

__version__ = "0.1.0"
