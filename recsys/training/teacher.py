"""Knowledge distillation: soft targets from another model, the teacher.

After Hinton et al. 2015, "Distilling the knowledge in a neural network",
https://arxiv.org/abs/1503.02531: the loss of a target becomes the cross-entropy
with a distribution that gives a share to the items that the teacher finds
likely there; see `recsys.losses.full_softmax`. The teacher is asked once,
before training, and its likeliest items are kept in memory.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from recsys.data.pipeline import Windows, cut_windows
from recsys.data.sequences import Sequences
from recsys.ids import FIRST_ITEM_INDEX
from recsys.models.two_tower import TwoTower

# Items that are kept for each interaction.
NUM_SOFT_TARGETS = 32
# What the teacher computes at once: positions, and their logits (64 MiB).
_POSITIONS_AT_ONCE = 6400
_LOGITS_AT_ONCE = 2**24


def soft_targets_of(
    teacher: TwoTower,
    sequences: Sequences,
    *,
    max_length: int,
    masks_known: bool,
    temperature: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the items that a model finds likeliest at every interaction.

    It reads at least half of the `max_length` interactions before, if there are
    as many, and leaves out transitions, which count these very interactions.

    Args:
        teacher: The model, of the same items.
        sequences: The training sequences.
        max_length: Longest history that it reads.
        masks_known: Whether items that the user has already are left out.
        temperature: Divides its scores.

    Returns:
        `[num_interactions, n]` int32, likeliest first, n up to
        `NUM_SOFT_TARGETS`, and their probabilities among all items, float16.
        Both are 0 at a user's first interaction, and where no item is left.
    """
    items, table = sequences.items, teacher.candidate_tower.embedding
    num_items = table.vocabulary_size - FIRST_ITEM_INDEX
    width = min(NUM_SOFT_TARGETS, num_items)
    answer = _answering(teacher, width, masks_known, temperature)
    ids = np.zeros((len(items), width), np.int32)
    shares = np.zeros((len(items), width), np.float16)
    windows = cut_windows(
        sequences.offsets, max(1, max_length // 2), np.random.default_rng(0)
    )
    starts = np.maximum(windows.earliest, windows.ends - max_length)
    lengths = windows.ends - starts
    order = np.argsort(lengths, kind="stable")
    most = min(_POSITIONS_AT_ONCE, _LOGITS_AT_ONCE // num_items)
    while len(order):
        # Rows of nearly one length; the longest of them comes last.
        positions = lengths[order] * np.arange(1, len(order) + 1)
        count = max(1, int(np.searchsorted(positions, most, "right")))
        rows, order = order[:count], order[count:]
        histories = np.zeros((len(rows), lengths[rows[-1]]), np.int32)
        # The first position that knows an item; none knows the others.
        known_from = np.full((len(rows), num_items * masks_known), max_length)
        for row, window in enumerate(rows):
            begin, end = starts[window], windows.ends[window]
            histories[row, : end - begin] = items[begin:end]
            if masks_known:
                # Backward, so that the first place of a repeated item stays.
                before = np.arange(windows.earliest[window], end)[::-1]
                first = np.maximum(before - begin, 0)
                known_from[row, items[before] - FIRST_ITEM_INDEX] = first
        places, targets = _places(windows, starts, rows)
        found = answer(histories, places, known_from.astype(np.int32))
        ids[targets], shares[targets] = (each.numpy() for each in found)
    # A user who knows all items has no probabilities at all.
    is_likely = shares > 0
    return np.where(is_likely, ids, 0), np.where(is_likely, shares, 0)


def _answering(
    teacher: TwoTower, width: int, masks_known: bool, temperature: float
) -> tf.types.experimental.GenericFunction:
    """Returns a function from histories to the likeliest items."""
    table = teacher.candidate_tower.all_candidates(with_transitions=False)
    candidates = tf.cast(table, tf.float32)[FIRST_ITEM_INDEX:]

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.int32),  # Histories.
            tf.TensorSpec([None, 2], tf.int32),  # Rows and positions of these.
            tf.TensorSpec([None, None], tf.int32),  # First to know each item.
        ]
    )
    def answer(
        histories: tf.Tensor, places: tf.Tensor, known_from: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        vectors = teacher.history_tower(
            histories, training=False, return_sequences=True
        )
        queries = tf.cast(tf.gather_nd(vectors, places), tf.float32)
        queries /= temperature
        logits = tf.matmul(queries, candidates, transpose_b=True)
        if masks_known:
            known = tf.gather(known_from, places[:, 0]) <= places[:, 1:]
            logits = tf.where(known, float("-inf"), logits)
        found = tf.math.top_k(tf.nn.softmax(logits), width)
        return found.indices + FIRST_ITEM_INDEX, found.values

    return answer


def _places(
    windows: Windows, starts: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the positions that are asked about.

    Args:
        windows: All windows.
        starts: `[num_windows]`, where their histories begin.
        rows: `[n]`, the windows that are asked about.

    Returns:
        `[num_targets, 2]` int32, row and position of the last item before each
        target, and `[num_targets]` int64, the targets.
    """
    first, last = windows.first_targets[rows], windows.ends[rows]
    targets = [np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]
    numbers = np.repeat(np.arange(len(rows)), [len(each) for each in targets])
    flat = np.concatenate(targets)
    positions = flat - 1 - starts[rows][numbers]
    return np.stack([numbers, positions], axis=1).astype(np.int32), flat
