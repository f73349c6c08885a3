"""YAML 1.2, strictly: `1e-5` is a number, `no` is a word, a repeated key is an error, and aliases cannot explode.

`limits` has the most levels of nesting, and the most characters once every alias (`*name`) is replaced by what it stands for.
"""

import re
from typing import Any

import yaml

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings import limits
from nullbooth_cli.settings.texts import flaw, paired, quoted

_NODE_SIZE = 16  # characters that a value counts at least, however short it is
_DIGITS = 19  # of an integer: 64 bits
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_PATTERNS = {
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    "int": (_INT, "-+0123456789"),
    "float": (_FLOAT, "-+0123456789."),
    "null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
}
_CORE = {f"tag:yaml.org,2002:{name}": pattern for name, (pattern, _) in _PATTERNS.items()}
_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("str", "seq", "map")}
# PyYAML ends a line at these, as YAML 1.1 does; while it reads, characters that Unicode will never assign stand for them.
_LINE_ENDS = {"\x85": "\ufdd0", "\u2028": "\ufdd1", "\u2029": "\ufdd2"}
_HIDDEN, _SHOWN = str.maketrans(_LINE_ENDS), str.maketrans({hidden: end for end, hidden in _LINE_ENDS.items()})


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars instead of PyYAML's 1.1: numbers with exponents, no `yes`/`no`, no dates, no sexagesimals."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level, self._expanded = 0, 0
        self._sizes: dict[str, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """PyYAML's, with limits, and only with tags of the core schema that fit their values."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if event.anchor not in self._sizes:
                raise ConfigError(f"{_place(event.start_mark)}: an alias is inside what it stands for", "write the value out")
            self._expanded += self._sizes[event.anchor]
            self._check_expanded(event.start_mark)
            return node
        self._level, before = self._level + 1, self._expanded
        if self._level > limits.LEVELS:
            where = _place(event.start_mark)
            raise ConfigError(f"{where}: values are nested more than {limits.LEVELS} levels deep", "write it with fewer levels")
        node = super().compose_node(parent, index)
        assert node is not None
        _check_tag(node)
        self._expanded += _NODE_SIZE
        if isinstance(node, yaml.ScalarNode):
            node.value = paired(node.value.translate(_SHOWN))
            if problem := flaw(node.value):
                raise ConfigError(f"{_place(node.start_mark)}: a text {problem}", "write it without")
            self._expanded += len(node.value)
        self._level -= 1
        if event.anchor is not None:
            self._sizes[event.anchor] = self._expanded - before
        return node

    def _check_expanded(self, mark: Any) -> None:
        if self._expanded > limits.EXPANDED:
            hint = "write the values out, or use fewer aliases"
            raise ConfigError(f"{_place(mark)}: aliases expand to more than {limits.EXPANDED:,} characters", hint)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are their texts: `1` and `null` are words where they are keys."""
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{_place(node.start_mark)}: this is not a mapping", "correct the YAML there")
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(
                    f"{_place(key.start_mark)}: a list or a mapping is used as a key", "write a word before the colon"
                )
            if key.value in found:
                raise ConfigError(f"{_place(key.start_mark)}: the key {quoted(key.value)} appears twice", "remove one of them")
            found[key.value] = self.construct_object(value, deep=deep)
        return found


def _check_tag(node: yaml.Node) -> None:
    """Raise ConfigError for a tag (`!!binary`) that is not one of the core schema, or whose value is not of that type."""
    pattern = _CORE.get(node.tag)
    fits = node.tag in _PLAIN if pattern is None else isinstance(node, yaml.ScalarNode) and bool(pattern.fullmatch(node.value))
    if not fits:
        known = re.fullmatch(r"tag:yaml\.org,2002:([a-z]+)", node.tag)  # any other may be a secret that begins with "!"
        tag = f"the tag !!{known[1]}" if known else "its tag"
        raise ConfigError(
            f"{_place(node.start_mark)}: {tag} does not fit this value", "remove the tag, or put quotes around the value"
        )
    if pattern is _INT and len(node.value.lstrip("+-0")) > _DIGITS:
        raise ConfigError(f"{_place(node.start_mark)}: an integer of more than {_DIGITS} digits", "write a smaller number")


_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _PATTERNS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern.pattern})$"), list(_first))


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)))  # PyYAML's own reads 010 as octal


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(str(loader.construct_scalar(node)).lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def _place(mark: Any) -> str:
    return f"{mark.name}, line {mark.line + 1}"


def parse_yaml(text: str, name: str) -> object:
    """Read YAML strictly. Raises ConfigError that begins with `name` and the line."""
    try:
        loader = _Loader(text.translate(_HIDDEN))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{name}, line {line}: the character {error.character:#x} is not allowed", "remove it") from None
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = _place(mark) if mark else name
        # Without names, and not `from error`: both repeat parts of the line, where a secret may begin with "*" or "!".
        problem = re.sub(r" '(?!<)[^']{2,}'", "", getattr(error, "problem", None) or str(error))
        if problem == "second occurrence":
            problem = "an anchor is defined a second time"
        raise ConfigError(f"{where}: {problem}", "correct the YAML there, or put quotes around the value") from None
    finally:
        loader.dispose()
