"""The training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Iterator

import keras
import tensorflow as tf

from recsys import files
from recsys.config import TrainConfig
from recsys.data import pipeline
from recsys.data.features import ItemEncoder
from recsys.data.prepare import (
    PreparedData,
    build_data,
    fit_item_encoder,
    train_counts,
)
from recsys.evaluation import evaluate
from recsys.metrics import parse_metric
from recsys.models.two_tower import TwoTower
from recsys.recommender import Recommender
from recsys.training.build import (
    build_item_features,
    build_model,
    build_negative_sampler,
    build_optimizer,
    describe_method,
    initialize_table,
    trained_items,
)
from recsys.training.checkpoints import (
    Checkpoints,
    Progress,
    ProgressDisplay,
    show_epoch,
    show_method,
    show_start,
)
from recsys.training.cluster import cluster_of
from recsys.training.distributed import (
    PART_SIGNATURE,
    Replicas,
    ReplicaStep,
    connect,
    fingerprint,
    meet,
    translated_loss,
)
from recsys.training.step import BATCH_SIGNATURE, TrainStep
from recsys.workdir import Workdir

# What early stopping and the choice of the best epoch look at.
SELECTION_METRIC = "ndcg@10"


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a training run leaves.

    Attributes:
        data: What it was trained on, for evaluation on the same split.
        workdir: The folder that holds the model.
        history: Per epoch `loss`, `validation_recall@10`,
            `validation_ndcg@10`, `seconds` and `interactions_per_second`.
        best_epoch: The epoch whose weights were kept, from 0.
    """

    data: PreparedData
    workdir: pathlib.Path
    history: list[dict[str, float]]
    best_epoch: int


def train(
    config: TrainConfig,
    workdir: str | os.PathLike[str],
    *,
    data: PreparedData | None = None,
    verbose: bool = True,
) -> TrainResult:
    """Trains a model into a workdir, or goes on with a run that is there.

    A workdir with a checkpoint of the same configuration is resumed, and
    ends with the same weights, bit for bit, as if it had never stopped. One
    whose run is finished is left as it is. Sets the global seeds of Python,
    NumPy and TensorFlow.

    With `strategy="multi_worker"` each of the processes that `TF_CONFIG` names
    calls this; the chief alone reads and writes the workdir.

    Args:
        config: The configuration.
        workdir: Where the run lives; made if missing.
        data: The data that the configuration names, if they are read already.
        verbose: Whether to show progress on standard error.

    Returns:
        The result. The weights kept in `model.keras` are those of the epoch
        with the highest validation NDCG@10.

    Raises:
        InputError: The data cannot be used, or the workdir cannot.
        OSError: A file could not be written.
        FloatingPointError: The loss stopped being finite.
        WorkerLostError: Another process did not come or is gone.
    """
    folder = Workdir(pathlib.Path(workdir))
    cluster = cluster_of(config)
    is_chief = cluster is None or cluster.is_chief
    if is_chief:
        folder.check(config)
    if data is None:
        data = build_data(config)
    if is_chief:
        folder.check_data(data.vocabulary)
        folder.path.mkdir(parents=True, exist_ok=True)
    if cluster is not None:
        meet(cluster, fingerprint(config, data.vocabulary))
    with translated_loss(cluster):
        replicas = connect(config.strategy, cluster)
        trainer = Trainer(config, folder, data, verbose, replicas)
        if is_chief and not folder.config.exists():
            data.vocabulary.save(folder.vocabulary)
            if trainer.item_encoder is not None:
                trainer.item_encoder.save(folder.item_features)
            files.write_json(folder.config, config.to_dict())
        progress = trainer.run()
    best = progress.best_epoch
    assert best is not None  # A finished run has at least one epoch.
    return TrainResult(data, folder.path, progress.history, best)


