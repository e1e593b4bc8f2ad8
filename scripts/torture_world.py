"""What scripts/torture.py breaks, and how it runs commands that are stopped."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import importlib
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from typing import Any

import numpy as np

# Far longer than any command takes here, even on a busy machine.
TIMEOUT = 300.0
TRAIN_FLAGS = {
    "item_features": "genres",
    "embedding_dim": 8,
    "num_blocks": 1,
    "max_history_length": 16,
    "positions_per_batch": 32,
    "warmup_steps": 5,
    "num_epochs": 2,
    "checkpoint_steps": 8,
}
_EVENTS = frozenset(
    {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}
)
_NEEDS_SPACE = frozenset({"open", "os.mkdir"})
_TRACE = re.compile("Traceback|this is a bug|Warning: ")
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclasses.dataclass(frozen=True)
class Try:
    """One try to break a promise.

    Attributes:
        promise: What must hold.
        kind: How it was attacked.
        failure: What did not hold; None if all did.
    """

    promise: str
    kind: str
    failure: str | None = None


@dataclasses.dataclass(frozen=True)
class Stop:
    """How a command is stopped; each field that is not None takes effect.

    Attributes:
        folder: File events count within this folder.
        log: Gets one byte per file event.
        kill_event: SIGKILL before this event, from 1.
        kill_after: SIGKILL this many seconds after the first event.
        full_event: From this event on nothing can be created: ENOSPC.
        file_size: No file can grow beyond this many bytes.
    """

    folder: str
    log: str | None = None
    kill_event: int | None = None
    kill_after: float | None = None
    full_event: int | None = None
    file_size: int | None = None

    def install(self) -> None:
        """Takes effect in this process, until it ends."""
        log = None if self.log is None else os.open(self.log, _NEW_FILE)
        if self.file_size is not None:
            limit = (self.file_size, resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        count = 0

        def hook(name: str, arguments: tuple) -> None:
            nonlocal count
            if name not in _EVENTS or not self._is_inside(arguments):
                return
            if name == "open" and not arguments[2] & _WRITES:
                return
            count += 1
            if log is not None:
                os.write(log, b".")
            if count == 1 and self.kill_after is not None:
                threading.Thread(target=self._kill_later, daemon=True).start()
            if count == self.kill_event:
                os.kill(os.getpid(), signal.SIGKILL)
            if (
                self.full_event is not None
                and count >= self.full_event
                and name in _NEEDS_SPACE
            ):
                number = errno.ENOSPC
                raise OSError(number, os.strerror(number), arguments[0])

        sys.addaudithook(hook)

    def _is_inside(self, arguments: tuple) -> bool:
        return isinstance(arguments[0], (str, bytes, os.PathLike)) and (
            os.path.abspath(os.fsdecode(arguments[0])).startswith(self.folder)
        )

    def _kill_later(self) -> None:
        time.sleep(self.kill_after or 0.0)
        os.kill(os.getpid(), signal.SIGKILL)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, negative for a signal, and output."""

    code: int
    out: str
    err: str
    seconds: float

    def check(self, name: str) -> None:
        """Raises RuntimeError if the command of that name failed."""
        if self.code:
            raise RuntimeError(f"{name}: {self.err}")

    def fault(self, *codes: int) -> str | None:
        """Returns what is wrong: a trace, several lines, or another code."""
        if self.code not in codes:
            return f"exit code {self.code}: {self.err[-600:]}"
        # Of a process that was killed, Python warns by itself.
        if self.code >= 0 and _TRACE.search(self.err):
            return f"a stack trace or warning: {self.err[-600:]}"
        errors = [line for line in self.err.splitlines() if ": error: " in line]
        if self.code in (1, 2) and len(errors) != 1:
            return f"{len(errors)} error lines: {self.err[-600:]}"
        return None


def run_forked(
    name: str, arguments: list[str], stop: Stop | None = None
) -> Ended:
    """Runs a command in a fork of this process, which has loaded TensorFlow.

    That halves the time of a short training. The fork starts TensorFlow's
    runtime itself; this process must not have started it.
    """
    began = time.monotonic()
    module = importlib.import_module(f"recsys.{name}")
    read, write = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        code = 70
        try:
            os.setsid()
            os.dup2(read[1], 1)
            os.dup2(write[1], 2)
            for end in (*read, *write):
                os.close(end)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            if stop is not None:
                stop.install()
            code = module.COMMAND.run(module.main, arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(read[1])
    os.close(write[1])
    outputs = ["", ""]

    def drain(number: int, descriptor: int) -> None:
        with os.fdopen(descriptor, errors="replace") as pipe:
            outputs[number] = pipe.read()

    threads = [
        threading.Thread(target=drain, args=each, daemon=True)
        for each in ((0, read[0]), (1, write[0]))
    ]
    for thread in threads:
        thread.start()
    timer = threading.Timer(TIMEOUT, os.killpg, (pid, signal.SIGKILL))
    timer.start()
    status = os.waitpid(pid, 0)[1]
    timer.cancel()
    for thread in threads:
        thread.join(10)
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, *outputs, time.monotonic() - began)


