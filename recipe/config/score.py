"""Keys of what scores an encoder: `python -m recipe.glue` and `recipe.pairs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from recipe.config.cost import Cost
from recipe.settings import COPY, MISSING, setting

# OmegaConf reads these annotations at run time, hence Optional[...] where the linter would write `... | None`.
# ruff: noqa: UP045


@dataclass
class Jobs:
    """What every fine-tuning of a checkpoint has: jobs of one task with one seed each, and their bill."""

    checkpoint: str = setting(
        MISSING, "a run's folder, one of its checkpoints, or an encoder's folder, Hugging Face's too"
    )
    max_length: int = setting(256, "tokens of an example, beyond which it is cut", least=8)
    max_tokens: int = setting(16_384, "tokens that run at a time: larger batches run in pieces", least=8, result=False)
    processes: int = setting(
        1, "jobs (a task with a seed each) at a time: CPU processes, or GPUs", least=1, result=False
    )
    precision: str = setting("auto", "auto: bf16 where the device computes in it", choices=("auto", "amp_bf16", "fp32"))
    device: str = setting("auto", "auto: a GPU where there is one", choices=("auto", "gpu", "cpu"), result=False)
    cost: Cost = setting(Cost, "the bill")


@dataclass
class GlueConfig(Jobs):
    """`python -m recipe.glue`: one checkpoint, fine-tuned on every task that is there."""

    data: str = setting(MISSING, "a folder with a subfolder of train.tsv and dev.tsv per task, or hub")
    tasks: list[str] = setting([], "names of tasks; empty: all that `data` has")
    split: str = setting(
        "dev",
        "dev: score on the development sets; tuning: on a tenth of each training set, kept out of it, to choose settings by",
        choices=("dev", "tuning"),
    )
    out: Optional[str] = setting(
        None,
        "the scores' folder; none: `glue`, or `glue-tuning`, inside the checkpoint's run",
        result=False,
        local=COPY,
    )
    seeds: int = setting(0, "seeds per task", least=0, special="0 for the table's own list")
    epochs: Optional[float] = setting(None, "epochs of every task; none: the table's", above=0)
    max_train_examples: int = setting(0, "training examples per task", least=0, special="0 for all")
    lr_scale: float = setting(1.0, "multiplies the table's learning rates, for encoders far smaller than Base", above=0)
    from_mnli: bool = setting(True, "RTE, MRPC and STS-B start from MNLI's encoder when MNLI was trained")
    pair_encoding: str = setting(
        "joint",
        "joint: the two texts of a pair in one sequence, as BERT's; siamese: each by itself, compared by means of their tokens",
        choices=("joint", "siamese"),
    )


@dataclass
class PairsConfig:
    """`python -m recipe.pairs`: one checkpoint's own head on minimal pairs of sentences, without any training."""

    checkpoint: str = setting(
        MISSING, "a run's folder, one of its checkpoints, or a masked-language model's folder, Hugging Face's too"
    )
    data: str = setting(MISSING, "a .jsonl or .jsonl.gz file in BLiMP's form, or a folder of them")
    part: str = setting(
        "reported",
        "tuning: the first 40 pairs of each paradigm, to choose settings by; reported: the others",
        choices=("tuning", "reported"),
    )
    max_pairs: int = setting(0, "pairs per paradigm, the first of that part", least=0, special="0 for all")
    out: Optional[str] = setting(
        None,
        "the scores' folder; none: `pairs`, or `pairs-tuning`, inside the checkpoint's run",
        result=False,
        local=COPY,
    )
    max_tokens: int = setting(8192, "tokens that run at a time", least=8, result=False)
    precision: str = setting(
        "fp32",
        "auto: bf16 where the device computes in it, which rounds the log-probabilities that are compared",
        choices=("auto", "amp_bf16", "fp32"),
    )
    device: str = setting("auto", "auto: a GPU where there is one", choices=("auto", "gpu", "cpu"), result=False)
    cost: Cost = setting(Cost, "the bill")