class Trainer:
    """One run: a model, its optimizer, and where it is.

    Args:
        config: The configuration.
        folder: The workdir.
        data: What the configuration names.
        verbose: Whether to show progress on standard error.
        replicas: What trains together, for other strategies than a single
            device.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Workdir,
        data: PreparedData,
        verbose: bool,
        replicas: Replicas | None = None,
    ) -> None:
        self._config = config
        self._folder = folder
        self._data = data
        self._replicas = replicas
        self._is_chief = replicas is None or replicas.is_chief
        self._verbose = verbose and self._is_chief
        self._kept_plan: tuple[int, pipeline.EpochPlan] | None = None
        keras.utils.set_random_seed(config.seed)
        # A run that extends another keeps the values of that one's features.
        saved = folder.item_features
        self.item_encoder = (
            ItemEncoder.load(saved)
            if config.item_features and saved.is_file()
            else fit_item_encoder(config, data.vocabulary)
        )
        with replicas.scope() if replicas else contextlib.nullcontext():
            self._build()
        self.checkpoints = Checkpoints(
            folder.checkpoints, self.model, self.optimizer
        )

    def _build(self) -> None:
        """Makes the model, its optimizer and the step."""
        config, data = self._config, self._data
        features = None
        candidate_ids = None
        if self.item_encoder is not None:
            features = build_item_features(
                self.item_encoder,
                data.vocabulary.items,
                config.embedding_dim,
            )
            # What is never a target would be pushed down, and its features.
            candidate_ids = tf.constant(trained_items(data.vocabulary))
        self.model: TwoTower = build_model(
            config, data.vocabulary.size, features
        )
        self.optimizer = build_optimizer(
            config, len(self._plan(epoch=0)), data.vocabulary.num_items
        )
        self.optimizer.build(self.model.trainable_variables)
        self._recommender = Recommender(
            self.model, data.vocabulary, config.max_history_length
        )
        sampler = build_negative_sampler(config, train_counts(data.vocabulary))
        replicas = self._replicas
        step = (ReplicaStep if replicas else TrainStep)(
            self.model, self.optimizer, sampler, config.seed, candidate_ids
        )
        self.train_step = tf.function(
            replicas.on_all(step) if replicas else step,
            # One trace for all shapes. With a trace for the shape that comes
            # first, a resumed run would round otherwise than a whole one.
            input_signature=[PART_SIGNATURE if replicas else BATCH_SIGNATURE],
            jit_compile=config.jit_compile,
        )

    def run(self) -> Progress:
        """Trains from wherever the run is to its end."""
        progress = self._start()
        if self._verbose:
            show_start(progress, self._config.num_epochs)
            if not progress.finished:
                show_method(
                    describe_method(
                        self._config, self._data.vocabulary.num_items
                    )
                )
                if self._replicas is not None:
                    show_method(self._replicas.describe())
        if not progress.finished:
            progress = self._run_epochs(progress)
        return progress

    def _start(self) -> Progress:
        """Puts every variable where the run is."""
        progress = self.checkpoints.restore() if self._is_chief else None
        if progress is None:
            progress = Progress()
            if self._is_chief:
                initialize_table(self._config, self.model, self._data)
        if self._replicas is not None:
            progress = self._replicas.share_progress(progress)
            self._replicas.share(
                [*self.model.variables, *self.optimizer.variables]
            )
            self._replicas.vary_seeds(self.model)
        return progress

    def _run_epochs(self, progress: Progress) -> Progress:
        writer = (
            tf.summary.create_file_writer(str(self._folder.logs))
            if self._is_chief
            else tf.summary.create_noop_writer()
        )
        with writer.as_default():
            while not progress.finished:
                progress = self._run_epoch(progress)
        return progress

    def _run_epoch(self, progress: Progress) -> Progress:
        """Finishes the epoch that is under way."""
        began = time.perf_counter()
        trained_before = progress.num_targets
        self._train_epoch(progress)
        seconds = time.perf_counter() - began
        rate = (progress.num_targets - trained_before) / max(seconds, 1e-9)
        if self._is_chief:
            self._finish_epoch(progress, seconds, rate)
        if self._replicas is not None:
            # The others learn from the chief whether to go on.
            progress = self._replicas.share_progress(progress)
        return progress

    def _finish_epoch(
        self, progress: Progress, seconds: float, rate: float
    ) -> None:
        """Validates, keeps the best model and saves."""
        measures = {"loss": progress.loss_sum / max(progress.num_targets, 1.0)}
        with self._averaged_weights():
            measures.update(self._validate())
            progress.history.append(
                {
                    **measures,
                    "seconds": seconds,
                    "interactions_per_second": rate,
                }
            )
            best = progress.best_epoch
            assert best is not None  # There is this epoch at least.
            if best == progress.epoch:
                with files.atomic_path(self._folder.model) as path:
                    self.model.save(path)
        for name, value in measures.items():
            tf.summary.scalar(name, value, step=progress.epoch)
        if self._verbose:
            show_epoch(progress, self._config.num_epochs)
        progress.epoch += 1
        progress.step = 0
        progress.loss_sum = progress.num_targets = 0.0
        progress.finished = (
            progress.epoch == self._config.num_epochs
            or progress.epoch - 1 - best >= self._config.patience
        )
        self.checkpoints.save(progress)

    @contextlib.contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Puts the weights' moving average, if any, into the model."""
        if not self._config.weight_average:
            yield
            return
        variables = self.model.trainable_variables
        weights = [variable.numpy() for variable in variables]
        self.optimizer.finalize_variable_values(variables)
        yield
        for variable, weight in zip(variables, weights, strict=True):
            variable.assign(weight)

    def _train_epoch(self, progress: Progress) -> None:
        """Runs the steps of an epoch that are not done yet."""
        plan = self._plan(progress.epoch)
        train_ds = self._train_dataset(plan, progress.step)
        with ProgressDisplay(
            progress, self._config.num_epochs, len(plan), self._verbose
        ) as display:
            for batch in train_ds:
                loss, num_targets = self.train_step(batch)
                self._count(progress, float(loss), float(num_targets))
                display.update(progress)
                # The epoch's last step is saved after its validation.
                if (
                    progress.step % self._config.checkpoint_steps == 0
                    and progress.step < len(plan)
                    and self._is_chief
                ):
                    self.checkpoints.save(progress)

    def _count(
        self, progress: Progress, loss: float, num_targets: float
    ) -> None:
        progress.step += 1
        progress.global_step += 1
        progress.loss_sum += loss
        progress.num_targets += num_targets
        if loss - loss != 0:  # NaN or infinite.
            raise FloatingPointError(
                f"epoch {progress.epoch}, step {progress.step}: expected a "
                "finite loss; a lower --learning_rate may help. "
                f"Received: {loss}"
            )

    def _validate(self) -> dict[str, float]:
        metrics = [parse_metric("recall@10"), parse_metric(SELECTION_METRIC)]
        evaluation = evaluate(
            self._recommender,
            self._data.split.validation,
            protocol=self._data.split.protocol,
            ks=(10,),
            lists=False,
            exclude_history=self._config.excludes_history,
        )
        return {
            f"validation_{name}": value
            for name, value in evaluation.metrics(metrics).items()
        }

    def batches(self, epoch: int) -> tf.data.Dataset:
        """Returns the batches of an epoch, from its first."""
        return self._train_dataset(self._plan(epoch), first_step=0)

    def _train_dataset(
        self, plan: pipeline.EpochPlan, first_step: int
    ) -> tf.data.Dataset:
        return pipeline.train_dataset(
            self._data.split.train,
            plan,
            first_step=first_step,
            part=self._replicas.part if self._replicas else None,
        )

    def _plan(self, epoch: int) -> pipeline.EpochPlan:
        """Plans an epoch; the last plan is kept."""
        if self._kept_plan is None or self._kept_plan[0] != epoch:
            self._kept_plan = None  # Not two in memory.
            plan = pipeline.plan_epoch(
                self._data.split.train,
                max_length=self._config.max_history_length,
                positions_per_batch=self._config.positions_per_batch,
                seed=self._config.seed,
                epoch=epoch,
            )
            self._kept_plan = (epoch, plan)
        return self._kept_plan[1]
