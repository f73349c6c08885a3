"""Closed-form edits: which tokens of a prompt change, the equations of the methods, and the edited weights."""
