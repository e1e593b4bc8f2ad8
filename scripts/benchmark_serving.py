"""Measures recsys.serve: latency, throughput, and new models under load.

Run it from the checkout, on an otherwise idle machine, with the extra
`[serve]`:

    python scripts/benchmark_serving.py --workdir=runs/movielens-small

Three parts, each with histories of 20 of the 500 most popular items, k = 10:

- latency: requests at a fixed rate, each sent when it is due, whether or not
  those before are answered; the time runs from when it was due;
- throughput: 32 clients, each sending its next request when it has an answer,
  beside as many threads that call the signature `recommend` of the same model
  in this process, one history a call;
- swaps: requests while the model is replaced again and again.

Server and clients share the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from json_flag import add_json_flag, check_output_file, write_if_asked
from measuring import machine

from recsys.command_line import (
    Command,
    add_model_flag,
    load_tensorflow,
    model_folder,
)

_LENGTH = 20
_K = 10

COMMAND = Command(
    "benchmark_serving",
    "Measures latency, throughput and new models under load, as JSON.",
    ["scripts/benchmark_serving.py --workdir=runs/movielens-small"],
)
add_model_flag(COMMAND)
for name, help_text, default in (
    ("rate", "Requests per second, for latency.", 100),
    ("seconds", "How long latency and throughput are measured.", 30),
    ("clients", "Clients at once, for throughput.", 32),
    ("requests", "Requests while models are replaced; 0 for none.", 100_000),
    ("swaps", "How many times the model is replaced.", 20),
):
    COMMAND.add_flag(int, name, help_text, group="Run", default=default)
add_json_flag(COMMAND)


@dataclasses.dataclass
class Server:
    """A server in a process of its own.

    Attributes:
        process: The process.
        address: Such as "http://127.0.0.1:8501".
        errors: The file of its standard error.
    """

    process: subprocess.Popen
    address: str
    errors: str

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.address.rpartition(":")[2])

    def memory(self) -> float:
        """Returns the memory that it takes up, in MB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


@contextlib.contextmanager
def start_server(workdir: pathlib.Path, *flags: str) -> Iterator[Server]:
    """Serves a model on a free port; ends by SIGTERM."""
    with tempfile.NamedTemporaryFile("w", delete=False) as errors:
        command = [sys.executable, "-m", "recsys.serve", "--port=0"]
        command += ["--access_log=false", f"--workdir={workdir}", *flags]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if "http" not in line:
        raise RuntimeError(pathlib.Path(errors.name).read_text("utf-8"))
    address = line[line.index("http") :].rstrip("/")
    try:
        yield Server(process, address, errors.name)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


