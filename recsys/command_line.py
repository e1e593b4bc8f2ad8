"""What the commands share: flags, help, errors in one line, exit codes."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import pathlib
import re
import sys
import tempfile
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from absl import flags

from recsys.config import (
    ENCODERS,
    LOSSES,
    NEGATIVES,
    PRESETS,
    REPEATS,
    SPLITS,
    STRATEGIES,
    TABLE_INITS,
    TABLE_OPTIMIZERS,
    TrainConfig,
)
from recsys.errors import InputError, MismatchError, WorkerLostError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_DEFINE: dict[type, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
    list: flags.DEFINE_multi_string,
}
_KINDS = {
    "string": "TEXT",
    "int": "INTEGER",
    "float": "NUMBER",
    "bool": "true|false",
    "multi string": "TEXT",
}
_ILLEGAL_VALUE = re.compile(r"flag --(\w+)=(.*?): ", re.DOTALL)


class Command:
    """A command: its flags, its help, and how its errors are told.

    The flags are the command's own, apart from those that absl and other
    libraries define for everybody.

    Args:
        name: The module, such as `recsys.train`.
        summary: What the command does, for `--help`.
        examples: Command lines for `--help`, without `python -m`.
        interrupted: What to say after Ctrl-C.
    """

    def __init__(
        self,
        name: str,
        summary: str,
        examples: Sequence[str],
        interrupted: str = "stopped",
    ) -> None:
        self.name = name
        self._summary = summary
        self._examples = examples
        self._interrupted = interrupted
        self._flags = flags.FlagValues()

    def add_flag(
        self,
        kind: type,
        name: str,
        help_text: str,
        *,
        group: str,
        default: Any = None,
    ) -> None:
        """Defines a flag.

        Args:
            kind: str, int, float, bool, or list for a flag that may be
                repeated.
            name: Its name.
            help_text: What it means.
            group: The heading that it stands under in `--help`.
            default: Its value where it is not given.
        """
        _DEFINE[kind](
            name,
            default,
            help_text,
            flag_values=self._flags,
            module_name=group,
        )

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Reads the flags.

        Args:
            arguments: The command line without the program.

        Returns:
            The value of every flag by name.

        Raises:
            InputError: A flag is unknown, a value has the wrong type, or
                something is left over that is no flag.
        """
        values = self._flags
        values.unparse_flags()
        for name in values:
            values[name].unparse()
        try:
            left_over = values([self.name, *arguments])[1:]
        except flags.UnrecognizedFlagError as error:
            raise InputError(self._unknown(error.flagname)) from error
        except flags.IllegalFlagValueError as error:
            raise InputError(self._illegal(str(error))) from error
        except (flags.Error, ValueError) as error:
            raise InputError(str(error)) from error
        if left_over:
            raise InputError(
                "expected flags only, such as --name=value (a value with "
                f"blanks in quotes). Received: {' '.join(left_over)!r}"
            )
        return values.flag_values_dict()

    def run(
        self,
        main: Callable[[dict[str, Any]], int],
        arguments: Sequence[str] | None = None,
    ) -> int:
        """Runs the command; mistakes become one line on standard error.

        Args:
            main: Does the work, given the value of every flag; returns the
                exit code.
            arguments: The command line without the program. Default: that of
                the process.

        Returns:
            The exit code: 0, 1 when the work failed, 2 for what the user
            gave, 130 after Ctrl-C. Other exceptions are bugs of ours and
            pass through.
        """
        if arguments is None:
            arguments = sys.argv[1:]
        # Level 3 leaves fatal messages; TensorFlow's errors raise anyway.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        try:
            if {"--help", "-help", "-h", "--helpfull"} & set(arguments):
                print(self.help())
                code = 0
            else:
                code = main(self.parse(arguments))
            sys.stdout.flush()
            return code
        except InputError as error:
            return self._fail(str(error), EXIT_USAGE)
        except BrokenPipeError:
            # The reader, such as `head`, has enough. Python would complain
            # once more when it flushes standard output at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return EXIT_FAILED
        except OSError as error:
            return self._fail(_describe(error), EXIT_FAILED)
        except (FloatingPointError, MismatchError, WorkerLostError) as error:
            return self._fail(str(error), EXIT_FAILED)
        except MemoryError as error:
            text = f"not enough memory {error}".strip()
            return self._fail(text, EXIT_FAILED)
        except KeyboardInterrupt:
            print(
                f"\npython -m {self.name}: {self._interrupted}",
                file=sys.stderr,
            )
            return EXIT_INTERRUPTED

    def help(self) -> str:
        """Returns the text of `--help`."""
        parts = [
            f"python -m {self.name} [--flag=value …]",
            _fill(self._summary),
            "\n".join(["Examples:", *(f"  {e}" for e in self._examples)]),
        ]
        for group, members in self._flags.flags_by_module_dict().items():
            lines = [f"{group}:"]
            for flag in members:
                kind = _KINDS[flag.flag_type()]
                text = flag.help
                if flag.default is not None:
                    text += f" Default: {plain(flag.default)}."
                lines += [f"  --{flag.name}={kind}", _fill(text, " " * 6)]
            parts.append("\n".join(lines))
        return "\n\n".join(parts)

    def _fail(self, message: str, code: int) -> int:
        sys.stdout.flush()
        line = " ".join(message.split())
        print(f"python -m {self.name}: error: {line}", file=sys.stderr)
        return code

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, list(self._flags), n=1)
        advice = f"did you mean --{close[0]}?" if close else "see --help."
        return f"no such flag; {advice} Received: --{name}"

    def _illegal(self, message: str) -> str:
        found = _ILLEGAL_VALUE.search(message)
        if found is None:
            return message
        name, value = found.groups()
        kind = {
            "int": "a whole number",
            "float": "a number",
            "bool": "true or false",
        }.get(self._flags[name].flag_type(), "text")
        return f"--{name} must be {kind}. Received: {value!r}"


