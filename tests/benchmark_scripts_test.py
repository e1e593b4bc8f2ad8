"""The benchmarks and the ablations, without anything that takes long."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import ablations  # noqa: E402
import benchmark_encoders  # noqa: E402
import benchmark_evaluation  # noqa: E402
import benchmark_gpu  # noqa: E402
import benchmark_input  # noqa: E402
import benchmark_peers  # noqa: E402
import benchmark_retrieval  # noqa: E402
import benchmark_scale  # noqa: E402
import benchmark_training  # noqa: E402
import compare_extension  # noqa: E402
import evaluate_cold_start  # noqa: E402
import evaluate_ensembles  # noqa: E402
import measuring  # noqa: E402
import peer_runs  # noqa: E402

from recsys.config import PRESETS, TrainConfig, make_config  # noqa: E402
from recsys.data.prepare import PreparedData, build_data  # noqa: E402
from recsys.errors import InputError  # noqa: E402
from recsys.report.figures import COLORS  # noqa: E402
from recsys.training import train  # noqa: E402

# A "Python" that lists the first ten items that a history lacks, and before
# its last epoch the sixth to the fifteenth.
PEER = f"""#!{sys.executable}
import json, pathlib, sys
import numpy as np
options = dict(each.lstrip("-").partition("=")[::2] for each in sys.argv[2:])
if "check" in options:
    sys.exit(0)
folder = pathlib.Path(options["folder"])
split = np.load(folder / "split.npz")
model, epochs = options["model"], int(options["epochs"])
for part in ("validation", "test"):
    for epoch in range(1, epochs + 1):
        lines = []
        for row, query in enumerate(split[part + "_ids"].tolist()):
            begin, end = split[part + "_offsets"][row : row + 2]
            seen = set(split[part + "_items"][begin:end].tolist())
            free = [i for i in range(len(split["item_ids"])) if i not in seen]
            listed = free[:10] if epoch == epochs else free[5:15]
            items = split["item_ids"][listed].tolist()
            line = {{"query_id": query, "items": items}}
            lines.append(json.dumps(line))
        path = folder / f"{{model}}-{{part}}-{{epoch}}.jsonl"
        path.write_text("\\n".join(lines))
options["seconds"] = list(range(epochs))
(folder / f"{{model}}.json").write_text(json.dumps(options))
"""


def _write_log(path: pathlib.Path, lengths: list[int], num_items: int) -> None:
    """User u takes every (u + 1)-th item from item u on."""
    rows = ["userId,movieId,timestamp"]
    for user, length in enumerate(lengths):
        for place in range(length):
            item = (user + place * (user % 3 + 1)) % num_items
            rows.append(f"user{user},{item},{place}")
    path.write_text("\n".join(rows) + "\n")


class TempFolderTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enter_context(tempfile.TemporaryDirectory())
        )

    def data(self, lengths: list[int], **fields) -> PreparedData:
        path = self.folder / "log.csv"
        _write_log(path, lengths, num_items=40)
        return build_data(TrainConfig(data=str(path), **fields))

    def executable(self, text: str) -> str:
        path = self.folder / "python"
        path.write_text(text)
        path.chmod(0o755)
        return str(path)


class MeasuringTest(parameterized.TestCase):
    def test_memory_is_that_of_the_process_alone(self):
        # Both hold Python; the parent holds 100 MB besides.
        code = """