class Client:
    """A connection that is kept."""

    def __init__(self, port: int, path: str) -> None:
        self._port, self._path = port, path
        self._pipes: tuple[Any, Any] | None = None

    async def ask(self, body: bytes) -> int:
        """Sends a request and returns the status of its answer."""
        if self._pipes is None:
            self._pipes = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._pipes
        writer.write(
            f"POST {self._path} HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split()[0])
        await reader.readexactly(length)
        return int(head.split()[1])

    def close(self) -> None:
        """Closes the connection."""
        if self._pipes is not None:
            self._pipes[1].close()


def bodies(item_ids: np.ndarray, path: str) -> list[bytes]:
    """Returns requests with histories of their own."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(1000):
        history = rng.choice(item_ids, _LENGTH, replace=False).tolist()
        asked: dict[str, Any] = {"history": history, "k": _K}
        if path.startswith("/v1"):
            asked = {"instances": [{**asked, "exclude": [""]}]}
        found.append(json.dumps(asked).encode())
    return found


async def at_a_rate(
    server: Server, path: str, asked: list[bytes], rate: float, seconds: float
) -> dict[str, Any]:
    """Measures the time of requests that come at a rate."""
    idle: list[Client] = []
    times, failed = [], 0

    async def one(due: float, body: bytes) -> None:
        nonlocal failed
        client = idle.pop() if idle else Client(server.port, path)
        failed += await client.ask(body) != 200
        times.append(time.perf_counter() - due)
        idle.append(client)

    begin = time.perf_counter() + 0.1
    tasks = []
    for number in range(int(rate * seconds)):
        due = begin + number / rate
        await asyncio.sleep(max(0, due - time.perf_counter()))
        body = asked[number % len(asked)]
        tasks.append(asyncio.create_task(one(due, body)))
    await asyncio.gather(*tasks)
    for client in idle:
        client.close()
    return {
        "requests": len(times),
        "failed": failed,
        **{
            f"p{percent}_ms": round(1e3 * np.percentile(times, percent), 2)
            for percent in (50, 90, 99)
        },
    }


async def as_fast_as_possible(
    server: Server,
    path: str,
    asked: list[bytes],
    num_clients: int,
    *,
    seconds: float = 1e9,
    num_requests: int = 10**9,
) -> dict[str, Any]:
    """Measures how many requests are answered."""
    count = failed = 0
    begin = time.perf_counter()
    end = begin + seconds

    async def run(client: Client) -> None:
        nonlocal count, failed
        while time.perf_counter() < end and count < num_requests:
            count += 1
            failed += await client.ask(asked[count % len(asked)]) != 200
        client.close()

    clients = [Client(server.port, path) for _ in range(num_clients)]
    await asyncio.gather(*map(run, clients))
    took = time.perf_counter() - begin
    return {
        "requests": count,
        "failed": failed,
        "per_second": round(count / took, 1),
    }


def in_process(
    recommender: Any, asked: list[bytes], num_threads: int, seconds: float
) -> float:
    """Returns how many calls of the signature threads make in a second."""
    import tensorflow as tf

    from recsys.serving.saved_model import write_saved_model

    with tempfile.TemporaryDirectory() as folder:
        write_saved_model(recommender, pathlib.Path(folder, "model"))
        model = tf.saved_model.load(f"{folder}/model")
        recommend = model.signatures["recommend"]
    none, k = tf.constant([[""]]), tf.constant([_K])
    histories = [
        tf.constant([json.loads(body)["instances"][0]["history"]])
        for body in asked
    ]
    recommend(history=histories[0], exclude=none, k=k)
    counts = [0] * num_threads
    end = time.perf_counter() + seconds

    def run(thread: int) -> None:
        while time.perf_counter() < end:
            history = histories[sum(counts) % len(histories)]
            found = recommend(history=history, exclude=none, k=k)
            found["item_ids"].numpy()
            counts[thread] += 1

    threads = [
        threading.Thread(target=run, args=(n,)) for n in range(num_threads)
    ]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return round(sum(counts) / (time.perf_counter() - begin), 1)


async def with_swaps(
    server: Server,
    path: str,
    asked: list[bytes],
    num_requests: int,
    num_swaps: int,
    model: pathlib.Path,
) -> dict[str, Any]:
    """Sends requests while the model is written anew and loaded."""
    part = -(-num_requests // (num_swaps + 1))
    memory, found = [], []
    for swap in range(num_swaps + 1):
        if swap:
            # The same model, but newer: whatever is served is another object.
            copy = model.with_suffix(".new")
            shutil.copy(model, copy)
            copy.replace(model)
        found.append(
            await as_fast_as_possible(server, path, asked, 8, num_requests=part)
        )
        memory.append(round(server.memory()))
    written = pathlib.Path(server.errors).read_text("utf-8")
    return {
        "requests": sum(each["requests"] for each in found),
        "failed": sum(each["failed"] for each in found),
        "swaps": written.count("serving version"),
        "memory_mb": memory,
    }


def main(values: dict[str, Any]) -> int:
    """Measures, and prints JSON."""
    check_output_file(values)
    workdir = model_folder(values)
    load_tensorflow()
    import recsys

    recommender = recsys.load(workdir)
    popular = np.argsort(-recommender.popularity[2:], kind="stable")[:500]
    item_ids = recommender.vocabulary.item_ids[popular]
    found: dict[str, Any] = {"machine": machine(), "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        served = pathlib.Path(folder, "model")
        shutil.copytree(workdir, served)
        with start_server(served, "--poll_seconds=0.5") as server:
            seconds, clients = values["seconds"], values["clients"]
            for path in ("/api/recommend", "/v1/models/model:predict"):
                asked = bodies(item_ids, path)
                asyncio.run(at_a_rate(server, path, asked, 50, 3))
                parts = found["parts"][path] = {
                    "latency": asyncio.run(
                        at_a_rate(server, path, asked, values["rate"], seconds)
                    ),
                    "throughput": asyncio.run(
                        as_fast_as_possible(
                            server, path, asked, clients, seconds=seconds
                        )
                    ),
                }
                print(path, json.dumps(parts), file=sys.stderr)
            found["in_process_per_second"] = in_process(
                recommender, asked, clients, seconds
            )
            print(found["in_process_per_second"], file=sys.stderr)
            if values["requests"]:
                path = "/api/recommend"
                found["swaps"] = asyncio.run(
                    with_swaps(
                        server,
                        path,
                        bodies(item_ids, path),
                        values["requests"],
                        values["swaps"],
                        served / "model.keras",
                    )
                )
    print(json.dumps(found, indent=1))
    write_if_asked(values, found)
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
