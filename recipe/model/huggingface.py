"""Any of Hugging Face's encoders, read from its folder, behind the two methods that this project's models have."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PretrainedConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils.hub import snapshot_download  # huggingface_hub's, which transformers itself calls

from recipe.errors import UserError, class_and_line
from recipe.system.files import read_json
from recipe.system.panics import probe

POOLER = "pooler."  # of an encoder; masked-language models have none
# What is fetched of a repository on the hub, weights without pickle if it has them; its code never is.
_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model")
_SAFE, _PICKLED = (
    ("model*.safetensors", "model.safetensors.index.json"),
    ("pytorch_model*.bin", "pytorch_model.bin.index.json"),
)
# The published MosaicBERTs bring no tokenizer: "simply the Hugging Face bert-base-uncased tokenizer" (their model cards).
_WITHOUT_TOKENIZER, _THEIR_TOKENIZER = "mosaicml/mosaic-bert", "bert-base-uncased"


class HFFineTuned(nn.Module):
    """Any BERT-family folder with one of Hugging Face's own heads, on padded batches.

    `auto_class` names the library's class for such heads, such as AutoModelForSequenceClassification. The module called
    `classifier` is new even where the folder holds one that was trained for another task. Without `pretrained` the folder gives
    the sizes alone, and the caller the weights.
    """

    def __init__(self, folder: Path, auto_class: str, num_labels: int, pretrained: bool = True) -> None:
        super().__init__()
        self.auto_class = getattr(transformers, auto_class)
        config = AutoConfig.from_pretrained(folder, num_labels=num_labels, trust_remote_code=False)
        self.token_types = has_token_types(config)
        self.unloaded: list[str] = []  # weights of the encoder that the folder does not have, or not in this shape
        if pretrained:
            self._load(folder, config)
        else:
            self.model = self.auto_class.from_config(config, trust_remote_code=False)

    def _load(self, folder: Path, config: PretrainedConfig) -> None:
        self.model, info = self.auto_class.from_pretrained(
            folder, config=config, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True
        )
        unloaded = unloaded_names(info)
        encoder = f"{self.model.base_model_prefix}."
        inner = {name.removeprefix(encoder) for name in unloaded if name.startswith(encoder)}
        self.unloaded = sorted(name for name in inner if not name.startswith(POOLER))
        if any(is_classifier(name) and name not in unloaded for name in self.model.state_dict()):
            fresh = self.auto_class.from_config(config, trust_remote_code=False).state_dict()
            new = {name: tensor for name, tensor in fresh.items() if is_classifier(name)}
            self.model.load_state_dict(new, strict=False)

    def forward(self, batch: dict) -> Tensor:
        """(S, C), or of a head that answers for every token (T, C), those of the real ones.

        `batch` holds input_ids, attention_mask and, where the model has token types, token_type_ids, all (S, L), and indices (T,)
        int64, the real tokens' places in the flattened (S, L).
        """
        keys = ("input_ids", "attention_mask", "token_type_ids")[: 3 if self.token_types else 2]
        logits = self.model(**{key: batch[key] for key in keys}).logits
        return logits if logits.dim() == 2 else logits.flatten(0, 1)[batch["indices"]]


class HFEncoder(nn.Module):
    """Any BERT-family folder without a head, on padded batches. `pretrained` as above."""

    def __init__(self, folder: Path, pretrained: bool = True) -> None:
        super().__init__()
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        self.token_types = has_token_types(config)
        self.width, self.initializer_range = config.hidden_size, getattr(config, "initializer_range", 0.02)
        self.dropout = getattr(config, "hidden_dropout_prob", 0.0)
        self.unloaded: list[str] = []  # weights that the folder does not have, or not in this shape
        if pretrained:
            self.model, info = AutoModel.from_pretrained(
                folder, config=config, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True
            )
            self.unloaded = [name for name in unloaded_names(info) if not name.startswith(POOLER)]
        else:
            self.model = AutoModel.from_config(config, trust_remote_code=False)

    def forward(self, batch: dict, keep: Tensor | None = None) -> Tensor:
        """Hidden states (K, D) at the places `keep` (K,) int64 of the flattened (S, L), or of all real tokens, in order."""
        keys = ("input_ids", "attention_mask", "token_type_ids")[: 3 if self.token_types else 2]
        hidden_SLD = self.model(**{key: batch[key] for key in keys}).last_hidden_state
        return hidden_SLD.flatten(0, 1)[batch["indices"] if keep is None else keep]


class HFForMaskedLM(nn.Module):
    """Any BERT-family folder with its own masked-language-model head, on padded batches.

    Without `pretrained` the folder gives the sizes alone, and the caller the weights.
    """

    def __init__(self, folder: Path, pretrained: bool = True) -> None:
        super().__init__()
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        self.unloaded: list[str] = []  # weights that the folder does not have, or not in this shape
        if pretrained:
            self.model, info = AutoModelForMaskedLM.from_pretrained(
                folder, config=config, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True
            )
            self.unloaded = unloaded_names(info)
        else:
            self.model = AutoModelForMaskedLM.from_config(config, trust_remote_code=False)

    def masked_logits(self, batch: dict) -> Tensor:
        """(M, V) at `masked_indices` (M,) int64, places in the flattened (S, L) of input_ids and attention_mask."""
        masked_M = batch["masked_indices"]

        def keep_masked(decoder: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0].flatten(0, 1)[masked_M], *inputs[1:])

        # The decoder is most of the work where one token in ten is asked for.
        hook = self.model.get_output_embeddings().register_forward_pre_hook(keep_masked)
        try:
            logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        finally:
            hook.remove()
        # Some models multiply by the decoder's matrix without calling the decoder.
        return logits if logits.dim() == 2 else logits.flatten(0, 1)[masked_M]


@dataclass(frozen=True)
class Family:
    """What a folder says of its model, before any weights are read."""

    model_type: str
    vocab_size: int  # rows of the word embeddings
    pad_id: int | None  # as the model's configuration has it
    longest: int | None  # input, in tokens; None where the model has no position embeddings


def read_family(folder: Path) -> Family:
    """The folder's model, built without storage.

    Raises:
        ValueError: no model of which transformers has both a masked-language-model and a classification form, or a decoder.
        OSError: no readable config.json.
    """
    values = read_json(folder / "config.json")
    if values.get("model_type") not in CONFIG_MAPPING_NAMES and "auto_map" in values:
        raise ValueError(
            f"model_type `{values.get('model_type')}` is known to code of its own only, which is never run here"
        )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    kind = config.model_type
    encoders = MODEL_FOR_MASKED_LM_MAPPING_NAMES.keys() & MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.keys()
    if kind not in encoders or config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise ValueError(
            f"model_type `{kind}` is no encoder; give a model of BERT's family (bert, roberta, modernbert, ...)"
        )
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=False)
    return Family(kind, model.get_input_embeddings().num_embeddings, config.pad_token_id, _longest_input(model))


def _longest_input(model: nn.Module) -> int | None:
    """Rows of the position embeddings; RoBERTa's kin count from behind the padding's own row."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - skipped
    return None


