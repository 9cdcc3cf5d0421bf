import pytest

from tests.tiny.records import record_run


@pytest.fixture
def runs(tmp_path):
    """Two models; mosaic-slow is dominated."""
    folder = tmp_path / "runs"
    made = [
        record_run(folder, "mosaic-1", "mosaic_bert", 0.5, {"CoLA": 40.0, "RTE": 60.5}),
        record_run(folder, "mosaic-2", "mosaic_bert", 2.0, {"CoLA": 50.0, "RTE": 70.25}),
        record_run(folder, "mosaic-slow", "mosaic_bert", 3.0, {"CoLA": 45.0, "RTE": 65.0}),
        record_run(folder / "old", "bert-1", "hf_bert", 0.7, {"CoLA": 38.0, "RTE": 58.0}),
        record_run(folder / "old", "bert-2", "hf_bert", 3.3, {"CoLA": 48.0, "RTE": 66.0}),
    ]
    return folder, {record["name"]: record for record in made}
