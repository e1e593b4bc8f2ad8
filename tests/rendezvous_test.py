from __future__ import annotations

import concurrent.futures
import dataclasses
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import unittest
from unittest import mock

import pyarrow as pa
import tensorflow as tf
from absl.testing import absltest, parameterized

from recsys.config import TrainConfig
from recsys.data.vocabulary import Vocabulary
from recsys.errors import WorkerLostError
from recsys.training import cluster as meeting
from recsys.training import distributed
from recsys.training.cluster import Cluster


def _clusters(count: int) -> list[Cluster]:
    """Returns processes with currently free ports of this machine."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = tuple(
        f"127.0.0.1:{listener.getsockname()[1]}" for listener in listeners
    )
    for listener in listeners:
        listener.close()
    return [Cluster(addresses, index) for index in range(count)]


def _meet(
    clusters: list[Cluster], abouts: list[dict[str, str]], wait_seconds=60.0
) -> list[BaseException | None]:
    """Lets processes meet, each in a thread, starting with the last one."""
    with concurrent.futures.ThreadPoolExecutor() as threads:
        meetings = []
        for cluster, about in reversed(list(zip(clusters, abouts))):
            meetings.append(
                threads.submit(
                    meeting.meet, cluster, about, wait_seconds=wait_seconds
                )
            )
            time.sleep(0.1)
        return [meeting.exception() for meeting in reversed(meetings)]


def _listening(port: int) -> list[str]:
    """Returns the addresses at which anyone listens on a port."""
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in pathlib.Path("/proc/net", name).read_text().splitlines()[1:]
    ]
    return [
        row[1].partition(":")[0]
        for row in rows
        if row[3] == "0A" and row[1].endswith(f":{port:04X}")
    ]


# The chief in one namespace, with 127.0.0.1 and 10.99.0.1, and a worker in
# another, with 10.99.0.2, which calls the chief at 10.99.0.1.
_TWO_NAMESPACES = """
import os, socket, subprocess, sys, threading
from recsys.errors import WorkerLostError
from recsys.training.cluster import Cluster, meet

PORT, OTHER = 2222, "10.99.0.2:2222"
WORKER = '''
import sys
from recsys.errors import WorkerLostError
from recsys.training.cluster import Cluster, meet
sys.stdin.readline()
try:
    meet(Cluster(("10.99.0.1:2222", "10.99.0.2:2222"), 1), {}, wait_seconds=3)
    print("met")
except WorkerLostError:
    print("refused")
'''

def ip(*arguments):
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        worker.kill()
        print("ip", *arguments, done.stderr, file=sys.stderr)
        sys.exit(77)

worker = subprocess.Popen(
    ["unshare", "-n", sys.executable, "-c", WORKER],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
)
inside = ["nsenter", f"--net=/proc/{worker.pid}/ns/net"]
ip("link", "set", "lo", "up")
ip("link", "add", "here", "type", "veth", "peer", "name", "there")
while True:  # Until the worker has left this namespace.
    ours = os.readlink("/proc/self/ns/net")
    if os.readlink(f"/proc/{worker.pid}/ns/net") != ours:
        break
ip("link", "set", "there", "netns", str(worker.pid))
ip("address", "add", "10.99.0.1/24", "dev", "here")
ip("link", "set", "here", "up")
for command in (
    ["address", "add", "10.99.0.2/24", "dev", "there"],
    ["link", "set", "there", "up"],
):
    subprocess.run([*inside, "ip", *command], check=True)

def chief():
    try:
        meet(Cluster((f"{sys.argv[1]}:{PORT}", OTHER), 0), {}, wait_seconds=99)
    except WorkerLostError:
        pass

waiting = threading.Thread(target=chief, daemon=True)
waiting.start()
print(worker.communicate("go\\n")[0])
waiting.join(2)
if waiting.is_alive():  # It does listen.
    socket.create_connection((sys.argv[1], PORT), 5).close()
    print("listening")
