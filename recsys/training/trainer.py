"""The training loop and its step."""

from __future__ import annotations

import contextlib
import math
import pathlib
import time
from collections.abc import Sequence

import keras
import tensorflow as tf

from recsys import files
from recsys.config import FEATURE_FIELDS, TrainConfig
from recsys.data import pipeline
from recsys.data.features import ItemEncoder
from recsys.data.prepare import (
    TRAIN_COUNT,
    TRAIN_TARGETS,
    TRAIN_WEIGHT,
    PreparedData,
    fit_item_encoder,
    train_counts,
)
from recsys.data.side_information import SideEncoder, fit_side_encoder
from recsys.evaluation import evaluate
from recsys.metrics import parse_metric
from recsys.models.history_encoders import SelfAttentionEncoder
from recsys.models.two_tower import TwoTower
from recsys.negatives import Negatives, NegativeSampler
from recsys.recommender import Recommender
from recsys.training.build import (
    build_item_features,
    build_model,
    build_negative_sampler,
    build_optimizer,
    copy_weights,
    describe_method,
    float32_copy,
    initialize_table,
    trained_items,
)
from recsys.training.checkpoints import Checkpoints
from recsys.training.cluster import Cluster, fingerprint, meet, print_line
from recsys.training.distributed import Replicas, connect, translated_loss
from recsys.training.initial_table import FeatureRegression
from recsys.training.progress import (
    Callback,
    Progress,
    ProgressBar,
    epoch_line,
    start_line,
)
from recsys.workdir import Workdir, best_epoch

# With more padding than this the encoder skips it; with less there is little to
# gain (docs/benchmarks_speed.md).
_MOST_PADDING = 1 / 3
# Measured after each epoch, besides the metric that selects the best one.
_VALIDATION_METRICS = ("recall@10", "ndcg@10")


def run_training(
    config: TrainConfig,
    folder: Workdir,
    data: PreparedData,
    cluster: Cluster | None,
    verbose: bool,
    callbacks: Sequence[Callback] = (),
) -> Progress:
    """Trains a model into a workdir, or resumes the run that is there.

    Args:
        config: The configuration.
        folder: The workdir, already checked and created.
        data: The data that the configuration names.
        cluster: The processes of `multi_worker`; None for a single one.
        verbose: Whether to show progress on standard error.
        callbacks: Follow the run, in this order.

    Returns:
        The run's progress at its end.

    Raises:
        InputError: A checkpoint is damaged or belongs to another model.
        OSError: A file could not be written.
        FloatingPointError: The loss is not finite.
        WorkerLostError: Another process did not come or was lost.
    """
    if cluster is not None:
        meet(cluster, fingerprint(config, data.vocabulary))
    with translated_loss(cluster):
        replicas = connect(config.strategy, cluster)
        trainer = Trainer(config, folder, data, verbose, replicas, callbacks)
        if trainer.is_chief and not folder.config.exists():
            with folder.writing(folder.vocabulary) as path:
                data.vocabulary.save(path)
            if trainer.item_encoder is not None:
                with folder.writing(folder.item_features) as path:
                    trainer.item_encoder.save(path)
            if trainer.side is not None:
                with folder.writing(folder.side_information) as path:
                    trainer.side.save(path)
            files.write_json(folder.config, config.to_dict())
        return trainer.run()


