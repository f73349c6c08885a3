"""Closed-form edits: which tokens of a prompt change, the equations of the methods, and the edited weights.

Beside them `remember`, which preserves an edit, or what a training run taught, for the next change.
"""
