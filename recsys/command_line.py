"""What the commands share: flags, help, errors in one line, exit codes."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags

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
