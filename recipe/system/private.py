"""What no log, record or page may tell: credentials, and where the user's home folder is.

Paths under the home folder are written as `~/...`, which `recipe.config` and the readers of paths take back. Credentials are
known by their place (in a URL), by their form, or because the environment holds them.
"""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "***"
LEAST = 8  # characters of a value of the environment: a shorter one may be any word
_NAMES = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY(_ID)?|ACCOUNT_KEY|CREDENTIALS?)(_|$)", re.I
)
_WORDS = r"[\w.-]*(?:token|key|secret|passw(?:or)?d|signature|credential|auth)[\w.-]*|sig|pwd"
_FORMS = (
    (re.compile(r"(?<=://)[^\s/@'\"`]+(?=@)"), HIDDEN),  # user:password@
    (re.compile(rf"((?:[?&;]|%26)(?:{_WORDS})=)[^\s&#;'\"`)]+?(?=[:,.]*(?:[\s&#;'\"`)]|$))", re.I), rf"\1{HIDDEN}"),
    (re.compile(r"\b((?:AWS|AZURE|HF|WANDB|MLFLOW|OCI)_[A-Z_]+=)[^\s'\"`]+"), rf"\1{HIDDEN}"),
    (re.compile(r"\b((?:bearer|basic)\s+)[\w.~+/=-]{8,}", re.I), rf"\1{HIDDEN}"),
    (re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|A[KS]IA[A-Z0-9]{12,})\b"), HIDDEN),
)


def without_credentials(text: str) -> str:
    """A text with `***` where it held a credential."""
    return _hidden(text, _of_environment())


def private(value: Any) -> Any:
    """A tree of dictionaries and lists whose strings name neither a credential nor the home folder."""
    return _private(value, _of_environment(), _home())


def _of_environment() -> list[str]:
    """Its credentials, the longest first, as one may be part of another."""
    found = {value for name, value in os.environ.items() if len(value) >= LEAST and _NAMES.search(name)}
    return sorted(found, key=len, reverse=True)


def _hidden(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    for form, instead in _FORMS:
        text = form.sub(instead, text)
    return text


def _home() -> re.Pattern[str] | None:
    """The home folder where a path begins with it; None where there is none to speak of."""
    given = os.path.expanduser("~")
    places = {place.rstrip("/") for place in (given, os.path.realpath(given)) if place.startswith("/")} - {""}
    names = "|".join(map(re.escape, sorted(places, key=len, reverse=True)))
    return re.compile(rf"(?:(?<![\w./~-])|(?<=file://))(?:{names})(?![\w.-])") if places else None


def _private(value: Any, secrets: list[str], home: re.Pattern[str] | None) -> Any:
    if isinstance(value, str):
        value = _hidden(value, secrets)
        return home.sub("~", value) if home else value
    if isinstance(value, dict):
        return {_private(key, secrets, home): _private(item, secrets, home) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_private(item, secrets, home) for item in value]
    return value
