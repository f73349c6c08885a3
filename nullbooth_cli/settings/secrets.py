"""Which settings may not be shown or stored: `storage_options`, and every key that sounds like a secret."""

import re
from collections.abc import Sequence

_SECRET = re.compile(
    r"storage_options|secret|passw|passphrase|credential|signature|(api|access|account|private|client|shared)[_-]?key"
    r"|(?<![a-z])(token|key|auth|bearer|sas|pwd)(?![a-z])",
    re.IGNORECASE,
)
_END = re.compile(r"[\s=:{\[\"']")


def is_secret(key: str) -> bool:
    """Whether the value of a key, `a.b` or an override `a.b=c`, is never shown."""
    return bool(_SECRET.search(key.partition("=")[0]))


def shown(key: str) -> str:
    """A key for an error: that of a secret ends where a value may begin, since `secret:abc` without a blank is a key in YAML."""
    return f"{_END.split(key, maxsplit=1)[0]}..." if is_secret(key) and _END.search(key) else key


def without_secrets(overrides: Sequence[str]) -> list[str]:
    """The overrides that may be shown in a command."""
    return [override for override in overrides if not is_secret(override)]
