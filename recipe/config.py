"""The schema of every YAML file, and the only place that reads YAML or the command line.

One dataclass an entry point: `PrepareConfig`, `TrainConfig`, `GlueConfig`, `SweepConfig`. `load` merges a file and words
`key=value` into one of them, closed: an unknown key, a wrong type or a missing value is a `UserError`, one line with its remedy.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipe.errors import UserError

C = TypeVar("C")

# OmegaConf reads these annotations at run time, hence Optional[...] where the linter would write `... | None`.
# ruff: noqa: UP045


@dataclass
class Source:
    """Where documents come from: exactly one of `files`, `dataset`, `embedded`."""

    files: list[str] = field(default_factory=list)  # globs: .txt .jsonl .json .csv .parquet, also .gz .zst
    text_key: str = "text"  # the field, or column, that holds a document
    dataset: Optional[str] = None  # a Hugging Face dataset, such as allenai/c4
    subset: Optional[str] = None  # its configuration, such as en
    split: str = "train"  # its split
    embedded: Optional[str] = None  # "docstrings": the documentation of the installed packages
    max_documents: Optional[int] = None  # stop after so many


@dataclass
class Tokenizer:
    """An existing vocabulary (`vocab_file`), a hub name or folder (`name`), or one trained here on the training split."""

    vocab_file: Optional[str] = None
    name: Optional[str] = None
    vocab_size: int = 30522
    lowercase: bool = True
    sample_documents: int = 200_000  # documents that training of a tokenizer looks at


@dataclass
class PrepareConfig:
    """`python -m recipe.prepare`: text to a tokenizer and MDS shards."""

    out: str = MISSING  # a folder, or s3://BUCKET/FOLDER (gs, oci, azure, azure-dl)
    work: Optional[str] = None  # with such an `out`, a local folder for parts not yet uploaded; absent: FOLDER.partial
    train: Source = field(default_factory=Source)
    validation: Optional[Source] = None  # absent: `validation_fraction` of the training documents
    validation_fraction: float = 0.01
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    max_tokens: int = 1022  # of a record, before [CLS] and [SEP]; training cuts again to its own length
    long_documents: str = "truncate"  # truncate: what is beyond `max_tokens` is lost | split: into several records
    drop_duplicates: bool = False  # keep the first of equal documents, over all files; reads the text twice
    processes: int = 0  # 0: one a core
    shard_of: Optional[str] = None  # "2/4": every fourth part, from the second; run without it to merge
    shard_mib: int = 64  # before compression
    seed: int = 17


@dataclass
class Data:
    path: str = MISSING  # the folder that `recipe.prepare` wrote, here or in an object store
    cache: Optional[str] = None  # of one in an object store: the local folder for what is read of it
    cache_gib: float = 0.0  # beyond it, the unpacked shards that have been read make way; 0: all are kept
    train_split: str = "train"
    eval_split: str = "validation"
    sequence_length: int = 128
    batching: str = "auto"  # sequences | tokens (packed) | padded; auto: padded for hf_bert, else sequences
    masking: str = "token"  # token | word | span
    mask_rate: float = 0.30
    mask_rate_end: Optional[float] = None  # linearly from `mask_rate` to it over the run; absent: constant
    eval_mask_rate: float = 0.15
    eval_documents: int = 0  # 0: the whole split
    workers: int = -1  # processes that read and mask; -1: 0 on a CPU, 8 a GPU
    shuffle_seed: int = 9176


@dataclass
class Model:
    """The encoder. The defaults are MosaicBERT-Base; `hf_bert` is the baseline at the same sizes."""

    name: str = "mosaic_bert"  # mosaic_bert | hf_bert
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    vocab_size: Optional[int] = None  # the shards'; stated here, it is checked against them
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.0
    attention: str = "auto"  # a name that `python -m kernels.backends` prints
    kernels: str = "auto"
    compile: bool = False  # the training step by torch.compile; the first step then takes a minute


@dataclass
class Optimizer:
    """AdamW as the paper's DecoupledAdamW has it: decay is `weight_decay` x lr / initial lr, on every parameter."""

    lr: float = 5e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-6
    weight_decay: float = 1e-5


@dataclass
class Schedule:
    """Linear warm-up, then a decay; all as fractions of `duration` and of the learning rate."""

    warmup: float = 0.06
    final_lr: float = 0.02
    shape: str = "linear"  # linear: decays all the time | wsd: warm-up, stable, then 1-sqrt over the last `decay`
    decay: float = 0.1  # of wsd; 0: none


@dataclass
class Cost:
    prices: str = "yamls/prices.yaml"
    usd_per_hour: Optional[float] = None  # of one device; absent: from the table, by the device's name


@dataclass
class TrainConfig:
    """`python -m recipe.train`: shards to an encoder and its bill."""

    out: str = MISSING
    init_from: Optional[str] = (
        None  # a finished run of the same model, or its encoder folder: its weights, nothing else
    )
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    cost: Cost = field(default_factory=Cost)
    duration: str = "70000ba"  # batches (ba), sequences (sp), real tokens (tok) or epochs (ep)
    batch_size: int = 4096  # sequences, over all ranks; with data.batching=tokens as many full-length ones' tokens
    microbatch_size: int = 0  # sequences a rank at a time; 0: as many of its share of the batch as fit into memory
    precision: str = "auto"  # auto | amp_bf16 | fp32
    device: str = "auto"  # auto | gpu | cpu
    seed: int = 17
    log_every: int = 20  # batches
    eval_every: str = "0ba"  # 0ba: at the end only
    checkpoint_every: str = "0ba"  # 0ba: at the end only
    checkpoint_at: list[int] = field(default_factory=list)  # at these batches instead, and at the end
    keep_checkpoints: int = 2
    autoresume: bool = False
    loggers: list[str] = field(
        default_factory=list
    )  # tensorboard | wandb | mlflow, into `out`; never changes the result


