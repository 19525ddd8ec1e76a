"""What a YAML file says, and what in it cannot be read, by key path.

YAML lets the later of two equal keys win without a word, and its reader falls over a date or a number that is none. Here both
are problems beside all others: of equal keys the later one counts, and what cannot be read stays the text that it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import yaml

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_READ_AS = {"timestamp": "a date", "int": "a whole number", "float": "a number", "bool": "yes or no"}
_SHOWN = 40  # characters of a value
_UNREADABLE = (ValueError, LookupError, ArithmeticError, AttributeError)  # what PyYAML lets escape


def read(text: str) -> tuple[object, list[str]]:
    """What stands there, and one line for each problem; raise YAMLError for no YAML, RecursionError for too deep a nesting."""
    reader = yaml.SafeLoader(text)
    try:
        node = reader.get_single_node()
        problems = list(_problems(node, "", reader, set()))
        return (None if node is None else yaml.SafeLoader("").construct_document(node)), problems
    finally:
        reader.dispose()


def _problems(node: yaml.Node | None, path: str, reader: yaml.SafeLoader, seen: set[int]) -> Iterator[str]:
    """Turn what cannot be read into text on the way. What aliases share is looked at once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        try:
            repr(reader.construct_object(node))  # a number of thousands of digits can be read and not be shown
        except _UNREADABLE:
            kind = _READ_AS.get(node.tag.rpartition(":")[2], "what its tag says")
            value = node.value if len(node.value) <= _SHOWN else f"{node.value[:_SHOWN]}…"
            where = path or "the file"
            yield f"{where}: it is taken for {kind} and cannot be read as one; correct it, or quote it (it is {value!r})"
            node.tag = _TEXT
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            yield from _problems(value, _below(path, place), reader, seen)
    elif isinstance(node, yaml.MappingNode):
        yield from _of_mapping(node, path, reader, seen)


def _of_mapping(node: yaml.MappingNode, path: str, reader: yaml.SafeLoader, seen: set[int]) -> Iterator[str]:
    names: set[object] = set()
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else None
        here = _below(path, "?" if name is None else name)
        if name is not None and name in names:
            yield f"{here}: it is given twice; leave one of them out"
        names.add(name)
        if key.tag != _MERGE:
            yield from _problems(key, here, reader, seen)
        yield from _problems(value, here, reader, seen)


def _below(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
