"""The schema of every YAML file, and the only place that reads YAML or the command line.

One dataclass per entry point: `PrepareConfig`, `TrainConfig`, `GlueConfig`, `PairsConfig`, `SweepConfig`. `load` merges a file
and words `key=value` into one of them, closed: an unknown key, a wrong type or a missing value is a `UserError`, one line with
its remedy.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipe import shipped
from recipe.errors import UserError, exit_status, one_line
from recipe.model.architectures import ARCHITECTURES
from recipe.objectives import OBJECTIVES
from recipe.settings import MISSING, check_values, describe, setting
from recipe.training.optimizers import OPTIMIZERS
from recipe.training.parallel import PARALLEL
from recipe.training.schedules import SCHEDULES

C = TypeVar("C")

# OmegaConf reads these annotations at run time, hence Optional[...] where the linter would write `... | None`.
# ruff: noqa: UP045


@dataclass
class Source:
    """Where documents come from: exactly one of `files`, `dataset`, `embedded`."""

    files: list[str] = setting(
        [],
        "globs of .txt (documents separated by blank lines), .jsonl, .json, .csv or .parquet files; "
        "all but .parquet also .gz and .zst",
    )
    text_key: str = setting("text", "the field, or column, that holds a document")
    dataset: Optional[str] = setting(None, "a Hugging Face dataset, such as allenai/c4")
    subset: Optional[str] = setting(None, "the configuration of that dataset, such as en")
    split: str = setting("train", "the split of that dataset")
    embedded: Optional[str] = setting(None, "the documentation of the installed packages", choices=("docstrings",))
    max_documents: Optional[int] = setting(None, "stop after so many documents", least=1)


@dataclass
class Tokenizer:
    """An existing vocabulary (`vocab_file`), a hub name or folder (`name`), or one trained here on the training split."""

    vocab_file: Optional[str] = setting(None, "a WordPiece vocabulary, one entry a line")
    name: Optional[str] = setting(None, "a tokenizer's name on the Hugging Face hub, or its folder")
    vocab_size: int = setting(30522, "entries of a vocabulary that is trained here", least=256, most=2**16)
    lowercase: bool = setting(
        True, "of a vocabulary file or one that is trained here: text is lowercased, accents removed"
    )
    sample_documents: int = setting(200_000, "documents that the training of a vocabulary reads", least=1)


@dataclass
class PrepareConfig:
    """`python -m recipe.prepare`: text to a tokenizer and MDS shards."""

    out: str = setting(
        MISSING,
        "the dataset's folder, here or in an object store (s3://BUCKET/FOLDER, gs, oci, azure, azure-dl)",
        result=False,
    )
    work: Optional[str] = setting(
        None,
        "with `out` in an object store, the local folder for parts not yet uploaded; none: FOLDER.partial",
        result=False,
    )
    tasks: Optional[str] = setting(
        None, "with train.embedded, the folder of minimal pairs made of held-out entries (recipe.pairs)", result=False
    )
    train: Source = setting(Source, "the training text")
    validation: Optional[Source] = setting(
        None, "text for evaluation; absent: `validation_fraction` of the training documents"
    )
    validation_fraction: float = setting(
        0.01, "share of the training documents held out where there is no `validation`", above=0, below=1
    )
    tokenizer: Tokenizer = setting(Tokenizer, "the vocabulary")
    max_tokens: int = setting(
        1022, "longest record, without [CLS] and [SEP]; training cuts again to its own length", least=1, most=2**16 - 1
    )
    long_documents: str = setting(
        "truncate",
        "a document beyond `max_tokens` loses its end, or becomes several records",
        choices=("truncate", "split"),
    )
    drop_duplicates: bool = setting(False, "keep the first of equal documents, over all files; reads the text twice")
    processes: int = setting(0, "processes that tokenize", least=0, special="0 for one per core", result=False)
    shard_of: Optional[str] = setting(
        None, "2/4: write every fourth part, from the second; run without it to merge", result=False
    )
    shard_mib: int = setting(64, "size of a shard before compression, in MiB", least=1, below=4096)
    seed: int = setting(17, "of the held-out documents and of the vocabulary's sample")


@dataclass
class Data:
    """Shards to batches."""

    path: str = setting(MISSING, "the folder that recipe.prepare wrote, here or in an object store")
    cache: Optional[str] = setting(
        None, "with `path` in an object store, the local folder for what is read of it", result=False
    )
    cache_gib: float = setting(
        0.0, "size in GiB, beyond which shards already read make way", least=0, special="0 to keep all", result=False
    )
    train_split: str = setting("train", "the split to train on")
    eval_split: str = setting("validation", "the split to evaluate on")
    sequence_length: int = setting(
        128, "tokens of a sequence, [CLS] and [SEP] included; documents are cut to it", least=3
    )
    batching: str = setting(
        "auto",
        "sequences: so many documents per batch, without padding; tokens: documents packed into a "
        "fixed number of tokens; padded: for models that take rows (hf_bert); auto: what the model takes",
        choices=("auto", "sequences", "tokens", "padded"),
    )
    masking: str = setting("token", "what is masked as a whole", choices=("token", "word", "span"))
    mask_rate: float = setting(0.30, "share of tokens that training predicts", above=0, below=1)
    mask_rate_end: Optional[float] = setting(
        None, "share that `mask_rate` reaches at the end of the run, linearly; none: constant", above=0, below=1
    )
    eval_mask_rate: float = setting(0.15, "share of tokens that evaluation predicts", above=0, below=1)
    eval_documents: int = setting(0, "documents to evaluate on", least=0, special="0 for the whole split")
    workers: int = setting(
        -1,
        "processes that read and mask, per rank",
        least=-1,
        special="-1 for the default: 0 on a CPU, 8 per GPU",
        result=False,
    )
    shuffle_seed: int = setting(9176, "of the order of documents")


@dataclass
class Model:
    """The encoder. The defaults are MosaicBERT-Base; `hf_bert` is the baseline at the same sizes."""

    name: str = setting("mosaic_bert", "the architecture", choices=ARCHITECTURES)
    hidden_size: int = setting(768, "width of the encoder, a multiple of `num_attention_heads`", least=1)
    num_hidden_layers: int = setting(12, "layers", least=1)
    num_attention_heads: int = setting(12, "attention heads per layer", least=1)
    intermediate_size: int = setting(3072, "width of the feed-forward layers", least=1)
    vocab_size: Optional[int] = setting(None, "stated here, it is checked against the shards' vocabulary", least=1)
    hidden_dropout_prob: float = setting(0.1, "dropout of embeddings and of each layer's outputs", least=0, below=1)
    attention_probs_dropout_prob: float = setting(0.0, "dropout of attention probabilities", least=0, below=1)
    attention: str = setting("auto", "attention backend, a name that `python -m kernels.backends` prints")
    kernels: str = setting("auto", "backend of the other kernels, likewise")
    compile: bool = setting(False, "run the training step through torch.compile; its first step takes up to a minute")


@dataclass
class Optimizer:
    """adamw is the paper's DecoupledAdamW: decay is `weight_decay` x lr / initial lr, on every parameter."""

    name: str = setting("adamw", "the optimizer", choices=OPTIMIZERS)
    lr: float = setting(5e-4, "peak learning rate", above=0)
    betas: list[float] = setting([0.9, 0.98], "decay rates of Adam's two moments", least=0, below=1)
    eps: float = setting(1e-6, "added to the denominator of Adam's step", above=0)
    weight_decay: float = setting(1e-5, "per step at the peak learning rate", least=0)


