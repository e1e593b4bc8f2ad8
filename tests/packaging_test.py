"""What is installed, what it depends on, and what `import recsys` loads."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

from absl.testing import absltest, parameterized
from commands import run_python
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import recsys
from recsys.errors import missing_extra

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = list(ROOT.glob("scripts/*.py"))
# In a wheel the scripts lie within the package.
MODULES = [
    path
    for path in ROOT.glob("recsys/**/*.py")
    if path.parent != ROOT / "recsys" / "scripts"
]


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def requirements() -> dict[str, list[Requirement]]:
    """Returns the declared dependencies by extra; "" has the required ones."""
    config = setup_cfg()
    declared = {"": config["options"]["install_requires"]}
    declared |= config["options.extras_require"]
    return {
        extra: [Requirement(line) for line in text.split("\n") if line]
        for extra, text in declared.items()
    }


class ImportTest(parameterized.TestCase):
    def test_import_loads_nothing_heavy(self):
        loaded = run_python(
            "import sys, recsys; dir(recsys); recsys.InputError;"
            "print(*{name.partition('.')[0] for name in sys.modules})"
        ).split()
        self.assertIn("recsys", loaded)
        for module in ("absl", "keras", "numpy", "pyarrow", "tensorflow"):
            self.assertNotIn(module, loaded)

    @parameterized.parameters(*recsys.__all__)
    def test_public_name_resolves(self, name):
        value = getattr(recsys, name)
        self.assertIn(name, dir(recsys))
        if name != "__version__":
            self.assertEqual(value.__name__, name)
            self.assertStartsWith(value.__module__, "recsys.")

    @parameterized.parameters(
        "train", "evaluate", "recommend", "export", "extend", "serve"
    )
    def test_no_public_name_shadows_a_command(self, command):
        self.assertIsNotNone(importlib.util.find_spec(f"recsys.{command}"))
        with self.assertRaises(AttributeError):
            recsys.__getattr__(command)

    def test_subpackage_needs_no_import_of_its_own(self):
        printed = run_python("import recsys; print(recsys.data.__name__)")
        self.assertEqual(printed, "recsys.data\n")

    def test_unknown_name_is_an_attribute_error(self):
        with self.assertRaisesRegex(AttributeError, "attribute 'Towers'"):
            _ = recsys.Towers


class MetadataTest(absltest.TestCase):
    def test_version_is_stated_once(self):
        version = setup_cfg()["metadata"]["version"]
        self.assertEqual(recsys.__version__, version)
        for path in [*MODULES, ROOT / "pyproject.toml"]:
            self.assertNotIn(version, path.read_text("utf-8"), str(path))

    def test_what_pip_installs_is_named_as_setup_cfg_names_it(self):
        self.assertEqual(setup_cfg()["metadata"]["name"], "recsys-towers")
        for extra in requirements():
            if not extra:
                continue
            error = str(missing_extra("--flag", extra, "nothing"))
            self.assertEqual(
                error,
                f"--flag needs the extra [{extra}]: pip install "
                f"'recsys-towers[{extra}]' (in a checkout: pip install "
                f"'.[{extra}]'). Received: nothing",
            )

    def test_every_extra_that_a_message_names_exists(self):
        named = set()
        callers = {"missing_extra", "need_packages"}
        modules = [path for path in MODULES if path.name != "errors.py"]
        for path in [*modules, *SCRIPTS]:
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                is_call = isinstance(node, ast.Call)
                if is_call and ast.unparse(node.func) in callers:
                    named.add(ast.literal_eval(node.args[1]))
                if isinstance(node, ast.Constant) and "install" in str(
                    node.value
                ):
                    # No message has words of its own for this.
                    self.assertNotRegex(
                        node.value, r"pip install '\.\[\w+\]'", str(path)
                    )
        self.assertContainsSubset({"ann", "beam", "report"}, named)
        self.assertContainsSubset(named, requirements())

    def test_every_imported_package_is_declared(self):
        homes = importlib.metadata.packages_distributions()
        declared = {
            canonicalize_name(requirement.name)
            for extra in requirements().values()
            for requirement in extra
        }
        for path in MODULES:
            for name in imported_packages(path):
                if name in sys.stdlib_module_names or name == "recsys":
                    continue
                # A package that is not installed keeps its own name.
                found = {canonicalize_name(h) for h in homes.get(name, [name])}
                self.assertTrue(found & declared, f"{path} imports {name}")


def imported_packages(path: pathlib.Path) -> set[str]:
    """Returns the top-level packages that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


