"""YAML as configs and profiles are written in: mappings, lists, texts, numbers, truth values, and nothing to wonder at.

text -> nodes (keys are words, each stands once; depth and size have bounds) -> plain values

What YAML 1.1 reads as something else than it looks like (a date, 24:00:00, 0123) is refused with the advice to quote
it. Merge keys (`<<: *base`) are merged. Whatever is wrong is a `yaml.YAMLError`.
"""

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode

from common.mistakes import cut

MAX_DEPTH, MAX_VALUES, MAX_DIGITS = 40, 100_000, 40
"""Levels, values (those behind aliases counted at each use) and digits of a number: far more than any config has."""
_TAG = "tag:yaml.org,2002:"
_MERGE, _WORD = _TAG + "merge", _TAG + "str"
_DECEPTIVE = re.compile(r"[-+]?(0[0-9_]+|[0-9_]+(:[0-9_.]+)+)")
"""Numbers in base 8 and base 60."""


def read_plain(text: str, *, any_base: bool = False) -> Any:
    """The value that a YAML text says. Raises yaml.YAMLError, with a line where one is to blame.

    any_base: numbers in base 8 and 60 are read, for who knows better which key they stand at.
    """
    try:
        value = yaml.load(text, _AnyBaseLoader if any_base else _PlainLoader)
        _refuse_swollen(value)
    except RecursionError:
        raise ConstructorError(None, None, "values that hold themselves", None) from None
    return value


class _PlainLoader(yaml.SafeLoader):
    """YAML of plain values, each key of a mapping given once."""

    depth = 0
    any_base = False

    def compose_node(self, parent, index):
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ConstructorError(None, None, f"more than {MAX_DEPTH} levels", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        _refuse_odd_keys(node)
        return node

    def construct_object(self, node, deep=False):
        try:
            _refuse_deceptive(node, self.any_base)
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
            what, kind = cut(str(node.value)), node.tag.removeprefix(_TAG)
            raise ConstructorError(None, None, f"'{what}' is no {kind}; quote it", node.start_mark) from None


class _AnyBaseLoader(_PlainLoader):
    any_base = True


def _refuse_odd_keys(node: MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, ScalarNode) or key.tag not in (_WORD, _MERGE):
            what = f"'{cut(key.value)}'" if isinstance(key, ScalarNode) else "a list or mapping"
            raise ConstructorError(None, None, f"key {what} is no word", key.start_mark)
        if key.value in seen:
            raise ConstructorError(None, None, f"key '{cut(key.value)}' stands twice", key.start_mark)
        seen.add(key.value)


def _refuse_deceptive(node: Node, any_base: bool) -> None:
    if not isinstance(node, ScalarNode):
        return
    what = cut(node.value)
    if node.tag == _TAG + "timestamp":
        raise ConstructorError(None, None, f"'{what}' is read as a date; quote it", node.start_mark)
    if node.tag in (_TAG + "int", _TAG + "float"):
        if len(node.value) > MAX_DIGITS:
            raise ConstructorError(
                None, None, f"{what} is a number of {len(node.value):,} digits, too many", node.start_mark
            )
        if _DECEPTIVE.fullmatch(node.value) and not any_base:
            raise ConstructorError(
                None,
                None,
                f"{what} is read as a number in base 8 or 60; quote it, or write it plainly",
                node.start_mark,
            )


def _refuse_swollen(value: Any) -> None:
    """Refuses values that aliases make endless, or larger than memory."""
    open_, count = [value], 0
    while open_:
        each = open_.pop()
        count += 1
        if count > MAX_VALUES:
            raise ConstructorError(None, None, f"more than {MAX_VALUES:,} values, or values that hold themselves", None)
        if isinstance(each, dict):
            open_ += each.values()
        elif isinstance(each, list):
            open_ += each
        elif not isinstance(each, str | int | float | None):
            kind = type(each).__name__
            raise ConstructorError(
                None, None, f"a value of kind {kind}; only texts, numbers and truth values are", None
            )
