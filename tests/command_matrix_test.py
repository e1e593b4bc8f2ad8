"""Every command, in a process of its own, after every kind of training.

What a process has imported decides whether it can load a model, so that no
command may follow another in one process. As starting TensorFlow 40 times
takes minutes, each command is a fork of a process that has imported TensorFlow
and then `import recsys`, and nothing else of ours, nor Keras (checked before
each fork); the fork runs the module as `python -m` does. `PLAIN` names those
that `python -m` itself starts as well, with the same output.

A kind joins several features of training, so that four trainings, one
extended run and one combined model cover all of them. Exit codes are not
enough: answers must agree between processes.
"""

from __future__ import annotations

import csv
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

from absl.testing import absltest, parameterized

# Quotation marks, separators and accents in ids.
QUOTED = ['9" nail', "it's", "a,b", "<i>&amp;</i>", "é", "tab\\t", "'x'", '""']
NUM_ITEMS, NUM_USERS, LENGTH = 24, 40, 9

KINDS = {
    "gru_features": [
        "--encoder=gru",
        "--item_features=genres,title:words",
        "--time_features=gap",
        "--transition_dim=8",
        "--precision=bfloat16",
    ],
    "mean_sampled": [
        "--encoder=mean_pooling",
        "--loss=sampled_softmax",
        "--num_negatives=8",
    ],
    "self_attention_shards": [
        "--encoder=self_attention",
        "--num_heads=2",
        "--transition_dim=8",
        "--transition_weight=2.0",
        "--mask_known_items=True",
    ],
    "features_sampled": [
        "--encoder=self_attention",
        "--item_features=auto",
        "--id_dropout=0.2",
        "--loss=sampled_softmax",
        "--negatives=popularity",
        "--num_negatives=8",
        "--table_init=co_occurrence",
        "--time_features=gap,age",
        "--context_features=gap",
        "--precision=bfloat16",
    ],
}
# Shards cannot be extended (see test_shards_are_not_extended).
EXTENDED = "gru_features"
COMMANDS = (
    "evaluate",
    "recommend_history",
    "recommend_similar",
    "recommend_histories",
    "export",
    "load",
)
COMBINED = "gru_features"
PLAIN = (("gru_features", "recommend_history"), ("extended", "evaluate"))
# What comes of a training.
MADE = ("extended", "combined")
CASES = [(kind, name) for kind in (*KINDS, *MADE) for name in COMMANDS]

LOAD = """
import json, sys
import recsys
history = json.loads(sys.argv[1])
found = recsys.load(sys.argv[2]).recommend(history, 5)
print(json.dumps([[each.item_id, each.score] for each in found]))
"""

# Runs chains of commands, one at a time in each, and prints what each gave.
SERVER = """
import json, os, runpy, shutil, sys, traceback
import h5py, numpy, pyarrow, scipy.sparse
sys.modules["keras"] = None  # Which TensorFlow imports where it can.
import tensorflow
del sys.modules["keras"]
import recsys
chains, folder, load = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
results = {}

def child(key, arguments):
    for number, kind in ((1, "out"), (2, "err")):
        flags = os.O_CREAT | os.O_WRONLY
        os.dup2(os.open(f"{folder}/{key}.{kind}", flags), number)
    code = 0
    try:
        sys.argv = arguments
        if arguments[0] == "load":
            exec(compile(load, "load", "exec"), {"__name__": "__main__"})
        elif arguments[0] == "copy":
            shutil.copytree(*arguments[1:])
        else:
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

running = {}
while chains or running:
    for name in list(chains)[: 2 - len(running)]:
        if name in running.values():
            continue
        key, arguments = chains[name].pop(0)
        roots = [module.partition(".")[0] for module in sys.modules]
        assert (roots.count("recsys"), roots.count("keras")) == (1, 0)
        pid = os.fork()
        if not pid:
            child(key, arguments)
        running[pid] = name
        results[key] = pid
    pid, status = os.wait()
    name = running.pop(pid)
    [key] = [key for key, value in results.items() if value == pid]
    results[key] = None, os.waitstatus_to_exitcode(status)
    if not chains[name]:
        del chains[name]
print(json.dumps({key: code for key, (_, code) in results.items()}))
"""


def item_ids():
    return QUOTED + [f"item {i}" for i in range(len(QUOTED), NUM_ITEMS)]


def write_rows(path: pathlib.Path, header, rows) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


