from __future__ import annotations

import json
import os
from unittest import mock

from absl.testing import absltest, parameterized

from recsys.config import TrainConfig
from recsys.errors import InputError
from recsys.training import cluster


def _text(jobs, kind="worker", index=0) -> str:
    return json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})


class ClusterTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"worker": ["a:1", "b:2"]}, "worker", 0, ("a:1", "b:2"), 0),
        ({"worker": ["a:1", "b:2"]}, "worker", 1, ("a:1", "b:2"), 1),
        # The chief comes first, wherever it is named.
        ({"worker": ["a:1"], "chief": ["c:3"]}, "chief", 0, ("c:3", "a:1"), 0),
        ({"worker": ["a:1"], "chief": ["c:3"]}, "worker", 0, ("c:3", "a:1"), 1),
        ({"worker": ["[::1]:80"]}, "worker", 0, ("[::1]:80",), 0),
    )
    def test_numbers(self, jobs, kind, index, addresses, number):
        parsed = cluster.parse_cluster(_text(jobs, kind, index))
        self.assertEqual(parsed, cluster.Cluster(addresses, number))
        self.assertEqual(parsed.is_chief, number == 0)

    @parameterized.parameters(
        ("", r"must be set with --strategy=multi_worker.*Received: ''"),
        ("[]", "must be set"),
        ('{"cluster": {"worker": ["a:1"]}}', "must be set"),
        (_text({"worker": ["a:1"], "ps": ["b:2"]}), "only. Received: ps"),
        (_text({"worker": ["a"]}), "host:port. Received: 'a'"),
        (_text({"worker": ["a:0"]}), "host:port. Received: 'a:0'"),
        (_text({"worker": ["a:1", 7]}), "host:port. Received: 7"),
        (_text({"worker": ["a:1", "a:1"]}), "once. Received: a:1, a:1"),
        (_text({"chief": ["a:1", "b:1"]}, "chief"), "at most one chief"),
        (_text({"worker": ["a:1"]}, "worker", 1), "Received: 'worker' 1"),
        (_text({"worker": ["a:1"]}, "worker", "0"), "Received: 'worker' '0'"),
        (_text({"worker": ["a:1"]}, "evaluator"), "Received: 'evaluator' 0"),
    )
    def test_errors(self, text, message):
        with self.assertRaisesRegex(InputError, f"TF_CONFIG.*{message}"):
            cluster.parse_cluster(text)

    def test_is_read_for_several_workers_only(self):
        with mock.patch.dict(os.environ, TF_CONFIG="nonsense"):
            self.assertIsNone(cluster.cluster_of(TrainConfig()))
            with self.assertRaisesRegex(InputError, "nonsense"):
                cluster.cluster_of(TrainConfig(strategy="multi_worker"))


class NetworkTest(parameterized.TestCase):
    def cluster(self, address, **fields):
        text = _text({"worker": [address]})
        with mock.patch.dict(os.environ, {"TF_CONFIG": text}):
            return cluster.cluster_of(
                TrainConfig(strategy="multi_worker", **fields)
            )

    @parameterized.parameters(
        "127.0.0.1:1", "10.1.2.3:1", "192.168.0.9:1", "[::1]:1", "localhost:1"
    )
    def test_loopback_and_private(self, address):
        self.assertEqual(self.cluster(address).addresses, (address,))

    @parameterized.parameters("8.8.8.8:1", "[2600::1]:1")
    def test_public_networks_are_refused_unless_trusted(self, address):
        with self.assertRaisesRegex(InputError, "--trust_network accepts"):
            self.cluster(address)
        found = self.cluster(address, trust_network=True)
        self.assertEqual(found.addresses, (address,))

    def test_a_port_of_5000_digits(self):
        with self.assertRaisesRegex(InputError, "host:port"):
            cluster.parse_cluster(_text({"worker": ["a:" + "1" * 5000]}))


if __name__ == "__main__":
    absltest.main()