class Trainer:
    """One run: a model, its optimizer and its training loop.

    Args:
        config: The configuration.
        folder: The workdir.
        data: The data that the configuration names.
        verbose: Whether to show progress on standard error.
        replicas: The replicas that train together; None for one device.
        callbacks: Follow the run, in this order.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Workdir,
        data: PreparedData,
        verbose: bool,
        replicas: Replicas | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self._config = config
        self._folder = folder
        self._data = data
        self._replicas = replicas
        self.is_chief = replicas is None or replicas.is_chief
        self._verbose = verbose and self.is_chief
        self._callbacks = callbacks if self.is_chief else ()
        self._kept_plan: tuple[int, pipeline.EpochPlan] | None = None
        keras.utils.set_random_seed(config.seed)
        # A run that extends another keeps that run's feature values.
        saved = folder.item_features
        self.item_encoder = (
            ItemEncoder.load(saved)
            if config.item_features and saved.is_file()
            else fit_item_encoder(config, data.vocabulary)
        )
        saved = folder.side_information
        self.side: SideEncoder | None = None
        if any(getattr(config, name) for name in FEATURE_FIELDS):
            self.side = (
                SideEncoder.load(saved)
                if saved.is_file()
                else fit_side_encoder(config, data.sample(config.seed))
            )
        num_targets, weight = (
            train_counts(data.vocabulary, total).sum()
            for total in (TRAIN_TARGETS, TRAIN_WEIGHT)
        )
        self._mean_weight = float(weight / num_targets)
        with replicas.scope() if replicas else contextlib.nullcontext():
            self._build()
        # What validation reads and `model.keras` holds.
        self._saved_model = self.model
        if self.is_chief and config.precision != "float32":
            self._saved_model = float32_copy(self.model)
        self._recommender = Recommender(
            self._saved_model,
            data.vocabulary,
            config.max_history_length,
            side=self.side,
        )
        self.checkpoints = Checkpoints(
            folder.checkpoints, self.model, self.optimizer
        )

    def _build(self) -> None:
        """Creates the model, its optimizer and the train step."""
        config, data = self._config, self._data
        features, encoder = None, self.item_encoder
        self.regression: FeatureRegression | None = None
        if encoder is not None and config.id_dropout is None:
            self.regression = FeatureRegression(encoder, data.vocabulary)
        elif encoder is not None:
            features = build_item_features(
                config, encoder, data.vocabulary.items
            )
        self.model: TwoTower = build_model(
            config, data.vocabulary.size, features, self.side
        )
        if encoder is not None:
            total = TRAIN_TARGETS if self.regression is None else TRAIN_COUNT
            self.model.trained_items = trained_items(data.vocabulary, total)
        self.model.masks_known = config.mask_known_items
        self._set_padding(self.first_progress())
        self.optimizer = build_optimizer(
            config, len(self._plan(epoch=0)), data.vocabulary.num_items
        )
        self.optimizer.build(self.model.trainable_variables)
        sampler = build_negative_sampler(
            config, train_counts(data.vocabulary, TRAIN_TARGETS)
        )
        replicas = self._replicas
        step = TrainStep(self.model, self.optimizer, sampler, config.seed)
        self.train_step = tf.function(
            replicas.on_all(step) if replicas else step,
            # One trace for all shapes. With a trace of the first shape, a
            # resumed run would round differently from an uninterrupted one.
            input_signature=[self._signature()],
            jit_compile=config.jit_compile,
        )

    def _signature(self) -> dict[str, tf.TensorSpec]:
        """The input of a step; rows and lengths differ between batches."""
        train = self._data.split.train
        signature = dict(PART_SIGNATURE if self._replicas else BATCH_SIGNATURE)
        if with_kinds := train.kinds is not None:
            spec = tf.TensorSpec([None, None], tf.float32)
            signature["target_weights"] = spec
        if train.has_dislikes:
            signature["dislike_ids"] = tf.TensorSpec([None, None], tf.int32)
        return signature | pipeline.feature_signature(self.side, with_kinds)

    def run(self) -> Progress:
        """Trains from the run's last checkpoint to its end."""
        progress = self._start()
        config = self._config
        if self._verbose:
            lines = [start_line(progress, config.num_epochs)]
            if not progress.finished:
                if changes := self.checkpoints.runtime_changes():
                    lines.append(
                        "the checkpoint was written under other conditions "
                        f"({'; '.join(changes)}): weights may differ in their "
                        "last bits from those of an uninterrupted run"
                    )
                lines.append(
                    describe_method(config, self._data.vocabulary.num_items)
                )
                if self.side is not None:
                    lines.append(self.side.describe())
                if self._replicas is not None:
                    lines.append(self._replicas.summary())
            for line in filter(None, lines):
                print_line(line)
        for callback in self._callbacks:
            callback.on_start(config, self._folder.path, progress)
        if not progress.finished:
            progress = self._run_epochs(progress)
        for callback in self._callbacks:
            callback.on_end(progress)
        return progress

    def _start(self) -> Progress:
        """Restores or initializes all variables; returns the progress."""
        progress = self.checkpoints.restore() if self.is_chief else None
        if progress is None:
            progress = self.first_progress()
            if self.is_chief:
                initialize_table(
                    self._config, self.model, self._data, self.regression
                )
        if self._replicas is not None:
            progress = self._replicas.share_progress(progress)
            self._replicas.share(
                [*self.model.variables, *self.optimizer.variables]
            )
            self._replicas.vary_seeds(self.model)
        self._set_padding(progress)
        return progress

    def _set_padding(self, progress: Progress) -> None:
        """Lets the encoder skip padding or not, as the run began."""
        encoder = self.model.history_tower.encoder
        if isinstance(encoder, SelfAttentionEncoder):
            encoder.skips_padding = progress.skips_padding

    def first_progress(self) -> Progress:
        """Returns the progress of a run before its first step."""
        padding_share = self._plan(epoch=0).padding_share
        # XLA must know the size of everything in advance.
        can_skip = not self._config.jit_compile
        return Progress(
            skips_padding=can_skip and padding_share > _MOST_PADDING
        )

    def _run_epochs(self, progress: Progress) -> Progress:
        writer = (
            tf.summary.create_file_writer(str(self._folder.logs))
            if self.is_chief
            else tf.summary.create_noop_writer()
        )
        with writer.as_default():
            while not progress.finished:
                progress = self._run_epoch(progress)
        return progress

    def _run_epoch(self, progress: Progress) -> Progress:
        """Trains the rest of the current epoch and validates."""
        began = time.perf_counter()
        trained_before = progress.num_targets
        self._train_epoch(progress)
        seconds = time.perf_counter() - began
        trained = (progress.num_targets - trained_before) / self._mean_weight
        rate = trained / max(seconds, 1e-9)
        if self.is_chief:
            self._finish_epoch(progress, seconds, rate)
        if self._replicas is not None:
            # The chief decides whether training continues.
            progress = self._replicas.share_progress(progress)
        return progress

    def _finish_epoch(
        self, progress: Progress, seconds: float, rate: float
    ) -> None:
        """Validates, keeps the best model and saves."""
        if self.regression is not None:
            # New items get the rows that those of known items predict.
            table = self.model.candidate_tower.embedding.embeddings
            table.assign(self.regression.filled(table.numpy()))
        self._update_saved_model()
        measures = {"loss": progress.loss_sum / (progress.num_targets or 1.0)}
        measures.update(self._validate())
        progress.history.append(
            {**measures, "seconds": seconds, "interactions_per_second": rate}
        )
        metric = self._config.selection_metric
        best = best_epoch(progress.history, metric)
        assert best is not None  # There is at least this epoch.
        is_best = best == progress.epoch
        if is_best:
            with self._folder.writing(self._folder.model) as path:
                self._saved_model.save(path)
        for name, value in measures.items():
            tf.summary.scalar(name, value, step=progress.epoch)
        if self._verbose:
            print_line(epoch_line(progress, self._config.num_epochs, is_best))
        progress.epoch += 1
        progress.step = 0
        progress.loss_sum = progress.num_targets = 0.0
        progress.finished = (
            progress.epoch == self._config.num_epochs
            or progress.epoch - 1 - best >= self._config.patience
        )
        try:
            # Each of them is called, whatever the others return.
            ends = [each.on_epoch_end(progress) for each in self._callbacks]
            progress.finished |= any(ends)
        finally:
            self.checkpoints.save(progress)

    def save_model(self, path: pathlib.Path) -> None:
        """Writes the present model, which computes in float32."""
        self._update_saved_model()
        self._saved_model.save(path)

    def _update_saved_model(self) -> None:
        if self._saved_model is not self.model:
            copy_weights(self.model, self._saved_model)

    def _train_epoch(self, progress: Progress) -> None:
        """Runs the remaining steps of an epoch."""
        plan = self._plan(progress.epoch)
        train_ds = self._train_dataset(plan, progress.step)
        with ProgressBar(
            progress,
            self._config.num_epochs,
            len(plan),
            self._verbose,
            self._mean_weight,
        ) as bar:
            for batch in train_ds:
                loss, num_targets = self.train_step(batch)
                self._count(progress, float(loss), float(num_targets))
                bar.show(progress)
                for callback in self._callbacks:
                    mean = float(loss) / (float(num_targets) or 1.0)
                    callback.on_step(progress, mean)
                # The epoch's last step is saved after its validation.
                if (
                    progress.step % self._config.checkpoint_steps == 0
                    and progress.step < len(plan)
                    and self.is_chief
                ):
                    self.checkpoints.save(progress)

    def _count(
        self, progress: Progress, loss: float, num_targets: float
    ) -> None:
        progress.step += 1
        progress.global_step += 1
        progress.loss_sum += loss
        progress.num_targets += num_targets
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"epoch {progress.epoch}, step {progress.step}: expected a "
                "finite loss; a lower --learning_rate may help. "
                f"Received: {loss}"
            )

    def _validate(self) -> dict[str, float]:
        names = dict.fromkeys(
            [*_VALIDATION_METRICS, self._config.selection_metric]
        )
        metrics = [parse_metric(name) for name in names]
        evaluation = evaluate(
            self._recommender,
            self._data.split.validation,
            protocol=self._data.split.protocol,
            ks=tuple(sorted({m.k for m in metrics if m.k is not None})),
            lists=False,
            exclude_history=self._config.excludes_history,
        )
        # Training changes the vectors, and needs their memory.
        self._recommender.refresh()
        return {
            f"validation_{name}": value
            for name, value in evaluation.metrics(metrics).items()
        }

    def batches(self, epoch: int) -> tf.data.Dataset:
        """Returns all batches of an epoch."""
        return self._train_dataset(self._plan(epoch), first_step=0)

    def _train_dataset(
        self, plan: pipeline.EpochPlan, first_step: int
    ) -> tf.data.Dataset:
        return pipeline.train_dataset(
            self._data.split.train,
            plan,
            first_step=first_step,
            part=self._replicas.part if self._replicas else None,
            side=self.side,
        )

    def _plan(self, epoch: int) -> pipeline.EpochPlan:
        """Plans an epoch; keeps the latest plan."""
        if self._kept_plan is None or self._kept_plan[0] != epoch:
            self._kept_plan = None  # Two plans would take too much memory.
            plan = pipeline.plan_epoch(
                self._data.split.train,
                max_length=self._config.max_history_length,
                positions_per_batch=self._config.positions_per_batch,
                seed=self._config.seed,
                epoch=epoch,
            )
            self._kept_plan = (epoch, plan)
        return self._kept_plan[1]


