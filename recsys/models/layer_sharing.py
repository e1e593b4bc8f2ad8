"""Keeps a layer that is used in several places one layer in Keras's files.

Keras marks a layer that it meets twice while it writes a file with a
`shared_object_id`, but the mark on the first place is lost when that place is
inside another layer or a functional sub-model; the file then loads as two
layers, one of them without weights, which is an error. So the layers of this
package set the mark themselves, at every place. Only in files: a configuration
outside of one makes layers of its own.
"""

from __future__ import annotations

from typing import Any

import keras
from keras.src.backend.common import global_state

_PROBE = keras.initializers.Zeros()


def is_writing_file() -> bool:
    """Returns whether Keras is writing a file, and so notices repetitions."""
    keras.saving.serialize_keras_object(_PROBE)
    again = keras.saving.serialize_keras_object(_PROBE)
    return "shared_object_id" in again


def forget(layer: keras.layers.Layer) -> None:
    """Keeps Keras from marking a layer that is being written.

    From the third place on Keras would load the layer of the second one, and
    then mistake its calls there for those of the sub-model being loaded
    ("not connected to `inputs`"). A layer that holds what is shared in a layer
    of its own may as well be several.

    Args:
        layer: The layer whose `get_config` calls this.
    """
    # Keras has no public name for what it has seen.
    seen = global_state.get_global_attribute("shared_objects/id_to_config_map")
    if seen is not None:
        seen.pop(id(layer), None)


def serialize(layer: keras.layers.Layer | None) -> dict[str, Any] | None:
    """Returns a layer's configuration for that of a layer which holds it."""
    config = keras.saving.serialize_keras_object(layer)
    if layer is not None and is_writing_file():
        config["shared_object_id"] = id(layer)
    return config


def deserialize(config: Any) -> Any:
    """Returns the layer of `serialize`'s answer; what is no answer, as is."""
    if isinstance(config, dict):
        return keras.saving.deserialize_keras_object(config)
    return config
