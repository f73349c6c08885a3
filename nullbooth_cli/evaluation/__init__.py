"""Measuring models: the pictures of a base beside those of edited models."""
