"""The two-tower model: histories and candidates meet in a dot product."""

from __future__ import annotations

import os
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state

from recsys import losses
from recsys.ids import FIRST_ITEM_INDEX
from recsys.models.shared_item_embedding import (
    deserialize,
    keep_frozen,
    serialize,
)
from recsys.models.towers import (
    PARTS,
    CandidateTower,
    HistoryTower,
    last_positions,
)
from recsys.negatives import Negatives, NegativeSampler
from recsys.optimizers import merge_rows

# The entries of the inputs that the history tower reads besides ids.
FEATURE_ENTRIES = (
    *(f"{part}_{kind}" for part in PARTS for kind in ("features", "weights")),
    "history_times",
    "request_times",
)
_HISTORIES = {
    "history_ids": tf.TensorSpec([None, None], tf.int32, "history_ids")
}


@keras.saving.register_keras_serializable(package="recsys")
class TwoTower(keras.Model):
    """Scores items for histories; trains with `fit` or in any loop.

    A batch is a dictionary with `history_ids`, `[batch, length]`, and for
    training `target_ids`, `[batch, length]`: the item that follows each
    position, 0 where nothing is to be learned. The loss is the mean
    cross-entropy of the full softmax over all items.

    A batch may also have `target_weights`, shaped as the targets, float: the
    loss of each target is multiplied by its weight, and the mean is the sum
    divided by the sum of the weights. And `dislike_ids`, `[batch,
    num_dislikes]` int, 0 at padding: items that each row's user is known not to
    like, which are pushed down at every target of the row; see
    `next_item_loss`.

    Where the history tower reads features, their entries are those that it
    describes; with `user_features` also `first_ids`, `[batch]` int: the first
    item of each user, a target by the user's features alone, 0 for none.

    Examples:
        >>> table = SharedItemEmbedding(vocabulary_size=10, embedding_dim=4)
        >>> model = TwoTower(HistoryTower(table), CandidateTower(table))
        >>> model.compile(optimizer="adam")
        >>> history = model.fit(train_ds)                       # doctest: +SKIP

    Args:
        history_tower: The query tower.
        candidate_tower: The candidate tower, over the same table.
        **kwargs: Keras's own model arguments.

    Attributes:
        negative_sampler: What Keras's `fit` and `evaluate` draw negatives
            with, or None. Not part of the model's files.
        trained_items: `[num_trained]` int, ascending: the items that the full
            softmax is over, all targets among them (another one makes the loss
            NaN); None for all items.
            Items that have features and are never targets are best left out:
            `fit` and the trainer would push them down, and their features
            with them. Not part of the model's files.
        masks_known: Whether the softmax of a target leaves out what its
            history has, which a recommendation leaves out as well. False by
            default; not part of the model's files. A sampler with an argument
            of that name decides for its own negatives.

    Raises:
        ValueError: The towers do not share one table, or differ in
            `transition_dim`.
    """

    def __init__(
        self,
        history_tower: HistoryTower,
        candidate_tower: CandidateTower,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        tables = [
            tower.embedding.table for tower in (history_tower, candidate_tower)
        ]
        if tables[0] is not tables[1]:
            raise ValueError(
                "`history_tower` and `candidate_tower` must share one "
                "SharedItemEmbedding. Received: "
                f"{history_tower.embedding.name} and "
                f"{candidate_tower.embedding.name}"
            )
        dims = history_tower.transition_dim, candidate_tower.transition_dim
        if dims[0] != dims[1]:
            raise ValueError(
                "`history_tower` and `candidate_tower` must have the same "
                f"`transition_dim`. Received: {dims[0]} and {dims[1]}"
            )
        self.history_tower = history_tower
        self.candidate_tower = candidate_tower
        self.negative_sampler: NegativeSampler | None = None
        self.trained_items: Any = None
        self.masks_known = False
        self._loss_mean = keras.metrics.Mean(name="loss")

    def build(self, input_shape: Any = None) -> None:
        """Creates every weight of both towers."""
        self.history_tower.build()
        self.candidate_tower.build()
        self.built = True
        keep_frozen(self)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Configures training, and builds the model if that is not done.

        All sizes are known, so callbacks and saving can find the weights.

        Args:
            *args: As for `keras.Model.compile`.
            **kwargs: As for `keras.Model.compile`.

        Raises:
            ValueError: A loss or metrics are given.
        """
        super().compile(*args, **kwargs)
        if not self.built:
            self.build()

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a model that was loaded, as Keras does."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def fit(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        """Trains the model, as `keras.Model.fit` does.

        Args:
            x: A dictionary, or a dataset of dictionaries or of tuples.
            y: The targets, unless they are `target_ids` in `x`.
            **kwargs: As for `keras.Model.fit`. `sample_weight`, `[batch]` or
                `[batch, length]`, multiplies the loss of a row's targets; the
                mean is still one over the targets.

        Raises:
            ValueError: `class_weight` is given, which has no meaning here.
        """
        if kwargs.get("class_weight") is not None:
            raise ValueError(
                "`class_weight` must be left out: weight targets with "
                "`sample_weight` of shape [batch, length] instead. Received: "
                f"{kwargs['class_weight']}"
            )
        return super().fit(
            **_with_targets(x, y, kwargs.get("sample_weight")), **kwargs
        )

    def evaluate(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        """Returns the loss, as `keras.Model.evaluate` does.

        Args:
            x: As for `fit`.
            y: As for `fit`.
            **kwargs: As for `keras.Model.evaluate`.
        """
        return super().evaluate(
            **_with_targets(x, y, kwargs.get("sample_weight")), **kwargs
        )

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The mean loss, which Keras resets at each epoch."""
        return [self._loss_mean]

    def call(
        self, inputs: dict[str, tf.Tensor], training: bool | None = None
    ) -> tf.Tensor:
        """Scores candidates.

        Args:
            inputs: `history_ids`, `[batch, length]` int, and optionally
                `candidate_ids`, `[batch, num_candidates]` int. Other entries
                are ignored.
            training: Whether dropout is active.

        Returns:
            Scores, `[batch, num_candidates]`, or without `candidate_ids`
            `[batch, vocabulary_size]`, where columns 0 and 1, padding and
            unknown, are the lowest float: they are never candidates.

        Raises:
            ValueError: `inputs` are not a dictionary with `history_ids`, or
                `candidate_ids` have another shape.
        """
        if not isinstance(inputs, dict) or "history_ids" not in inputs:
            raise ValueError(
                "`inputs` must be a dictionary with `history_ids`. Received: "
                f"{list(inputs) if isinstance(inputs, dict) else type(inputs)}"
            )
        queries = self.history_tower(
            inputs["history_ids"], training=training, **self._features(inputs)
        )
        if "candidate_ids" in inputs:
            ids = _dense(inputs["candidate_ids"])
            if ids.shape.rank not in (None, 2):
                raise ValueError(
                    "`candidate_ids` must be [batch, num_candidates]. Received "
                    f"shape: {ids.shape}"
                )
            candidates = self.candidate_tower(ids, training=training)
            return tf.einsum("bd,bcd->bc", queries, candidates)
        candidates = self.candidate_tower.all_candidates(training=training)
        scores = tf.matmul(queries, candidates, transpose_b=True)
        never = tf.fill([tf.shape(scores)[0], 2], scores.dtype.min)
        return tf.concat([never, scores[:, 2:]], axis=1)

    def _features(self, inputs: dict[str, tf.Tensor]) -> dict[str, Any]:
        """Returns what the history tower reads besides ids, if anything."""
        found = {
            name: inputs[name]
            for name in FEATURE_ENTRIES
            if inputs.get(name) is not None
        }
        return {"features": found} if found else {}

    def next_item_loss(
        self,
        inputs: dict[str, tf.Tensor],
        training: bool = True,
        negatives: Negatives | None = None,
        sample_weight: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Softmax loss of every next item in a batch of histories.

        With the query q and vector t of a target, dislikes d of its row add
        log(exp(q·t) + Σ exp(q·d)) − q·t to the full softmax. In the sampled
        softmax they are further negatives of their row.

        Args:
            inputs: `history_ids`, `[batch, length]` int, and `target_ids` of
                the same shape, or `[batch]` or `[batch, 1]`: the item that
                follows the last one of each history. Optionally
                `target_weights` and `dislike_ids`, as described above.
            training: Whether dropout is active.
            negatives: What a `NegativeSampler` drew for the batch: the loss
                is the sampled softmax, and no other row of the table is
                read. Default: the full softmax over `trained_items`.
            sample_weight: `[batch]` or `[batch, length]`, multiplies the
                cross-entropy of each target.

        Returns:
            The sum of the cross-entropies and the number of targets, or the
            sum of their `target_weights`, both float32 scalars.

        Raises:
            ValueError: The shapes of histories and targets do not agree.
        """
        inputs = self._checked_inputs(inputs)
        targets = inputs["target_ids"]
        weights = tf.cast(targets >= FIRST_ITEM_INDEX, tf.float32)
        if "target_weights" in inputs:
            weights *= _per_position(_dense(inputs["target_weights"]))
        features = self._features(inputs)
        if "first_ids" in inputs and self.history_tower.user_features:
            first = tf.cast(inputs["first_ids"], targets.dtype)[:, tf.newaxis]
            targets = tf.concat([first, targets], axis=1)
            first = tf.cast(first >= FIRST_ITEM_INDEX, tf.float32)
            if "first_weights" in inputs:
                first *= _per_position(inputs["first_weights"])
            weights = tf.concat([first, weights], axis=1)
            features["with_start"] = True
        count = tf.reduce_sum(weights)
        if sample_weight is not None:
            sample_weight = _per_position(sample_weight)
            if "with_start" in features and sample_weight.shape[1] != 1:
                sample_weight = tf.pad(
                    sample_weight, [[0, 0], [1, 0]], constant_values=1
                )
            weights *= sample_weight
        if negatives is None:
            candidates = self._trained_candidates(training)
        else:
            candidates = self._trained(negatives.ids, training)
        queries = self.history_tower(
            inputs["history_ids"],
            training=training,
            return_sequences=True,
            **features,
        )
        known = inputs["history_ids"] if self.masks_known else None
        if negatives is not None and negatives.known_ids is not None:
            known = negatives.known_ids
        dislikes = None
        if "dislike_ids" in inputs:
            ids = _dense(inputs["dislike_ids"])
            vectors = self._trained(ids, training)
            dislikes = losses.dislike_logits(queries, vectors, ids, targets)
        if negatives is None:
            loss = losses.full_softmax(
                tf.reshape(queries, [-1, queries.shape[-1]]),
                candidates,
                tf.reshape(self._places(targets), [-1]),
                tf.reshape(weights, [-1]),
                known=None if known is None else self._places(known),
            )
            if dislikes is not None:
                vectors = self._trained(targets, training)
                loss += losses.dislike_loss(queries, vectors, weights, dislikes)
        else:
            loss = losses.sampled_softmax(
                queries,
                self._trained(targets, training),
                candidates,
                targets,
                negatives.ids,
                weights,
                negatives.log_expected_counts,
                known,
                dislikes,
            )
        return loss, count

    def _checked_inputs(
        self, inputs: dict[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Returns histories and targets of one shape, `[batch, length]`."""
        for name in ("history_ids", "target_ids"):
            if name not in inputs:
                raise ValueError(
                    f"the inputs must have `{name}`. "
                    f"Received: {', '.join(map(str, inputs))}"
                )
        histories, targets = (
            _dense(inputs[name]) for name in ("history_ids", "target_ids")
        )
        message = (
            "`target_ids` must have the shape of `history_ids`, "
            f"{histories.shape}, or one target per history, [batch] or "
            f"[batch, 1]. Received: {targets.shape}"
        )
        if len(histories.shape) != 2 or len(targets.shape) not in (1, 2):
            raise ValueError(message)
        if len(targets.shape) == 1:
            targets = targets[:, tf.newaxis]
        if targets.shape[1] == 1 and histories.shape[1] != 1:
            # The target belongs to the last item, wherever padding stands.
            is_last = tf.one_hot(
                last_positions(histories != 0),
                tf.shape(histories)[1],
                on_value=True,
                off_value=False,
            )
            targets = tf.where(is_last, targets, 0)
        elif not histories.shape.is_compatible_with(targets.shape):
            raise ValueError(message)
        else:
            tf.debugging.assert_equal(
                tf.shape(histories), tf.shape(targets), message
            )
        size = self.candidate_tower.embedding.vocabulary_size
        tf.debugging.assert_less(
            tf.reduce_max(targets),
            tf.cast(size, targets.dtype),
            f"`target_ids` must be below the {size} rows of the table",
        )
        return {**inputs, "history_ids": histories, "target_ids": targets}

    @property
    def _without_transitions(self) -> dict[str, bool]:
        """What asks for the trained part of candidates, if there is another."""
        has_other = self.candidate_tower.transition_dim
        return {"with_transitions": False} if has_other else {}

    def _trained(self, ids: tf.Tensor, training: bool) -> tf.Tensor:
        """Returns the part of candidates' vectors that the loss is of."""
        return self.candidate_tower(
            ids, training=training, **self._without_transitions
        )

    def _trained_candidates(self, training: bool) -> tf.Tensor:
        """Returns the vectors that the full softmax is over."""
        candidates = self.candidate_tower.all_candidates(
            training=training, **self._without_transitions
        )
        if self.trained_items is None:
            return candidates[FIRST_ITEM_INDEX:]
        return tf.gather(candidates, tf.convert_to_tensor(self.trained_items))

    def _places(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns the rows of items in these, negative for any other id."""
        ids = self.candidate_tower.embedding.integer_ids(ids)
        if self.trained_items is None:
            return ids - FIRST_ITEM_INDEX
        trained = tf.cast(tf.convert_to_tensor(self.trained_items), ids.dtype)
        places = tf.searchsorted(trained, tf.reshape(ids, [-1]))
        places = tf.reshape(places, tf.shape(ids))
        nearest = tf.gather(trained, tf.minimum(places, tf.size(trained) - 1))
        return tf.where(nearest == ids, places, -1)

    def update(
        self,
        inputs: dict[str, tf.Tensor],
        optimizer: keras.optimizers.Optimizer,
        negatives: Negatives | None = None,
        sample_weight: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Takes one step along the gradient of the mean loss.

        Under a `tf.distribute` strategy each replica calls this with some rows
        of a batch; their gradients add up to that of the whole batch, whose
        targets all weigh the same, however they are spread.

        Args:
            inputs: As for `next_item_loss`.
            optimizer: An optimizer, built for the model's trainable variables.
            negatives: As for `next_item_loss`.
            sample_weight: As for `next_item_loss`.

        Returns:
            The sum of the cross-entropies of these rows and the number of
            targets of the whole batch, or the sum of their weights; both are
            float32 scalars.
        """
        context = tf.distribute.get_replica_context()
        num_replicas = context.num_replicas_in_sync
        with tf.GradientTape() as tape:
            loss, count = self.next_item_loss(
                inputs, negatives=negatives, sample_weight=sample_weight
            )
            if num_replicas > 1:
                count = context.all_reduce(tf.distribute.ReduceOp.SUM, count)
            penalty = tf.add_n([*self.losses, tf.zeros([])]) / num_replicas
            # Half precision scales the loss; regularizers belong to it.
            total = optimizer.scale_loss(
                tf.math.divide_no_nan(loss, count) + penalty
            )
        variables = self.trainable_variables
        gradients = tape.gradient(total, variables)
        if num_replicas > 1:
            # Send the smaller form: a full softmax has a gradient in all rows.
            shortest = tf.convert_to_tensor if negatives is None else merge_rows
            gradients = [
                shortest(each) if isinstance(each, tf.IndexedSlices) else each
                for each in gradients
            ]
        # Keras's optimizers add up the gradients of all replicas.
        optimizer.apply(gradients, variables)
        return loss, count

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of Keras's `fit`."""
        inputs, sample_weight = _unpacked(data)
        inputs = self._checked_inputs(inputs)
        negatives = self._negatives(inputs, self.optimizer.iterations)
        loss, count = self.update(
            inputs, self.optimizer, negatives, sample_weight
        )
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            loss = context.all_reduce(tf.distribute.ReduceOp.SUM, loss)
        self._loss_mean.update_state(
            tf.math.divide_no_nan(loss, count), sample_weight=count
        )
        return self.get_metrics_result()

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of Keras's `evaluate`."""
        inputs, sample_weight = _unpacked(data)
        inputs = self._checked_inputs(inputs)
        # The same seed for each batch, so that epochs can be compared.
        loss, count = self.next_item_loss(
            inputs,
            training=False,
            negatives=self._negatives(inputs, 0),
            sample_weight=sample_weight,
        )
        loss = tf.math.divide_no_nan(loss, count)
        self._loss_mean.update_state(loss, sample_weight=count)
        return self.get_metrics_result()

    def _negatives(
        self, inputs: dict[str, tf.Tensor], step: Any
    ) -> Negatives | None:
        if self.negative_sampler is None:
            return None
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        seed = [tf.cast(each, tf.int64) for each in (replica, step)]
        return self.negative_sampler.draw(inputs, tf.stack(seed))

    def make_train_function(self, force: bool = False) -> Any:
        """Returns the function that `fit` runs for each batch.

        Raises:
            ValueError: The model was compiled with a loss or with metrics.
        """
        self._check_compiled()
        return super().make_train_function(force)

    def make_test_function(self, force: bool = False) -> Any:
        """Returns the function that `evaluate` runs for each batch."""
        self._check_compiled()
        return super().make_test_function(force)

    def _check_compiled(self) -> None:
        arguments = self.get_compile_config() or {}
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            if arguments.get(name) is not None:
                raise ValueError(
                    f"`{name}` must not be given to `compile()`: the model "
                    "brings its own loss, and rankings are measured by "
                    f"recsys.evaluation. Received: {arguments[name]}"
                )

    def export(
        self,
        filepath: str | os.PathLike[str],
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: list[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes a SavedModel with the endpoint `serve`, as Keras's own does.

        Keras's own would hold every variable twice, and ask for the lengths
        of the histories that the model was built with.

        Args:
            filepath: The folder to write, or the file of another format.
            format: As for Keras, which writes any but "tf_saved_model".
            verbose: Whether to print the endpoint.
            input_signature: Of `call`; default histories of any number and
                length, scored against all items.
            **kwargs: For Keras's other formats.
        """
        if not self.built:
            self.build()
        if format != "tf_saved_model":
            if input_signature is None:
                # Keras asks for a model that was called.
                self({"history_ids": tf.zeros([1, 1], tf.int32)})
                input_signature = [_HISTORIES]
            super().export(filepath, format, verbose, input_signature, **kwargs)
            return
        archive = keras.export.ExportArchive()
        archive.add_endpoint(
            "serve",
            # Not the model itself, whose variables would be added again.
            lambda inputs: self(inputs, training=False),
            input_signature or [_HISTORIES],
        )
        archive.write_out(filepath, verbose=bool(verbose))

    @property
    def _default_save_signature(self) -> Any:
        """The signature in a SavedModel; Keras's own has the first shapes."""
        if not self.built:
            return None
        return tf.function(
            lambda inputs: self(inputs, training=False),
            input_signature=[_HISTORIES],
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "history_tower": serialize(self.history_tower),
            "candidate_tower": serialize(self.candidate_tower),
            "shares_item_features": (
                self.history_tower.item_features
                is self.candidate_tower.item_features
            ),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> TwoTower:
        """Makes a model from `get_config`'s answer, over one table.

        A configuration by itself names no table, so each tower would come back
        with layers of its own, so the candidate tower is given the history
        tower's table, and its item features if these were shared.
        """
        # Keras's scope would replace the one that is active.
        active = global_state.get_global_attribute(
            "custom_objects_scope_dict", {}
        )
        scope = {**active, **(custom_objects or {})}
        with keras.saving.custom_object_scope(scope):
            history_tower = deserialize(config["history_tower"])
            candidate_config = config["candidate_tower"]
            if isinstance(candidate_config, dict):
                shared = {"embedding": history_tower.embedding}
                if config.get("shares_item_features"):
                    shared["item_features"] = history_tower.item_features
                candidate_config = {
                    **candidate_config,
                    "config": {**candidate_config["config"], **shared},
                }
            candidate_tower = deserialize(candidate_config)
        own = ("history_tower", "candidate_tower", "shares_item_features")
        kwargs = {k: v for k, v in config.items() if k not in own}
        return cls(history_tower, candidate_tower, **kwargs)


def _unpacked(data: Any) -> tuple[dict[str, tf.Tensor], tf.Tensor | None]:
    """Returns inputs with targets, and weights, of what Keras gives a step."""
    inputs, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if not isinstance(inputs, dict):
        raise ValueError(
            "`x` must be a dictionary with `history_ids`. Received: "
            f"{type(inputs).__name__}"
        )
    if y is not None:
        if "target_ids" in inputs:
            raise ValueError(
                "`y` must be left out where `x` has `target_ids`. Received: "
                "both"
            )
        inputs = {**inputs, "target_ids": y}
    return inputs, sample_weight


def _with_targets(x: Any, y: Any, sample_weight: Any) -> dict[str, Any]:
    """Moves targets out of `x`: Keras drops weights where there is no `y`."""
    if (
        sample_weight is not None
        and y is None
        and isinstance(x, dict)
        and "target_ids" in x
    ):
        y = x["target_ids"]
        x = {name: ids for name, ids in x.items() if name != "target_ids"}
    return {"x": x, "y": y}


def _dense(ids: Any) -> tf.Tensor:
    if isinstance(ids, tf.RaggedTensor):
        return ids.to_tensor()
    return tf.convert_to_tensor(ids)


def _per_position(sample_weight: tf.Tensor) -> tf.Tensor:
    """Returns weights of `[batch, 1]` or `[batch, length]`."""
    sample_weight = tf.cast(sample_weight, tf.float32)
    if len(sample_weight.shape) == 1:
        return sample_weight[:, tf.newaxis]
    return sample_weight
