"""The only place that reads YAML or the command line: a file and `key=value` words become one checked instance of a schema."""

from __future__ import annotations

import dataclasses
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipe import shipped
from recipe.errors import UserError, exit_status, one_line
from recipe.settings import check_values, describe
from recipe.system.private import private
from recipe.system.yaml_files import check_yaml

C = TypeVar("C")
_CALL = re.compile(r"\$\{[^{}]*:")
WORDS = "command line"  # where a word comes from, in messages


def load(schema: type[C], path: str, overrides: Sequence[str] = ()) -> C:
    """Read `path`, apply `key=value` words, and return a checked instance of `schema`.

    Raises:
        UserError: for a missing file, bad YAML, an unknown key, a wrong type or a missing value.
    """
    file = shipped.find(path)
    if not file.is_file():
        raise UserError(
            f"{path}: {shipped.moved(path) or 'no such file; the first argument is a YAML file, see yamls/'}"
        )
    try:
        text = file.read_text("utf-8-sig")
        check_yaml(text)
        from_file = OmegaConf.load(io.StringIO(text))
    except Exception as error:  # the YAML library's own errors, some of them over several lines
        raise UserError(f"{path}: not valid YAML: {one_line(error)}") from None
    if not isinstance(from_file, DictConfig):
        raise UserError(f"{path}: expected `key: value` lines at the top level")
    return _merged(schema, (from_file, path), overrides)


def load_words(schema: type[C], words: Sequence[str], first: Sequence[str]) -> C:
    """The same of a command without a YAML file, whose first words are the values of the keys `first`.

    Raises:
        UserError: as `load`.
    """
    return _merged(schema, (DictConfig(dict(zip(first, words, strict=False))), WORDS), words[len(first) :])


def _merged(schema: type[C], file: tuple[DictConfig, str], overrides: Sequence[str]) -> C:
    """A file, with its name for messages, and words over it as a checked instance."""
    path = file[1]
    for word in overrides:
        if "=" not in word.lstrip("="):
            raise UserError(f"`{word}`: settings on the command line have the form key=value")
    try:
        words = OmegaConf.from_dotlist(list(overrides))
    except Exception as error:
        raise UserError(f"{WORDS}: {one_line(error)}") from None
    merged = OmegaConf.structured(schema)
    for layer, where in (file, (words, WORDS)):
        plain = OmegaConf.to_container(layer)
        _check_words(plain, where)
        _check_shape(plain, schema, "", where)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise _refused(error, where) from None
    try:
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            remedy = "" if path == WORDS else "add it to the file or "
            raise UserError(f"{path}: `{missing[0]}` has no value; {remedy}say {missing[0]}=...")
        config = _expanded(OmegaConf.to_object(merged))
    except RecursionError:
        raise UserError(f"{path}: a value stands for itself (${{...}}); write the value") from None
    except OmegaConfBaseException as error:
        raise _refused(error, path) from None
    check_values(config)
    return config


def _expanded(value: Any) -> Any:
    """A config with `~/`, as records have it, for the home folder."""
    if dataclasses.is_dataclass(value):
        values = {field.name: _expanded(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **values)
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _refused(error: OmegaConfBaseException, where: str) -> UserError:
    return UserError(f"{where}: `{getattr(error, 'full_key', None) or '?'}`: {str(error).splitlines()[0]}")


def _check_words(tree: Any, where: str) -> None:
    """Raise for a text that calls one of OmegaConf's functions: `${oc.env:HF_TOKEN}` would bring a secret into the record."""
    if isinstance(tree, str) and (call := _CALL.search(tree)):
        raise UserError(f"{where}: `{call[0]}...`: a config calls no function; write the value itself")
    for below in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        _check_words(below, where)


def _check_shape(tree: dict, schema: type, prefix: str, where: str) -> None:
    """Raise for the first key of `tree` that `schema` does not have, and for a group, a list or a plain value where another
    of the three belongs; OmegaConf then has plain values left to check."""
    hints = get_type_hints(schema)
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1)
            hint = f"did you mean `{prefix}{near[0]}`?" if near else f"known here: {', '.join(hints)}"
            raise UserError(f"{where}: unknown key `{key}`; {hint}")
        optional = type(None) in get_args(hints[name])
        wanted = get_args(hints[name])[0] if optional else hints[name]
        if dataclasses.is_dataclass(wanted) and isinstance(value, dict):
            _check_shape(value, wanted, f"{key}.", where)
        elif dataclasses.is_dataclass(wanted):
            if value is not None or not optional:
                known = ", ".join(field.name for field in dataclasses.fields(wanted))
                raise UserError(f"{where}: `{key}`: expected settings below it ({known}), got `{value}`")
        elif get_origin(wanted) is list:
            _check_list(value, key, where)
        elif isinstance(value, (dict, list)):
            raise UserError(f"{where}: `{key}`: expected one value, got `{value}`")


def _check_list(values: Any, key: str, where: str) -> None:
    if not isinstance(values, list):
        raise UserError(f"{where}: `{key}`: expected a list such as [a, b], got `{values}`")
    for number, value in enumerate(values):
        if value is None or isinstance(value, (dict, list)):
            raise UserError(f"{where}: `{key}[{number}]`: expected one value, got `{value}`")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain dictionaries and lists, for a record: without credentials, the home folder as `~`."""
    return private(dataclasses.asdict(config))


def run_main(
    schema: type[C], main: Callable[[C], object], argv: Sequence[str] | None = None, first: Sequence[str] = ()
) -> int:
    """The command line of an entry point: `YAML [key=value ...]`. Returns the exit status, 2 for a user's mistake.

    Args:
        first: the keys whose values are the first words, instead of a YAML file: `MODEL FILE [key=value ...]`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    asked = bool(words) and words[0] in ("-h", "--help")
    if asked or len(words) < max(len(first), 1):
        usage = " ".join(key.upper() for key in first) or "YAML"
        print(f"usage: {usage} [key=value ...]\n\n{schema.__doc__}\n\n{describe(schema)}")
        return 0 if asked else 2
    if first:
        return exit_status(lambda: main(load_words(schema, words, first)))
    return exit_status(lambda: main(load(schema, words[0], words[1:])))
