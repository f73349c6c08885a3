"""Closed-form edits."""