class ConstraintsTest(absltest.TestCase):
    def pinned(self) -> dict[str, str]:
        lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        pinned = {}
        for line in lines:
            if line.startswith("#"):
                continue
            # A name and a version: no address, no path, no condition.
            self.assertRegex(line, r"^[\w.-]+==[\w.]+$")
            name, _, version = line.partition("==")
            pinned[canonicalize_name(name)] = version
        return pinned

    def test_every_dependency_is_pinned_within_its_range(self):
        pinned = self.pinned()
        for extra in requirements().values():
            for requirement in extra:
                name = canonicalize_name(requirement.name)
                self.assertIn(name, pinned)
                self.assertIn(pinned[name], requirement.specifier)

    def test_every_dependency_has_an_upper_bound(self):
        for extra in requirements().values():
            for requirement in extra:
                self.assertRegex(str(requirement.specifier), r"<\d")

    def test_transitive_dependencies_are_pinned_too(self):
        pinned = self.pinned()
        for name in sorted(pinned):
            try:
                needed = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue  # Of an extra that is not installed here.
            for requirement in map(Requirement, needed):
                marker = requirement.marker
                if marker is None or marker.evaluate({"extra": ""}):
                    self.assertIn(
                        canonicalize_name(requirement.name), pinned, name
                    )


class ContentsTest(absltest.TestCase):
    """Asks setuptools what a wheel would hold, without building one."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.files = set(
            json.loads(
                run_python(
                    "import json, os, setuptools\n"
                    "distribution = setuptools.Distribution(\n"
                    "    {'script_name': 'setup.py'})\n"
                    "distribution.parse_config_files(['setup.cfg'])\n"
                    "build = distribution.get_command_obj('build_py')\n"
                    "build.build_lib = ''\n"
                    "build.ensure_finalized()\n"
                    "print(json.dumps(build.get_outputs(False)))\n"
                ).splitlines()[-1]
            )
        )

    def test_holds_every_module(self):
        modules = {str(path.relative_to(ROOT)) for path in MODULES}
        self.assertEqual(modules - self.files, set())

    def test_holds_the_bundled_data_with_its_terms_and_the_report_template(
        self,
    ):
        data = {file for file in self.files if not file.endswith(".py")}
        self.assertEqual(
            data,
            {
                "recsys/py.typed",
                "recsys/data/movielens_small/README.txt",
                "recsys/data/movielens_small/movies.csv.gz",
                "recsys/data/movielens_small/ratings.csv.gz",
                "recsys/data/public_sets.json",
                "recsys/report/page.css",
                "recsys/report/template.html.j2",
                *(
                    f"recsys/serving/page/{name}"
                    for name in (
                        "docs.html docs.js icon.svg index.html page.css page.js"
                    ).split()
                ),
            },
        )

    def test_holds_the_scripts_and_no_tests(self):
        self.assertEqual(
            {file.split("/")[0] for file in self.files}, {"recsys"}
        )
        scripts = {f"recsys/{p.relative_to(ROOT)}" for p in SCRIPTS}
        self.assertEqual(
            {name for name in self.files if "/scripts/" in name}, scripts
        )


class RepositoryTest(absltest.TestCase):
    def test_names_no_registry_host_and_no_private_path(self):
        """The contents of the repository work on any machine."""
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True
        )
        if listed.returncode:
            self.skipTest("not a git checkout")
        suspicious = re.compile(
            r"--(extra-)?index-url|--find-links|\bfile://|/opt/|/root/|/home/\w"
        )
        for name in listed.stdout.split("\0"):
            path = ROOT / name
            if not path.is_file() or path.suffix in (".gif", ".gz", ".png"):
                continue
            if path != pathlib.Path(__file__).resolve():
                text = path.read_text("utf-8")
                self.assertNotRegex(text, suspicious, name)


if __name__ == "__main__":
    absltest.main()
