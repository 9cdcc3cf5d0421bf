"""TensorBoard, Weights & Biases and MLflow, by Composer's own loggers: into the run's folder, nothing sent, continued on resume.

What Composer's loggers do otherwise, and why each is a class here:

- Composer logs its own clocks in every batch and the machine's sizes as hyperparameters. A resumed run repeats the first, and
  on another machine changes the second, which wandb and MLflow take for an error. Only the meter's lines, the evaluations and
  the settings in the run's record are kept; these do not change on resume.
- Lines that a killed run logged after its last checkpoint are logged again by the resumed run. TensorBoard hides the first ones
  and MLflow is not given the second ones; on as many ranks they are equal.

The environment decides what leaves the machine: `WANDB_MODE=online`, `MLFLOW_TRACKING_URI`. No package is imported unasked.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from composer import Logger, State
from composer.loggers import LoggerDestination, MLFlowLogger, TensorboardLogger, WandBLogger
from composer.utils import dist

from recipe.errors import UserError, one_line

PROJECT = "bert-recipe"  # in wandb and MLflow, where the environment names no other
METRICS = ("train/", "metrics/")  # the meter's, and Composer's of an evaluation


class RunLogger(LoggerDestination):
    """What the three share; stands before Composer's logger among a class's bases."""

    settings: dict[str, Any]
    where: str  # for the terminal

    def after_load(self, state: State, logger: Logger) -> None:
        super().log_hyperparameters(self.settings)

    def log_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
        """Composer's own are left out."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        kept = {name: value for name, value in metrics.items() if name.startswith(METRICS)}
        kept = {name: value for name, value in kept.items() if not self.is_logged(name, step)}
        if kept:
            super().log_metrics(kept, step)

    def is_logged(self, name: str, step: int | None) -> bool:
        """Whether an earlier start of this run has logged it."""
        return False


class Tensorboard(RunLogger, TensorboardLogger):
    """Event files in `tensorboard/`, on disk after every line. Composer's starts a new file at each flush, one on every rank, and
    a folder of hyperparameters at each evaluation."""

    def __init__(self, out: Path, record: Mapping[str, Any]) -> None:
        super().__init__(log_dir=str(out / "tensorboard"))
        self.settings, self.where = settings_of(record), f"tensorboard --logdir {self.log_dir}"

    def init(self, state: State, logger: Logger) -> None:
        """Nothing yet: which steps are hidden is known once the checkpoint is loaded."""

    def after_load(self, state: State, logger: Logger) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        if dist.get_global_rank() == 0:
            wait_for_a_later_name(Path(self.log_dir))
            self.writer = SummaryWriter(self.log_dir, purge_step=state.timestamp.batch.value + 1)
            values = {
                name: value if isinstance(value, (int, float)) else str(value) for name, value in self.settings.items()
            }
            for summary in hparams(values, dict.fromkeys(("train/loss", "metrics/eval/loss"))):
                self.writer.file_writer.add_summary(summary)
            self._flush(logger)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        if self.writer is not None:
            self.writer.flush()

    def eval_end(self, state: State, logger: Logger) -> None:
        self._flush(logger)

    def _flush(self, logger: Logger) -> None:
        if self.writer is not None:
            self.writer.flush()

    def close(self, state: State, logger: Logger) -> None:
        if self.writer is not None:
            self.writer.close()


def wait_for_a_later_name(folder: Path) -> None:
    """TensorBoard reads a folder's files in the order of their names, `events.out.tfevents.SECOND.HOST.PROCESS...`: a run that is
    continued within the second in which it was started could be read first, and would then be hidden."""
    seconds = [file.name.split(".")[3] for file in folder.glob("events.out.tfevents.*")]
    latest = max((int(second) for second in seconds if second.isdecimal()), default=0)
    while int(time.time()) == latest:
        time.sleep(0.05)


