from nullbooth_cli.cli import app

app()