def plain(value: Any) -> str:
    """Returns a flag's value as one would type it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fill(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text,
        79,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


def _describe(error: OSError) -> str:
    """Returns the file and the reason."""
    if error.strerror is None:
        return str(error)
    if error.filename is None:
        return error.strerror
    return f"{error.filename}: {error.strerror}"


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Holds back what TensorFlow prints while it is imported in the block.

    Its first lines (no GPU driver, CPU features) come before it looks at
    TF_CPP_MIN_LOG_LEVEL. They are shown after all when the block fails, and
    not held back when the user has set that variable to a lower level.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "3":
        yield
        return
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException:
            held_back.seek(0)
            os.write(original, held_back.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)


def load_tensorflow() -> None:
    """Imports TensorFlow and Keras without their greetings.

    TensorFlow uses oneDNN's kernels by itself on some processors only. On
    those with AVX2 training is a quarter faster with them
    (scripts/benchmark_training.py), so here they are used unless
    TF_ENABLE_ONEDNN_OPTS=0 says otherwise.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with quiet_start():
        import keras  # noqa: F401
        import tensorflow as tf

        # Naming the devices starts the runtime, which greets as well.
        tf.config.list_physical_devices()


# What the fields mean, in the order and under the headings of `--help`.
FIELD_HELP: dict[str, dict[str, str]] = {
    "Data": {
        "data": (
            "What to read: movielens-small (bundled), "
            "tfds:movielens/<config>-ratings, "
            "synthetic:users=…,items=…,interactions=…,seed=…, or a path: a "
            "GroupLens folder or zip, a CSV, TSV or Parquet file, a folder "
            "of such parts, or what recsys.prepare_shards wrote."
        ),
        "user_column": "Column of user ids, where it has an unusual name.",
        "item_column": "Column of item ids, likewise.",
        "timestamp_column": "Column of times, likewise.",
        "rating_column": "Column of ratings, likewise.",
        "items_file": "CSV or Parquet with the items' titles, genres, ….",
        "tfds_data_dir": "Where TensorFlow Datasets keeps prepared data.",
        "tfds_manual_dir": (
            "Folder with the original archive, used in place of a download."
        ),
        "min_rating": "Only ratings of at least this are interactions.",
        "min_item_count": "Items with fewer interactions are dropped.",
        "min_user_count": "Users with fewer interactions are dropped.",
        "repeats": (
            "Which of several interactions of one user with one item stays: "
            f"{', '.join(REPEATS)}."
        ),
        "split": f"What is held out: {', '.join(SPLITS)}.",
        "validation_from": (
            "Where the validation queries of the temporal split begin, and the "
            "training set ends: a share of the interactions between 0 and 1, "
            "an ISO date such as 2015-06-30, or a time in the log's unit."
        ),
        "test_from": "Where its test queries begin, likewise.",
        "queries_per_user": (
            "At most so many queries of one user in each of the two, the "
            "earliest; 0: all."
        ),
    },
    "Model": {
        "encoder": f"What reads a history: {', '.join(ENCODERS)}.",
        "embedding_dim": "Length of the vectors.",
        "num_blocks": "Blocks of the self-attention encoder.",
        "num_heads": "Heads of each block; they divide embedding_dim.",
        "dropout": "Share of activations dropped in training.",
        "item_dropout": "Share of a history's items hidden in training.",
        "table_init": (
            f"What the item table starts from: {', '.join(TABLE_INITS)}."
        ),
        "item_features": (
            "Columns of the items file that describe the items, so that new "
            "items can be recommended: auto (genres, year, title words), or "
            "names with commas between, where need be with a kind: name:KIND, "
            "one of categorical, multi, words, numeric, vector, or "
            "name:multi:SEPARATOR."
        ),
        "id_dropout": (
            "With item_features: how often training sees an item's features "
            "alone."
        ),
        "max_history_length": "Longest history read at once, in items.",
    },
    "Loss": {
        "loss": (
            f"{', '.join(LOSSES)}; auto is full for small catalogues and "
            "sampled for large ones."
        ),
        "negatives": f"Where negatives come from: {', '.join(NEGATIVES)}.",
        "num_negatives": "Negatives of each position.",
        "negatives_per_row": "Draw negatives for each row of a batch.",
        "mask_known_items": "A history's own items are no negatives of it.",
        "logq_correction": "Correct for how often a negative is expected.",
    },
    "Optimization": {
        "num_epochs": "Passes over the training data, at most.",
        "positions_per_batch": "About how many positions a step learns from.",
        "learning_rate": "The highest rate, after the warm-up.",
        "warmup_steps": "Steps in which the rate rises from nothing.",
        "adam_beta_2": "Memory of Adam's second moment.",
        "weight_decay": "Decoupled weight decay.",
        "table_optimizer": (
            f"How the item table is updated: {', '.join(TABLE_OPTIMIZERS)}; "
            "all but dense touch only rows with a gradient."
        ),
        "weight_average": (
            "Keep a moving average of the weights with this memory; 0 does not."
        ),
        "patience": (
            "Stop after so many epochs without a better validation NDCG@10."
        ),
        "steps_before": (
            "Steps of the run that this one extends; recsys.extend sets it."
        ),
        "seed": "The same seed gives the same weights.",
    },
    "Execution": {
        "strategy": (
            f"Who trains: {', '.join(STRATEGIES)}: one process on one device, "
            "one process on all of its GPUs, or the processes that the "
            "environment variable TF_CONFIG names (docs/distributed.md)."
        ),
        "jit_compile": (
            "Compile the step with XLA: faster on a GPU, slower on a CPU."
        ),
        "checkpoint_steps": (
            "Steps between checkpoints; each epoch ends with one anyway."
        ),
    },
}