@dataclass
class Schedule:
    """Linear warm-up, then a decay; all as fractions of `duration` and of the learning rate."""

    warmup: float = setting(0.06, "share of the run that the learning rate rises", least=0, most=1)
    final_lr: float = setting(0.02, "learning rate at the end, as a share of the peak", least=0, most=1)
    shape: str = setting(
        "linear", "linear: down to the end; wsd: constant, then 1-sqrt over `decay`", choices=SCHEDULES
    )
    decay: float = setting(0.1, "share of the run in which wsd decays", least=0, most=1, special="0 for no decay")


@dataclass
class Cost:
    """What an hour costs."""

    prices: str = setting("yamls/prices.yaml", "the price table", result=False)
    usd_per_hour: Optional[float] = setting(
        None,
        "dollars per hour of one GPU, or of one CPU core; none: from the table, by the device's name",
        above=0,
        result=False,
    )


@dataclass
class TrainConfig:
    """`python -m recipe.train`: shards to an encoder and its bill."""

    out: str = setting(MISSING, "the run's folder: encoder/, checkpoints/, run.json", result=False)
    init_from: Optional[str] = setting(
        None, "start from the encoder of this finished run of the same model, or encoder folder"
    )
    data: Data = setting(Data, "the shards, and how batches are made of them")
    model: Model = setting(Model, "the encoder")
    optimizer: Optimizer = setting(Optimizer, "AdamW")
    schedule: Schedule = setting(Schedule, "the learning rate over the run")
    cost: Cost = setting(Cost, "the bill")
    duration: str = setting(
        "70000ba",
        "length of the run in batches (ba), sequences (sp), real tokens (tok) or epochs (ep); it ends with the batch that "
        "reaches it",
    )
    batch_size: int = setting(
        4096, "sequences per step over all ranks; with data.batching=tokens the tokens of as many full ones", least=1
    )
    microbatch_size: int = setting(
        0, "sequences that a rank takes at a time", least=0, special="0 for as many as fit into memory", result=False
    )
    precision: str = setting("auto", "auto: bf16 where the device computes in it", choices=("auto", "amp_bf16", "fp32"))
    device: str = setting("auto", "auto: the GPUs where there are some", choices=("auto", "gpu", "cpu"), result=False)
    parallel: str = setting("ddp", "how several ranks train one model", choices=PARALLEL, result=False)
    objective: str = setting("masked_lm", "what is learnt from the text", choices=OBJECTIVES)
    seed: int = setting(17, "of the initial weights, the masks and dropout", least=0, most=2**32 - 1)
    log_every: int = setting(20, "batches between two lines of progress", least=1, result=False)
    eval_every: str = setting("0ba", "time between two evaluations; 0ba: at the end only", result=False)
    checkpoint_every: str = setting("0ba", "time between two checkpoints; 0ba: at the end only", result=False)
    checkpoint_at: list[int] = setting([], "save after these batches instead, and at the end", least=1, result=False)
    keep_checkpoints: int = setting(2, "checkpoints that are kept, the newest", least=1, result=False)
    autoresume: bool = setting(False, "continue the run that `out` holds", result=False)
    loggers: list[str] = setting(
        [],
        "where the lines of progress go beside the terminal: into `out`, nothing is sent unless the environment says so",
        choices=("tensorboard", "wandb", "mlflow"),
        result=False,
    )


