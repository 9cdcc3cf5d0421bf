"""YAML that anybody may have written: plain values, of which a short file cannot make a large tree."""

from __future__ import annotations

from typing import Any

MOST_CHARACTERS, MOST_VALUES = 1 << 20, 100_000


def check_yaml(text: str) -> None:
    """Look at a YAML text before it is loaded.

    Raises:
        ValueError: a tag such as `!!python/name`, too long, nested too deeply, or more values than a config has once its aliases
            are written out. The YAML library's own errors too.
    """
    import yaml  # here, as benchmarks write records on machines that lack it

    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"longer than {MOST_CHARACTERS:,} characters")
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        values = 0 if root is None else _count(root, {})
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if values > MOST_VALUES:
        raise ValueError(f"its aliases stand for more than {MOST_VALUES:,} values")


def _count(node: Any, known: dict[int, int]) -> int:
    """Values below a node and its own, each alias counted like what it stands for."""
    if id(node) in known:
        return known[id(node)]
    if not node.tag.startswith("tag:yaml.org,2002:") or "/" in node.tag.removeprefix("tag:yaml.org,2002:"):
        short = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise ValueError(f"the tag `{short}`: nothing is made of tags here, write the value itself")
    known[id(node)] = MOST_VALUES + 1  # of one that holds itself
    children = node.value if isinstance(node.value, list) else []
    flat = [one for child in children for one in (child if isinstance(child, tuple) else (child,))]
    known[id(node)] = 1 + sum(_count(one, known) for one in flat)
    return known[id(node)]


def read_yaml(text: str) -> Any:
    """Its values.

    Raises:
        ValueError: as `check_yaml`, or a value that is none, such as the 31st of February; the library's own errors.
    """
    import yaml

    check_yaml(text)
    return yaml.safe_load(text)
