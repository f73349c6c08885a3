"""Push the result of a training run to the hub: a repository with the result folder and its model card."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from nullbooth_cli.errors import ConfigError, NullboothError, ResourceError
from nullbooth_cli.evaluation.verdict import Verdict
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.training.model_card import CARD, model_card
from nullbooth_cli.training.output import TrainingResult

LOGIN = "run hf auth login, or set HF_TOKEN to a token with write access (https://huggingface.co/settings/tokens)"


def require_account(repo: str, recipe: Recipe) -> None:
    """Raise, before anything is trained, what `push` would raise for a name, a token or a network.

    Raises ConfigError for a name that no repository can have, for a missing or refused token, if the recipe forbids the hub, and
    for a LoRA that is nothing without an earlier model; ResourceError if the hub cannot be reached. Cost: one request.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils._validators import validate_repo_id

    if recipe.local_files_only:
        raise ConfigError("local_files_only forbids contacting the hub", "set local_files_only to false, or do not push")
    if recipe.after is not None and recipe.method == "lora":
        raise ConfigError(
            f"the LoRA goes on top of {recipe.after}, which the repository would not have",
            "set method to full, whose result is a whole pipeline, or do not push",
        )
    with _explained(repo):
        validate_repo_id(repo)
        HfApi().whoami()


def push(repo: str, recipe: Recipe, result: TrainingResult, verdicts: Sequence[Verdict] = ()) -> str:
    """Upload the result folder with its model card in one commit; returns the address of the repository.

    `repo` is owner/name, or a name under the account of the token; one that does not exist is made, and is private. Raises as
    `require_account` does; the result stays as it is, so that this can be called again. Cost: the bytes of the folder.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(result.output)
    with _explained(repo, folder):
        api = HfApi()
        made = api.create_repo(repo, private=True, exist_ok=True)
        card = model_card(recipe, result, verdicts, place=made.repo_id)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
        operations.append(CommitOperationAdd(CARD, card.encode()))
        api.create_commit(made.repo_id, operations, commit_message=f"nullbooth: {result.steps} steps")
    return str(made)


@contextlib.contextmanager
def _explained(repo: str, folder: Path | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises into errors with a way out; `folder` has a result that is finished already."""
    from huggingface_hub import errors

    again = f"; then run this again: {folder} is whole, and nothing is trained again" if folder else ""
    try:
        yield
    except NullboothError:
        raise
    except errors.HFValidationError as error:
        raise ConfigError(
            f"'{repo}' is not the name of a repository", "name it owner/name, of letters, digits and -_."
        ) from error
    except errors.LocalTokenNotFoundError as error:
        raise ConfigError(f"cannot push to {repo}: this machine has no token of the hub", f"{LOGIN}{again}") from error
    except errors.OfflineModeIsEnabled as error:
        raise ResourceError(f"cannot push to {repo}: HF_HUB_OFFLINE forbids it", f"unset HF_HUB_OFFLINE{again}") from error
    except errors.HfHubHTTPError as error:
        status, reason = error.response.status_code, str(error).strip().splitlines()[0]
        if status in (401, 403, 404):
            raise ConfigError(f"the hub refuses the token, or {repo} is not yours: {reason}", f"{LOGIN}{again}") from error
        raise ResourceError(f"cannot push to {repo}: {reason}", f"try it later{again}") from error
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # that of httpx or httpx2, whichever it uses
        raise ResourceError(f"cannot push to {repo}: the hub cannot be reached: {error}", f"check the network{again}") from error
