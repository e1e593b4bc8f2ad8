"""The commands from end to end, in processes of their own where it counts."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile

import h5py
import numpy as np
import tensorflow as tf
from absl.testing import absltest
from commands import run

import recsys
from recsys import evaluate, recommend, train
from recsys.data.prepare import build_data
from recsys.training.initial_table import transition_values
from recsys.workdir import Workdir, checkpoint_paths

ROOT = pathlib.Path(__file__).parents[1]


def write_log(path: pathlib.Path) -> None:
    """Writes the steps of 60 users around a circle of 25 items.

    Their lengths are of one length bucket: each more takes seconds to trace.
    """
    rng = np.random.default_rng(0)
    rows = ["user,item,timestamp"]
    for user in range(60):
        begin, length = rng.integers(25), rng.integers(12, 18)
        for step in range(length):
            rows.append(f"u{user},i{(begin + step) % 25},{step}")
    path.write_text("\n".join(rows) + "\n")


def model_weights(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the weights in model.keras by their places in the file."""
    weights = {}
    with zipfile.ZipFile(workdir / "model.keras") as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content) as file:
        file.visititems(
            lambda name, item: (
                weights.update({name: item[()]})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    return weights


def checkpoint_variables(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the variables of the newest checkpoint, the optimizer's too."""
    path = str(checkpoint_paths(workdir / "checkpoints")[-1] / "variables")
    return {
        name: tf.train.load_variable(path, name)
        for name, _ in tf.train.list_variables(path)
        if name.startswith("variables/")
    }


class RunTestCase(absltest.TestCase):
    """Runs `python -m recsys.train` on a small log."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = pathlib.Path(
            cls.enterClassContext(tempfile.TemporaryDirectory())
        )
        write_log(cls.folder / "log.csv")

    def arguments(self, workdir: pathlib.Path, **more) -> list[str]:
        values = {
            "data": self.folder / "log.csv",
            "workdir": workdir,
            "embedding_dim": 16,
            "num_blocks": 1,
            "max_history_length": 16,
            "positions_per_batch": 32,
            "warmup_steps": 5,
            "num_epochs": 3,
            "checkpoint_steps": 8,
            **more,
        }
        return [f"--{name}={value}" for name, value in values.items()]

    def start(self, workdir: pathlib.Path, **options) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "recsys.train", *self.arguments(workdir)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def assertSameArrays(self, arrays, expected):
        self.assertNotEmpty(expected)
        self.assertEqual(arrays.keys(), expected.keys())
        for name, value in expected.items():
            np.testing.assert_array_equal(arrays[name], value, name)


class KilledTest(RunTestCase):
    def test_killed_stopped_by_a_full_disk_and_resumed(self):
        """The interrupted run ends bit for bit as the other one does."""
        whole, broken = self.folder / "whole", self.folder / "broken"
        uninterrupted = self.start(whole)
        self.kill_within_an_epoch(broken)
        out, err = uninterrupted.communicate()
        self.assertEqual(uninterrupted.returncode, 0, err)
        self.check_output(out, err, whole)
        self.fail_with_a_full_disk(broken)
        resumed = self.start(broken)
        _, err = resumed.communicate()
        self.assertEqual(resumed.returncode, 0, err)
        self.assertRegex(err, r"(?m)^resuming at epoch \d/3")
        self.assertSameArrays(model_weights(broken), model_weights(whole))
        self.assertSameArrays(
            checkpoint_variables(broken), checkpoint_variables(whole)
        )
        results = [
            json.loads((workdir / "metrics.json").read_text())
            for workdir in (whole, broken)
        ]
        self.assertEqual(results[0]["metrics"], results[1]["metrics"])
        self.check_finished(whole)

    def kill_within_an_epoch(self, workdir):
        """Kills a run as soon as it has a checkpoint inside an epoch."""
        process = self.start(workdir)
        while not self.is_within_an_epoch(workdir):
            self.assertIsNone(process.poll(), "ended before it was killed")
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        self.assertEqual(process.returncode, -signal.SIGKILL)
        self.assertFalse((workdir / "metrics.json").exists())

    def is_within_an_epoch(self, workdir) -> bool:
        for path in checkpoint_paths(workdir / "checkpoints"):
            with contextlib.suppress(FileNotFoundError):
                text = (path / "progress.json").read_text()
                return json.loads(text)["step"] > 0
        return False

    def fail_with_a_full_disk(self, workdir):
        """Resumes where no file may grow to the size of a checkpoint.

        Small files may: TensorFlow has some of its own.
        """
        before = {
            path: path.read_bytes()
            for path in (workdir / "checkpoints").rglob("*")
            if path.is_file() and "/." not in str(path)
        }
        self.assertNotEmpty(before)
        process = self.start(
            workdir,
            preexec_fn=lambda: resource.setrlimit(
                resource.RLIMIT_FSIZE, (2**14, 2**14)
            ),
        )
        _, err = process.communicate()
        self.assertEqual(process.returncode, 1, err)
        lines = [
            line
            for line in err.splitlines()
            if not line.startswith(("loss: ", "resuming at", "epoch "))
        ]
        self.assertLen(lines, 1, err)
        self.assertStartsWith(lines[0], "python -m recsys.train: error: ")
        for path, content in before.items():
            self.assertEqual(path.read_bytes(), content)

    def check_output(self, out, err, workdir):
        """What a run says, also where there is no terminal."""
        for text in (
            "60 users, 25 items",
            "recommender",
            "popularity",
            "markov",
            "EASE",
            "two-tower",
            f"The model and its results are in {workdir}",
            f"python -m recsys.evaluate --workdir={workdir}",
            f"python -m recsys.recommend --workdir={workdir} --history=i",
            f"tensorboard --logdir={workdir}/logs",
        ):
            self.assertIn(text, out)
        # Nothing of TensorFlow's: the loss, a line per epoch, and no more.
        loss, *epochs = err.splitlines()
        self.assertStartsWith(loss, "loss: full softmax; item table of 25 ")
        self.assertLen(epochs, 3, err)
        for number, line in enumerate(epochs, start=1):
            self.assertRegex(
                line,
                rf"^epoch {number}/3  loss \d+\.\d+  validation recall@10 "
                r"\d\.\d+  ndcg@10 \d\.\d+ .* interactions/s  [\d.]+ s"
                r"(  best so far)?$",
            )

    def check_finished(self, workdir):
        """The same command on a finished run trains nothing."""
        (workdir / "metrics.json").unlink()
        before = model_weights(workdir)
        code, out, err = run(train, *self.arguments(workdir))
        self.assertEqual(code, 0, err)
        self.assertEqual(
            err, "this run is finished: 3 epochs, nothing to train\n"
        )
        self.assertIn("two-tower", out)
        self.assertTrue((workdir / "metrics.json").exists())
        self.assertSameArrays(model_weights(workdir), before)

        log = self.folder / "log.csv"
        content = log.read_text()
        self.addCleanup(log.write_text, content)
        log.write_text(content + "u0,i99,99\n")
        code, _, err = run(train, *self.arguments(workdir))
        self.assertEqual(code, 2)
        self.assertIn("the data have changed since this run started", err)


class OtherRunsTest(RunTestCase):
    def test_same_seed_same_weights(self):
        weights = []
        for number, seed in enumerate((0, 0, 1)):
            workdir = self.folder / f"seed_{number}"
            code, _, err = run(
                train,
                *self.arguments(
                    workdir, seed=seed, encoder="mean_pooling", num_epochs=1
                ),
            )
            self.assertEqual(code, 0, err)
            weights.append(model_weights(workdir))
        self.assertSameArrays(weights[0], weights[1])
        with self.assertRaises(AssertionError):
            self.assertSameArrays(weights[0], weights[2])

    def test_settings_are_chosen_by_the_log_and_kept(self):
        workdir = self.folder / "chosen"
        arguments = self.arguments(
            workdir, encoder="mean_pooling", num_epochs=1, dropout=0.1
        )
        code, out, err = run(train, *arguments)
        self.assertEqual(code, 0, err)
        # Some 14 interactions per user; what was given is not chosen.
        self.assertRegex(
            out,
            r"preset auto: table_init=co_occurrence, transition_dim=256, "
            "loss=full_softmax; "
            r"short histories \(13 interactions per user, 30 per item\)",
        )
        stored = json.loads((workdir / "config.json").read_text())
        self.assertEqual(stored["table_init"], "co_occurrence")
        self.assertEqual(stored["dropout"], 0.1)
        self.assertEqual(stored["chosen"], "")
        # The sketch is counted from the training interactions alone.
        model = recsys.load(workdir).model
        keys = model.history_tower.transition_keys.numpy()
        data = build_data(Workdir(workdir).read_config())
        sequences = data.split.train.read_all()
        self.assertLess(sequences.num_interactions, 873)
        np.testing.assert_allclose(
            model.candidate_tower.transition_values,
            transition_values(sequences, keys),
            atol=1e-6,
        )
        code, _, err = run(train, *arguments)
        self.assertEqual(code, 0, err)
        code, _, err = run(train, *arguments, "--patience=6")
        self.assertEqual(code, 2)
        self.assertIn("patience (5 there, 6 now)", err)

    def test_validation_only(self):
        workdir = self.folder / "validation_only"
        code, out, err = run(
            train,
            *self.arguments(
                workdir,
                split="validation_only",
                encoder="mean_pooling",
                num_epochs=1,
            ),
        )
        self.assertEqual(code, 0, err)
        self.assertIn("no test queries", out)
        self.assertIn("Validation queries, as this split tests nothing.", out)
        written = json.loads((workdir / "metrics.json").read_text())
        self.assertEqual(written["protocol"], "validation_only")
        self.assertEqual(written["queries"], "validation")

    def test_a_loss_that_is_not_finite_is_one_line(self):
        code, _, err = run(
            train,
            *self.arguments(
                self.folder / "diverged",
                encoder="mean_pooling",
                learning_rate=1e30,
                warmup_steps=0,
            ),
        )
        self.assertEqual(code, 1)
        self.assertRegex(err, "error: epoch .*finite loss; a lower --learning")


class BundledTest(absltest.TestCase):
    """A short run on the bundled data, and what can be done with it."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = pathlib.Path(
            cls.enterClassContext(tempfile.TemporaryDirectory())
        )
        cls.workdir = cls.folder / "run"
        cls.code, cls.out, cls.err = run(
            train,
            f"--workdir={cls.workdir}",
            "--num_epochs=1",
            "--embedding_dim=16",
            "--num_blocks=1",
            "--max_history_length=40",
            "--warmup_steps=10",
            "--learning_rate=0.01",
        )

    def setUp(self):
        super().setUp()
        self.assertEqual(self.code, 0, self.err)

    def metrics(self):
        return json.loads((self.workdir / "metrics.json").read_text())

    def test_metrics(self):
        for written in (self.metrics(), self.evaluated()):
            self.assertEqual(written["protocol"], "leave_last_out")
            self.assertEqual(written["num_queries"], 671)
            self.assertEqual(written["num_candidates"], 9066)
            # Chance would be 10 of 9,066.
            self.assertGreater(written["metrics"]["recall@10"], 0.01)
            self.assertIn("ndcg@10", written["metrics"])
            baselines = written["baselines"]
            self.assertCountEqual(baselines, ["popularity", "markov", "ease"])
            self.assertAlmostEqual(
                baselines["popularity"]["recall@10"], 0.042, delta=0.002
            )

    def evaluated(self):
        """Returns metrics.json as the other command writes it."""
        before = self.metrics()
        rankings = self.folder / "rankings.jsonl"
        code, out, err = run(
            evaluate,
            f"--workdir={self.workdir}",
            "--audit",
            "--slices",
            f"--write_rankings={rankings}",
            f"--report={self.folder / 'report'}",
        )
        self.assertEqual(code, 0, err)
        page = self.folder / "report" / "index.html"
        self.assertIn(f"The report is in {page}.", out)
        self.assertIn("two-tower on movielens-small", page.read_text("utf-8"))
        self.assertRegex(out, r"coverage@10 +0\.\d+  \d+ items on any list")
        self.assertRegex(out, r"diversity@10 +0\.\d+")
        self.assertIn("Leak audit of split leave_last_out: passed", out)
        self.assertIn("By length of the history", out)
        after = self.metrics()
        self.assertEqual(after["metrics"], before["metrics"])
        self.assertEqual(after["training"], before["training"])
        self.assertEqual(
            sum(
                part["num_queries"]
                for part in after["slices"]["length of the history"].values()
            ),
            671,
        )
        self.assertContainsSubset(
            {"coverage@10", "gini@10", "novelty@10", "popularity@10"},
            after["lists"],
        )
        self.assertEqual(
            after["lists"]["coverage@10"], after["health"]["catalogue_share"]
        )
        # The lists that it wrote, read again, are as good as the model.
        code, out, err = run(
            evaluate,
            f"--workdir={self.workdir}",
            "--baselines=popularity",
            f"--compare={rankings}",
        )
        self.assertEqual(code, 0, err)
        self.assertRegex(out, r"recall@10 +(\d\.\d+) +\1 +\+0\.0000")
        code, _, err = run(evaluate, f"--workdir={self.workdir}")
        self.assertEqual(code, 0, err)
        return self.metrics()

    def test_rankings_recomputed_by_another_library(self):
        process = subprocess.run(
            [
                sys.executable,
                "scripts/verify_rankings.py",
                f"--workdir={self.workdir}",
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        self.assertEqual(process.returncode, 0, process.stderr)
        self.assertRegex(process.stdout, r"ndcg@100 +0\.\d+ +0\.\d+")
        self.assertRegex(process.stdout, "671 queries, .*difference .*e-1[0-9]")

    def test_evaluate_refuses_a_leak(self):
        before = self.metrics()
        code, _, err = run(
            evaluate, f"--workdir={self.workdir}", "--protocol=temporal"
        )
        self.assertEqual(code, 2)
        self.assertIn("asks for what the model was trained on", err)
        self.assertEqual(self.metrics(), before)

    def test_evaluate_on_another_log(self):
        log = self.folder / "other.csv"
        rows = ["userId,movieId,timestamp"]
        for user in range(5):
            rows += [
                f"{user},{movie},{time}"
                for time, movie in enumerate(("1", "356", "new", "296"))
            ]
        log.write_text("\n".join(rows) + "\n")
        other = self.folder / "other"
        shutil.copytree(self.workdir, other)
        code, out, err = run(evaluate, f"--workdir={other}", f"--data={log}")
        self.assertEqual(code, 0, err)
        self.assertIn("5 queries, all 4 items ranked", out)
        self.assertIn("1 of 4 items are unknown to the model", out)

    def test_another_configuration_is_refused(self):
        code, _, err = run(train, f"--workdir={self.workdir}", "--seed=3")
        self.assertEqual(code, 2)
        self.assertIn("seed (0 there, 3 now)", err)

    def test_recommend(self):
        code, out, err = run(
            recommend,
            f"--workdir={self.workdir}",
            "--history=Alien (1979)",
            "--history=the matrix (1999)",
            "--history=1",
            "--k=5",
        )
        self.assertEqual(code, 0, err)
        self.assertStartsWith(
            out, "After Alien (1979), Matrix, The (1999), Toy Story (1995):\n"
        )
        self.assertLen(out.splitlines(), 7)
        self.assertRegex(out.splitlines()[2], r"^1  .+ \(\d+\) +id \d+ +-?\d")
        expected = recsys.load(self.workdir).recommend(
            ["1214", "2571", "1"], k=5
        )
        for line, item in zip(out.splitlines()[2:], expected, strict=True):
            self.assertIn(f"{item.title} ", line)
            self.assertIn(f" id {item.item_id} ", line)

    def test_recommend_and_explain(self):
        code, out, err = run(
            recommend,
            f"--workdir={self.workdir}",
            "--history=Alien (1979)",
            "--history=1",
            "--k=2",
            "--explain",
        )
        self.assertEqual(code, 0, err)
        lines = out.splitlines()
        self.assertLen(lines, 6)
        for line in (lines[3], lines[5]):
            self.assertRegex(line, r"^ +[+-]\d+\.\d{4} .+; [+-]\d+\.\d{4} ")
            self.assertIn("Alien (1979)", line)
            self.assertIn("Toy Story (1995)", line)

    def test_similar_items(self):
        code, out, err = run(
            recommend,
            f"--workdir={self.workdir}",
            "--similar_to=alien (1979)",
            "--k=3",
        )
        self.assertEqual(code, 0, err)
        self.assertStartsWith(out, "Like Alien (1979), ")
        expected = recsys.load(self.workdir).similar("1214", k=3)
        for line, item in zip(out.splitlines()[2:], expected, strict=True):
            self.assertIn(f" id {item.item_id} ", line)
            self.assertEndsWith(line, f"{item.score:.4f}")

    def test_recommend_with_nothing_known(self):
        for arguments in ([], ["--history="], ["--history=123456789"]):
            code, out, err = run(
                recommend, f"--workdir={self.workdir}", "--k=1", *arguments
            )
            self.assertEqual(code, 0, err)
            self.assertStartsWith(out, "No known item in the history")
            self.assertIn("Forrest Gump (1994)", out)
        self.assertIn("unknown item, ignored: '123456789'", err)

    def test_recommend_more_than_there_is(self):
        code, out, err = run(
            recommend,
            f"--workdir={self.workdir}",
            "--history=1",
            "--k=20000",
        )
        self.assertEqual(code, 0, err)
        self.assertEndsWith(
            out, "Only 9065 of k=20000: no more items are left to recommend.\n"
        )
        self.assertNotIn("Toy Story (1995)  ", out)

    def test_recommend_suggests(self):
        code, _, err = run(
            recommend, f"--workdir={self.workdir}", "--history=The Matrx"
        )
        self.assertEqual(code, 2)
        self.assertIn("'Matrix, The (1999)' (id 2571)", err)
        self.assertEqual(err.count("\n"), 1)

    def test_recommend_for_a_file(self):
        histories = self.folder / "histories.jsonl"
        output = self.folder / "output.jsonl"
        queries = [["1214", "2571", "1"], [], ["no such"], ["1", "no such"]]
        histories.write_text(
            "".join(
                json.dumps({"query_id": f"q{row}", "history": history}) + "\n"
                for row, history in enumerate(queries)
            )
        )
        code, out, err = run(
            recommend,
            f"--workdir={self.workdir}",
            f"--histories={histories}",
            f"--output={output}",
            "--k=3",
        )
        self.assertEqual(code, 0, err)
        self.assertEqual(out, "")
        self.assertIn("2 unknown ids in 2 histories", err)
        self.assertIn("2 histories without a known item", err)
        lines = output.read_text().splitlines()
        answers = [json.loads(line) for line in lines]
        self.assertEqual(
            [answer["query_id"] for answer in answers],
            ["q0", "q1", "q2", "q3"],
        )
        recommender = recsys.load(self.workdir)
        for row, known in ((0, queries[0]), (3, ["1"])):
            expected = recommender.recommend(known, k=3)
            self.assertEqual(
                answers[row]["items"], [item.item_id for item in expected]
            )
            np.testing.assert_allclose(
                answers[row]["scores"],
                [item.score for item in expected],
                rtol=1e-4,
                atol=1e-5,
            )
        self.assertEqual(answers[1]["items"], ["356", "296", "318"])
        self.assertEqual(answers[1]["items"], answers[2]["items"])


if __name__ == "__main__":
    absltest.main()
