"""Exports that are verified in the tests' own process, and a cache for the code that transformers copies out of a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from recipe.config import ExportConfig, to_dict
from recipe.export import __main__ as entry
from recipe.export import checks, verifier, verify

TOPICS = 8  # of Python's documentation, whose texts are compared


@pytest.fixture(scope="session", autouse=True)
def modules_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="session")
def export(tmp_path_factory) -> Callable[..., Path]:
    """`python -m recipe.export` without the seconds that a process of its own takes to start."""

    def compared(config: ExportConfig, draft: Path) -> dict:
        request = tmp_path_factory.mktemp("verify") / "request.json"
        request.write_text(json.dumps({"config": to_dict(config), "folder": str(draft)}))
        verifier.answer(request)
        return json.loads(request.with_name("answer.json").read_text())

    def export(checkpoint: Path, out: Path, **settings) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(verify, "compared", compared)
            patch.setattr(checks, "topics", dict(list(checks.topics.items())[:TOPICS]))
            return entry.export(ExportConfig(checkpoint=str(checkpoint), out=str(out), **settings))

    return export