@dataclass
class GlueConfig:
    """`python -m recipe.glue`: one checkpoint, fine-tuned on every task that is there."""

    checkpoint: str = setting(
        MISSING, "a run's folder, one of its checkpoints, or an encoder's folder, Hugging Face's too"
    )
    data: str = setting(MISSING, "a folder with a subfolder of train.tsv and dev.tsv per task, or hub")
    tasks: list[str] = setting([], "names of tasks; empty: all that `data` has")
    split: str = setting(
        "dev",
        "dev: score on the development sets; tuning: on a tenth of each training set, kept out of it, to choose settings by",
        choices=("dev", "tuning"),
    )
    out: Optional[str] = setting(
        None, "the scores' folder; none: `glue`, or `glue-tuning`, inside the checkpoint's run", result=False
    )
    max_length: int = setting(256, "tokens of an example, beyond which it is cut", least=8)
    max_tokens: int = setting(16_384, "tokens that run at a time: larger batches run in pieces", least=8, result=False)
    seeds: int = setting(0, "seeds per task", least=0, special="0 for the table's own list")
    epochs: Optional[float] = setting(None, "epochs of every task; none: the table's", above=0)
    max_train_examples: int = setting(0, "training examples per task", least=0, special="0 for all")
    lr_scale: float = setting(1.0, "multiplies the table's learning rates, for encoders far smaller than Base", above=0)
    from_mnli: bool = setting(True, "RTE, MRPC and STS-B start from MNLI's encoder when MNLI was trained")
    processes: int = setting(
        1, "jobs (a task with a seed each) at a time: CPU processes, or GPUs", least=1, result=False
    )
    precision: str = setting("auto", "auto: bf16 where the device computes in it", choices=("auto", "amp_bf16", "fp32"))
    device: str = setting("auto", "auto: a GPU where there is one", choices=("auto", "gpu", "cpu"), result=False)
    cost: Cost = setting(Cost, "the bill")


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
        None, "the scores' folder; none: `pairs`, or `pairs-tuning`, inside the checkpoint's run", result=False
    )
    max_tokens: int = setting(8192, "tokens that run at a time", least=8, result=False)
    precision: str = setting(
        "fp32",
        "auto: bf16 where the device computes in it, which rounds the log-probabilities that are compared",
        choices=("auto", "amp_bf16", "fp32"),
    )
    device: str = setting("auto", "auto: a GPU where there is one", choices=("auto", "gpu", "cpu"), result=False)
    cost: Cost = setting(Cost, "the bill")