# The input of a step; rows and lengths differ between batches.
BATCH_SIGNATURE = {
    name: tf.TensorSpec([None, None], tf.int32)
    for name in ("history_ids", "target_ids")
}
# A process's rows of a batch, and their positions in it.
PART_SIGNATURE = {
    **BATCH_SIGNATURE,
    "places": tf.TensorSpec([None], tf.int64),
    "num_rows": tf.TensorSpec([], tf.int64),
}


class TrainStep:
    """One update of the model, to be wrapped in a `tf.function`.

    With a negative sampler and an optimizer from `recsys.optimizers`, it never
    reads or writes the whole item table. Under a strategy each replica calls
    it and takes its own share of the rows; the negatives are the ones that a
    single replica would draw for the whole batch.

    Args:
        model: A built model.
        optimizer: An optimizer, built for the model's variables.
        sampler: Draws the negatives of the sampled softmax; None for the full
            softmax.
        seed: Seed of the negatives, combined with the step's number.
    """

    def __init__(
        self,
        model: TwoTower,
        optimizer: keras.optimizers.Optimizer,
        sampler: NegativeSampler | None,
        seed: int,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._sampler = sampler
        self._seed = seed

    def __call__(
        self, batch: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Updates the model.

        Args:
            batch: As `recsys.data.pipeline.train_dataset` makes it;
                under a strategy this process's rows, as in `PART_SIGNATURE`.

        Returns:
            The summed loss and the number of targets of the whole batch, or
            the sum of their weights, float32 scalars.
        """
        if "places" not in batch:
            return self._model.update(
                batch, self._optimizer, self._negatives(batch)
            )
        context = tf.distribute.get_replica_context()
        own = _rows_of_replica(batch, context)
        negatives = None
        if self._sampler is not None:
            whole = _whole_batch(own, batch["num_rows"], context)
            negatives = self._negatives(whole)
            assert negatives is not None  # There is a sampler.
            negatives = negatives.of_places(own["places"])
        loss, count = self._model.update(own, self._optimizer, negatives)
        return context.all_reduce(tf.distribute.ReduceOp.SUM, loss), count

    def _negatives(self, batch: dict[str, tf.Tensor]) -> Negatives | None:
        if self._sampler is None:
            return None
        # The optimizer's step count is part of every checkpoint.
        step = tf.cast(self._optimizer.iterations, tf.int64)
        seed = tf.stack([tf.constant(self._seed, tf.int64), step])
        return self._sampler.draw(batch, seed)


def _rows_of_replica(
    batch: dict[str, tf.Tensor], context: tf.distribute.ReplicaContext
) -> dict[str, tf.Tensor]:
    """Returns this replica's share of the process's rows."""
    count = len(context.strategy.extended.worker_devices)
    number = context.replica_id_in_sync_group % count
    num_rows = tf.shape(batch["places"])[0]
    rows = slice(num_rows * number // count, num_rows * (number + 1) // count)
    return {k: each[rows] for k, each in batch.items() if k != "num_rows"}


def _whole_batch(
    own: dict[str, tf.Tensor],
    num_rows: tf.Tensor,
    context: tf.distribute.ReplicaContext,
) -> dict[str, tf.Tensor]:
    """Gathers the whole batch from all replicas, in its order."""
    names = list(BATCH_SIGNATURE)
    length = tf.shape(own["target_ids"], tf.int64)[1]
    # Equal shapes, with zeros where another replica has the rows.
    scattered = [
        tf.scatter_nd(
            own["places"][:, tf.newaxis],
            tf.cast(own[name], tf.int64),
            [num_rows, length],
        )
        for name in names
    ]
    whole = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stack(scattered))
    return dict(zip(names, tf.unstack(tf.cast(whole, tf.int32)), strict=True))
