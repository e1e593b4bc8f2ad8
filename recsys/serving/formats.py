"""All formats of an export, written, read again and compared, or none."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from recsys import files
from recsys.errors import InputError

if TYPE_CHECKING:
    from recsys.recommender import Recommender


# In every export. A folder without it is somebody's own.
MANIFEST = "export.json"


@dataclasses.dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: Its name, and that of its folder.
        summary: What it is, for `--help` and for the manifest.
        write: Writes and checks it, given the model, a new folder and whether
            items of the history are left out.
    """

    name: str
    summary: str
    write: Callable[[Recommender, pathlib.Path, bool], None]


def _saved_model(
    recommender: Recommender, folder: pathlib.Path, exclude_history: bool
) -> None:
    from recsys.serving import saved_model

    saved_model.write_saved_model(
        recommender, folder, exclude_history=exclude_history
    )
    saved_model.check_saved_model(
        recommender, folder, exclude_history=exclude_history
    )


def _litert(
    recommender: Recommender, folder: pathlib.Path, exclude_history: bool
) -> None:
    from recsys.serving import litert

    path = folder / "recommend.tflite"
    litert.write_litert(recommender, path, exclude_history=exclude_history)
    litert.write_index_table(recommender, folder / "items.tsv")
    litert.check_litert(recommender, path, exclude_history=exclude_history)


def _parquet(
    recommender: Recommender, folder: pathlib.Path, exclude_history: bool
) -> None:
    from recsys.serving import vectors

    vectors.write_parquet(recommender, folder)
    vectors.check_parquet(recommender, folder)


def _numpy(
    recommender: Recommender, folder: pathlib.Path, exclude_history: bool
) -> None:
    from recsys.serving import vectors

    vectors.write_numpy(recommender, folder)
    vectors.check_numpy(recommender, folder)


def _projector(
    recommender: Recommender, folder: pathlib.Path, exclude_history: bool
) -> None:
    from recsys.serving import vectors

    vectors.write_projector(recommender, folder)
    vectors.check_projector(recommender, folder)


FORMATS = {
    each.name: each
    for each in (
        Format(
            "saved_model", "TensorFlow alone, raw ids in and out", _saved_model
        ),
        Format("litert", "devices, indices in and out", _litert),
        Format("parquet", "item ids, titles and vectors", _parquet),
        Format("numpy", "item ids, titles and vectors", _numpy),
        Format("projector", "TensorBoard's embedding projector", _projector),
    )
}


def check_output(output: pathlib.Path) -> None:
    """Checks that an export may be written, without writing anything.

    Args:
        output: The folder.

    Raises:
        InputError: It cannot, or would replace something else.
    """
    # Not above: `--help` names the formats, without NumPy and Arrow.
    from recsys.files import can_write, is_new_or_empty

    if not is_new_or_empty(output) and not (output / MANIFEST).is_file():
        raise InputError(
            "--output must be a new or empty folder, or an earlier export, "
            f"which is replaced. Received: {str(output)!r}"
        )
    # It is made beside, and moved there when it is complete.
    if not can_write(output.absolute().parent):
        raise InputError(
            "--output must be a folder that can be written. "
            f"Received: {str(output)!r}"
        )


def write_export(
    recommender: Recommender,
    output: pathlib.Path,
    names: Collection[str],
    *,
    exclude_history: bool = True,
    about: dict[str, Any] | None = None,
) -> None:
    """Writes an export, a folder with one for each format.

    Args:
        recommender: The model with its vocabulary.
        output: The folder. It appears, or is replaced, when everything is
            written and answers as the model does.
        names: Which formats, names in `FORMATS`.
        exclude_history: Whether items of a history are left out of what is
            recommended for it.
        about: What else to tell in `export.json`.

    Raises:
        InputError: The folder would replace something else.
        MismatchError: A format does not answer as the model does.
        OSError: A file could not be written.
    """
    check_output(output)
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_path(output, is_ours=True) as temporary:
        temporary.mkdir()
        for name in names:
            (temporary / name).mkdir()
            FORMATS[name].write(recommender, temporary / name, exclude_history)
        files.write_json(
            temporary / MANIFEST,
            {
                **(about or {}),
                "num_items": recommender.vocabulary.num_items,
                "max_history_length": recommender.max_history_length,
                "exclude_history": exclude_history,
                "formats": {name: FORMATS[name].summary for name in names},
            },
        )
