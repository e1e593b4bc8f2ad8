"""Shared parts of the commands: flags, help, one-line errors, exit codes."""

from __future__ import annotations

import contextlib
import difflib
import os
import pathlib
import re
import sys
import tempfile
import textwrap
import traceback
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from absl import flags

from recsys import files
from recsys.config import DEFAULTS, FIELDS, PRESETS, TYPES, default_preset
from recsys.errors import (
    InputError,
    MismatchError,
    WorkerLostError,
    missing_extra,
)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_DEFINE: dict[type, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
    list: flags.DEFINE_multi_string,
    pathlib.Path: flags.DEFINE_string,
}
_KINDS = {
    "string": "TEXT",
    "int": "INTEGER",
    "float": "NUMBER",
    "bool": "true|false",
    "multi string": "TEXT",
}
_ILLEGAL_VALUE = re.compile(r"flag --(\w+)=(.*?): ", re.DOTALL)

_LONGEST_NAME = 100


class Command:
    """A command: its flags, its help and the reporting of its errors.

    Its flags are separate from those that absl and other libraries define
    globally.

    Args:
        name: The module, such as `recsys.train`.
        summary: What the command does, for `--help`.
        examples: Command lines for `--help`.
        interrupted: What to print after Ctrl-C.
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
        self._paths: set[str] = set()

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
            kind: str, int, float, bool, list for a flag that may be
                repeated, or pathlib.Path for text in which a leading `~` is
                expanded.
            name: Name of the flag.
            help_text: Description.
            group: Heading in `--help`.
            default: Value if the flag is not given.
        """
        if kind is pathlib.Path:
            self._paths.add(name)
        _DEFINE[kind](
            name,
            default,
            help_text,
            flag_values=self._flags,
            module_name=group,
        )

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Parses the command line.

        Args:
            arguments: The command line without the program.

        Returns:
            The value of every flag by name.

        Raises:
            InputError: A flag is unknown, a value has the wrong type, or an
                argument is not a flag.
        """
        values = self._flags
        for argument in arguments:
            # absl compares an unknown name with all others, recursively.
            if len(name := argument.partition("=")[0]) > _LONGEST_NAME:
                raise InputError(
                    "expected flags such as --name=value. Received: one that "
                    f"begins with {name[:40]!r}"
                )
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
        found = values.flag_values_dict()
        for name in self._paths:
            if found[name]:
                found[name] = os.path.expanduser(found[name])
        return found

    def run(
        self,
        main: Callable[[dict[str, Any]], int],
        arguments: Sequence[str] | None = None,
    ) -> int:
        """Runs the command, printing errors as one line on standard error.

        Args:
            main: Function that takes the value of every flag and returns the
                exit code.
            arguments: The command line without the program. Default: this
                process's.

        Returns:
            The exit code: 0, 1 for a failure, 2 for invalid input, 130 after
            Ctrl-C. Any other exception is a bug in recsys: its traceback goes
            to a file that the line names, and the code is 1.
        """
        if arguments is None:
            arguments = sys.argv[1:]
        # Level 3 keeps fatal messages; TensorFlow's errors are raised anyway.
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
            # The reader, such as `head`, has closed the pipe, and Python would
            # fail again when it flushes standard output at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return EXIT_FAILED
        except OSError as error:
            return self._fail(_os_error_text(error), EXIT_FAILED)
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
        except Exception as error:
            return self._fail(_unexpected(error), EXIT_FAILED)

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
        line = printable(" ".join(message.split()))
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
    """Formats a value as it is typed on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fill(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text,
        79,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


def printable(text: str) -> str:
    """Returns text with its control characters escaped.

    Titles and file names may contain terminal control sequences.
    """
    return "".join(
        c
        if c.isprintable() or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode()
        for c in text
    )


def _unexpected(error: Exception) -> str:
    """Writes an exception's traceback to a file; returns a line naming both."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="recsys-error-", suffix=".log", delete=False
    ) as file:
        file.write("".join(traceback.format_exception(error)))
    reason = str(error).strip().partition("\n")[0][:200]
    return (
        f"unexpected {type(error).__name__}: {reason} (this is a bug; "
        f"{file.name} has the details)"
    )


def _os_error_text(error: OSError) -> str:
    """Describes an error by its file and reason."""
    if error.strerror is None:
        return str(error)
    if error.filename is None:
        return error.strerror
    return f"{error.filename}: {error.strerror}"


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Hides what TensorFlow prints while the block imports it.

    Its first lines (no GPU driver, CPU features) come before it reads
    TF_CPP_MIN_LOG_LEVEL. They are shown if the block fails or if that variable
    is set to a lower level.
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
    """Imports TensorFlow and Keras without their startup messages.

    TensorFlow enables oneDNN's kernels on some processors only. With AVX2,
    training is a quarter faster with them (scripts/benchmark_training.py), so
    they are enabled here unless TF_ENABLE_ONEDNN_OPTS=0 is set.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with quiet_start():
        import keras  # noqa: F401
        import tensorflow as tf

        # Listing the devices starts the runtime, which prints as well.
        tf.config.list_physical_devices()


def add_preset_flag(command: Command) -> None:
    """Adds the flag `--preset` to a command that trains."""
    command.add_flag(
        pathlib.Path,
        "preset",
        "Provides the values of flags that are not given: "
        f"{', '.join(PRESETS)}; auto, which chooses them by the log; or a file "
        "that recsys.tune wrote. Default: movielens-small for the bundled "
        "data, auto for any other.",
        group="Run",
    )


def add_run_flags(
    command: Command, default: str, help_text: str = "Folder of the runs."
) -> None:
    """Adds the flags `--preset` and `--workdir` to a command that trains.

    Args:
        command: The command.
        default: The default passed to `run_folder`, for `--help`.
        help_text: Description of the folder.
    """
    add_preset_flag(command)
    command.add_flag(
        pathlib.Path, "workdir", f"{help_text} Default: {default}.", group="Run"
    )


def run_folder(values: dict[str, Any], default: str) -> pathlib.Path:
    """Returns the folder that the flags of `add_run_flags` name.

    Args:
        values: The value of every flag.
        default: The folder if `--workdir` is not given; `<preset>` is
            replaced by the name of the preset.

    Raises:
        InputError: `--workdir` is empty.
    """
    if values["workdir"] == "":
        raise InputError("--workdir must name a folder. Received: ''")
    preset = values["preset"] or default_preset(values.get("data"))
    return pathlib.Path(
        values["workdir"]
        or default.replace("<preset>", pathlib.Path(preset).stem)
    )


def add_model_flag(command: Command) -> None:
    """Adds the flag `--workdir` to a command that reads a trained model."""
    command.add_flag(
        pathlib.Path,
        "workdir",
        "Folder of a model trained by recsys.train.",
        group="Model",
    )


def model_folder(values: dict[str, Any]) -> pathlib.Path:
    """Returns the folder that the flag of `add_model_flag` names.

    Raises:
        InputError: The flag is not given.
    """
    return required_path(values, "workdir", "name a trained model")


def required_path(
    values: dict[str, Any], name: str, must: str = "name a folder"
) -> pathlib.Path:
    """Returns the path in a required flag.

    Raises:
        InputError: The flag is not given.
    """
    if not values[name]:
        raise InputError(f"--{name} must {must}. Received: none")
    return pathlib.Path(values[name])


def check_new_workdir(output: pathlib.Path) -> None:
    """Checks that `--output_workdir` names a folder that may be made.

    Raises:
        InputError: It holds something, or cannot be written.
    """
    if not files.is_new_or_empty(output):
        raise InputError(
            "--output_workdir must be a new or empty folder. "
            f"Received: {str(output)!r}"
        )
    # It is made beside its final path and moved there when complete.
    if not files.can_write(output.absolute().parent):
        raise InputError(
            "--output_workdir must be a folder that can be written. "
            f"Received: {str(output)!r}"
        )


def add_config_flags(
    command: Command, names: Collection[str] | None = None
) -> None:
    """Adds a flag for each field of the configuration to a command.

    The flags have no defaults: one that is not given is None, and the preset
    or the configuration supplies the value.

    Args:
        command: The command.
        names: The fields. Default: all that can be set by flags.
    """
    for name, info in FIELDS.items():
        if info.is_flag and (names is None or name in names):
            text = info.help
            if names is None:
                text += _defaults(name)
            command.add_flag(TYPES[name][0], name, text, group=info.group)


_SECONDS = {"s": 1, "m": 60, "h": 3600}


def seconds_of(text: str, units: str = "smh") -> float | None:
    """Reads a time such as 90s or 1.5h.

    Args:
        text: A number with a unit.
        units: The units that are allowed.

    Returns:
        The seconds; None where the text is no such time, or 0.
    """
    found = re.fullmatch(rf"(\d+(?:\.\d+)?)([{units}])", text.strip())
    return float(found[1]) * _SECONDS[found[2]] or None if found else None


def add_beam_flags(command: Command) -> None:
    """Adds the flags `--runner` and `--beam` to a command."""
    command.add_flag(
        str,
        "runner",
        "Runner of Apache Beam, such as DirectRunner, DataflowRunner, "
        "FlinkRunner or SparkRunner (extra [beam]), to use instead of this "
        "machine.",
        group="Execution",
    )
    command.add_flag(
        list,
        "beam",
        "Option of the runner, such as --beam=--direct_num_workers=2; "
        "repeatable.",
        group="Execution",
    )


def given_beam_options(values: dict[str, Any]) -> list[str] | None:
    """Returns the runner and its options as Beam's flags; None without one.

    Raises:
        InputError: There are options without a runner, or Beam is missing.
    """
    options = values["beam"] or []
    if values["runner"] is None:
        if options:
            raise InputError(
                f"--beam needs --runner. Received: --beam={options[0]}"
            )
        return None
    try:
        import apache_beam  # noqa: F401
    except ImportError as error:
        raise missing_extra("--runner", "beam", error) from error
    return [f"--runner={values['runner']}", *options]


def given_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the given flags that are fields of the configuration."""
    return {
        name: value
        for name, value in values.items()
        if name in FIELDS and value is not None
    }


def _defaults(name: str) -> str:
    """Describes the defaults of a field, for `--help`."""
    default = DEFAULTS[name]
    presets = ", ".join(
        f"{plain(preset[name])} in {title}"
        for title, preset in PRESETS.items()
        if name in preset
    )
    if default is None and not presets:
        return ""
    text = "none" if default is None else plain(default)
    return f" Default: {text}{presets and f' ({presets})'}."
