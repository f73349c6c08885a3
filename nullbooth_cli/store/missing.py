"""The error for a place without a store. It names the stores beside it, because the name may be mistyped."""

import difflib
import os

from nullbooth_cli.errors import Rerun, StageError
from nullbooth_cli.store.backing import Backing

SHOWN = 3
ALIKE = 0.6  # of two names, as difflib measures it: one may be meant as the other


def no_store(backing: Backing) -> StageError:
    """The error for a place that is empty. The hint names the stores beside it first if one has a similar name."""
    message = f"nothing was collected yet: no store at {backing.url}"
    beside = stores_beside(backing.url)
    name = os.path.basename(backing.url.rstrip("/"))
    if difflib.get_close_matches(name, [os.path.basename(each) for each in beside], cutoff=ALIKE):
        return StageError(message, f"set store to one beside it: {', '.join(beside)}; or collect, to make this one")
    found = f"; beside it {'is' if len(beside) == 1 else 'are'} {', '.join(beside)}" if beside else ""
    return StageError(message, Rerun("collect", store=backing.url, otherwise=f" makes one{found}"))


def stores_beside(url: str) -> list[str]:
    """The stores in the folder of a local place, a few that are called most like it; none beside a URL."""
    folder, name = os.path.split(url.rstrip("/"))
    try:
        names = [each for each in os.listdir(folder or ".") if os.path.isfile(os.path.join(folder, each, "zarr.json"))]
    except OSError:  # no such folder, or a URL
        return []
    return [os.path.join(folder, each) for each in difflib.get_close_matches(name, names, n=SHOWN, cutoff=0.0)]
