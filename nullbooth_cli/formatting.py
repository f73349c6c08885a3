"""Numbers, bytes and seconds as people read them, and texts that are safe to show."""

import json
import re
from collections.abc import Sequence

# What steers a terminal or hides what is written: C0 and C1 controls but tab and newline, line and paragraph separators, marks
# and overrides of the direction of writing, and halves of surrogate pairs, which no encoding takes.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def visible(text: str) -> str:
    """A text as it may be shown: a character that steers a terminal, such as ESC, becomes its JSON escape, `\\u001b`."""
    return _STEERING.sub(lambda found: json.dumps(found[0])[1:-1], text)


def aligned(values: Sequence[float | None], digits: int = 6) -> list[str]:
    """Numbers of one column with the same number of decimals: as many as the longest needs for `digits` significant digits.

    Numbers that span a wider range are all in exponential notation. None becomes "".
    """
    numbers = [value for value in values if value is not None]
    fixed = all(value == 0 or 10.0 ** (1 - digits) <= abs(value) < 10.0**digits for value in numbers)
    forms = [f".{decimals}{'f' if fixed else 'e'}" for decimals in range(digits + 1)]
    form = next((form for form in forms if all(float(format(v, form)) == float(f"{v:.{digits}g}") for v in numbers)), forms[-1])
    return ["" if value is None else format(value, form) for value in values]


def counted(count: int, word: str) -> str:
    """A count with its noun: 1 layer, 2 layers."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def listed(things: Sequence[object], most: int = 5, *, lines: bool = False) -> str:
    """The first few of a list, and the number of the others: a.png, b.png and 3 more. With `lines` each is an indented line."""
    more = f"and {len(things) - most} more" if len(things) > most else ""
    if lines:
        return "".join(f"\n  {line}" for line in (*things[:most], *filter(None, [more])))
    return " ".join(filter(None, [", ".join(map(str, things[:most])), more]))


def without_shared_ending(names: Sequence[str]) -> tuple[list[str], str]:
    """Dotted names without the parts that all of them end in, and that ending: `.attn2`. The first part of a name stays."""
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(p) > shared + 1 for p in parts) and len({p[-1 - shared] for p in parts}) == 1:
        shared += 1
    return [".".join(p[: len(p) - shared]) for p in parts], ".".join(["", *parts[0][len(parts[0]) - shared :]])


def size(num_bytes: int) -> str:
    """Bytes with a decimal prefix: 1.2 MB."""
    return _scaled(num_bytes, ("B", "kB", "MB", "GB", "TB"))


def operations(count: int) -> str:
    """Floating point operations with a decimal prefix: 1.2 PFLOP."""
    return _scaled(count, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def _scaled(number: int, units: tuple[str, ...]) -> str:
    value = float(number)
    for unit in units[:-1]:
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == units[0] else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} {units[-1]}"


def percent(share: float) -> str:
    """A share of 1 in percent, with two digits: 0.012 %, 100 %."""
    if 0 < share < 1e-6:
        return "less than 0.0001 %"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def rate(seconds_per_unit: float) -> str:
    """The pace of work: 84 units/min, or 12.3 s/unit below ten units a minute."""
    return f"{seconds_per_unit:.1f} s/unit" if seconds_per_unit > 6 else f"{60 / seconds_per_unit:,.0f} units/min"


def duration(seconds: float) -> str:
    """Seconds in two units at most: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
