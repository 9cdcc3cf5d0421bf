"""Keys of `python -m recipe.train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from recipe.config.cost import Cost
from recipe.model.architectures import ARCHITECTURES
from recipe.objectives import OBJECTIVES
from recipe.settings import MISSING, setting
from recipe.training.averages import AVERAGES
from recipe.training.initial_words import INITIAL_WORDS
from recipe.training.optimizers import OPTIMIZERS
from recipe.training.parallel import PARALLEL
from recipe.training.schedules import SCHEDULES

# OmegaConf reads these annotations at run time, hence Optional[...] where the linter would write `... | None`.
# ruff: noqa: UP045


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
        None, "share that `mask_rate` reaches at the end of the run; none: constant", above=0, below=1
    )
    mask_rate_falls: str = setting(
        "evenly",
        "how it gets there; evenly: linearly over the run; with_lr: as the learning rate falls after its warm-up, so with wsd "
        "in its decay alone",
        choices=("evenly", "with_lr"),
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
    order: str = setting(
        "global",
        "of documents; global: shuffled over all shards, so each machine reads them all; canonical: a batch has as many of each "
        "part of the dataset, and each machine reads its own parts only",
        choices=("global", "canonical"),
    )
    canonical_parts: int = setting(
        4, "with order=canonical, the parts; machines whose number divides it have no part in common", least=2
    )


_AS_ROW = "none: as the architecture has it"


@dataclass
class Model:
    """The encoder. The defaults are MosaicBERT-Base; `hf_bert` is the baseline at the same sizes, `modern` is ModernBERT's. The
    keys from `positions` to `narrow_layers` make ablations of `mosaic_bert` and `modern`, or one of the other."""

    name: str = setting("mosaic_bert", "the architecture", choices=ARCHITECTURES)
    hidden_size: int = setting(768, "width of the encoder, a multiple of `num_attention_heads`", least=1)
    num_hidden_layers: int = setting(12, "layers", least=1)
    num_attention_heads: int = setting(12, "attention heads per layer", least=1)
    intermediate_size: int = setting(3072, "width of the feed-forward layers", least=1)
    positions: Optional[str] = setting(None, f"what tells the order of tokens; {_AS_ROW}", choices=("alibi", "rope"))
    norm: Optional[str] = setting(
        None, f"LayerNorm after each sum with the residual, or before each block and at the end; {_AS_ROW}",
        choices=("post", "pre"),
    )  # fmt: skip
    embedding_norm: Optional[bool] = setting(None, f"LayerNorm of the embeddings; {_AS_ROW}")
    window: Optional[int] = setting(
        None, f"tokens around one that local layers see, half on each side, so an even number; {_AS_ROW}", least=2
    )
    global_every: Optional[int] = setting(
        None,
        f"where there is a window: of so many layers one sees the whole sequence, the first of them; {_AS_ROW}",
        least=1,
        special="1 for no local layers",
    )
    biases: Optional[bool] = setting(None, f"of projections and LayerNorms; {_AS_ROW}")
    rope_theta: Optional[float] = setting(None, f"base of rotary angles in layers that see all; {_AS_ROW}", above=0)
    local_rope_theta: Optional[float] = setting(None, f"the same in local layers; {_AS_ROW}", above=0)
    narrow_layers: Optional[int] = setting(
        None,
        "last layers that training computes at masked positions alone, which see the others as the layer before left them; the "
        "encoder that is kept computes all; none: 1, which changes no result",
        least=1,
    )
    vocab_size: Optional[int] = setting(None, "stated here, it is checked against the shards' vocabulary", least=1)
    hidden_dropout_prob: float = setting(0.1, "dropout of embeddings and of each layer's outputs", least=0, below=1)
    attention_probs_dropout_prob: float = setting(0.0, "dropout of attention probabilities", least=0, below=1)
    initializer_range: float = setting(0.02, "standard deviation of the initial weights", above=0)
    initial_words: str = setting(
        "random",
        "where word embeddings begin; random: as every weight; frequencies: the same, and the decoder's bias at each token's log "
        "frequency; counts: that bias, and embeddings from what tokens stand near each other in a sample of the text",
        choices=INITIAL_WORDS,
    )
    attention: str = setting("auto", "attention backend, a name that `python -m kernels.backends` prints")
    kernels: str = setting("auto", "backend of the other kernels, likewise")
    compile: bool = setting(False, "run the training step through torch.compile; its first step takes up to a minute")


@dataclass
class Optimizer:
    """adamw is the paper's DecoupledAdamW: decay is `weight_decay` x lr / initial lr, on every parameter. muon's steps are
    scaled to AdamW's size, so these keys mean the same to both."""

    name: str = setting("adamw", "muon: for the layers' matrices, AdamW for the rest", choices=OPTIMIZERS)
    lr: float = setting(5e-4, "peak learning rate", above=0)
    betas: list[float] = setting([0.9, 0.98], "decay rates of Adam's two moments", least=0, below=1)
    eps: float = setting(1e-6, "added to the denominator of Adam's step", above=0)
    weight_decay: float = setting(1e-5, "per step at the peak learning rate", least=0)
    momentum: float = setting(0.95, "of muon's gradients, with Nesterov's step", least=0, below=1)


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
class Average:
    """The mean of the last weights: with it, the mean is what is evaluated, saved and scored, and training goes on without it."""

    steps: int = setting(0, "batches whose weights are averaged", least=0, special="0 for none: the last weights")
    shape: str = setting(
        "window",
        "window: the plain mean over the run's last `steps` batches; ema: exponential from the first batch on, the newest "
        "weights at 1 / `steps`",
        choices=AVERAGES,
    )


