"""Tries to break the promises of docs/promises.md, and counts.

    scripts/torture
    scripts/torture --minutes=120 --seed=7 --json=torture.json
    scripts/torture --only=kills,disk --tries=20

Trains a small model, then kills, damages and feeds odd things to all that
reads or writes, and checks that each answer is the right one or an error in
one line. Prints a Markdown table: promise, kind of try, tries, failures.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
from json_flag import add_json_flag, check_output_file, write_if_asked
from measuring import machine, num_cores

from recsys.command_line import Command, printable, quiet_start
from recsys.errors import InputError

# The share of the time that each campaign gets, of all cores together.
SHARES = {
    "kills": 0.4,
    "disk": 0.2,
    "damage": 0.15,
    "inputs": 0.15,
    "models": 0.05,
    "requests": 0.05,
}
# Seconds without a result after which a campaign hangs.
_SILENCE = 900

COMMAND = Command(
    "torture",
    "Kills trainings, fills disks, damages files and feeds hostile input, and "
    "checks that every answer is right or an error in one line. Exits with 1 "
    "if any is neither.",
    [
        "scripts/torture",
        "scripts/torture --minutes=120 --seed=7 --json=torture.json",
        "scripts/torture --only=kills,disk --tries=20",
    ],
)
COMMAND.add_flag(float, "minutes", "How long, about.", group="Run", default=5.0)
COMMAND.add_flag(
    int,
    "tries",
    "How many tries in each campaign, instead of --minutes.",
    group="Run",
)
COMMAND.add_flag(
    int, "seed", "What is tried follows from it.", group="Run", default=0
)
COMMAND.add_flag(
    str,
    "only",
    "Some of the campaigns, separated by commas.",
    group="Run",
    default=",".join(SHARES),
)
add_json_flag(COMMAND)


@dataclasses.dataclass
class Lane:
    """A campaign that runs in a process of its own.

    Attributes:
        name: Its name.
        pid: The process.
        pipe: Gets a line of JSON for each try.
        text: What of the pipe is not yet a line.
        heard: When the last line came.
    """

    name: str
    pid: int
    pipe: int
    text: bytes = b""
    heard: float = 0.0


def main(values: dict[str, Any]) -> int:
    """Runs the campaigns and prints the table.

    Args:
        values: The value of every flag.

    Returns:
        The exit code: 1 if a promise was broken.
    """
    names = _check(values)
    check_output_file(values)
    began = time.monotonic()
    with quiet_start():
        campaigns = _campaigns()
    from torture_world import World

    folder = pathlib.Path(tempfile.mkdtemp(prefix="recsys-torture-")).resolve()
    try:
        world = World(folder, quick=values["tries"] is not None)
        world.build()
        tries = _run_all(campaigns, names, world, values)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    minutes = (time.monotonic() - began) / 60
    print(_table(tries))
    total = sum(len(each) for each in tries.values())
    failures = _failures(tries)
    print(
        f"\n{total:,} tries, {len(failures):,} failures, in {minutes:.1f} "
        f"minutes on {machine()}; seed {values['seed']}."
    )
    for line in failures:
        print(printable(f"- {line}"))
    write_if_asked(values, _as_json(tries, values, minutes))
    return 1 if failures else 0


def _check(values: dict[str, Any]) -> list[str]:
    """Returns the campaigns in the order of their length."""
    names = [name.strip() for name in values["only"].split(",")]
    if not set(names) <= SHARES.keys():
        raise InputError(
            f"--only must be some of {', '.join(SHARES)}. "
            f"Received: {values['only']!r}"
        )
    for name in ("minutes", "tries"):
        if values[name] is not None and not values[name] > 0:
            raise InputError(
                f"--{name} must be positive. Received: {values[name]}"
            )
    return [name for name in SHARES if name in names]


def _campaigns() -> dict[str, Callable[..., Iterator]]:
    """Imports all that is tried, before any process is forked."""
    from torture_inputs import inputs, models, requests
    from torture_state import damage, disk, kills

    import recsys.evaluation.run
    import recsys.export
    import recsys.extend
    import recsys.serving.formats
    import recsys.train
    import recsys.training.trainer  # noqa: F401

    found = (kills, disk, damage, inputs, models, requests)
    return {campaign.__name__: campaign for campaign in found}


_Tries = dict[tuple[str, str, str], list[str | None]]


def _run_all(
    campaigns: dict[str, Callable[..., Iterator]],
    names: list[str],
    world: Any,
    values: dict[str, Any],
) -> _Tries:
    """Runs the campaigns, as many at a time as there are cores.

    Returns:
        What failed in each try, by campaign, promise and kind.
    """
    cores = min(num_cores(), len(names))
    total = sum(SHARES[name] for name in names)
    waiting = list(names)
    running: dict[int, Lane] = {}
    tries: _Tries = collections.defaultdict(list)
    while waiting or running:
        while waiting and len(running) < cores:
            name = waiting.pop(0)
            seconds = values["minutes"] * 60 * cores * SHARES[name] / total
            lane = _start(name, campaigns[name], world, values, seconds)
            running[lane.pipe] = lane
        for pipe in select.select(list(running), [], [], 5.0)[0]:
            lane = running[pipe]
            if not _receive(lane, tries):
                del running[pipe]
                _end(lane, tries)
        for lane in running.values():
            if time.monotonic() - lane.heard > _SILENCE:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(lane.pid, signal.SIGKILL)
                lane.heard = time.monotonic()
    return tries


def _start(
    name: str,
    campaign: Callable[..., Iterator],
    world: Any,
    values: dict[str, Any],
    seconds: float,
) -> Lane:
    """Starts a campaign in a fork of this process."""
    read, write = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(write)
        return Lane(name, pid, read, heard=time.monotonic())
    code = 1
    try:
        os.close(read)
        rng = np.random.default_rng([values["seed"], *name.encode()])
        end = time.monotonic() + seconds
        with os.fdopen(write, "w") as pipe:
            for number, each in enumerate(campaign(world, rng), start=1):
                print(json.dumps(dataclasses.astuple(each)), file=pipe)
                pipe.flush()
                if values["tries"] is None:
                    if time.monotonic() > end:
                        break
                elif number >= values["tries"]:
                    break
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _receive(lane: Lane, tries: _Tries) -> bool:
    """Reads what a campaign has sent; returns whether more may come."""
    content = os.read(lane.pipe, 2**16)
    lane.heard = time.monotonic()
    *lines, lane.text = (lane.text + content).split(b"\n")
    for line in lines:
        promise, kind, failure = json.loads(line)
        tries[lane.name, promise, kind].append(failure)
        if failure is not None:
            print(printable(f"{lane.name}: {failure}"), file=sys.stderr)
    return bool(content)


def _end(lane: Lane, tries: _Tries) -> None:
    """Counts a campaign that died, or hung and was killed, as a failure."""
    os.close(lane.pipe)
    code = os.waitstatus_to_exitcode(os.waitpid(lane.pid, 0)[1])
    if code:
        key = (lane.name, "the campaign itself ends well", "the campaign")
        tries[key].append(f"it ended with exit code {code}; see above")


def _failures(tries: _Tries) -> list[str]:
    return [
        f"{name} ({kind}): {failure}"
        for (name, _, kind), found in tries.items()
        for failure in found
        if failure is not None
    ]


def _table(tries: _Tries) -> str:
    """Returns the Markdown table."""
    rows = ["| promise | kind of try | tries | failures |"]
    rows.append("| --- | --- | ---: | ---: |")
    for (_, promise, kind), found in sorted(tries.items()):
        failed = sum(failure is not None for failure in found)
        rows.append(f"| {promise} | {kind} | {len(found):,} | {failed:,} |")
    return "\n".join(rows)


def _as_json(
    tries: _Tries, values: dict[str, Any], minutes: float
) -> dict[str, Any]:
    return {
        "seed": values["seed"],
        "minutes": round(minutes, 2),
        "machine": machine(),
        "campaigns": [
            {
                "campaign": name,
                "promise": promise,
                "kind": kind,
                "tries": len(found),
                "failures": [each for each in found if each is not None],
            }
            for (name, promise, kind), found in sorted(tries.items())
        ],
    }


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
