"""How tf.data runs a pipeline."""

from __future__ import annotations

import tensorflow as tf


def without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Turns off tf.data's own choice of parallelism and buffer sizes.

    With it, the end of an iterator now and then waits for the tuning thread,
    which wakes after 0.01 * (2^n - 1) seconds: an epoch of 25 seconds took 41
    (TensorFlow 2.21). What the pipeline's stages ask for must be numbers.

    Args:
        dataset: Any dataset.

    Returns:
        The same elements.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
