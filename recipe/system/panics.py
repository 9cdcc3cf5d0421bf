"""A tokenizer's faults that the tokenizers library answers with a panic, which is no `Exception`."""

from __future__ import annotations

import json

from tokenizers import Tokenizer

from recipe.errors import one_line


def probe(tokenizer: Tokenizer) -> None:
    """Raise a `ValueError` for a tokenizer that loads and does not work, as where it puts a token around a text that is none."""
    post = json.loads(tokenizer.to_str())["post_processor"] or {}
    for template in (post, *post.get("processors", [])) if post else ():
        pieces = (
            [*template.get("single", []), *template.get("pair", [])] if template["type"] == "TemplateProcessing" else []
        )
        named = {piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece}
        if unknown := sorted(named - template.get("special_tokens", {}).keys()):  # at which the library would panic
            raise ValueError(f"it puts `{unknown[0]}` around a text, and says no id of it")
    try:
        tokenizer.encode("a")
    except BaseException as error:  # the library's own panics are no `Exception`
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise ValueError(f"it cannot encode a text: {one_line(error)}") from None