@dataclass
class GlueConfig:
    """`python -m recipe.glue`: one checkpoint, fine-tuned on every task that is there."""

    checkpoint: str = MISSING  # a run folder, one of its checkpoints, or an encoder's folder, Hugging Face's too
    data: str = MISSING  # a folder in the official TSV layout, or hub
    tasks: list[str] = field(default_factory=list)  # empty: every task of the benchmark
    out: Optional[str] = None  # absent: `glue` inside the checkpoint's run folder
    max_length: int = 256
    max_tokens: int = 16_384  # that run at a time; a batch keeps the table's number of examples, in microbatches
    seeds: int = 0  # seeds a task; 0: the table's own list
    epochs: Optional[float] = None  # absent: the table's
    max_train_examples: int = 0  # 0: all
    lr_scale: float = 1.0  # multiplies the table's learning rates, for encoders far smaller than Base
    from_mnli: bool = True  # RTE, MRPC and STS-B start from MNLI's checkpoint when MNLI was trained
    processes: int = 1  # jobs (a task with a seed each) at a time: CPU processes, or GPUs
    precision: str = "auto"
    device: str = "auto"
    cost: Cost = field(default_factory=Cost)


@dataclass
class SweepConfig:
    """`python -m benchmarks.pareto sweep` and `trunk`: models x budgets x seeds, each pretrained and scored."""

    out: str = MISSING
    models: list[str] = MISSING  # training YAMLs, each with its key=value words behind it
    budgets: list[str] = MISSING  # 300ba, 2000000tok, 100000sp, 1ep, 0.5h (device-hours) or 20usd
    glue: str = MISSING  # the YAML of the fine-tuning, with its key=value words behind it
    seeds: list[int] = field(default_factory=lambda: [17])
    speed: Optional[str] = None  # a run of the same kind, by whose speed hours and dollars become batches
    decay: float = 0.1  # of a trunk's branches: the share of each that its decay takes


def load(schema: type[C], path: str, overrides: Sequence[str] = ()) -> C:
    """Read `path`, apply `key=value` words, and return a checked instance of `schema`.

    Raises:
        UserError: for a missing file, bad YAML, an unknown key, a wrong type or a missing value.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path}: no such file; the first argument is a YAML file, see yamls/")
    try:
        from_file = OmegaConf.load(file)
    except Exception as error:  # the YAML library's own errors, some of them over several lines
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(from_file, DictConfig):
        raise UserError(f"{path}: expected `key: value` lines at the top level")
    for word in overrides:
        if "=" not in word.lstrip("="):
            raise UserError(f"`{word}`: settings on the command line have the form key=value")
    try:
        words = OmegaConf.from_dotlist(list(overrides))
    except Exception as error:
        raise UserError(f"command line: {' '.join(str(error).split())}") from None
    merged = OmegaConf.structured(schema)
    for layer, where in ((from_file, path), (words, "command line")):
        _check_shape(OmegaConf.to_container(layer), schema, "", where)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise _refused(error, where) from None
    try:
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"{path}: `{missing[0]}` has no value; add it to the file or say {missing[0]}=...")
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise _refused(error, path) from None


def _refused(error: OmegaConfBaseException, where: str) -> UserError:
    return UserError(f"{where}: `{getattr(error, 'full_key', None) or '?'}`: {str(error).splitlines()[0]}")


def _check_shape(tree: dict, schema: type, prefix: str, where: str) -> None:
    """Raise for the first key of `tree` that `schema` does not have, and for a group, a list or a plain value where another
    of the three belongs; OmegaConf then has plain values left to check."""
    hints = get_type_hints(schema)
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1)
            hint = f"did you mean `{prefix}{near[0]}`?" if near else f"known here: {', '.join(hints)}"
            raise UserError(f"{where}: unknown key `{key}`; {hint}")
        optional = type(None) in get_args(hints[name])
        wanted = get_args(hints[name])[0] if optional else hints[name]
        if dataclasses.is_dataclass(wanted) and isinstance(value, dict):
            _check_shape(value, wanted, f"{key}.", where)
        elif dataclasses.is_dataclass(wanted):
            if value is not None or not optional:
                known = ", ".join(field.name for field in dataclasses.fields(wanted))
                raise UserError(f"{where}: `{key}`: expected settings below it ({known}), got `{value}`")
        elif get_origin(wanted) is list:
            _check_list(value, key, where)
        elif isinstance(value, (dict, list)):
            raise UserError(f"{where}: `{key}`: expected one value, got `{value}`")


def _check_list(values: Any, key: str, where: str) -> None:
    if not isinstance(values, list):
        raise UserError(f"{where}: `{key}`: expected a list such as [a, b], got `{values}`")
    for number, value in enumerate(values):
        if value is None or isinstance(value, (dict, list)):
            raise UserError(f"{where}: `{key}[{number}]`: expected one value, got `{value}`")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain dictionaries and lists, for a record."""
    return dataclasses.asdict(config)


def run_main(schema: type[C], main: Callable[[C], object], argv: Sequence[str] | None = None) -> int:
    """The command line of an entry point: `YAML [key=value ...]`. Returns the exit status, 2 for a user's mistake."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: YAML [key=value ...]\n\n{schema.__doc__}\n\nkeys and defaults:\n")
        print(OmegaConf.to_yaml(OmegaConf.structured(schema)))
        return 0 if words else 2
    return exit_status(lambda: main(load(schema, words[0], words[1:])))


def exit_status(action: Callable[[], object]) -> int:
    """Run `action`; 0, 2 for a user's mistake, said in one line, 130 for Ctrl-C."""
    try:
        action()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
