"""`recsys` and `python -m recsys`: lists the commands, or runs one of them."""

from __future__ import annotations

import difflib
import importlib
import pathlib
import re
import runpy
import sys
from collections.abc import Sequence

import recsys

_PACKAGE = pathlib.Path(__file__).parent
# A wheel has the evaluation scripts within the package, a checkout beside it.
_SCRIPTS = _PACKAGE / "scripts"
_SCRIPTS = _SCRIPTS if _SCRIPTS.is_dir() else _PACKAGE.parent / "scripts"
_USAGE = """usage: recsys COMMAND [--flag=value ...]
       python -m recsys.COMMAND [--flag=value ...]"""
_MORE = "recsys COMMAND --help lists the flags of a command."
# A command's first line says what it does.
_COMMAND = re.compile(r'"""`python -m recsys\.\w+`: (.+?)\.?(?:""")?\n')
_SCRIPT = re.compile(r'"""(.+?)\.?(?:""")?\n')


def commands() -> dict[str, tuple[pathlib.Path, str]]:
    """Returns the file of each command and what it does, by name."""
    modules = ((path, _COMMAND) for path in sorted(_PACKAGE.glob("*.py")))
    scripts = (
        (path, _SCRIPT)
        for pattern in ("evaluate_*.py", "verify_*.py")
        for path in sorted(_SCRIPTS.glob(pattern))
    )
    found = {}
    for path, form in (*modules, *scripts):
        with path.open(encoding="utf-8") as file:
            if match := form.match(file.readline()):
                text = match[1][0].upper() + match[1][1:]
                found[path.stem] = (path, text)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names.

    Args:
        arguments: The command line without the program. Default: this
            process's.

    Returns:
        The exit code: that of the command, 0 after the list of commands, 2 for
        an unknown command.
    """
    name, *others = (sys.argv[1:] if arguments is None else arguments) or ["-h"]
    known = commands()
    if name in ("-h", "-help", "--help", "help"):
        width = max(map(len, known)) + 2
        lines = [f"  {each:{width}}{text}" for each, (_, text) in known.items()]
        print("\n".join([_USAGE, "", *lines, "", _MORE]))
        return 0
    if name == "--version":
        print(f"recsys {recsys.__version__}")
        return 0
    if name.replace("-", "_") not in known:
        close = difflib.get_close_matches(name, known, 1)
        advice = f"did you mean {close[0]}?" if close else "see recsys --help."
        print(
            f"recsys: error: no such command; {advice} Received: {name!r}",
            file=sys.stderr,
        )
        return 2
    path = known[name.replace("-", "_")][0]
    if path.parent == _PACKAGE:
        module = importlib.import_module(f"recsys.{path.stem}")
        return module.COMMAND.run(module.main, others)
    sys.argv = [str(path), *others]
    runpy.run_path(str(path), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
