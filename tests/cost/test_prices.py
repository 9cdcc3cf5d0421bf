import math
from pathlib import Path

import pytest

from recipe.cost.prices import Price, bill, load, price_of
from recipe.errors import UserError

TABLE = str(Path(__file__).resolve().parents[2] / "yamls" / "prices.yaml")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("nvidia h200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ],
)
def test_the_projects_table_knows_the_usual_gpus_by_the_drivers_names(name, row):
    price = price_of(name, "gpu", TABLE)
    assert price.row == row and price.source == f"{TABLE}: {row}"
    assert price.usd_per_hour == next(line.usd_per_hour for line in load(TABLE) if line.name == row)


def test_the_papers_a100_costs_what_its_twenty_dollars_imply():
    paper = bill(1.13 * 3600, 8, price_of("NVIDIA A100-SXM4-80GB", "gpu", TABLE), "gpu")
    assert paper["usd"] == pytest.approx(20, rel=0.15)


def test_every_row_names_its_source():
    assert all(row.source.strip() for row in load(TABLE))


# Chips whose names hold the name of a cheaper or dearer one, and a chip nobody has.
@pytest.mark.parametrize("name", ["NVIDIA GH200 480GB", "NVIDIA GB200", "NVIDIA L40", "NVIDIA H20", "Voodoo 2", ""])
def test_an_unknown_gpu_is_never_given_a_neighbours_price(name):
    with pytest.raises(UserError) as error:
        price_of(name, "gpu", TABLE)
    assert name in str(error.value) and TABLE in str(error.value) and "cost.usd_per_hour=" in str(error.value)


@pytest.mark.parametrize("name", ["AMD EPYC 9654 96-Core Processor", "", "Intel(R) Xeon(R) CPU @ 2.00GHz"])
def test_any_cpu_has_the_price_of_a_core(name):
    assert price_of(name, "cpu", TABLE).row == "cpu-core"


def test_the_longest_match_wins_wherever_it_stands(tmp_path):
    table = tmp_path / "prices.yaml"
    table.write_text(
        "- {name: any, match: [gpu], usd_per_hour: 1, source: me}\n"
        "- {name: exact, match: [Ultra 9 Pro, xyz], usd_per_hour: 3, source: me}\n"
        "- {name: near, match: [Ultra 9], usd_per_hour: 2, source: me}\n"
    )
    assert price_of("Ultra 9 Pro", "gpu", str(table)).usd_per_hour == 3
    assert price_of("Ultra 9", "gpu", str(table)).usd_per_hour == 2
    assert price_of("Ultra 7", "gpu", str(table)).usd_per_hour == 1


def test_an_override_needs_no_table():
    assert price_of("Voodoo 2", "gpu", "no/such/file", 0.5) == Price(0.5, "config: cost.usd_per_hour", None)


@pytest.mark.parametrize("override", [0, -1.0, math.nan, math.inf])
def test_an_override_must_be_a_price(override):
    with pytest.raises(UserError, match="cost.usd_per_hour"):
        price_of("NVIDIA H200", "gpu", TABLE, override)


GOOD = "- {name: a, match: [A], usd_per_hour: 1, source: me}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected a list of rows"),
        ("a: 1", "expected a list of rows"),
        ("[unclosed", "not valid YAML"),
        (GOOD + "- just words", "row 2: expected name"),
        (GOOD + "- {name: b, match: [B], source: me}", r"row 2 \(b\): `usd_per_hour` is missing"),
        (GOOD + "- {name: b, match: B, usd_per_hour: 1, source: me}", r"row 2 \(b\): `match` must be a list"),
        (GOOD + "- {name: b, match: [], usd_per_hour: 1, source: me}", r"row 2 \(b\): `match` must be a list"),
        (GOOD + "- {name: b, match: [4090], usd_per_hour: 1, source: me}", r"row 2 \(b\): `match` must be a list"),
        (GOOD + "- {name: b, match: [B], usd_per_hour: free, source: me}", r"row 2 \(b\): `usd_per_hour` must be"),
        (GOOD + "- {name: b, match: [B], usd_per_hour: .nan, source: me}", r"row 2 \(b\): `usd_per_hour` must be"),
        (GOOD + "- {name: b, match: [B], usd_per_hour: 1, source: me, colour: red}", "unknown key `colour`"),
    ],
)
def test_a_malformed_table_is_one_line_with_file_and_row(tmp_path, text, says):
    table = tmp_path / "prices.yaml"
    table.write_text(text)
    with pytest.raises(UserError, match=says) as error:
        price_of("A", "gpu", str(table))
    assert str(table) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_or_binary_table_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match="cost.prices"):
        load(str(tmp_path / "none.yaml"))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(UserError, match="not valid YAML"):
        load(str(binary))


def test_the_bill_of_gpus_and_of_cores():
    gpus = bill(1800.0, 8, Price(2.5, "x"), "gpu")
    assert gpus == {"seconds": 1800.0, "gpu_hours": 4.0, "device_hours": 4.0, "usd": 10.0}
    cores = bill(7200.0, 2, Price(0.05, "x"), "cpu")
    assert cores == {"seconds": 7200.0, "gpu_hours": 0.0, "device_hours": 4.0, "usd": pytest.approx(0.2)}
