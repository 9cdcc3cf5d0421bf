"""What stands at every field of every schema: its meaning, its values, and whether it changes the result."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from typing import Any

import pytest

from recipe.config import (
    ExportConfig,
    FinetuneConfig,
    GlueConfig,
    PairsConfig,
    PredictConfig,
    PrepareConfig,
    RetrieveConfig,
    SweepConfig,
    TrainConfig,
    to_dict,
)
from recipe.settings import MISSING, check_values, default, describe, leaves, of, what_changed
from tests.mistakes import refused

SCHEMAS = (
    PrepareConfig,
    TrainConfig,
    GlueConfig,
    FinetuneConfig,
    PredictConfig,
    PairsConfig,
    SweepConfig,
    ExportConfig,
    RetrieveConfig,
)
FIELDS = [
    pytest.param(schema, key, field, id=f"{schema.__name__}.{key}")
    for schema in SCHEMAS
    for key, field in leaves(schema)
]


def recorded(schema: type) -> dict[str, Any]:
    """A config as a record of today holds it, every optional group given."""
    values = to_dict(schema())
    if schema is PrepareConfig:
        values["validation"] = copy.deepcopy(values["train"])
    return json.loads(json.dumps(values))


def place(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    *groups, name = key.split(".")
    for group in groups:
        values = values[group]
    return values, name


@functools.cache
def page_of(schema: type) -> str:
    return " ".join(describe(schema).split())


def another(value: Any) -> Any:
    return [*value, 1] if isinstance(value, list) else f"not {value}"


@pytest.mark.parametrize(("schema", "key", "field"), FIELDS)
def test_a_field_says_what_it_is(schema, key, field):
    facts, value = of(field), default(field)
    assert len(facts.help) > 5
    for one in value if isinstance(value, list) else [value]:
        assert one in (None, MISSING) or facts.takes(one), "its own default"
    page = page_of(schema)
    assert f" {key}{'' if facts.result else ' *'} (" in page and " ".join(facts.help.split()) in page
    assert facts.range in page


@pytest.mark.parametrize(("schema", "key", "field"), FIELDS)
def test_a_run_is_another_where_a_setting_that_changes_the_result_is_another(schema, key, field):
    before, now = recorded(schema), recorded(schema)
    assert what_changed(schema, before, now) == {}
    group, name = place(now, key)
    group[name] = another(group[name])
    expected = {key: (place(before, key)[0][name], group[name])} if of(field).result else {}
    assert what_changed(schema, before, now) == expected


@pytest.mark.parametrize(("schema", "key", "field"), FIELDS)
def test_a_key_newer_than_the_record_has_its_default(schema, key, field):
    before, now = recorded(schema), recorded(schema)
    group, name = place(before, key)
    del group[name]
    place(now, key)[0][name] = default(field)
    assert what_changed(schema, before, now) == {}
    place(now, key)[0][name] = another(default(field))
    assert list(what_changed(schema, before, now)) == ([key] if of(field).result else [])


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_key_of_the_record_that_is_unknown_here_is_a_difference(schema):
    before = recorded(schema) | {"flavour": "sweet"}
    assert what_changed(schema, before, recorded(schema)) == {"flavour": ("sweet", None)}


def test_a_group_that_is_absent_differs_from_one_that_is_given():
    absent, given = recorded(PrepareConfig) | {"validation": None}, recorded(PrepareConfig)
    assert what_changed(PrepareConfig, absent, absent) == {}
    assert "validation.split" in what_changed(PrepareConfig, absent, given)


def outside(facts: Any) -> list[Any]:
    """Values just beyond a field's bounds."""
    found = ["no such choice"] if facts.choices else []
    found += [facts.least - 1] if facts.least is not None else []
    found += [facts.most + 1] if facts.most is not None else []
    found += [bound for bound in (facts.above, facts.below) if bound is not None]
    return found + ([float("inf"), float("nan")] if found and not facts.choices else [])


BOUNDED = [
    pytest.param(schema, key, field, value, id=f"{schema.__name__}.{key}={value}")
    for schema in SCHEMAS
    for key, field in leaves(schema)
    for value in outside(of(field))
    if not key.startswith("validation.")
]


@pytest.mark.parametrize(("schema", "key", "field", "value"), BOUNDED)
def test_a_value_outside_is_refused_in_one_line(schema, key, field, value):
    config = schema()
    *groups, name = key.split(".")
    target = config
    for group in groups:
        target = getattr(target, group)
    setattr(target, name, [value] if isinstance(default(field), list) else value)
    message = refused(check_values, config)
    assert message.startswith(f"{key}=") and message.endswith(f"must be {of(field).range}")


def test_bounds_were_found():
    assert len(BOUNDED) > 60


def test_every_config_of_defaults_passes():
    for schema in SCHEMAS:
        check_values(schema())


def test_no_field_of_a_schema_is_plain():
    def groups(schema: type) -> list[type]:
        below = [field.default_factory for field in dataclasses.fields(schema)]
        return [schema, *(one for kind in below if dataclasses.is_dataclass(kind) for one in groups(kind))]

    for schema in SCHEMAS:
        for one in groups(schema):
            assert one.__doc__ and all("setting" in field.metadata for field in dataclasses.fields(one)), one
