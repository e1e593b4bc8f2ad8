"""Several real processes on this machine against one."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import textwrap
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from recsys import training
from recsys.config import TrainConfig
from recsys.data import shard_preparation, sources
from recsys.data.shard_preparation import Options
from recsys.errors import InputError
from recsys.models.shared_item_embedding import _InPieces
from recsys.workdir import checkpoint_paths

# Processes share the cores with each other and with whatever else runs.
_SECONDS = 600

# Runs the command; the process kills itself after a given step.
_COMMAND = """
    import os, signal, sys
    from recsys import train

    dies_at = int(sys.argv.pop(1))
    if dies_at:
        from recsys.command_line import load_tensorflow
        load_tensorflow()
        from recsys.training import trainer
        count = trainer.Trainer._count
        def dying(self, progress, *measures):
            count(self, progress, *measures)
            if progress.global_step == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
        trainer.Trainer._count = dying
    sys.exit(train.COMMAND.run(train.main))
"""

# Trains on two devices of one process and prints the seeds of its replicas.
_MIRRORED = """
    import json, pathlib, sys
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    from recsys.models import shared_item_embedding
    from recsys.config import TrainConfig
    from recsys.data import prepare
    from recsys.training import distributed, trainer
    from recsys.workdir import Workdir

    shared_item_embedding._InPieces._NUM_AT_ONCE = 64
    distributed._NUM_AT_ONCE = 64
    seeds = []
    for name, fields in json.loads(sys.argv[1]).items():
        config, folder = TrainConfig(**fields), pathlib.Path(name)
        folder.mkdir()
        data = prepare.build_data(config)
        connected = distributed.connect("mirrored", None)
        run = trainer.Trainer(config, Workdir(folder), data, False, connected)
        run.run()
        seeds.append([
            [value.numpy().tolist() for value in variable.value.values]
            for variable in run.model.variables
            if variable.name == "seed_generator_state"
        ])
    print(json.dumps(seeds))
