"""A teacher's answers, and training with them."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from commands import run

import recsys
from recsys import extend, train, tune
from recsys.config import TrainConfig
from recsys.data.sequences import Sequences
from recsys.errors import InputError
from recsys.training import teacher as teaching
from recsys.training import train as run_training
from recsys.workdir import Workdir

NUM_ITEMS = 9
HISTORIES = [
    [2, 3, 4, 5, 6, 7, 8, 9, 10, 2, 3, 5],
    [],
    [4],
    [7, 3],
    [5, 5, 6, 3, 2, 9],
]


def sequences() -> Sequences:
    lengths = [len(each) for each in HISTORIES]
    total = sum(lengths)
    return Sequences(
        np.array([f"u{i}" for i in range(len(lengths))], object),
        np.cumsum([0, *lengths]),
        np.concatenate(HISTORIES).astype(np.int32),
        np.arange(total),
    )


def teacher_model() -> recsys.TwoTower:
    table = recsys.SharedItemEmbedding(NUM_ITEMS + 2, 6)
    encoder = recsys.SelfAttentionEncoder(1, 1, dropout=0.5)
    tower = recsys.HistoryTower(table, encoder, transition_dim=2)
    model = recsys.TwoTower(
        tower, recsys.CandidateTower(table, transition_dim=2)
    )
    model.build()
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.normal(size=variable.shape))
    return model


class AnswersTest(parameterized.TestCase):
    @parameterized.product(
        masks_known=(False, True),
        max_length=(1, 4, 20),
        num_soft_targets=(3, 32),
    )
    def test_each_is_that_of_the_history_before(
        self, masks_known, max_length, num_soft_targets
    ):
        model, log = teacher_model(), sequences()
        with (
            mock.patch.object(teaching, "NUM_SOFT_TARGETS", num_soft_targets),
            # So few logits at once that there are many batches.
            mock.patch.object(teaching, "_LOGITS_AT_ONCE", 40),
        ):
            all_ids, all_shares = teaching.soft_targets_of(
                model,
                log,
                max_length=max_length,
                masks_known=masks_known,
                temperature=2.0,
            )
        self.assertTrue(np.isfinite(all_shares).all())
        width = min(num_soft_targets, NUM_ITEMS)
        self.assertEqual(all_ids.shape, (len(log.items), width))
        self.assertEqual(all_ids.dtype, np.int32)
        rows = model.candidate_tower.embedding.embeddings.numpy()[2:]
        place = 0
        for history in HISTORIES:
            for target in range(len(history)):
                ids, shares = all_ids[place], all_shares[place]
                place += 1
                if not target:
                    self.assertFalse(ids.any() or shares.any())
                    continue
                # It may have read less, but not less than half.
                found = []
                for length in range(max(1, max_length // 2), max_length + 1):
                    read = history[max(0, target - length) : target]
                    query = model.history_tower(np.array([read])).numpy()[0, :6]
                    chances = np.exp(rows @ query / 2)
                    if masks_known:
                        chances[np.array(history[:target]) - 2] = 0
                    chances /= chances.sum() or 1.0
                    order = np.argsort(-chances, kind="stable")[:width]
                    expected = np.zeros(NUM_ITEMS)
                    expected[order] = chances[order]
                    got = np.zeros(NUM_ITEMS)
                    got[ids[shares > 0] - 2] = shares[shares > 0]
                    found.append(np.abs(got - expected).max())
                self.assertLess(min(found), 2e-3)


def write_log(path: pathlib.Path) -> str:
    lines = ["user,item,time"]
    for user in range(30):
        lines += [
            f"u{user},i{(user + step * (1 + user % 2)) % 12},{step}"
            for step in range(8)
        ]
    path.write_text("\n".join(lines))
    return str(path)


class TrainingTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = pathlib.Path(
            cls.enterClassContext(tempfile.TemporaryDirectory())
        )
        cls.config = TrainConfig(
            data=write_log(cls.folder / "log.csv"),
            embedding_dim=4,
            num_blocks=1,
            num_epochs=2,
            positions_per_batch=40,
            warmup_steps=2,
            mask_known_items=True,
        )
        cls.teacher = cls.folder / "teacher"
        cls.train(cls.config, cls.teacher)

    @staticmethod
    def train(config, workdir):
        return run_training(config, workdir, verbose=False, evaluate=False)

    def taught(self, **changes) -> TrainConfig:
        fields = {"teacher": str(self.teacher), "teacher_weight": 0.8}
        return dataclasses.replace(self.config, **{**fields, **changes})

    def table(self, name: str) -> np.ndarray:
        model = recsys.load(self.folder / name).model
        return model.candidate_tower.embedding.embeddings.numpy()

    def test_a_weight_of_zero_changes_nothing(self):
        self.train(self.taught(teacher_weight=0.0), self.folder / "zero")
        np.testing.assert_allclose(
            self.table("zero"), self.table("teacher"), atol=1e-5
        )

    def test_a_student_comes_closer_to_its_teacher(self):
        # Long enough to learn, with and without.
        many = {"num_epochs": 12, "patience": 12, "seed": 5, "dropout": 0.0}
        alone = dataclasses.replace(self.config, **many)
        self.train(alone, self.folder / "alone")
        self.train(
            self.taught(teacher_weight=1.0, **many), self.folder / "student"
        )
        queries = np.array([[2, 3, 4], [5, 7, 9], [4, 6, 8]])

        def chances(name):
            model = recsys.load(self.folder / name).model
            scores = model({"history_ids": queries}).numpy()[:, 2:]
            chances = np.exp(scores - scores.max(axis=1, keepdims=True))
            return chances / chances.sum(axis=1, keepdims=True)

        wanted = chances("teacher")
        apart = [
            np.abs(chances(name) - wanted).sum()
            for name in ("student", "alone")
        ]
        self.assertLess(apart[0], 0.5 * apart[1])

    def test_a_resumed_run_ends_the_same(self):
        config = self.taught(num_epochs=3, patience=3, checkpoint_steps=1)
        self.train(config, self.folder / "whole")
        workdir = self.folder / "stopped"

        class Stop(Exception):
            pass

        class Stopper(recsys.training.Callback):
            def on_step(self, progress, loss):
                if progress.global_step == 7:
                    raise Stop

        with self.assertRaises(Stop):
            run_training(
                config,
                workdir,
                verbose=False,
                evaluate=False,
                callbacks=[Stopper()],
            )
        self.train(config, workdir)
        np.testing.assert_array_equal(
            self.table("stopped"), self.table("whole")
        )

    def test_an_extension_has_no_teacher(self):
        self.train(self.taught(), self.folder / "old")
        (self.folder / "later.csv").write_text(
            "user,item,time\nu1,new,90\nu2,new,90\nu3,i1,91\n"
        )
        code, _, errors = run(
            extend,
            f"--workdir={self.folder / 'old'}",
            f"--data={self.folder / 'later.csv'}",
            f"--output_workdir={self.folder / 'grown'}",
            "--num_epochs=1",
        )
        self.assertEqual(code, 0, errors)
        config = Workdir(self.folder / "grown").read_config()
        self.assertIsNone(config.teacher)

    def test_the_command_says_what_it_learns_from(self):
        code, _, errors = run(
            train,
            f"--data={self.config.data}",
            f"--teacher={self.teacher}",
            f"--workdir={self.folder / 'said'}",
            "--num_epochs=1",
        )
        self.assertEqual(code, 0, errors)
        self.assertRegex(
            errors,
            rf"asking the teacher {self.teacher} about each target\n"
            r"asked in \d+ s: the likeliest 12 items have 100% of its "
            r"probability, and so 50% of the target",
        )

    @parameterized.parameters(
        ({"loss": "sampled_softmax"}, "must go with --loss=full_softmax"),
        ({"strategy": "mirrored"}, "must go with --strategy=single"),
        ({"teacher": None}, "--teacher_weight must go with --teacher"),
        ({"teacher": "nowhere"}, "--teacher must be a folder in which"),
        ({"teacher": ""}, "--teacher must name a trained model"),
        ({"min_item_count": 21}, "must be a model of the same log"),
        ({"teacher_weight": 1.5}, "must be at most 1"),
    )
    def test_mistakes(self, changes, message):
        with self.assertRaisesRegex(InputError, message):
            self.train(self.taught(**changes), self.folder / "mistake")

    def test_a_teacher_that_reads_times(self):
        config = dataclasses.replace(self.config, time_features="gap")
        self.train(config, self.folder / "times")
        with self.assertRaisesRegex(
            InputError, "items alone. Received: .*times, which reads time_feat"
        ):
            self.train(
                self.taught(teacher=str(self.folder / "times")),
                self.folder / "mistake",
            )

    def test_auto_that_becomes_the_sampled_softmax(self):
        with (
            mock.patch("recsys.training.build.LARGEST_FULL_SOFTMAX", 3),
            self.assertRaisesRegex(InputError, "the sampled softmax for 12"),
        ):
            self.train(self.taught(), self.folder / "mistake")

    def test_a_teacher_that_moved_changed_or_left(self):
        workdir, other = self.folder / "changed", self.folder / "other"
        shutil.copytree(self.teacher, other)
        config = self.taught(teacher=str(other), num_epochs=2)

        class Stop(Exception):
            pass

        class Stopper(recsys.training.Callback):
            def on_epoch_end(self, progress):
                raise Stop

        with self.assertRaises(Stop):
            run_training(
                config,
                workdir,
                verbose=False,
                evaluate=False,
                callbacks=[Stopper()],
            )
        moved = other.rename(self.folder / "moved")
        self.train(
            dataclasses.replace(self.config, seed=3, num_epochs=1), other
        )
        with self.assertRaisesRegex(InputError, "which has another model"):
            self.train(config, workdir)
        config = dataclasses.replace(config, teacher=str(moved))
        self.train(config, workdir)
        shutil.rmtree(moved)
        # Nothing is left to learn.
        self.assertLen(self.train(config, workdir).history, 2)

    def test_a_teacher_that_reads_less(self):
        short = dataclasses.replace(self.config, max_history_length=3)
        self.train(short, self.folder / "short")
        with mock.patch(
            "recsys.training.trainer.soft_targets_of",
            wraps=teaching.soft_targets_of,
        ) as asked:
            self.train(
                self.taught(teacher=str(self.folder / "short"), num_epochs=1),
                self.folder / "long",
            )
        self.assertEqual(asked.call_args.kwargs["max_length"], 3)

    @parameterized.parameters(
        {"jit_compile": True},
        {"precision": "bfloat16"},
        {"encoder": "gru"},
        {"time_features": "gap"},
    )
    def test_students(self, **changes):
        workdir = self.folder / "-".join(changes)
        result = self.train(self.taught(num_epochs=1, **changes), workdir)
        self.assertTrue(np.isfinite(result.history[0]["loss"]))

    def test_from_python(self):
        model = recsys.fit(
            self.config.data,
            preset="movielens-small",
            teacher=self.teacher,
            num_epochs=1,
            embedding_dim=4,
            verbose=False,
            evaluate=False,
        )
        self.assertEqual(model.config.teacher, str(self.teacher))

    def test_a_search_does_not_begin_with_a_wrong_teacher(self):
        workdir = self.folder / "search"
        code, _, errors = run(
            tune,
            f"--data={self.config.data}",
            "--teacher=nowhere",
            f"--workdir={workdir}",
        )
        self.assertEqual(code, 2)
        self.assertIn("--teacher must be a folder in which", errors)
        self.assertFalse((workdir / "search.json").exists())


if __name__ == "__main__":
    absltest.main()
