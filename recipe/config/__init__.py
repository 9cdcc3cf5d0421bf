"""The schema of every YAML file, one dataclass per entry point, a file for those that belong together.

`load` merges a file and words `key=value` into one of them, closed: an unknown key, a wrong type or a missing value is a
`UserError`, one line with its remedy.
"""

from recipe.config.cost import Cost
from recipe.config.export import ExportConfig
from recipe.config.finetune import FinetuneConfig, PredictConfig, RetrieveConfig
from recipe.config.loading import load, run_main, to_dict
from recipe.config.prepare import PrepareConfig, Source, Tokenizer
from recipe.config.score import GlueConfig, Jobs, PairsConfig
from recipe.config.sweep import SweepConfig
from recipe.config.train import Average, Data, Model, Optimizer, Schedule, Stages, TrainConfig

__all__ = [
    "Average",
    "Cost",
    "Data",
    "ExportConfig",
    "FinetuneConfig",
    "GlueConfig",
    "Jobs",
    "Model",
    "Optimizer",
    "PairsConfig",
    "PredictConfig",
    "RetrieveConfig",
    "PrepareConfig",
    "Schedule",
    "Source",
    "Stages",
    "SweepConfig",
    "Tokenizer",
    "TrainConfig",
    "load",
    "run_main",
    "to_dict",
]