class WandB(RunLogger, WandBLogger):
    """One run id for all starts; a folder in `wandb/` for each of them, which `wandb sync` joins."""

    def __init__(self, out: Path, record: Mapping[str, Any]) -> None:
        mode = os.environ.get("WANDB_MODE", "offline")
        # Seconds between its writes; at the default of 15, a killed run lacks lines from before its last checkpoint.
        os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "0.1")
        init = {"dir": str(out), "id": run_id(record), "mode": mode, "settings": {"console": "off"}}
        if mode == "online":
            init["resume"] = "allow"
        else:
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
            init["settings"]["silent"] = True
        super().__init__(project=os.environ.get("WANDB_PROJECT", PROJECT), name=record["name"], init_kwargs=init)
        self.settings, self.where = settings_of(record), f"wandb, {mode}, {out / 'wandb'}"

    def init(self, state: State, logger: Logger) -> None:
        """Composer's asks for what newer clients no longer have, and tells the other ranks what only its files need."""
        import wandb

        if not self._enabled:
            return
        try:
            wandb.init(**self._init_kwargs)
        except wandb.Error as error:
            raise UserError(
                f"loggers: wandb: {one_line(error)}; or unset WANDB_MODE to log into {self._init_kwargs['dir']}"
            ) from None
        atexit.register(self._set_is_in_atexit)


class MLFlow(RunLogger, MLFlowLogger):
    """A database in `mlflow/`, or the server that `MLFLOW_TRACKING_URI` names; the run is found there by a tag."""

    def __init__(self, out: Path, record: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
        import mlflow

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(out / 'mlflow').resolve()}/mlflow.db"
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        self._tag, self._last_steps = run_id(record), {}
        self.settings, self.where = settings_of(record), f"mlflow ui --backend-store-uri {uri}"
        try:
            if "MLFLOW_TRACKING_URI" not in os.environ:
                experiment = (
                    f"/Shared/{PROJECT}"  # of other names Composer asks Databricks where it finds a token of theirs
                )
                if dist.get_global_rank() == 0:
                    create_store(uri, experiment, out / "mlflow")
            super().__init__(
                experiment_name=experiment,
                run_name=record["name"],
                tracking_uri=uri,
                resume=True,
                log_system_metrics=False,
                log_duplicated_metric_every_n_steps=1,  # a value that does not change is a point of the curve too
            )
        except mlflow.MlflowException as error:
            raise UserError(
                f"loggers: mlflow at {uri}: {one_line(error)}; or unset MLFLOW_TRACKING_URI to log into the run's folder"
            ) from None

    def _start_mlflow_run(self, state: State) -> None:
        self.tags["run_name"] = self._tag  # Composer looks for it, and a folder's name may be another run's too
        super()._start_mlflow_run(state)

    def state_dict(self) -> dict[str, Any]:
        """Called when a checkpoint is written: what led to it must be stored too, and MLflow sends every ten seconds."""
        import mlflow

        if self._enabled:
            mlflow.flush_async_logging()
        return super().state_dict()

    def post_close(self) -> None:
        if self._run_id is not None:  # else another logger could not start
            super().post_close()

    def is_logged(self, name: str, step: int | None) -> bool:
        if not self._enabled or step is None:
            return False
        if name not in self._last_steps:
            history = self._mlflow_client.get_metric_history(self._run_id, name)
            self._last_steps[name] = max((point.step for point in history), default=-1)
        return step <= self._last_steps[name]


LOGGERS = {"tensorboard": Tensorboard, "wandb": WandB, "mlflow": MLFlow}  # by the package that each needs


def check_loggers(names: Sequence[str]) -> None:
    """Refuse a name that stands twice, and one whose package is absent.

    Raises:
        UserError: with the remedy.
    """
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"loggers: {name} stands there twice; name each once")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"loggers: {name} is not installed; run pip install --no-deps -r requirements-loggers.txt")


def build_loggers(names: Sequence[str], out: Path, record: Mapping[str, Any]) -> list[RunLogger]:
    """On every rank, as Composer's talk to each other; the first rank alone writes. `record` is the run's.

    Raises:
        UserError: the environment names a server that does not answer.
    """
    return [LOGGERS[name](out, record) for name in names]


def run_id(record: Mapping[str, Any]) -> str:
    """The same for every start of a run, and for no other run: from what its record keeps of the first start."""
    first = [record["name"], record["provenance"]["started"], record["config"]["out"], record["config"]["seed"]]
    return hashlib.sha256(json.dumps(first).encode()).hexdigest()[:16]


def settings_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the run's first start, `{"optimizer.lr": 5e-4, ...}`."""

    def leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, Mapping):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(leaves(record["config"], ""))


def create_store(uri: str, experiment: str, folder: Path) -> None:
    """MLflow's database, with artifacts beside it and not in the working folder."""
    from mlflow import MlflowClient

    folder.mkdir(exist_ok=True)
    client = MlflowClient(uri)
    if client.get_experiment_by_name(experiment) is None:
        client.create_experiment(experiment, artifact_location=(folder.resolve() / "artifacts").as_uri())