"""


def _write_log(path: pathlib.Path) -> None:
    """Steps of 60 users around a circle of 25 items."""
    rng = np.random.default_rng(0)
    rows = ["user,item,timestamp"]
    for user in range(60):
        begin, length = rng.integers(25), rng.integers(5, 18)
        for step in range(length):
            rows.append(f"u{user},i{(begin + step) % 25},{step}")
    path.write_text("\n".join(rows) + "\n")


def _variables(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    [newest] = checkpoint_paths(workdir / "checkpoints")
    path = str(newest / "variables")
    return {
        name: tf.train.load_variable(path, name)
        for name, _ in tf.train.list_variables(path)
        if name.startswith("variables/")
    }


def _environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(sys.path)
    return {**os.environ, "PYTHONPATH": path, **more}


class ReplicasTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )
        _write_log(self.folder / "log.csv")
        self.fields = {
            "data": str(self.folder / "log.csv"),
            "table_init": "random",
            "embedding_dim": 8,
            "transition_dim": 8,
            "num_blocks": 1,
            "dropout": 0.0,
            "max_history_length": 16,
            "positions_per_batch": 64,
            "warmup_steps": 2,
            "learning_rate": 0.02,
            "num_epochs": 2,
            "checkpoint_steps": 3,
        }

    def _train_alone(self, name: str) -> pathlib.Path:
        workdir = self.folder / name
        training.train(TrainConfig(**self.fields), workdir, verbose=False)
        return workdir

    def _train_together(
        self, name: str, count: int, dies: tuple[int, int] = (-1, 0)
    ) -> list[tuple[int, str, str]]:
        """Runs the command in several processes.

        Args:
            name: The chief's workdir; each process is given its own.
            count: How many.
            dies: Which of them kills itself, and after which step.

        Returns:
            Exit code, standard output and standard error of each.
        """
        listeners = [
            socket.create_server(("127.0.0.1", 0)) for _ in range(count)
        ]
        addresses = [
            f"127.0.0.1:{listener.getsockname()[1]}" for listener in listeners
        ]
        for listener in listeners:
            listener.close()
        fields = {**self.fields, "strategy": "multi_worker"}
        processes = []
        for index in range(count):
            config = {
                "cluster": {"worker": addresses},
                "task": {"type": "worker", "index": index},
            }
            workdir = self.folder / (name if index == 0 else f"{name}-{index}")
            command = [
                sys.executable,
                "-c",
                textwrap.dedent(_COMMAND),
                str(dies[1] if index == dies[0] else 0),
                f"--workdir={workdir}",
                *(f"--{key}={value}" for key, value in fields.items()),
            ]
            processes.append(
                subprocess.Popen(
                    command,
                    env=_environment(TF_CONFIG=json.dumps(config)),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            self.addCleanup(processes[-1].kill)
        outputs = [each.communicate(timeout=_SECONDS) for each in processes]
        codes = [each.returncode for each in processes]
        # The others write nothing.
        for index in range(1, count):
            self.assertFalse((self.folder / f"{name}-{index}").exists())
        return [(code, *out) for code, out in zip(codes, outputs)]

    def _assert_same(self, one: pathlib.Path, other: pathlib.Path) -> None:
        expected, found = _variables(one), _variables(other)
        self.assertEqual(expected.keys(), found.keys())
        for name, values in expected.items():
            np.testing.assert_allclose(
                found[name], values, rtol=1e-4, atol=1e-4, err_msg=name
            )

    def test_two_processes_equal_one(self):
        self.fields.update(table_init="co_occurrence")
        alone = self._train_alone("alone")
        [chief, other] = self._train_together("together", 2)
        self.assertEqual((chief[0], other[0]), (0, 0), chief[2] + other[2])
        self._assert_same(alone, self.folder / "together")
        # One of them reports.
        self.assertIn("two-tower", chief[1])
        self.assertEqual(other[1], "")
        metrics = json.loads(
            (self.folder / "together" / "metrics.json").read_text()
        )
        self.assertEqual(metrics["protocol"], "leave_last_out")

    def test_three_processes_with_shards_of_their_own_equal_one(self):
        log = self.folder / "log.csv"
        header, *rows = log.read_text().splitlines()
        rows = [f"{row},{number % 5}" for number, row in enumerate(rows)]
        log.write_text("\n".join([f"{header},rating", *rows]) + "\n")
        users = [f"u{user},{'abc'[user % 3]}" for user in range(0, 60, 2)]
        text = "\n".join(["user,job", *users])
        (self.folder / "users.csv").write_text(text + "\n")
        features = {
            "event_features": "rating",
            "time_features": "gap",
            "context_features": "gap",
            "user_features": "job",
        }
        options = Options(num_shards=7, num_queries=20, **features)
        shards = self.folder / "shards"
        shard_preparation.prepare_shards(
            sources.Source(str(log)), shards, options, 1
        )
        self.fields.update(
            **features,
            feature_dropout=0.0,
            data=str(shards),
            encoder="mean_pooling",
            loss="sampled_softmax",
            negatives="mixed",
            num_negatives=20,
            negatives_per_row=True,
            mask_known_items=True,
        )
        alone = self._train_alone("alone")
        answers = self._train_together("together", 3)
        self.assertEqual([code for code, _, _ in answers], [0] * 3, answers)
        self._assert_same(alone, self.folder / "together")

    def test_a_lost_process_ends_all_and_the_next_start_resumes(self):
        self.fields.update(
            encoder="mean_pooling",
            dropout=0.3,
            loss="sampled_softmax",
            negatives="in_batch",
            num_negatives=20,
            table_optimizer="rowwise_adagrad",
        )
        answers = self._train_together("whole", 2)
        self.assertEqual([code for code, _, _ in answers], [0, 0], answers)
        [chief, _] = self._train_together("resumed", 2, dies=(1, 7))
        self.assertEqual(chief[0], 1)
        self.assertRegex(
            chief[2].splitlines()[-1],
            "error: worker 1 of 2 lost another one; rerun the command.* to "
            "resume from the last checkpoint. Received: ",
        )
        self.assertNotIn("Traceback", chief[2])
        [chief, other] = self._train_together("resumed", 2)
        self.assertEqual((chief[0], other[0]), (0, 0), chief[2] + other[2])
        self.assertIn("resuming at epoch 1/2, step 7", chief[2])
        whole = _variables(self.folder / "whole")
        resumed = _variables(self.folder / "resumed")
        for name, values in whole.items():
            np.testing.assert_array_equal(resumed[name], values, err_msg=name)

    def test_two_devices_share_weights_and_dislikes(self):
        log = self.folder / "log.csv"
        header, *rows = log.read_text().splitlines()
        kinds = np.random.default_rng(1).choice(
            ["view", "buy", "hide"], len(rows), p=[0.6, 0.3, 0.1]
        )
        rows = [f"{row},{kind}" for row, kind in zip(rows, kinds, strict=True)]
        log.write_text("\n".join([f"{header},event", *rows]) + "\n")
        self.fields.update(
            encoder="mean_pooling",
            events="view:1,buy:50",
            dislikes="hide",
            loss="sampled_softmax",
            num_negatives=8,
            # A single step, since Adam amplifies rounding.
            positions_per_batch=5000,
            num_epochs=1,
        )
        # As in the other process.
        with mock.patch.object(_InPieces, "_NUM_AT_ONCE", 64):
            alone = self._train_alone("alone")
        self._train_mirrored({"mirrored": self.fields})
        self._assert_same(alone, self.folder / "mirrored")

    def _train_mirrored(self, runs: dict[str, dict]) -> str:
        """Trains on two devices, by workdir; returns what was printed."""
        runs = {str(self.folder / name): each for name, each in runs.items()}
        output = subprocess.run(
            [
                sys.executable,
                "-c",
                textwrap.dedent(_MIRRORED),
                json.dumps(runs),
            ],
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        self.assertEqual(output.returncode, 0, output.stderr)
        return output.stdout

    def test_two_devices_equal_one(self):
        # Much is padding, which is skipped.
        self.fields.update(weight_decay=0.01, max_history_length=64)
        # Like a large table, which is initialized and sent in pieces.
        with mock.patch.object(_InPieces, "_NUM_AT_ONCE", 64):
            alone = self._train_alone("alone")
        printed = self._train_mirrored(
            {
                "mirrored": self.fields,
                "dropout": {**self.fields, "dropout": 0.3},
            }
        )
        self._assert_same(alone, self.folder / "mirrored")
        # With dropout each replica draws its own mask.
        [without, states] = json.loads(printed)
        self.assertEqual(without, [])
        self.assertNotEmpty(states)
        for (seed, used), (other_seed, other_used) in states:
            self.assertEqual(other_seed, seed + 1)
            self.assertEqual(other_used, used)

    def test_tf_config_must_be_set(self):
        config = TrainConfig(**self.fields, strategy="multi_worker")
        with self.assertRaisesRegex(InputError, "TF_CONFIG must be set"):
            training.train(config, self.folder / "run", verbose=False)
        self.assertFalse((self.folder / "run").exists())


if __name__ == "__main__":
    absltest.main()
