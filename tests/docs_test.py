"""The README and the pages of docs/: links, names, flags and examples."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
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
from recsys.evaluation import comparison
from recsys.serving import formats
from recsys.training import PRESETS, TrainConfig

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "BUILD.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Flags of other programs that the pages name.
OTHER_FLAGS = {
    "every command": ["help"],
    "git, grep and pip": ["all", "constraint", "editable"],
    "pip": ["no-deps", "wheel-dir"],
    "ruff": ["check", "fix"],
    "scripts/test_matrix": ["only"],
    "tensorboard": ["logdir"],
    "Apache Beam": ["direct_num_workers", "direct_running_mode"],
    "gcloud": ["artifact-uri", "container-image-uri", "display-name", "region"],
    "uvicorn": ["port"],
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
        (page_name(path).replace("/", "_").partition(".")[0], path)
        for path in (paths or PAGES)
    )


def examples(path: pathlib.Path) -> list[str]:
    """Returns the Python blocks of a page that can run here.

    Those for packages that are not installed say so in their title.
    """
    found = re.findall(
        r"^```python(?: title=\"needs ([^\"]+)\")?\n(.*?)^```",
        path.read_text("utf-8"),
        re.M | re.S,
    )
    return [
        block
        for needs, block in found
        if all(
            importlib.util.find_spec(name)
            for name in re.split(", | and ", needs)
            if name
        )
    ]


def commands(path: pathlib.Path) -> list[list[str]]:
    """Returns the commands of recsys in the blocks of a page, in words."""
    text = path.read_text("utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    blocks += re.findall(r"^(?:    .*\n)+", text, re.M)
    lines = re.sub(r"\\\n", " ", "\n".join(blocks)).split("\n")
    return [
        shlex.split(re.split(r"[;&|>]", found[1])[0], comments=True)
        for line in lines
        if (found := re.match(r"\s*python -m recsys\.(\w+(?: .*)?)$", line))
        and "…" not in line
    ]


def slugs(path: pathlib.Path) -> set[str]:
    """Returns what `#` may lead to on a page, on GitHub and on the site."""
    text = re.sub(
        r"^```.*?^```", "", path.read_text("utf-8"), flags=re.M | re.S
    )
    found = set(re.findall(r"^::: ([\w.]+)", text, re.M))
    for heading in re.findall(r"^#+ (.*)", text, re.M):
        slug = re.sub(r"[^\w\s-]", "", heading).strip().lower()
        if not re.search(r"\s\s|[-\s]-|-\s", slug):
            # Others differ: GitHub keeps every blank and hyphen.
            found.add(re.sub(r"\s", "-", slug))
    return found


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

    def test_readme_leads_to_the_site_which_names_every_page(self):
        readme = (ROOT / "README.md").read_text("utf-8")
        self.assertIn("](docs/index.md)", readme)
        navigation = re.findall(
            r"^ +- (?:[\w ]+: )?([\w/]+\.md)$",
            (ROOT / "mkdocs.yml").read_text("utf-8"),
            re.M,
        )
        self.assertCountEqual(
            navigation,
            [str(path.relative_to(ROOT / "docs")) for path in PAGES[2:]],
        )

    @each_page(*PAGES[2:])
    def test_pages_have_at_most_1500_words(self, path):
        words = path.read_text("utf-8").split()
        # Without the lines of tables.
        number = sum(any(map(str.isalnum, word)) for word in words)
        self.assertLessEqual(number, 1500)

    @each_page(*PAGES, ROOT / "CHANGELOG.md")
    def test_relative_links_exist(self, path):
        text = path.read_text("utf-8")
        links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)
        for link in map("".join, links):
            if "://" not in link:
                file, _, anchor = link.partition("#")
                target = path.parent / file if file else path
                self.assertTrue(target.exists(), link)
                if anchor:
                    self.assertIn(anchor, slugs(target), link)

    @each_page()
    def test_named_files_exist(self, path):
        names = re.findall(
            r"(?<![\w/.])(?:recsys|scripts|tests|examples|notebooks)/[\w/]+(?:\.\w+)?",
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

    @each_page(*(path for path in PAGES if commands(path)))
    def test_commands_are_understood(self, path):
        """Every command of a page, by the command's own parser."""
        for name, *arguments in commands(path):
            module = importlib.import_module(f"recsys.{name}")
            with self.subTest(f"{name} {shlex.join(arguments)}"):
                module.COMMAND.parse(arguments)


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
            formats.write_export(
                recsys.load("runs/movielens-small"),
                pathlib.Path("exported"),
                ["saved_model", "onnx", "parquet", "numpy"],
            )

    @classmethod
    @contextlib.contextmanager
    def quickly(cls):
        """Runs in the folder of the examples, with presets of one epoch.

        EASE, which takes most of an evaluation's time, is left out.
        """
        with (
            contextlib.chdir(cls.folder),
            mock.patch.dict(PRESETS, {"movielens-small": QUICK_PRESET}),
            mock.patch.object(prepare, "auto_fields", quick_auto_fields),
            mock.patch.object(comparison, "MAX_EASE_ITEMS", 100),
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
            for command, *flags in commands(ROOT / "docs" / "events.md"):
                module = importlib.import_module(f"recsys.{command}")
                code, out, err = run(module, *flags)
                self.assertEqual(code, 0, err)
                name = flags[-1].removeprefix("--workdir=runs/")
                self.assertIn(said.pop(name), out + err)
        self.assertEmpty(said)

    @each_page(*NOTEBOOKS)
    def test_notebooks_run(self, path):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        self.assertLessEqual(len(cells), 20)
        names = {"__name__": "__main__"}
        with self.quickly(), contextlib.redirect_stdout(io.StringIO()):
            for cell in cells:
                if cell["cell_type"] == "code":
                    source = "".join(cell["source"])
                    # Only where the package is missing, and not Python.
                    source = source.replace("%pip install", "pass  #")
                    exec(compile(source, page_name(path), "exec"), names)
        if path.stem == "your_own_frame":
            # Ten films for each of the 671 users.
            self.assertEqual(names["table"].num_rows, 6710)
            self.assertEqual(names["comedies"].num_rows, 6710)
            loaded = recsys.load(pathlib.Path(self.folder, "my_model"))
            self.assertEqual(loaded.vocabulary.num_items, 9066)

    @each_page(*NOTEBOOKS)
    def test_notebooks_show_a_full_run(self, path):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        self.assertIn("find_spec", "".join(code[0]["source"]))
        self.assertTrue(any(cell["outputs"] for cell in code[1:]))
        numbers = [cell["execution_count"] for cell in code]
        self.assertEqual(numbers, list(range(1, len(code) + 1)))
        for cell in code:
            for output in cell["outputs"]:
                self.assertNotEqual(output["output_type"], "error")
                self.assertNotRegex(
                    json.dumps(output), r"[\" ]/(work|tmp|home)"
                )

    def test_readme_has_an_example_of_at_most_eight_lines(self):
        [example] = examples(ROOT / "README.md")
        lines = [line for line in example.splitlines() if line.strip()]
        self.assertLessEqual(len(lines), 8)


if __name__ == "__main__":
    absltest.main()
