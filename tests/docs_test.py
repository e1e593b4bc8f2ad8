"""The README and the pages of docs/: links, names, flags and examples."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent import futures
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from commands import run

import recsys
from recsys.config import auto_fields
from recsys.data import prepare
from recsys.training import PRESETS, TrainConfig

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "BUILD.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
# Flags of other programs that the pages name.
OTHER_FLAGS = {
    "every command": ["help"],
    "git, grep and pip": ["all", "constraint", "editable"],
    "pip": ["no-deps", "wheel-dir"],
    "ruff": ["check", "fix"],
    "scripts/test_matrix": ["only"],
    "tensorboard": ["logdir"],
    "Apache Beam": ["direct_num_workers", "direct_running_mode"],
}
# Trains in seconds what the examples train in minutes.
QUICK_PRESET = {"encoder": "mean_pooling", "num_epochs": 1}


def quick_auto_fields(*size):
    fields, why = auto_fields(*size)
    return {**fields, "num_epochs": 1, "embedding_dim": 8}, why


def page_name(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def each_page(*paths: pathlib.Path):
    return parameterized.named_parameters(
        (page_name(path).replace("/", "_").removesuffix(".md"), path)
        for path in (paths or PAGES)
    )


def examples(path: pathlib.Path) -> list[str]:
    """Returns the blocks of a page that are marked as Python."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S)


def commands(path: pathlib.Path) -> list[list[str]]:
    """Returns the commands in the indented blocks of a page."""
    text = path.read_text("utf-8").replace("\\\n", " ")
    lines = re.findall(r"^ {4}python -m (.*)", text, re.M)
    return list(map(shlex.split, lines))