_BOOT = """
import json, runpy, sys
sys.path.insert(0, {scripts!r})
stop = json.loads({stop!r})
if stop is not None:
    from torture_world import Stop
    Stop(**stop).install()
sys.argv = json.loads({arguments!r})
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def run_process(
    name: str, arguments: list[str], stop: Stop | None = None
) -> Ended:
    """Runs a command in a process of its own, as its user would."""
    code = _BOOT.format(
        scripts=str(pathlib.Path(__file__).parent),
        stop=json.dumps(stop and dataclasses.asdict(stop)),
        arguments=json.dumps([f"recsys.{name}", *arguments]),
    )
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
    texts = (each.decode(errors="replace") for each in (out, err))
    return Ended(process.returncode, *texts, time.monotonic() - began)


def digest(folder: pathlib.Path) -> dict[str, str]:
    """Returns the SHA-256 of all files of a folder, by their paths in it."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def flags(**values: Any) -> list[str]:
    """Returns a command line."""
    return [f"--{name}={value}" for name, value in values.items()]


class World:
    """A log, two trained models, the export of one, and shards, in a folder.

    Args:
        folder: The folder, which exists.
        quick: Whether the model is trained for one short epoch.
    """

    def __init__(self, folder: pathlib.Path, quick: bool = False) -> None:
        self.folder = folder
        self.log = folder / "log" / "log.csv"
        self.later = folder / "later" / "log.csv"
        self.workdir = folder / "run"
        self.other = folder / "other"
        self.export = folder / "export"
        self.shards = folder / "shards"
        self.seconds: dict[str, float] = {}
        self._more: dict[str, Any] = {}
        self._formats = "saved_model,parquet,numpy,projector,litert"
        if quick:
            self._more = {"encoder": "mean_pooling", "num_epochs": 1}
            self._formats = "saved_model"

    def train_flags(self, workdir: pathlib.Path, seed: int = 0) -> list[str]:
        """Returns the flags of the training into a workdir."""
        values = {**TRAIN_FLAGS, **self._more, "seed": seed}
        return flags(data=self.log, workdir=workdir, **values)

    def shard_flags(self, output: pathlib.Path) -> list[str]:
        """Returns the flags of a preparation of shards."""
        return flags(data=self.log, output=output, num_shards=3, num_workers=2)

    def build(self) -> None:
        """Makes everything.

        Raises:
            RuntimeError: A command failed.
        """
        self.write_log(self.log, first=0, num_items=25)
        self.write_log(self.later, first=60, num_items=28)
        exporting = flags(
            workdir=self.workdir, output=self.export, formats=self._formats
        )
        for name, run, folder, arguments in (
            ("train", run_forked, self.workdir, self.train_flags(self.workdir)),
            ("export", run_forked, self.export, exporting),
            (
                "prepare_shards",
                run_process,
                self.shards,
                self.shard_flags(self.shards),
            ),
        ):
            ended = run(name, arguments, self.counting(name, folder))
            ended.check(name)
            self.seconds[name] = ended.seconds
        run_forked("train", self.train_flags(self.other, 1)).check("train")

    def counting(self, name: str, folder: pathlib.Path) -> Stop:
        """Returns what counts the file events in a folder."""
        return Stop(str(folder), log=str(self.folder / f"{name}.events"))

    def num_events(self, name: str) -> int:
        """Returns the file events that were counted under a name."""
        return (self.folder / f"{name}.events").stat().st_size

    def write_log(self, path: pathlib.Path, first: int, num_items: int) -> None:
        """Writes the steps of 60 users around a circle of items."""
        rng = np.random.default_rng(first)
        rows = ["user,item,timestamp"]
        for user in range(first, first + 60):
            begin, length = rng.integers(num_items), rng.integers(12, 18)
            rows += [
                f"u{user},i{(begin + step) % num_items},{first + step}"
                for step in range(length)
            ]
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(rows) + "\n")
        genres = ("Drama", "Comedy", "Drama|War")
        (path.parent / "items.csv").write_text(
            "item,title,genres\n"
            + "".join(
                f"i{item},Film {item} (1999),{genres[item % 3]}\n"
                for item in range(num_items)
            )
        )


def copy(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Copies a folder over whatever is there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target