import subprocess, sys, measuring
ballast = b"1" * 100_000_000
ask = "import measuring; print(measuring.peak_memory())"
child = subprocess.check_output([sys.executable, "-c", ask], text=True)
print(measuring.peak_memory(), child)
"""
        printed = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        parent, child = map(float, printed.split())
        self.assertBetween(parent, 0.1, 0.2)
        self.assertBetween(child, 0.001, 0.09)

    @parameterized.parameters(
        benchmark_encoders,
        benchmark_evaluation,
        benchmark_input,
        benchmark_retrieval,
        benchmark_scale,
        benchmark_training,
    )
    def test_json_file_is_checked_before_any_work(self, benchmark):
        for path in ("/no/folder/x.json", "/"):
            values = benchmark.COMMAND.parse([f"--json={path}"])
            with self.assertRaisesRegex(
                InputError, "--json must name a file in a folder that exists"
            ):
                benchmark.main(values)

    @parameterized.parameters(0, 10_000)
    def test_threads_of_the_retrieval_benchmark(self, threads):
        values = benchmark_retrieval.COMMAND.parse([f"--threads={threads}"])
        with self.assertRaisesRegex(
            InputError, f"--threads must be from 1 to .*Received: {threads}"
        ):
            benchmark_retrieval.main(values)


class PeersTest(TempFolderTest):
    def test_split_names_each_interaction(self):
        # The second user has one interaction only and is asked nothing.
        data = self.data([5, 1, 4])
        split = peer_runs.split_arrays(data)
        for part in ("validation", "test"):
            names = split[f"{part}_ids"].tolist()
            self.assertEqual(names, ["user0", "user2"])

        def rows(part):
            ids = split["item_ids"][split[f"{part}_items"]]
            return [
                each.tolist()
                for each in np.split(ids, split[f"{part}_offsets"][1:-1])
            ]

        self.assertEqual(rows("train"), [["0", "1", "2"], ["1"], ["2", "5"]])
        self.assertEqual(rows("validation"), [["0", "1", "2"], ["2", "5"]])
        self.assertEqual(rows("test"), [["0", "1", "2", "3"], list("258")])

    def test_lists_are_scored_by_our_evaluation(self):
        data = self.data([6] * 12)
        config = TrainConfig(
            data="unread", embedding_dim=8, num_heads=2, max_history_length=9
        )
        rows = peer_runs.run_peers(
            self.executable(PEER), data, config, epochs=2
        )
        self.assertEqual([row["model"] for row in rows], list(peer_runs.PEERS))
        for part in ("validation", "test"):
            for epoch, listed in enumerate((slice(5, 15), slice(10))):
                gains = self.gains(getattr(data.split, part), listed)
                self.assertGreater(np.mean(gains), 0)
                for row in rows:
                    found = row["curve"][epoch]
                    self.assertAlmostEqual(
                        found[f"{part}_ndcg@10"], np.mean(gains)
                    )
                    self.assertAlmostEqual(
                        found[f"{part}_recall@10"], np.mean(np.sign(gains))
                    )
        for row in rows:
            self.assertEqual([each["seconds"] for each in row["curve"]], [0, 1])
            sizes = [row[name] for name in ("dim", "blocks", "heads", "length")]
            self.assertEqual(sizes, ["8", "2", "2", "9"])

    def test_a_folder_is_resumed_and_belongs_to_one_split(self):
        data = self.data([6] * 12)
        config = TrainConfig(
            data="unread", embedding_dim=8, num_heads=2, max_history_length=9
        )
        folder = self.folder / "peers"
        python = self.executable(PEER)

        def run(models, **changes):
            return peer_runs.run_peers(
                python,
                changes.get("data", data),
                config,
                epochs=changes.get("epochs", 2),
                models=models,
                folder=folder,
            )

        [first] = run(["sasrec"])
        text = (folder / "sasrec.json").read_text().replace("[0, 1]", "[0, 7]")
        (folder / "sasrec.json").write_text(text)
        both = run(["sasrec", "als"])
        self.assertEqual([row["model"] for row in both], ["sasrec", "als"])
        self.assertEqual([e["seconds"] for e in both[0]["curve"]], [0, 7])
        self.assertEqual(both[1]["curve"], first["curve"])
        for changes, expected in (
            ({"epochs": 3}, "for {'epochs': 3,.* for {'epochs': 2,"),
            ({"data": self.data([7] * 12)}, "same log and split"),
        ):
            with self.assertRaisesRegex(InputError, expected):
                run(["als"], **changes)

    def test_unknown_model_is_named(self):
        with self.assertRaisesRegex(InputError, "--peer_models .*'sasrek'"):
            peer_runs.check_peers(sys.executable, ["sasrek"])

    def test_curves_are_drawn(self):
        curve = [
            {"seconds": 30, "validation_ndcg@10": n, "test_ndcg@10": n}
            for n in (0.1, 0.2)
        ]
        path = self.folder / "curves.svg"
        names = ("ours", *peer_runs.PEERS)
        rows = [{"name": name, "curve": curve} for name in names]
        peer_runs.draw_curves(rows, path)
        for color in COLORS:
            self.assertIn(color, path.read_text())
        self.assertLen(set(COLORS), len(names))

    def gains(self, queries, listed):
        """The NDCG of some of the items that each history lacks."""
        gains = []
        for query in range(len(queries)):
            history, _ = queries.histories(np.array([query]))
            [target], _ = queries.targets(np.array([query]))
            free = np.setdiff1d(np.arange(2, 42), history)[listed].tolist()
            place = free.index(target) if target in free else None
            gains.append(0 if place is None else 1 / np.log2(place + 2))
        return gains

    def test_missing_interpreter_says_what_to_install(self):
        with self.assertRaisesRegex(
            InputError, "pip install torch.*rectools.*Received: '/no/python'"
        ):
            peer_runs.check_peers("/no/python")

    def test_missing_package_is_named(self):
        python = self.executable("#!/bin/sh\necho 'torch: none' >&2\nexit 1\n")
        with self.assertRaisesRegex(InputError, "pip install.*lacks torch"):
            peer_runs.check_peers(python)

    def test_failed_run_is_told_in_a_line(self):
        python = self.executable("#!/bin/sh\necho 'no memory' >&2\nexit 1\n")
        with self.assertRaisesRegex(InputError, "sasrec failed.*no memory"):
            config = TrainConfig(data="unread")
            peer_runs.run_peers(python, self.data([6] * 3), config, epochs=1)

    def test_peer_script_needs_none_of_our_modules(self):
        process = subprocess.run(
            [
                sys.executable,
                "-c",
                "import benchmark_peers, sys;"
                "print([m for m in sys.modules if m.startswith('recsys')])",
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
            capture_output=True,
            text=True,
        )
        self.assertEqual(process.stdout, "[]\n", process.stderr)

    def test_ratios_say_how_many_times_ours_is_faster(self):
        def row(name, seconds, interactions, recommend, *ndcgs):
            return {
                "name": name,
                "epochs": 3,
                "training seconds": 3 * seconds,
                "seconds per epoch": seconds,
                "interactions per epoch": interactions,
                "recommend seconds": recommend,
                "resident memory, GB": 1.0,
                "curve": [
                    {
                        "seconds": seconds,
                        "validation_ndcg@10": ndcg,
                        "test_recall@10": 2 * ndcg,
                        "test_ndcg@10": ndcg,
                    }
                    for ndcg in ndcgs
                ],
            }

        header, rows = peer_runs.peers_table(
            row("ours", 10, 1000, 2.0, 0.1, 0.3, 0.2),
            [
                row("theirs", 40, 800, 3.0, 0.2, 0.25, 0.25),
                row("factors", 15, None, 1.0, 0.4),
            ],
        )
        self.assertEqual(header.count("ratio"), 2)
        # 100 a second to 20 a second; 3 seconds to 2, and 1 to 2.
        self.assertEqual(rows[0][2:8], "30.0 10.0 100 1.00 2.00 1.00".split())
        self.assertEqual(rows[1][2:8], "120.0 40.0 20 5.00 3.00 1.50".split())
        self.assertEqual(rows[2][2:8], "45.0 15.0 - - 1.00 0.50".split())
        # The best epoch, training to its end, and ours to the same NDCG; the
        # last has one list only, which ours never comes up to.
        self.assertEqual(rows[0][9:], "2 20.0 20.0 0.6000 0.3000".split())
        self.assertEqual(rows[1][9:], "2 80.0 20.0 0.5000 0.2500".split())
        self.assertEqual(rows[2][9:], "- 15.0 - 0.8000 0.4000".split())

    def test_histories_end_at_the_right_and_keep_the_newest(self):
        split = {
            "test_items": np.array([7, 8, 9, 4]),
            "test_offsets": np.array([0, 3, 3, 4]),
        }
        self.assertEqual(
            benchmark_peers._padded(split, "test", 2).tolist(),
            [[9, 10], [0, 0], [0, 5]],
        )

    def test_warm_up_is_left_out_of_several_epochs(self):
        self.assertEqual(measuring.seconds_per_epoch([9.0, 2.0, 4.0]), 3.0)
        self.assertEqual(measuring.seconds_per_epoch([9.0]), 9.0)


class BenchmarkTrainingTest(TempFolderTest):
    def test_positions_by_use(self):
        batch = {
            "history_ids": [[2, 3, 4, 0], [5, 6, 0, 0]],
            "target_ids": [[0, 4, 7, 0], [6, 0, 0, 0]],
        }
        self.assertEqual(
            benchmark_training.position_counts(batch),
            {"target": 3, "context": 2, "padding": 3},
        )

    def test_useful_arithmetic_of_the_sampled_softmax(self):
        batch = {
            "history_ids": [[2, 3, 0], [4, 0, 0]],
            "target_ids": [[3, 5, 0], [6, 0, 0]],
        }
        config = TrainConfig(
            encoder="mean_pooling",
            embedding_dim=8,
            loss="sampled_softmax",
            num_negatives=9,
        )
        logits = benchmark_training.logits_per_target(
            config, self.data([40] * 3)
        )
        # Three targets with ten logits of eight products each, of which each
        # is a multiplication and an addition, once forward and twice back.
        self.assertEqual(
            benchmark_training.useful_operations(config, batch, logits),
            3 * 10 * 8 * 2 * 3,
        )

    def test_is_the_run_of_train_and_stops_when_reached(self):
        from quality_curve import train_until

        from recsys.training import train

        data = self.data([8] * 30)
        config = TrainConfig(
            data="unread",
            encoder="mean_pooling",
            embedding_dim=8,
            num_epochs=2,
            max_history_length=8,
            positions_per_batch=100,
        )
        curve = train_until(config, data, until_ndcg=0.0)
        self.assertTrue(curve.reached)
        [epoch] = curve.epochs
        run = train(config, self.folder / "run", data=data, verbose=False)
        for name in ("loss", "validation_ndcg@10", "validation_recall@10"):
            self.assertEqual(epoch[name], run.history[0][name])
        self.assertEqual(epoch["training_seconds"], curve.training_seconds)
        self.assertLess(curve.training_seconds, curve.wall_clock_seconds)

    @parameterized.parameters(
        ("--until_ndcg=0.1", "--split=validation_only", "test queries"),
        ("--peers=/no/python", "--split=temporal", "--split=leave_last_out"),
        ("--peers=/no/python", "--repeats=all", "--repeats=all"),
        ("--peers=/no/python", "--peer_epochs=0", "at least 1"),
        ("--peers=/no/python", "--steps=1", "pip install"),
        ("--peers=", "--steps=1", "pip install"),
        ("--peer_models=als", "--steps=1", "with --peers. Received: 'als'"),
        ("--peers=/no/python", "--curves=a.foo", "in .png or .svg"),
    )
    def test_mistakes_are_told_before_any_work(self, one, other, message):
        values = benchmark_training.COMMAND.parse([one, other])
        with self.assertRaisesRegex(InputError, message):
            benchmark_training.main(values)


class GpuTest(TempFolderTest):
    FLAGS = (
        "--allow_cpu",
        "--embedding_dim=8",
        "--num_epochs=2",
        "--max_history_length=9",
    )

    def run_main(self, *flags):
        log = self.folder / "log.csv"
        _write_log(log, [6] * 12, num_items=40)
        path = self.folder / "gpu.json"
        arguments = (*self.FLAGS, f"--data={log}", f"--json={path}", *flags)
        values = benchmark_gpu.COMMAND.parse(list(arguments))
        self.assertEqual(benchmark_gpu.main(values), 0)
        return json.loads(path.read_text())["variants"]

    def test_variants_are_trained_and_measured(self):
        variants = {
            "bfloat16": {"precision": "bfloat16"},
            "float32": {"precision": "float32"},
        }
        with mock.patch.object(benchmark_gpu, "VARIANTS", variants):
            rows = self.run_main()
        self.assertEqual([row["variant"] for row in rows], list(variants))
        for row in rows:
            self.assertEqual(row["end"], "finished")
            self.assertLen(row["epochs"], 2)
            seconds = [epoch["seconds"] for epoch in row["epochs"]]
            self.assertEqual(row["training seconds"], sum(seconds))
            self.assertEqual(row["seconds per epoch"], seconds[1])
            self.assertNotIn("test_ndcg@10", row["epochs"][0])

    def test_the_limit_ends_a_run_and_leaves_out_the_rest(self):
        began = time.monotonic()
        rows = self.run_main("--limit=2s")
        self.assertLess(time.monotonic() - began, 60)
        self.assertEqual([row["variant"] for row in rows], ["bfloat16, XLA"])
        self.assertEqual(rows[0]["end"], "ended by the limit")
        self.assertIsNone(rows[0]["best epoch"])

    def test_a_failed_run_is_a_row_and_the_next_one_follows(self):
        variants = {"a": {"precision": "bfloat16"}, "b": {}}
        code = "import sys; sys.exit(3)"
        with (
            mock.patch.object(benchmark_gpu, "VARIANTS", variants),
            mock.patch.object(benchmark_gpu, "_RUN", code),
        ):
            rows = self.run_main()
        self.assertEqual(
            [row["end"] for row in rows], ["failed with exit code 3"] * 2
        )

    @parameterized.parameters(
        "--precision=float32", "--jit_compile", "--strategy=mirrored"
    )
    def test_what_is_measured_is_not_given(self, flag):
        with self.assertRaisesRegex(InputError, "must be left out"):
            self.run_main(flag)

    def test_a_gpu_is_asked_for(self):
        values = benchmark_gpu.COMMAND.parse([])
        with (
            mock.patch.object(
                tf.config, "list_physical_devices", return_value=[]
            ),
            self.assertRaisesRegex(InputError, r"\[gpu\].*Received: no GPU"),
        ):
            benchmark_gpu.main(values)

    @parameterized.parameters("8", "-1m", "8h", "nans", "")
    def test_odd_limits(self, text):
        with self.assertRaisesRegex(InputError, "--limit must be a time"):
            benchmark_gpu.parse_seconds(text)


class CompareExtensionTest(TempFolderTest):
    def test_parts_are_written_once(self):
        path = self.folder / "log.csv"
        _write_log(path, [10] * 4, num_items=40)
        config = TrainConfig(data=str(path))
        runs = self.folder / "runs"
        compare_extension.split_log(config, 0.2, runs)
        parts = {p: p.stat() for p in runs.rglob("*.parquet")}
        self.assertLen(parts, 2)
        compare_extension.split_log(config, 0.2, runs)
        self.assertEqual(parts, {p: p.stat() for p in parts})
        with self.assertRaisesRegex(InputError, "same --share.*'share': 0.2"):
            compare_extension.split_log(config, 0.1, runs)


class EnsemblesTest(TempFolderTest):
    def test_scores_are_added(self):
        models = [mock.Mock(), mock.Mock()]
        for model, scores in zip(models, ([[1.0, 2.0]], [[0.5, -4.0]])):
            model.query_scores.return_value = np.array(scores)
            model.scores.return_value = np.array(scores)
        found = evaluate_ensembles.Sum(models)
        for each in (found.query_scores(None, None), found.scores(None, None)):
            self.assertEqual(each.tolist(), [[1.5, -2.0]])

    def test_every_subset_is_evaluated(self):
        path = self.folder / "log.csv"
        _write_log(path, [10] * 30, num_items=40)
        folders = []
        for seed in range(3):
            config = TrainConfig(
                data=str(path),
                seed=seed,
                encoder="mean_pooling",
                num_epochs=1,
                embedding_dim=8,
            )
            folders.append(str(self.folder / f"seed-{seed}"))
            train(config, folders[-1], evaluate=False, verbose=False)
        printed = io.StringIO()
        names = ["--workdirs=" + ",".join(folders)]
        with contextlib.redirect_stdout(printed):
            evaluate_ensembles.main(evaluate_ensembles.COMMAND.parse(names))
        lines = [x.split("  ")[0] for x in printed.getvalue().splitlines()]
        # A heading of two lines, and seven subsets of three models.
        self.assertLen(lines, 9)
        self.assertEqual(lines[-1], "seed-0 + seed-1 + seed-2")

    def test_two_models_are_needed(self):
        values = evaluate_ensembles.COMMAND.parse(["--workdirs=one"])
        with self.assertRaisesRegex(InputError, "at least two folders.*'one'"):
            evaluate_ensembles.main(values)


class LastItem:
    """Recommends the last item of the history."""

    name = "last item"

    def scores(self, items, offsets):
        scores = np.zeros((len(offsets) - 1, 100), np.float32)
        scores[np.arange(len(scores)), items[offsets[1:] - 1]] = 1
        return scores


class ColdStartTest(TempFolderTest):
    def test_items_that_users_come_back_to_are_candidates(self):
        path = self.folder / "log.csv"
        # Everybody consumes each of 98 items twice running.
        rows = [
            f"{user},{time // 2},{time}"
            for user in range(3)
            for time in range(2 * 98)
        ]
        path.write_text("\n".join(["userId,movieId,timestamp", *rows]) + "\n")
        config = TrainConfig(
            data=str(path), repeats="all", split="held_out_items"
        )
        data = build_data(config)
        found = evaluate_cold_start.show(
            [LastItem(), LastItem()], data, np.arange(2, 100), config
        )
        # Behind the last item of the history, tied with all the others.
        self.assertAlmostEqual(
            found["last item"]["ndcg@50"], 1 / np.log2(1 + 50)
        )


class AblationsTest(parameterized.TestCase):
    @parameterized.parameters(
        ("leave_last_out", 2), ("held_out_users", 0), ("held_out_items", 0)
    )
    def test_data_are_shared_where_the_split_is(self, split, num_shared):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "log.csv")
            _write_log(path, [8] * 30, num_items=40)
            values = ablations.COMMAND.parse(
                [
                    f"--data={path}",
                    f"--split={split}",
                    f"--workdir={folder}",
                    "--seeds=3,4",
                    "--lever_seeds=3",
                ]
            )
            values["lever"] = []
            result = mock.Mock(best_epoch=0)
            result.history = [
                {
                    "validation_recall@10": 0.1,
                    "validation_ndcg@10": 0.1,
                    "seconds": 1.0,
                }
            ]
            with mock.patch(
                "recsys.training.train", return_value=result
            ) as train:
                ablations.main(values)
        self.assertEqual(
            [call.args[0].seed for call in train.call_args_list], [3, 4]
        )
        given = [call.kwargs["data"] for call in train.call_args_list]
        self.assertLen([data for data in given if data is not None], num_shared)

    def test_levers_change_the_base(self):
        base = TrainConfig(embedding_dim=16)
        configs = ablations.apply_levers(
            base, ["dropout=0.45", "embedding_dim=32,learning_rate=0.01"]
        )
        self.assertEqual(
            configs,
            {
                "dropout=0.45": TrainConfig(embedding_dim=16, dropout=0.45),
                "embedding_dim=32,learning_rate=0.01": TrainConfig(
                    embedding_dim=32, learning_rate=0.01
                ),
            },
        )

    @parameterized.parameters(
        ("dropot=0.1", "did you mean --dropout"),
        ("data=log.csv", "no such flag"),
        ("seed=3", "no such flag"),
        ("dropout=much", "must be a number"),
        ("dropout=2", "below 1"),
        ("dropout=0.2", "changes nothing"),
        ("", "changes nothing"),
    )
    def test_wrong_levers(self, lever, message):
        with self.assertRaisesRegex(InputError, message):
            ablations.apply_levers(TrainConfig(), [lever])

    @parameterized.parameters(*PRESETS)
    def test_defaults_leave_out_what_the_base_has(self, preset):
        base = make_config(preset, {})
        configs = ablations.apply_levers(base, None)
        self.assertNotIn(f"dropout={base.dropout}", configs)
        self.assertIn("dropout=0.1", configs)
        self.assertNotIn(base, configs.values())

    def test_table_has_differences_to_the_same_seeds(self):
        def run(lever, seed, recall, ndcg, best_epoch=4):
            metrics = {"recall@10": recall, "ndcg@10": ndcg}
            return ablations.Run(lever, seed, metrics, best_epoch, 90.0)

        text = ablations.markdown(
            [
                run("", 0, 0.10, 0.05),
                run("", 1, 0.14, 0.07, best_epoch=6),
                run("dropout=0.1", 0, 0.13, 0.04),
            ]
        )
        spread, _, *table = text.splitlines()
        # Two values that are 2 d apart have the standard deviation d √2.
        self.assertIn("2 seeds", spread)
        self.assertIn("recall@10 0.0283, ndcg@10 0.0141", spread)
        self.assertEqual(
            table[2:],
            [
                "| base | 0.1200 |  | 0.0600 |  | 4-6 | 1.5 |",
                "| `dropout=0.1` | 0.1300 | +0.0300 | 0.0400 | -0.0100 | 4 "
                "| 1.5 |",
            ],
        )

    def test_lever_seeds_are_seeds_of_the_base(self):
        values = ablations.COMMAND.parse(["--seeds=0,1", "--lever_seeds=2"])
        with self.assertRaisesRegex(InputError, "among --seeds=0,1"):
            ablations.main(values)


class EncodersTest(parameterized.TestCase):
    @parameterized.product(
        preset=list(PRESETS),
        encoder=["mean_pooling", "gru", "self_attention"],
    )
    def test_flags_count_for_every_encoder(self, preset, encoder):
        values = benchmark_encoders.COMMAND.parse(
            [f"--preset={preset}", "--num_epochs=2"]
        )
        config = benchmark_encoders.encoder_config(values, encoder)
        self.assertEqual(config.encoder, encoder)
        self.assertEqual(config.num_epochs, 2)

    @parameterized.parameters("auto", "full_softmax")
    def test_a_given_flag_takes_the_place_of_what_is_tuned(self, loss):
        values = benchmark_encoders.COMMAND.parse(
            ["--preset=movielens-1m", f"--loss={loss}", "--embedding_dim=24"]
        )
        config = benchmark_encoders.encoder_config(values, "mean_pooling")
        self.assertEqual((config.loss, config.embedding_dim), (loss, 24))
        self.assertEqual(config.num_epochs, 10)

    @parameterized.parameters("--encoders=gru,lstm", "--encoder=gru")
    def test_unknown_encoder(self, flag):
        values = benchmark_encoders.COMMAND.parse([flag])
        with self.assertRaisesRegex(InputError, "Received: '(lstm|gru)'"):
            benchmark_encoders.main(values)

    def test_table(self):
        row = {
            "encoder": "gru",
            "parameters": 12345,
            "epochs": 8,
            "best epoch": 5,
            "seconds per epoch": 2.25,
            "encode ms per query": 0.5,
            "recall@10": 0.1,
            "ndcg@10": 0.05,
        }
        line = benchmark_encoders.table([row]).splitlines()[-1]
        self.assertEqual(
            line.split(),
            "gru 12,345 5 of 8 2.2 0.500 0.1000 0.0500".split(),
        )


if __name__ == "__main__":
    absltest.main()
