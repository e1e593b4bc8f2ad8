"""What the benchmarks measure alike: machine, memory, time of an epoch.

Imports nothing of ours, since benchmark_peers.py runs without it.
"""

from __future__ import annotations

import os
import pathlib
import platform


def num_cores() -> int:
    """Returns how many cores this process may run on."""
    return len(os.sched_getaffinity(0))


def machine() -> str:
    """Returns the processor's kind and how many cores this process has."""
    cores = num_cores()
    return f"{platform.machine()}, {cores} core{'' if cores == 1 else 's'}"


def seconds_per_epoch(seconds: list[float]) -> float:
    """Returns the mean, without the first where there are several."""
    warm = seconds[1:] or seconds
    return sum(warm) / len(warm)


def peak_memory() -> float:
    """Returns the most memory that this process has held, in GB (10^9 bytes).

    Not by getrusage, whose figure a process inherits from the one that
    started it.
    """
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise OSError("/proc/self/status: expected a line VmHWM. Received: none")
