"""Training on kinds of events and dislikes, by the command line."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl.testing import absltest, parameterized
from commands import run as run_here

import recsys
from recsys import extend, training
from recsys.config import TrainConfig
from recsys.data import prepare
from recsys.errors import InputError
from recsys.training import distributed, trainer
from recsys.workdir import Workdir

_FLAGS = (
    "--encoder=mean_pooling",
    "--embedding_dim=8",
    "--num_epochs=1",
    "--max_history_length=16",
    "--positions_per_batch=256",
    "--warmup_steps=2",
)


def write_log(path: pathlib.Path, users=range(60), begin: int = 0) -> None:
    """Steps around a circle of 25 items, each viewed, some of them bought.

    Every user also hides two items that are far from the next ones.
    """
    rng = np.random.default_rng(0)
    rows = ["user,item,timestamp,event,rating"]
    for user in users:
        start, length = rng.integers(25), rng.integers(8, 18)
        for step in range(begin, begin + length):
            item = f"i{(start + step) % 25}"
            rows.append(f"u{user},{item},{10 * step},view,4")
            if step % 2:
                rows.append(f"u{user},{item},{10 * step + 1},buy,5")
            if step - begin in (1, 4):
                far = f"i{(start + step + 12) % 25}"
                rows.append(f"u{user},{far},{10 * step + 2},hide,1")
    path.write_text("\n".join(rows) + "\n")


def run(module: str, *flags: str) -> str:
    """Runs a command in a process of its own and returns what it printed."""
    path = os.pathsep.join(sys.path)
    found = subprocess.run(
        [sys.executable, "-m", f"recsys.{module}", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=300,
    )
    if found.returncode:
        raise AssertionError(found.stdout + found.stderr)
    return found.stdout


class TrainingTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )
        self.log = self.folder / "log.csv"
        write_log(self.log)
        self.workdir = self.folder / "run"

    def _train(self, *flags: str) -> tuple[str, dict]:
        printed = run(
            "train",
            f"--data={self.log}",
            f"--workdir={self.workdir}",
            *_FLAGS,
            *flags,
        )
        return printed, json.loads((self.workdir / "metrics.json").read_text())

    def test_nothing_said(self):
        printed, metrics = self._train("--rating_column=")
        self.assertIn("rows count alike; --events=view:1,buy:1,hide:1", printed)
        self.assertNotIn("events", metrics)

    def test_events_are_weighted_and_measured_by_kind(self):
        printed, metrics = self._train("--events=view:1,buy:5")
        self.assertRegex(printed, r"view \(weight 1\), [\d,]+ buy \(weight 5\)")
        self.assertIn("rows of other kinds dropped: 120 hide", printed)
        stored = run("evaluate", f"--workdir={self.workdir}")
        self.assertIn("By kind of the relevant event:", stored)
        found = metrics["events"]
        self.assertCountEqual(found, ["view", "buy"])
        self.assertEqual(
            sum(each["num_queries"] for each in found.values()), 60
        )
        mean = sum(
            each["num_queries"] * each["metrics"]["ndcg@10"]
            for each in found.values()
        )
        self.assertAlmostEqual(mean / 60, metrics["metrics"]["ndcg@10"])
        # The rate counts interactions, not their weights.
        [epoch] = metrics["training"]
        num_targets = epoch["seconds"] * epoch["interactions_per_second"]
        data = prepare.build_data(Workdir(self.workdir).read_config())
        train = data.split.train
        self.assertAlmostEqual(
            num_targets / (train.num_interactions - 60), 1, delta=0.1
        )
        audit = run("evaluate", f"--workdir={self.workdir}", "--audit")
        self.assertIn("Leak audit of split leave_last_out: passed", audit)

    def test_only_the_ratios_of_weights_matter(self):
        losses = []
        for weights in ("view:1,buy:4", "view:0.0001,buy:0.0004"):
            config = TrainConfig(
                data=str(self.log),
                events=weights,
                encoder="mean_pooling",
                embedding_dim=8,
                num_epochs=1,
                max_history_length=16,
                positions_per_batch=256,
            )
            steps = []

            class Losses(training.Callback):
                def on_step(self, progress, loss, steps=steps):
                    steps.append(loss)

            result = training.train(
                config,
                self.folder / weights[:8],
                verbose=False,
                evaluate=False,
                callbacks=[Losses()],
            )
            losses.append([*steps, result.history[0]["loss"]])
        self.assertGreater(losses[0][-1], 1)
        np.testing.assert_allclose(*losses, rtol=1e-4)

    def test_target_events_alone_are_asked_for(self):
        _, metrics = self._train("--target_events=buy", "--repeats=all")
        self.assertNotIn("events", metrics)
        self.assertEqual(metrics["num_queries"], 60)
        data = prepare.build_data(Workdir(self.workdir).read_config())
        for queries in (data.split.validation, data.split.test):
            sequences = queries.sequences
            codes = sequences.columns["event"][queries.history_ends]
            self.assertEqual(
                {sequences.kinds.names[code] for code in codes}, {"buy"}
            )
        audit = run("evaluate", f"--workdir={self.workdir}", "--audit")
        self.assertIn("no target is an event that is history only", audit)

    @parameterized.parameters(
        ("--dislikes=hide", "full_softmax"),
        ("--max_rating=2", "sampled_softmax"),
    )
    def test_dislikes_score_lower_than_without_them(self, flag, loss):
        more = ("--num_epochs=4", f"--loss={loss}", "--learning_rate=0.02")
        more += ("--event_column=event", "--selection_metric=recall@20")
        printed, _ = self._train(flag, *more)
        self.assertIn("120 dislikes: ", printed)
        with_them = self._scores()
        self.workdir = self.folder / "without"
        # The same likes: those of rating 1 are left out in either way.
        self._train("--min_rating=2", *more)
        self.assertLess(with_them, self._scores())

    def _scores(self) -> float:
        """The mean standing of a user's dislikes among all scores."""
        data = prepare.build_data(
            TrainConfig(data=str(self.log), max_rating=2.0)
        )
        queries = data.split.test
        model = recsys.load(self.workdir)
        items, offsets = queries.histories(np.arange(len(queries)))
        known = model.vocabulary.encode(
            data.vocabulary.decode(items), strict=True
        )
        scores = model.scores(known, offsets)[:, 2:]
        scores = (scores - scores.mean(1, keepdims=True)) / scores.std(
            1, keepdims=True
        )
        dislikes = queries.sequences.dislikes.select(queries.users)
        rows = np.repeat(np.arange(len(queries)), dislikes.lengths)
        columns = model.vocabulary.encode(
            data.vocabulary.decode(dislikes.items), strict=True
        )
        return float(scores[rows, columns - 2].mean())

    def test_shards_by_the_command_line_train_to_the_same_weights(self):
        events = ("--events=view:1,buy:5", "--dislikes=hide", "--repeats=all")
        shards = self.folder / "shards"
        printed = run(
            "prepare_shards",
            f"--data={self.log}",
            f"--output={shards}",
            "--num_shards=1",
            "--num_queries=0",
            "--num_workers=1",
            *events,
        )
        self.assertIn("120 dislikes: ", printed)
        self.assertIn("--events=view:1,buy:5", printed)
        _, whole = self._train(*events)
        self.log, self.workdir = shards, self.folder / "sharded"
        _, sharded = self._train(*events)
        for name in ("metrics", "num_queries", "events"):
            self.assertEqual(sharded[name], whole[name])
        self.assertEqual(
            sharded["training"][0]["loss"], whole["training"][0]["loss"]
        )

    def test_a_run_is_not_resumed_on_other_events(self):
        flags = {
            "data": str(self.log),
            "encoder": "mean_pooling",
            "num_epochs": 1,
            "dislikes": "hide",
            "embedding_dim": 8,
        }
        training.train(
            TrainConfig(**flags), self.workdir, verbose=False, evaluate=False
        )
        text = self.log.read_text()
        # Another dislike of the same items, after the same likes.
        self.log.write_text(text + "u3,i1,1,hide,1\n")
        with self.assertRaisesRegex(InputError, "the data have changed"):
            training.train(TrainConfig(**flags), self.workdir, verbose=False)

    def test_extending_keeps_kinds_and_dislikes(self):
        self._train("--events=view:1,buy:5", "--dislikes=hide", "--repeats=all")
        write_log(self.folder / "more.csv", range(50, 80), begin=40)
        code, printed, error = run_here(
            extend,
            f"--workdir={self.workdir}",
            f"--data={self.folder / 'more.csv'}",
            f"--output_workdir={self.folder / 'grown'}",
            "--num_epochs=1",
        )
        self.assertEqual(code, 0, error)
        config = Workdir(self.folder / "grown").read_config()
        train = prepare.build_data(config).split.train
        self.assertEqual(train.kinds.names, ("view", "buy"))
        # 60 users of the first log and 30 of the second hid two items each.
        self.assertEqual(int((train.dislikes.lengths > 0).sum()), 60 + 20)
        self.assertIn("view (weight 1)", printed)


class ReplicasTest(absltest.TestCase):
    def test_one_mirrored_replica_takes_the_steps_of_one_device(self):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        write_log(folder / "log.csv")
        config = TrainConfig(
            data=str(folder / "log.csv"),
            encoder="mean_pooling",
            embedding_dim=8,
            events="view:1,buy:5",
            dislikes="hide",
            loss="sampled_softmax",
            num_negatives=8,
            repeats="all",
            positions_per_batch=256,
            max_history_length=16,
        )
        data = prepare.build_data(config)
        losses = []
        for strategy in ("single", "mirrored"):
            replicas = distributed.connect(strategy, None)
            made = trainer.Trainer(
                config, Workdir(folder / strategy), data, False, replicas
            )
            made._start()
            losses.append(
                [
                    float(made.train_step(each)[0])
                    for each in made.batches(0).take(4)
                ]
            )
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


if __name__ == "__main__":
    absltest.main()
