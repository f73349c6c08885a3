"""Checks of everything that can stop a run and can be known before it."""
