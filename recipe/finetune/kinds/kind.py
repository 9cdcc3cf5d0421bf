"""What the rest of the project asks of a kind of fine-tuning; `recipe.finetune.kinds` is the table of them.

Shapes: N examples, R rows of a head's outputs (one a sequence, or one a token), C numbers of a row, K tokens whose hidden states
the head is given, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer
    from torch import Tensor, nn

    from recipe.config import FinetuneConfig
    from recipe.finetune.batches import Batch, EncodedExamples
    from recipe.finetune.examples import Examples

Labels = Sequence[str]  # a task's, in the order of their ids


@dataclass(frozen=True)
class Kind:
    """A row."""

    name: str
    # the class of transformers that puts such a head on Hugging Face's encoders; None: they get this row's head
    auto_class: str | None
    unlabelled: Any  # stands for the label of an example of a test set
    # (a label as a file has it, the task's) -> the label of an example. ValueError, whose message says what is wrong.
    read: Callable[[str, Labels], Any]
    # (tokenizer, examples, most tokens of one) -> tokens, and a label for each row of outputs
    encode: Callable[[Tokenizer, Examples, int], EncodedExamples]
    outputs: Callable[[Labels], int]  # C
    # of a batch: the K tokens that the head looks at, as `keep` of an architecture's encoder has them; None for all
    keep: Callable[[Batch], Tensor | None]
    # (D, C, probability of dropout) -> a module that makes (R, C) of (K, D), or of what `pool` makes of them
    head: Callable[[int, int, float], nn.Module]
    # (R, C), labels (R,) or (R, C) -> the mean over the rows that have a label; a kind with `balance` takes its weights (C,) too
    loss: Callable[..., Tensor]
    decode: Callable[[EncodedExamples, np.ndarray], Sequence]  # outputs (R, C) -> N predictions, each as a label is
    constant: Callable[
        [Sequence, Sequence], Sequence
    ]  # (training labels, N labels) -> N times the best answer without reading
    word: Callable[[Any, Labels], str]  # a label or a prediction, as files have it
    # by name: (N labels, N predictions, the task's labels) -> at most 1, for a perfect answer
    metrics: Mapping[str, Callable[[Sequence, Sequence, Labels], float]]
    # What stands behind is for tasks and files of the user's own (`recipe.finetune.own`), and for `recipe.predict`.
    # (outputs (R, C) of examples, the task's labels) -> of each example what is written: `prediction`, `probability`, and with
    # `all_labels` (the last argument) `probabilities` by label
    answers: Callable[[EncodedExamples, np.ndarray, Labels, bool], Iterator[dict[str, Any]]] | None = None
    words: Callable[[Any], Sequence[str]] = lambda label: (label,)  # the labels in what a file has; none in a number
    separator: str | None = None  # between several labels in one cell; None: an example has one
    texts: int = 2  # that an example may have
    least_texts: int = 1
    loss_settings: tuple[str, ...] = ()  # of `recipe.finetune.tasks.Fitting`, which the loss takes by name
    # (the examples of `train`, the config) -> those that are trained on
    training: Callable[[Examples, FinetuneConfig], Examples] = lambda examples, config: examples
    # whether rows of `train` need a label
    train_labels: Callable[[FinetuneConfig], bool] = lambda config: True
    # (hidden states (K, D), their batch) -> what the head is given, such as a mean over each sequence
    pool: Callable[[Tensor, Batch], Tensor] = lambda hidden, batch: hidden
    word_per_line: bool = False  # whether an example's one text is words, with a label each
    # (labels as `encode` gives them, C) -> weights (C,) float32 with which rare classes count as much as others
    balance: Callable[[np.ndarray, int], np.ndarray] | None = None
    # (N labels, N predictions, the task's labels) -> more numbers of a set, which are no part of its score
    details: Callable[[Sequence, Sequence, Labels], dict[str, Any]] = lambda gold, predicted, labels: {}
    problem_type: str | None = None  # what transformers calls it in a model's config.json
    exports: tuple[str, ...] = ()  # rows of `recipe.export.formats` that a model of it becomes

    def measure(
        self, names: Sequence[str], gold: Sequence, predicted: Sequence, labels: Labels = ()
    ) -> dict[str, float]:
        """Each of the metrics over a whole set, times 100; a mean over batches would be another number for all but accuracy."""
        return {name: 100.0 * float(self.metrics[name](gold, predicted, labels)) for name in names}