@functools.cache
def all_flags() -> set[str]:
    """Returns the flags in the help of all commands and scripts."""
    programs = [
        ["-m", f"recsys.{path.stem}"]
        for path in (ROOT / "recsys").glob("*.py")
        if "COMMAND.run(main)" in path.read_text("utf-8")
    ] + [
        [str(path)]
        for path in (ROOT / "scripts").glob("*.py")
        if '__name__ == "__main__"' in path.read_text("utf-8")
    ]

    def flags(program: list[str]) -> list[str]:
        process = subprocess.run(
            [sys.executable, *program, "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        return re.findall(r"^  --(\w+)", process.stdout, re.M)

    with futures.ThreadPoolExecutor(2) as pool:
        return {name for found in pool.map(flags, programs) for name in found}


class PagesTest(parameterized.TestCase):
    def test_readme_is_short(self):
        words = (ROOT / "README.md").read_text("utf-8").split()
        self.assertLessEqual(len(words), 700)

    def test_readme_names_every_page(self):
        readme = (ROOT / "README.md").read_text("utf-8")
        for path in PAGES[1:]:
            self.assertIn(f"]({page_name(path)})", readme)

    @each_page(*PAGES, ROOT / "CHANGELOG.md")
    def test_relative_links_exist(self, path):
        text = path.read_text("utf-8")
        links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)
        for link in map("".join, links):
            if "://" not in link:
                target = path.parent / link.partition("#")[0]
                self.assertTrue(target.exists(), link)

    @each_page()
    def test_named_files_exist(self, path):
        names = re.findall(
            r"(?<![\w/.])(?:recsys|scripts|tests|examples)/[\w/]+(?:\.\w+)?",
            path.read_text("utf-8"),
        )
        for name in names:
            self.assertTrue((ROOT / name).exists(), name)

    @each_page()
    def test_named_modules_and_attributes_exist(self, path):
        names = re.findall(r"\brecsys(?:\.[A-Za-z]\w*)+", path.read_text())
        for name in sorted(set(names)):
            value, parts = recsys, name.split(".")[1:]
            for place, part in enumerate(parts, 1):
                with contextlib.suppress(ImportError):
                    importlib.import_module(
                        ".".join(["recsys", *parts[:place]])
                    )
                self.assertTrue(hasattr(value, part), name)
                value = getattr(value, part)

    @each_page()
    def test_named_tests_exist(self, path):
        for file, name in re.findall(
            r"`(\w+_test)::(test_\w+)`", path.read_text("utf-8")
        ):
            source = ROOT / "tests" / f"{file}.py"
            self.assertTrue(source.is_file(), file)
            is_there = f"def {name}(" in source.read_text("utf-8")
            self.assertTrue(is_there, f"{file}::{name}")

    @each_page()
    def test_named_flags_exist(self, path):
        text = path.read_text("utf-8")
        named = set(re.findall(r"(?<![\w-])--([a-z][\w-]*)", text))
        other = {name for names in OTHER_FLAGS.values() for name in names}
        self.assertEqual(named - all_flags() - other, set())


class ExamplesTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        with cls.quickly():
            config = TrainConfig(
                data="movielens-small", **PRESETS["movielens-small"]
            )
            recsys.training.train(config, "runs/movielens-small", verbose=False)

    @classmethod
    @contextlib.contextmanager
    def quickly(cls):
        """Runs in the folder of the examples, with a preset of one epoch."""
        with (
            contextlib.chdir(cls.folder),
            mock.patch.dict(PRESETS, {"movielens-small": QUICK_PRESET}),
            mock.patch.object(prepare, "auto_fields", quick_auto_fields),
        ):
            yield

    @each_page(*(path for path in PAGES if examples(path)))
    def test_examples_run(self, path):
        """The blocks of a page run one after the other, as a reader would."""
        names = {"__name__": "example"}
        with self.quickly(), contextlib.redirect_stdout(io.StringIO()):
            for block in examples(path):
                exec(compile(block, page_name(path), "exec"), names)

    def test_commands_of_the_page_on_events_run(self):
        rng = np.random.default_rng(0)
        kinds = ["view"] * 6 + ["cart"] * 2 + ["purchase"] * 2 + ["hide"]
        columns = {
            "shop": ("event", rng.choice(kinds, 600)),
            "ratings": ("rating", rng.integers(1, 6, 600)),
        }
        said = {
            "weighted": "purchase (weight 5)",
            "purchases": "view (weight 1, history only)",
            "liked": "kept as negatives of their users",
            "rated": "kept as negatives of their users",
        }
        with self.quickly():
            for name, (column, values) in columns.items():
                items = rng.integers(30, size=len(values))
                lines = [f"user,item,timestamp,{column}"] + [
                    f"u{time % 20},i{items[time]},{time},{value}"
                    for time, value in enumerate(values)
                ]
                pathlib.Path(f"{name}.csv").write_text("\n".join(lines) + "\n")
            for module, *flags in commands(ROOT / "docs" / "events.md"):
                code, out, err = run(importlib.import_module(module), *flags)
                self.assertEqual(code, 0, err)
                name = flags[-1].removeprefix("--workdir=runs/")
                self.assertIn(said.pop(name), out + err)
        self.assertEmpty(said)

    def test_the_notebook_runs(self):
        path = ROOT / "examples" / "your_own_frame.ipynb"
        cells = json.loads(path.read_text("utf-8"))["cells"]
        self.assertLessEqual(len(cells), 10)
        names = {"__name__": "__main__"}
        with self.quickly(), contextlib.redirect_stdout(io.StringIO()):
            for cell in cells:
                if cell["cell_type"] == "code":
                    exec("".join(cell["source"]), names)
        # Ten films for each of the 671 users, and the folder that was saved.
        self.assertEqual(names["table"].num_rows, 6710)
        self.assertEqual(names["comedies"].num_rows, 6710)
        loaded = recsys.load(pathlib.Path(self.folder, "my_model"))
        self.assertEqual(loaded.vocabulary.num_items, 9066)

    def test_readme_has_an_example_of_at_most_eight_lines(self):
        [example] = examples(ROOT / "README.md")
        lines = [line for line in example.splitlines() if line.strip()]
        self.assertLessEqual(len(lines), 8)


if __name__ == "__main__":
    absltest.main()
