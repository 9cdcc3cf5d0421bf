"""Rankings: hand-made ones, and nDCG against scikit-learn's, which has the same gains and discount."""

import math
import random

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from recipe.finetune.ranking import measure, ndcg, recall, reciprocal_rank

GRADES = {"a": 3.0, "b": 1.0, "c": 0.0, "d": -1.0}


def test_by_hand():
    ideal = 3 / math.log2(2) + 1 / math.log2(3)
    assert ndcg(["a", "b"], GRADES) == 1.0
    assert ndcg(["x", "b", "a"], GRADES) == pytest.approx((1 / math.log2(3) + 3 / math.log2(4)) / ideal)
    assert ndcg(["d", "c"], GRADES) == 0.0  # a grade below 0 is no loss
    assert recall(["b", "x"], GRADES) == 0.5 and recall(["x", "a"], GRADES, at=1) == 0.0
    assert reciprocal_rank(["c", "d", "b", "a"], GRADES) == pytest.approx(1 / 3)
    assert reciprocal_rank(["c"], GRADES) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_ndcg_is_that_of_scikit_learn(seed):
    draw = random.Random(seed)
    names = [str(i) for i in range(30)]
    grades = {name: float(draw.choice((0, 0, 1, 2, 3))) for name in names}
    scores = {name: draw.random() for name in names}
    ranked = sorted(names, key=lambda name: -scores[name])
    theirs = ndcg_score(np.array([[grades[n] for n in names]]), np.array([[scores[n] for n in names]]), k=10)
    assert ndcg(ranked, grades) == pytest.approx(theirs)


def test_queries_without_a_relevant_document_are_left_out():
    found = measure({"q": ["a"], "r": ["a"]}, {"q": {"a": 1.0}, "r": {"a": 0.0}})
    assert found == {"ndcg@10": 100.0, "recall@100": 100.0, "mrr": 100.0}