_DEFAULT_PRESET = "movielens-small"


def add_preset_flag(command: Command) -> None:
    """Gives a command that trains the flag `--preset`."""
    command.add_flag(
        str,
        "preset",
        "Where the values of flags that are not given come from: "
        f"{', '.join(PRESETS)}.",
        group="Run",
        default=_DEFAULT_PRESET,
    )


def add_run_flags(
    command: Command, default: str, what: str = "Where the runs go."
) -> None:
    """Gives a command that trains the flags `--preset` and `--workdir`.

    Args:
        command: The command.
        default: What `run_folder` is given, for `--help`.
        what: The meaning of the folder.
    """
    add_preset_flag(command)
    command.add_flag(str, "workdir", f"{what} Default: {default}.", group="Run")


def run_folder(values: dict[str, Any], default: str) -> pathlib.Path:
    """Returns the folder that the flags of `add_run_flags` name.

    Args:
        values: The value of every flag.
        default: The folder where `--workdir` is not given; `<preset>` stands
            for the preset.

    Raises:
        InputError: `--workdir` is empty.
    """
    if values["workdir"] == "":
        raise InputError("--workdir must name a folder. Received: ''")
    return pathlib.Path(
        values["workdir"] or default.replace("<preset>", values["preset"])
    )


def add_model_flag(command: Command) -> None:
    """Gives a command that reads a trained model the flag `--workdir`."""
    command.add_flag(
        str, "workdir", "Where recsys.train put the model.", group="Model"
    )


def model_folder(values: dict[str, Any]) -> pathlib.Path:
    """Returns the folder that the flag of `add_model_flag` names.

    Raises:
        InputError: It names none.
    """
    if not values["workdir"]:
        raise InputError("--workdir must name a trained model. Received: none")
    return pathlib.Path(values["workdir"])


def add_config_flags(
    command: Command, names: Collection[str] | None = None
) -> None:
    """Gives a command a flag for each field.

    No flag has a default of its own: one that is not given is None and leaves
    the field to the preset and to the configuration.

    Args:
        command: The command.
        names: Which fields. Default: all.
    """
    groups = {
        name: (group, text)
        for group, members in FIELD_HELP.items()
        for name, text in members.items()
    }
    annotations = typing.get_type_hints(TrainConfig)
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    # Those with help come in its order, any others behind them.
    for name in [*groups, *(fields.keys() - groups.keys())]:
        if name not in fields or (names is not None and name not in names):
            continue
        group, text = groups.get(name, ("Other", "A field of TrainConfig."))
        if names is None:
            text += _defaults(name, fields[name].default)
        command.add_flag(_kind(annotations[name]), name, text, group=group)


def given_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Returns those flags that are fields and were given."""
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    return {
        name: value
        for name, value in values.items()
        if name in names and value is not None
    }


def _defaults(name: str, default: Any) -> str:
    """Says what a field is where its flag is not given."""
    presets = ", ".join(
        f"{plain(preset[name])} in {title}"
        for title, preset in PRESETS.items()
        if name in preset
    )
    if default is None and not presets:
        return ""
    text = "none" if default is None else plain(default)
    return f" Default: {text}{presets and f' ({presets})'}."


def _kind(annotation: Any) -> type:
    """Returns the type of a field: `float` for `float | None`."""
    if isinstance(annotation, types.UnionType):
        [annotation] = [
            part
            for part in typing.get_args(annotation)
            if part is not types.NoneType
        ]
    if not isinstance(annotation, type):
        raise TypeError(
            "a configuration field must have a plain type. Received: "
            f"{annotation}"
        )
    return annotation
