"""What is known of the locked Composer: the methods that `recipe.training.trainer` overrides or relies on are those that it was
written against. A newer version that changes one is to be read before its digest is renewed here."""

from __future__ import annotations

import hashlib
import inspect

import composer
import composer.utils.checkpoint
import pytest

from recipe.training.trainer import Trainer

OVERRIDDEN = {
    "_iter_dataloader": "970ae649c7dc",
    "_accumulate_time_across_ranks": "a7a8ddb3e21b",
    "_use_closures": "f8e8d08988ae",
    "_train_batch": "787aff3a7f53",
    "_train_microbatches": "3ee43a3fb726",
    "fit": "81e6396da9a2",
}
CALLED = {"_train_microbatch": "4b840744cb17", "_train_loop": "1dffbf6b9c51"}


def digest(function) -> str:
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12]


def test_all_that_is_overridden_is_listed():
    theirs = {name for name, value in vars(composer.Trainer).items() if inspect.isfunction(value)}
    assert set(vars(Trainer)) & theirs - {"__init__"} == set(OVERRIDDEN)


@pytest.mark.parametrize(("name", "known"), [*OVERRIDDEN.items(), *CALLED.items()])
def test_a_method_is_the_one_that_was_read(name, known):
    assert digest(getattr(composer.Trainer, name)) == known, f"Composer's {name} has changed: read it, then renew this"


def test_the_reader_of_checkpoints_is_the_one_that_was_read():
    assert digest(composer.utils.checkpoint._torch_load_with_validation) == "61e2e6db892a"