@dataclass
class Stages:
    """Parts of a run in turn, each with batches of its own; the last one's are `batch_size` and `data.sequence_length`."""

    share: list[float] = setting(
        [], "how much of the run each stage is, counted as `duration` is, in ba or sp", above=0, most=1,
        special="empty for no stages",
    )  # fmt: skip
    sequence_length: list[int] = setting(
        [], "`data.sequence_length` in each, none above the last; empty: the same in all", least=3
    )
    batch_size: list[int] = setting([], "`batch_size` in each; empty: the same in all", least=1)


@dataclass
class Generator:
    """The second network of objective=replaced_tokens; it has the encoder's word embeddings and is not kept."""

    hidden_size: Optional[int] = setting(
        None, "its width, at most the encoder's and whole heads of its size; none: a third of the heads", least=1
    )
    num_hidden_layers: Optional[int] = setting(None, "its layers; none: as many as the encoder", least=1)
    detection_weight: float = setting(50.0, "of detection's mean over all tokens, beside the generator's loss", above=0)


@dataclass
class TrainConfig:
    """`python -m recipe.train`: shards to an encoder and its bill."""

    out: str = setting(
        MISSING,
        "the run's folder: encoder/, checkpoints/, run.json",
        result=False,
        local="give a local folder; with save_folder=URL the checkpoints go to an object store too, and any machine continues "
        "from there",
    )
    init_from: Optional[str] = setting(
        None,
        "start from this encoder: a run, one of its checkpoints, a folder or hub name of BERT or MosaicBERT; `model` then "
        "follows it",
    )
    data: Data = setting(Data, "the shards, and how batches are made of them")
    model: Model = setting(Model, "the encoder")
    optimizer: Optimizer = setting(Optimizer, "AdamW, or Muon")
    schedule: Schedule = setting(Schedule, "the learning rate over the run")
    stages: Stages = setting(Stages, "other batches for a part of the run")
    average: Average = setting(Average, "the mean of the last weights")
    generator: Generator = setting(Generator, "of objective=replaced_tokens")
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
    objective: str = setting(
        "masked_lm",
        "what is learnt from the text; masked_lm: what stood at [MASK]; swapped_lm: what stood where a random token is now; "
        "swapped_tokens: which tokens are random ones; replaced_tokens: which ones a small generator filled in",
        choices=OBJECTIVES,
    )
    seed: int = setting(17, "of the initial weights, the masks and dropout", least=0, most=2**32 - 1)
    log_every: int = setting(20, "batches between two lines of progress", least=1, result=False)
    eval_every: str = setting("0ba", "time between two evaluations; 0ba: at the end only", result=False)
    checkpoint_every: str = setting("0ba", "time between two checkpoints; 0ba: at the end only", result=False)
    checkpoint_at: list[int] = setting([], "save after these batches instead, and at the end", least=1, result=False)
    keep_checkpoints: int = setting(2, "checkpoints that are kept, the newest", least=1, result=False)
    save_folder: Optional[str] = setting(
        None,
        "a folder in an object store to which each checkpoint goes too, and from which a machine that has none continues; none: "
        "checkpoints are in `out` alone",
        result=False,
    )
    autoresume: bool = setting(False, "continue the run that `out` holds", result=False)
    rank_timeout: float = setting(
        300.0,
        "seconds that ranks wait in training for one that does not come, before they end and name it",
        above=0,
        result=False,
    )
    loggers: list[str] = setting(
        [],
        "where the lines of progress go beside the terminal: into `out`, nothing is sent unless the environment says so",
        choices=("tensorboard", "wandb", "mlflow"),
        result=False,
    )
