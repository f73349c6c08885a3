"""Fixtures of the recording room: the edited models of evaluation."""

from tests.evaluation.conftest import models, run

__all__ = ["models", "run"]