@dataclass
class SweepConfig:
    """`python -m recipe.pareto sweep` and `trunk`: models x budgets x seeds, each pretrained and scored."""

    out: str = setting(MISSING, "the folder of all runs")
    models: list[str] = setting(MISSING, "training YAMLs, each with its key=value words behind it")
    budgets: list[str] = setting(MISSING, "300ba, 2000000tok, 100000sp, 1ep, 0.5h (device-hours) or 20usd")
    glue: Optional[str] = setting(None, "the YAML of the fine-tuning, with its key=value words behind it")
    pairs: Optional[str] = setting(None, "the YAML of the minimal pairs, with its key=value words behind it")
    seeds: list[int] = setting([17], "of the pretraining runs", least=0, most=2**32 - 1)
    speed: Optional[str] = setting(None, "a run of the same kind, by whose speed hours and dollars become batches")
    decay: float = setting(0.1, "of a trunk's branches: the share of each that its decay takes", above=0, below=1)


def load(schema: type[C], path: str, overrides: Sequence[str] = ()) -> C:
    """Read `path`, apply `key=value` words, and return a checked instance of `schema`.

    Raises:
        UserError: for a missing file, bad YAML, an unknown key, a wrong type or a missing value.
    """
    file = shipped.find(path)
    if not file.is_file():
        raise UserError(
            f"{path}: {shipped.moved(path) or 'no such file; the first argument is a YAML file, see yamls/'}"
        )
    try:
        from_file = OmegaConf.load(file)
    except Exception as error:  # the YAML library's own errors, some of them over several lines
        raise UserError(f"{path}: not valid YAML: {one_line(error)}") from None
    if not isinstance(from_file, DictConfig):
        raise UserError(f"{path}: expected `key: value` lines at the top level")
    for word in overrides:
        if "=" not in word.lstrip("="):
            raise UserError(f"`{word}`: settings on the command line have the form key=value")
    try:
        words = OmegaConf.from_dotlist(list(overrides))
    except Exception as error:
        raise UserError(f"command line: {one_line(error)}") from None
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
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise _refused(error, path) from None
    check_values(config)
    return config


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
        print(f"usage: YAML [key=value ...]\n\n{schema.__doc__}\n\n{describe(schema)}")
        return 0 if words else 2
    return exit_status(lambda: main(load(schema, words[0], words[1:])))