class Runs:
    """All commands after all kinds of training."""

    def __init__(self) -> None:
        self.folder = pathlib.Path(
            unittest.enterModuleContext(tempfile.TemporaryDirectory())
        )
        names = item_ids()
        # User u walks through the items in steps of 1 + u % 3.
        rows = [
            (f"u{u}", names[(u + j * (1 + u % 3)) % NUM_ITEMS], 1000 * j + u)
            for u in range(NUM_USERS)
            for j in range(LENGTH)
        ]
        header = ("user_id", "item_id", "timestamp")
        self.log = write_rows(self.folder / "log.csv", header, rows)
        later = [
            (f"u{u}", "new item" if j else names[u % 3], 90_000 + j)
            for u in range(9)
            for j in range(2)
        ]
        self.later = write_rows(self.folder / "later.csv", header, later)
        self.items = write_rows(
            self.folder / "items.csv",
            ("item_id", "title", "genres"),
            [
                (
                    name,
                    f"Film {i % 5} of (19{60 + i})",
                    "Even" if i % 2 else "Odd",
                )
                for i, name in enumerate([*names, "new item"])
            ],
        )
        self.history = QUOTED[:3]
        self.histories = self.folder / "histories.jsonl"
        self.histories.write_text(
            json.dumps({"query_id": 'q"1"', "history": self.history}) + "\n"
        )
        self.codes = self._run()

    def workdir(self, kind: str) -> pathlib.Path:
        return self.folder / kind

    def text(self, key: str, kind: str = "out") -> str:
        return (self.folder / f"{key}.{kind}").read_text()

    def arguments(self, kind: str, name: str) -> list[str]:
        """Returns a module and its command line."""
        flag = f"--workdir={self.workdir(kind)}"
        history = [f"--history={each}" for each in self.history]
        return {
            "evaluate": ["recsys.evaluate", flag, "--again"],
            "recommend_history": [
                "recsys.recommend",
                flag,
                *history,
                "--explain",
            ],
            "recommend_similar": [
                "recsys.recommend",
                flag,
                f"--similar_to={QUOTED[0]}",
            ],
            "recommend_histories": [
                "recsys.recommend",
                flag,
                f"--histories={self.histories}",
                f"--output={self.folder / f'{kind}.jsonl'}",
                "--k=5",
            ],
            "export": [
                "recsys.export",
                flag,
                f"--output={self.folder / f'{kind}.export'}",
            ],
            "load": ["load", json.dumps(self.history), str(self.workdir(kind))],
        }[name]

    def extend(self, kind: str) -> list[str]:
        output = "extended" if kind == EXTENDED else f"{kind}.extended"
        return [
            "recsys.extend",
            f"--workdir={self.workdir(kind)}",
            f"--data={self.later}",
            f"--items_file={self.items}",
            "--num_epochs=1",
            f"--output_workdir={self.workdir(output)}",
        ]

    def combine(self, kind: str) -> list[tuple[str, list[str]]]:
        """Returns the commands that make the sum of a model with itself."""
        folder = self.workdir(kind)
        copy = self.workdir(f"{kind}.copy")
        output = "combined" if kind == COMBINED else f"{kind}.combined"
        command = [
            "recsys.combine",
            f"--workdirs={folder},{copy}",
            f"--output_workdir={self.workdir(output)}",
        ]
        return [
            (f"{kind}.copy", ["copy", str(folder), str(copy)]),
            (f"{kind}.combine", command),
        ]

    def _run(self) -> dict[str, int]:
        source = [f"--data={self.log}", f"--items_file={self.items}"]
        shards = str(self.folder / "shards")
        chains = {}
        for kind, flags in KINDS.items():
            chain = chains[kind] = []
            read = source
            if "shards" in kind:
                command = ["recsys.prepare_shards", *source, "--num_shards=2"]
                command += ["--num_workers=1", f"--output={shards}"]
                chain.append((f"{kind}.prepare_shards", command))
                read = [f"--data={shards}"]
            train = ["recsys.train", *read, *flags, "--embedding_dim=8"]
            train += ["--num_epochs=2", "--num_blocks=1", "--repeats=all"]
            train += ["--positions_per_batch=100", "--warmup_steps=5"]
            if "shards" in kind:
                train.remove("--repeats=all")
            train.append(f"--workdir={self.workdir(kind)}")
            chain.append((f"{kind}.train", train))
            chain.append((f"{kind}.extend", self.extend(kind)))
            chain += self.combine(kind)
            made = [kind]
            made += ["extended"] * (kind == EXTENDED)
            made += ["combined"] * (kind == COMBINED)
            for each in made:
                chain += [
                    (f"{each}.{name}", self.arguments(each, name))
                    for name in COMMANDS
                ]
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                SERVER,
                json.dumps(chains),
                self.folder,
                LOAD,
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise AssertionError(done.stderr)
        return json.loads(done.stdout.splitlines()[-1])


