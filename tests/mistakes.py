"""What a user's mistake leads to: one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from recipe.errors import UserError


def refused(action: Callable[..., object], *arguments: object, **settings: object) -> str:
    """The one line that `action` refuses with."""
    with pytest.raises(UserError) as caught:
        action(*arguments, **settings)
    message = str(caught.value)
    assert message and "\n" not in message
    return message
