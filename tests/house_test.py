"""How the package is built: imports point down and never in a circle."""

import ast
import pathlib

from absl.testing import absltest, parameterized
from commands import run_python

import recsys

PACKAGE = pathlib.Path(recsys.__file__).parent

# From the ground up. A module imports only from its own floor and from those
# below; a name covers everything in its package that has no floor of its own.
FLOORS = (
    {"errors"},
    {"ids", "files", "config", "metrics"},
    {"command_line", "losses", "optimizers", "negatives", "downloads"},
    {"data", "datasets"},
    {"models", "retrieval", "reranking"},
    {"evaluation"},
    {"workdir", "baselines"},
    {"recommender", "report"},
    {"histories", "beam_recommendation", "serving"},
    {"evaluation.comparison"},
    {"evaluation.run", "training"},
    {"runs"},
    {
        "train",
        "combine",
        "tune",
        "evaluate",
        "recommend",
        "export",
        "extend",
        "prepare_shards",
        "serve",
    },
    {"__main__"},
)


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# In a wheel the scripts lie within the package.
MODULES = {
    module_name(path): path
    for path in PACKAGE.rglob("*.py")
    if path.parent != PACKAGE / "scripts"
}


def imports_of(module):
    """Returns the modules of ours that one imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # A module where there is one: `from package import module, name`.
            names = [
                full
                if (full := f"{node.module}.{alias.name}").removeprefix(
                    "recsys."
                )
                in MODULES
                else node.module
                for alias in node.names
            ]
        found.update(name.removeprefix("recsys.") for name in names)
    return found & MODULES.keys() - {module, ""}


def floor_of(module):
    found = [
        (len(name), number)
        for number, names in enumerate(FLOORS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    return max(found)[1]


class HouseTest(parameterized.TestCase):
    def test_the_imports_are_found(self):
        self.assertContainsSubset(
            {"errors", "config", "data.prepare"}, imports_of("workdir")
        )

    def test_no_import_points_up(self):
        upward = [
            f"{module} -> {imported}"
            for module in MODULES
            if module
            for imported in imports_of(module)
            if floor_of(imported) > floor_of(module)
        ]
        self.assertEmpty(upward)

    def test_there_is_no_circle(self):
        left = {module: imports_of(module) for module in MODULES if module}
        while free := [module for module in left if not left[module]]:
            left = {
                module: imported.difference(free)
                for module, imported in left.items()
                if module not in free
            }
        self.assertEmpty(left, "These import each other, or what does.")

    def test_it_stays_small_enough_to_be_held_in_mind(self):
        lengths = [
            node.end_lineno - node.lineno + 1
            for path in MODULES.values()
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.FunctionDef)
        ]
        self.assertLessEqual(len(MODULES), 100)
        self.assertLessEqual(
            sum(length > 60 for length in lengths) / len(lengths), 0.01
        )

    def test_few_imports_are_within_functions(self):
        """Only what `--help` must not wait for, and packages of extras."""
        found = {
            f"{module}, line {node.lineno}: {ast.unparse(node)}"
            for module, path in MODULES.items()
            for function in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        self.assertLessEqual(len(found), 15, "\n".join(sorted(found)))

    @parameterized.parameters("recsys.models.two_tower", "recsys.losses")
    def test_models_need_neither_arrow_nor_tfds(self, module):
        code = (
            # Keras imports pandas where it is installed, and pandas pyarrow.
            "import sys; sys.modules['pandas'] = None\n"
            f"import {module}\n"
            "print(sorted({'pyarrow', 'tensorflow_datasets', 'recsys.config'}"
            " & sys.modules.keys()))"
        )
        self.assertEqual(run_python(code), "[]\n")


if __name__ == "__main__":
    absltest.main()