def setUpModule() -> None:
    global RUNS
    RUNS = Runs()


class MatrixTest(parameterized.TestCase):
    def check(self, key: str) -> None:
        message = f"{key}:\n{RUNS.text(key)}\n{RUNS.text(key, 'err')}"
        self.assertEqual(RUNS.codes[key], 0, message)
        self.assertNotIn("Traceback", RUNS.text(key, "err"))

    @parameterized.parameters(*KINDS)
    def test_training(self, kind):
        if "shards" in kind:
            self.check(f"{kind}.prepare_shards")
        self.check(f"{kind}.train")
        config = json.loads((RUNS.workdir(kind) / "config.json").read_text())
        for flag in KINDS[kind]:
            name, _, value = flag.removeprefix("--").partition("=")
            self.assertEqual(str(config[name]), value)
        self.assertEqual("shards" in kind, "shards" in config["data"])

    @parameterized.parameters(*CASES)
    def test_command(self, kind, name):
        self.check(f"{kind}.{name}")

    @parameterized.parameters(*KINDS)
    def test_combination(self, kind):
        self.check(f"{kind}.combine")
        self.assertIn("sum of 2 models", RUNS.text(f"{kind}.combine"))

    def test_a_model_and_itself_recommend_the_same(self):
        one, both = (
            dict(json.loads(RUNS.text(f"{kind}.load")))
            for kind in (COMBINED, "combined")
        )
        self.assertEqual(list(one), list(both))
        for item, score in one.items():
            self.assertAlmostEqual(both[item], 2 * score, places=4)

    @parameterized.parameters(*KINDS, *MADE)
    def test_answers_agree(self, kind):
        [loaded] = RUNS.text(f"{kind}.load").splitlines()
        loaded = json.loads(loaded)
        self.assertLen(loaded, 5)
        self.assertContainsSubset(
            [item for item, _ in loaded], [*item_ids(), "new item"]
        )
        answer = json.loads((RUNS.folder / f"{kind}.jsonl").read_text())
        self.assertEqual(answer["query_id"], 'q"1"')
        self.assertEqual(answer["items"], [item for item, _ in loaded])
        for ours, theirs in zip(answer["scores"], loaded, strict=True):
            self.assertAlmostEqual(ours, theirs[1], places=4)
        printed = RUNS.text(f"{kind}.recommend_history")
        for item, _ in loaded:
            self.assertIn(f"id {item} ", printed)

    @parameterized.parameters(*KINDS)
    def test_evaluation_repeats_what_training_measured(self, kind):
        # Recall and NDCG; only evaluate prints their intervals.
        trained, evaluated = (
            re.findall(
                r"(?<!± )\d\.\d{4}",
                re.search("^two-tower .*", RUNS.text(key), re.M)[0],
            )
            for key in (f"{kind}.train", f"{kind}.evaluate")
        )
        self.assertLen(trained, 2)
        self.assertEqual(trained, evaluated)

    @parameterized.parameters(*KINDS, *MADE)
    def test_every_format_is_there(self, kind):
        names = {"saved_model", "litert", "parquet", "numpy", "projector"}
        folder = RUNS.folder / f"{kind}.export"
        found = {path.name for path in folder.iterdir() if path.is_dir()}
        self.assertEqual(found, names)

    @parameterized.parameters(*(k for k in KINDS if "shards" not in k))
    def test_extension(self, kind):
        self.check(f"{kind}.extend")
        self.assertIn("of which 1 are new", RUNS.text(f"{kind}.extend"))

    def test_shards_are_not_extended(self):
        [kind] = [kind for kind in KINDS if "shards" in kind]
        self.assertEqual(RUNS.codes[f"{kind}.extend"], 2)
        [line] = RUNS.text(f"{kind}.extend", "err").splitlines()
        self.assertIn("shards", line)

    @parameterized.parameters(*PLAIN)
    def test_as_python_starts_it(self, kind, name):
        command = [sys.executable, "-m", *RUNS.arguments(kind, name)]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, RUNS.text(f"{kind}.{name}"))


if __name__ == "__main__":
    absltest.main()
