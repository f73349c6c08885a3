"""YAML 1.2: `1e-5` is a number, `no` is a word, and a repeated key is an error."""

import re
from typing import Any

import yaml

from nullbooth_cli.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars instead of PyYAML's 1.1: numbers with exponents, no `yes`/`no`, no dates, no sexagesimals."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"{_place(node.start_mark)}: the key '{key}' appears twice", "remove one of them")
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+0123456789."),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)))  # PyYAML's own reads 010 as octal


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(str(loader.construct_scalar(node)).lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def _place(mark: yaml.Mark) -> str:
    return f"{mark.name}, line {mark.line + 1}"


def parse_yaml(text: str, name: str) -> object:
    """Read YAML strictly. Raises ConfigError that begins with `name` and the line."""
    loader = _Loader(text)
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = _place(mark) if mark else name
        raise ConfigError(f"{where}: {getattr(error, 'problem', None) or error}", "correct the YAML there") from error
    finally:
        loader.dispose()