def has_token_types(config: PretrainedConfig) -> bool:
    """Whether the model can tell the two texts of a pair apart by their token types."""
    return (getattr(config, "type_vocab_size", None) or 0) > 1


def unloaded_names(info: dict) -> list[str]:
    """Of what `from_pretrained` says it loaded: the weights that were not there, or not in the model's shape."""
    # Of another shape: names, or, in some of the library's versions, names with both shapes.
    mismatched = {one if isinstance(one, str) else one[0] for one in info["mismatched_keys"]}
    return sorted({*info["missing_keys"], *mismatched})


def is_classifier(parameter: str) -> bool:
    return "classifier" in parameter.split(".")


def load_tokenizer(folder: Path) -> tuple[Tokenizer, int, int | None]:
    """The folder's tokenizer for raw text, with the model's own special tokens around it, and the ids of padding and mask.

    A literal `[MASK]` in a text is plain text.

    Raises:
        ValueError: one without padding, or of a kind that is not in the tokenizers library. The library itself raises more.
    """
    found = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    if not found.is_fast:
        raise ValueError(f"{type(found).__name__} has no tokenizer.json")
    if found.pad_token_id is None:
        raise ValueError(f"{type(found).__name__} without a padding token")
    backend = found.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    probe(backend)
    return backend, found.pad_token_id, found.mask_token_id


def download(name: str, said: str) -> Path:
    """The folder, in Hugging Face's cache, of what the hub has under a name: sizes, weights and tokenizer, and no code.

    Raises:
        UserError: no such model, or the hub cannot be reached; `said` is what the user asked for.
    """
    logging.getLogger("huggingface_hub").setLevel(
        logging.ERROR
    )  # it tells of every attempt; the last one is told below
    try:
        folder = Path(snapshot_download(name, allow_patterns=["config.json", *_TOKENIZER, *_SAFE]))
        if not any(folder.glob(_SAFE[0])):
            snapshot_download(name, allow_patterns=list(_PICKLED))
        if name.startswith(_WITHOUT_TOKENIZER) and not any(folder.glob("tokenizer*")):
            print(f"{said}: brings no tokenizer; {_THEIR_TOKENIZER}'s is taken, which it was trained with", flush=True)
            return _joined(folder, Path(snapshot_download(_THEIR_TOKENIZER, allow_patterns=list(_TOKENIZER))))
    except Exception as error:  # the library raises its own kinds, the network's and the system's
        raise UserError(
            f"{said}: no such file or folder here, and the Hugging Face hub does not give it ({class_and_line(error)}); give a "
            "folder, or check the name and that the hub can be reached"
        ) from None
    return folder


def _joined(folder: Path, tokenizer: Path) -> Path:
    """A folder of links, in the cache, to a model's files and to those of another's tokenizer."""
    both = folder.parents[1] / "with-tokenizer" / folder.name
    both.mkdir(parents=True, exist_ok=True)
    for file in [*folder.iterdir(), *(file for pattern in _TOKENIZER for file in tokenizer.glob(pattern))]:
        with suppress(FileExistsError):  # of an earlier time
            (both / file.name).symlink_to(file.resolve())
    return both
