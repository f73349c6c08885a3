"""How many objects of a store are read, written and listed: one is a file in a folder, and a request at a URL.

with counted() as objects:
    store.progress.cells("collect")
assert objects.reads("progress/collect") == 5
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from nullbooth_cli.store.local import DurableLocalStore, LocalBacking
from nullbooth_cli.store.object_store import LeasedObjectStore

# What reads, writes, lists or removes: each method of a class whose first argument is a key, by what it does.
METHODS: dict[str, list[tuple[type[Any], tuple[str, ...]]]] = {
    "read": [
        (LocalBacking, ("get",)),
        (DurableLocalStore, ("get", "get_sync", "exists")),
        (LeasedObjectStore, ("get", "exists")),
    ],
    "written": [(LocalBacking, ("put",)), (LeasedObjectStore, ("set", "set_if_not_exists"))],
    "listed": [
        (DurableLocalStore, ("list_dir", "list_prefix", "getsize_prefix")),
        (LocalBacking, ("nbytes",)),
        (LeasedObjectStore, ("list_dir", "list_prefix", "getsize_prefix")),
    ],
    "removed": [
        (LocalBacking, ("delete",)),
        (DurableLocalStore, ("delete", "delete_dir")),
        (LeasedObjectStore, ("delete", "delete_dir")),
    ],
}


@dataclass
class Objects:
    """The keys that were asked for, in order, each as often as it was; missing objects too."""

    read: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def reads(self, prefix: str = "") -> int:
        """How many objects below a prefix were read, such as `progress`."""
        return len([key for key in self.read if key.startswith(prefix)])


@contextlib.contextmanager
def counted() -> Iterator[Objects]:
    """Count what every store, local or remote, does in the block; keys begin inside the store."""
    objects = Objects()
    with contextlib.ExitStack() as patches:
        for what, classes in METHODS.items():
            for of, methods in classes:
                for method in methods:
                    if hasattr(of, method):
                        watched = _watched(getattr(of, method), getattr(objects, what))
                        patches.enter_context(mock.patch.object(of, method, watched))
        yield objects


def _watched(method: Callable[..., Any], keys: list[str]) -> Callable[..., Any]:
    def watched(self: Any, key: str, *arguments: Any, **options: Any) -> Any:
        keys.append(key)
        return method(self, key, *arguments, **options)

    return watched
