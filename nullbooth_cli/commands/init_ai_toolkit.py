"""`nullbooth init --ai-toolkit FOLDER`: the extension that constrains ai-toolkit's training."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nullbooth_cli.commands.console import Terminal
    from nullbooth_cli.report.answers import ExtensionAnswer


def init_ai_toolkit(terminal: "Terminal", folder: str, *, force: bool) -> None:
    """Write the extension into the folder of ai-toolkit. Raises ConfigError for another folder, and for a file that is there."""
    from nullbooth_cli.errors import ConfigError
    from nullbooth_cli.integrations.ai_toolkit import EXTENSION, FOLDER, require_ai_toolkit
    from nullbooth_cli.report.answers import ExtensionAnswer
    from nullbooth_cli.settings.starter import write_files

    place = Path(folder)
    require_ai_toolkit(place)
    file = f"{FOLDER}/__init__.py"
    if (place / file).exists() and not force:
        raise ConfigError(f"this file exists: {place / file}", "add --force to replace it")
    write_files(place, {file: EXTENSION.encode()})
    terminal.answer(ExtensionAnswer(folder=folder, files=[str(place / file)]), _draw)
    terminal.note("in the config of a training, set type: nullbooth_trainer and nullbooth: {store: run.zarr}")


def _draw(answer: "ExtensionAnswer") -> str:
    return "\n".join(answer.files)
