"""`python -m nullbooth_cli`."""

from nullbooth_cli.cli import app

app()
