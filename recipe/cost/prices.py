"""What an hour of a device costs, and what a run therefore cost. Prices are rows of a YAML table, no constants here."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from recipe import shipped
from recipe.errors import UserError, one_line
from recipe.system.yaml_files import read_yaml

ROW_KEYS = ("name", "match", "usd_per_hour", "source")
MAY_KEYS = ("memory_gib",)
OWN_PRICE = "config: cost.usd_per_hour"  # the source of a price that the user stated


@dataclass(frozen=True)
class Price:
    """Dollars an hour of one device (one GPU, or one CPU core), and where the figure was found."""

    usd_per_hour: float
    source: str  # for people: "yamls/prices.yaml: h200", or OWN_PRICE
    row: str | None = None  # the name of the price table's row; None for a price of the user's own


@dataclass(frozen=True)
class Row:
    """One line of the table: a device whose name holds one of `match` costs `usd_per_hour`."""

    name: str
    match: tuple[str, ...]
    usd_per_hour: float
    source: str
    memory_gib: float | None = None  # of one device

    @property
    def kind(self) -> str:
        """gpu or cpu: a row for CPUs matches the word itself."""
        return "cpu" if "cpu" in self.match else "gpu"


def price_of(device_name: str, kind: str, prices_path: str, override: float | None = None) -> Price:
    """The price of one device.

    Args:
        device_name: as the driver or the CPU reports it, such as `NVIDIA H200`.
        kind: `gpu` or `cpu`; a CPU's price is that of one core.
        prices_path: the table; not read when `override` is given.
        override: `cost.usd_per_hour` of the config.

    Raises:
        UserError: for a device that no row matches, a missing or malformed table, an override that is no price.
    """
    assert kind in ("gpu", "cpu"), kind
    if override is not None:
        if not _is_price(override):
            raise UserError(f"cost.usd_per_hour={override}: expected a positive number of US dollars")
        return Price(float(override), OWN_PRICE)
    # The longest match wins: "H100 PCIe" is more exact than "H100". The kind is a word too, so a row may match any CPU.
    words = f"{kind} {device_name}"
    found = [(len(text), row) for row in load(prices_path) for text in row.match if _holds(words, text)]
    if not found:
        raise UserError(f"{prices_path}: no price for {kind} `{device_name}`; add a row or say cost.usd_per_hour=...")
    row = max(found, key=lambda pair: pair[0])[1]
    return Price(row.usd_per_hour, f"{prices_path}: {row.name}", row.name)


def row_named(name: str, path: str) -> Row:
    """The row of the table in `path` that is called `name`, in any case.

    Raises:
        UserError: no such row, or what `load` refuses.
    """
    rows = load(path)
    for row in rows:
        if row.name.lower() == name.lower():
            return row
    raise UserError(f"{path}: no price for a GPU `{name}`; known are {', '.join(row.name for row in rows)}; add a row")


def bill(seconds: float, count: float, price: Price, kind: str) -> dict[str, float]:
    """The `cost` of a record: wall `seconds` on `count` devices at `price` each; a part of the cores may be a fraction."""
    device_hours = seconds * count / 3600
    return {
        "seconds": seconds,
        "gpu_hours": device_hours if kind == "gpu" else 0.0,
        "device_hours": device_hours,
        "usd": device_hours * price.usd_per_hour,
    }


def load(path: str) -> list[Row]:
    """The rows of a price table.

    Raises:
        UserError: for a missing file, bad YAML, or a row that lacks a key or holds a wrong value.
    """
    import yaml  # here, as benchmarks write records on machines that lack it

    try:
        rows = read_yaml(shipped.find(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the price table ({error.strerror}); set cost.prices=FILE") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {one_line(error)}") from None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: expected a list of rows, each with {', '.join(ROW_KEYS)}")
    return [_row(row, f"{path}: row {number}") for number, row in enumerate(rows, start=1)]


def _row(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected {', '.join(ROW_KEYS)}, got `{row}`")
    where = f"{where} ({row['name']})" if row.get("name") else where
    for key in ROW_KEYS:
        if key not in row:
            raise UserError(f"{where}: `{key}` is missing; a row has {', '.join(ROW_KEYS)}")
    for key in row:
        if key not in ROW_KEYS + MAY_KEYS:
            raise UserError(f"{where}: unknown key `{key}`; a row has {', '.join(ROW_KEYS + MAY_KEYS)}")
    match = row["match"]
    if not isinstance(match, list) or not match or not all(isinstance(text, str) and text.strip() for text in match):
        raise UserError(f"{where}: `match` must be a list of pieces of device names, got `{match}`")
    if not _is_price(row["usd_per_hour"]):
        raise UserError(f"{where}: `usd_per_hour` must be a positive number, got `{row['usd_per_hour']}`")
    memory = row.get("memory_gib")
    if memory is not None and not _is_price(memory):
        raise UserError(f"{where}: `memory_gib` must be a positive number, got `{memory}`")
    return Row(str(row["name"]), tuple(match), float(row["usd_per_hour"]), str(row["source"]), memory)


def _is_price(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _holds(words: str, text: str) -> bool:
    """Whether `text` stands in `words` between word ends: `H200` is in "NVIDIA H200 NVL", not in "NVIDIA GH200"."""
    return re.search(rf"(?<![a-z0-9]){re.escape(text.strip().lower())}(?![a-z0-9])", words.lower()) is not None