"""


class MeetTest(parameterized.TestCase):
    @parameterized.parameters(1, 2, 4)
    def test_all_there(self, count):
        errors = _meet(_clusters(count), [{"flags": "x"}] * count)
        self.assertEqual(errors, [None] * count)

    def test_the_address_is_free_afterwards(self):
        clusters = _clusters(2)
        for _ in range(2):
            self.assertEqual(_meet(clusters, [{}] * 2), [None, None])
            # As TensorFlow does next.
            port = int(clusters[0].addresses[0].rpartition(":")[2])
            socket.create_server(("", port)).close()

    def test_listens_only_at_the_named_address(self):
        [chief, _] = _clusters(2)
        port = int(chief.addresses[0].rpartition(":")[2])
        with meeting._listen(chief.addresses[0]) as listener:
            self.assertEqual(listener.getsockname(), ("127.0.0.1", port))

    @unittest.skipUnless(sys.platform == "linux", "needs /proc/net")
    def test_the_kernel_listens_at_no_other_address(self):
        [chief, worker] = _clusters(2)
        port = int(chief.addresses[0].rpartition(":")[2])
        with concurrent.futures.ThreadPoolExecutor() as threads:
            met = threads.submit(meeting.meet, chief, {})
            while not (found := _listening(port)):
                self.assertFalse(met.done())
                time.sleep(0.01)
            meeting.meet(worker, {})
            met.result()
        # 127.0.0.1 in hexadecimal, its last byte first.
        self.assertEqual(found, ["0100007F"])

    @unittest.skipUnless(
        all(map(shutil.which, ("unshare", "nsenter", "ip"))),
        "needs unshare, nsenter and ip",
    )
    @parameterized.parameters(
        # What TF_CONFIG names, and who of the other namespace gets through.
        ("127.0.0.1", ["refused", "listening"]),
        ("10.99.0.1", ["met"]),
    )
    def test_from_another_network_namespace(self, named, expected):
        done = subprocess.run(
            ["unshare", "-rn", sys.executable, "-c", _TWO_NAMESPACES, named],
            capture_output=True,
            text=True,
        )
        if done.returncode == 77 or done.stderr.startswith("unshare: "):
            self.skipTest(f"no second network namespace: {done.stderr}")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.split(), expected)

    def test_a_silent_peer_does_not_block(self):
        clusters = _clusters(2)
        with (
            mock.patch.object(meeting, "_SECONDS_TO_REPORT", 0.3),
            concurrent.futures.ThreadPoolExecutor() as threads,
        ):
            chief = threads.submit(meeting.meet, clusters[0], {})
            time.sleep(0.2)
            port = int(clusters[0].addresses[0].rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)):
                threads.submit(meeting.meet, clusters[1], {}).result(20)
                chief.result(20)

    def test_different_flags_end_all(self):
        abouts = [{"flags": "x", "data": "d"}] * 3
        abouts[2] = {"flags": "y", "data": "d"}
        errors = _meet(_clusters(3), abouts)
        for error in errors:
            self.assertIsInstance(error, WorkerLostError)
            self.assertRegex(
                str(error), "the same in all.*other flags in worker 3 of 3$"
            )

    def test_chief_names_who_is_missing(self):
        clusters = _clusters(3)
        [error, other] = _meet(clusters[:2], [{}] * 2, wait_seconds=1)
        self.assertRegex(
            str(error),
            "all workers within 1 s. Received: nothing from worker 3 of 3 "
            rf"\({clusters[0].addresses[2]}\)$",
        )
        self.assertRegex(str(other), "no answer from worker 1 of 3")

    def test_names_whom_it_waits_for(self):
        clusters, lines = _clusters(2), []
        with (
            mock.patch.object(meeting, "_SECONDS_BETWEEN_REPORTS", 0),
            self.assertRaises(WorkerLostError),
        ):
            meeting.meet(clusters[0], {}, wait_seconds=0.5, show=lines.append)
        self.assertRegex(
            lines[0], f"waiting for worker 2 of 2 .{clusters[0].addresses[1]}."
        )

    def test_strangers_are_ignored(self):
        clusters = _clusters(2)
        with concurrent.futures.ThreadPoolExecutor() as threads:
            chief = threads.submit(meeting.meet, clusters[0], {})
            port = int(clusters[0].addresses[0].rpartition(":")[2])
            for text in (b"GET / HTTP/1.1\n", b'{"index": 9, "about": {}}\n'):
                while True:
                    try:
                        stranger = socket.create_connection(("127.0.0.1", port))
                    except ConnectionRefusedError:
                        time.sleep(0.05)
                        continue
                    break
                with stranger:
                    stranger.sendall(text)
            meeting.meet(clusters[1], {})
            chief.result()

    def test_address_in_use(self):
        with socket.create_server(("", 0)) as listener:
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            with self.assertRaisesRegex(
                WorkerLostError, f"listen at {address}.*already in use"
            ):
                meeting.meet(Cluster((address, "127.0.0.1:1"), 0), {})


class FingerprintTest(parameterized.TestCase):
    @parameterized.parameters(
        ({}, {}, []),
        # The log may be elsewhere on another machine.
        ({"data": "elsewhere.csv"}, {}, []),
        ({"seed": 1}, {}, ["flags"]),
        ({}, {"train_count": [3, 2]}, ["data"]),
        ({}, {"item_id": ["a", "c"]}, ["data"]),
    )
    def test_differences(self, fields, columns, expected):
        config = TrainConfig()
        items = {"item_id": ["a", "b"], "train_count": [3, 1]}
        one, other = (
            meeting.fingerprint(
                each, Vocabulary(columns["item_id"], pa.table(columns))
            )
            for each, columns in (
                (config, items),
                (dataclasses.replace(config, **fields), {**items, **columns}),
            )
        )
        differing = [name for name in one if one[name] != other[name]]
        self.assertEqual(differing, expected)


class TranslatedLossTest(parameterized.TestCase):
    def test_tensorflows_message_becomes_one_line(self):
        text = """Graph execution error:

Detected at node CollectiveReduceV2 defined at (most recent call last):
  File "trainer.py", line 48, in <module>

Collective ops is aborted by: Error reported from /job:worker/task:1: down
The error could be from a previous operation. Restart your program to reset.
"""
        cluster = Cluster(("a:1", "b:2"), 0)
        with (
            self.assertRaisesRegex(
                WorkerLostError,
                "^worker 1 of 2 lost another one; rerun the command.*last "
                "checkpoint. Received: Collective ops is aborted by: Error "
                "reported from /job:worker/task:1: down$",
            ),
            distributed.translated_loss(cluster),
        ):
            raise tf.errors.UnavailableError(None, None, text)

    def test_other_errors_pass(self):
        with (
            self.assertRaises(tf.errors.ResourceExhaustedError),
            distributed.translated_loss(Cluster(("a:1", "b:2"), 0)),
        ):
            raise tf.errors.ResourceExhaustedError(None, None, "memory")

    def test_a_single_process_translates_nothing(self):
        with (
            self.assertRaises(tf.errors.CancelledError),
            distributed.translated_loss(None),
        ):
            raise tf.errors.CancelledError(None, None, "")


if __name__ == "__main__":
    absltest.main()
