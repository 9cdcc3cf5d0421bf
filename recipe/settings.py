"""What a key of a config means, which values it takes, and whether it changes the result of a run: all said at its field.

`setting` makes a dataclass field that carries a `Setting`. From it follow the page of `--help` (`describe`), the refusal of a
value (`check_values`) and what makes two runs the same run (`what_changed`), so no list of keys stands anywhere else.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from recipe.errors import UserError

COPY = "give a local path, and copy what is there to the store afterwards"
MISSING = "???"  # OmegaConf's own: a key that every config must give
_KEY = "setting"


@dataclass(frozen=True)
class Setting:
    """`result`: whether another value gives another result. Bounds and choices hold for each item of a list. Numbers must be
    finite; None is always let through, as the field's type says whether it may stand there. `local`: a path on this machine, and
    what is said where somebody gives a URL."""

    help: str
    result: bool = True
    choices: Collection[str] = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    special: str = ""  # what a value at the edge stands for, such as "0 for all"
    local: str = ""

    @property
    def range(self) -> str:
        """The values that are taken, in words; empty where the type alone decides."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        bounds = [("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below)]
        words = " and ".join(f"{word} {bound:.12g}" for word, bound in bounds if bound is not None)
        return "; ".join(filter(None, [words, self.special]))

    def takes(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if not isinstance(value, (int, float)):
            return True
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )


def setting(default: Any, help: str, **facts: Any) -> Any:
    """A dataclass field with what `Setting` says of it; a list or a group (a dataclass) is made anew for every config."""
    metadata = {_KEY: Setting(help, **facts)}
    if isinstance(default, type) and dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def of(field: dataclasses.Field) -> Setting:
    return field.metadata[_KEY]


@cache
def _hints(schema: type) -> dict[str, Any]:
    return get_type_hints(schema)


def group(schema: type, name: str) -> type | None:
    """The dataclass of a key that has settings below it; None for a plain one."""
    hint = _hints(schema)[name]
    return next((kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)), None)


def default(field: dataclasses.Field) -> Any:
    """As a record holds it."""
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


def leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """(dotted key, field) of every plain key of a schema, those of its groups in their place."""
    for field in dataclasses.fields(schema):
        below = group(schema, field.name)
        if below:
            yield from leaves(below, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


def check_values(config: Any, prefix: str = "") -> None:
    """Raise a `UserError` for the first value outside its field's range or choices."""
    for field in dataclasses.fields(config):
        key, value, facts = f"{prefix}{field.name}", getattr(config, field.name), of(field)
        if dataclasses.is_dataclass(value):
            check_values(value, f"{key}.")
        elif value is not None and not all(facts.takes(one) for one in (value if isinstance(value, list) else [value])):
            raise UserError(f"{key}={as_word(value)}: must be {facts.range or 'a finite number'}")
        elif facts.local and value and "://" in value:
            raise UserError(f"{key}={value}: no path on this machine; {facts.local}")


def as_word(value: Any) -> str:
    """As it is typed after `key=`."""
    if isinstance(value, list):
        return f"[{','.join(map(as_word, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def result_settings(schema: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of all that decides a run's result.

    `values` is a config as a record holds it. A key that is newer than the record has its default, which is what the run had; one
    that the schema does not know counts as it stands.
    """
    found = {}
    for field in dataclasses.fields(schema):
        value, below = values.get(field.name, default(field)), group(schema, field.name)
        if below and isinstance(value, Mapping):
            found |= result_settings(below, value, f"{prefix}{field.name}.")
        elif of(field).result:
            found[prefix + field.name] = value
    known = {field.name for field in dataclasses.fields(schema)}
    return found | {prefix + name: value for name, value in values.items() if name not in known}


def what_changed(schema: type, before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key -> (value before, value now) of every setting that changes the result and is not the same in both; empty where a run
    may be continued. Both as records hold them."""
    old, new = (result_settings(schema, values) for values in (before, now))
    return {key: (old.get(key), new.get(key)) for key in {**new, **old} if old.get(key) != new.get(key)}


def describe(schema: type, width: int | None = None) -> str:
    """The page of `--help`: of every key its default, its range or choices, its meaning."""
    width = width or min(shutil.get_terminal_size().columns, 120)
    lines = [
        f"keys of {schema.__name__}; those marked * change neither the result nor what a run may be continued with",
        "",
    ]
    return "\n".join([*lines, *_described(schema, "", width)])


def _described(schema: type, prefix: str, width: int) -> Iterator[str]:
    fields = dataclasses.fields(schema)
    for field in sorted(fields, key=lambda field: group(schema, field.name) is not None):  # groups after plain keys
        facts, below = of(field), group(schema, field.name)
        if below:
            absent = "" if field.default is dataclasses.MISSING else " (absent unless given)"
            yield from ("", *_wrapped(f"{prefix}{field.name}.{absent}  {facts.help}", "", width))
            yield from _described(below, f"{prefix}{field.name}.", width)
            continue
        given = default(field)
        shown = "required" if given == MISSING else f"default {'none' if given is None else as_word(given)}"
        about = "; ".join(filter(None, [shown, facts.range]))
        yield f"  {prefix}{field.name}{'' if facts.result else ' *'}  ({about})"
        yield from _wrapped(facts.help, "      ", width)


def _wrapped(text: str, indent: str, width: int) -> Sequence[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
