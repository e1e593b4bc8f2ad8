"""The setup scripts, run with a stand-in for Python that installs nothing."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import tempfile

from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).parents[1]
# What runs the whole suite.
TESTS = "-m pytest --numprocesses=2 --dist=loadfile"

# Answers the scripts' probes of Python and records each call in a file.
STAND_IN = """#!/bin/bash
case "$*" in
  "-c import sys"* | "-c import ensurepip"*) exit "${PROBE_STATUS-0}" ;;
esac
printf '%s\\n' "$*" >>"$CALLS"
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip")
    echo "pip speaks"
    [[ -z ${KILL_AT_PIP-} ]] || kill -9 "$PPID"
    exit "${PIP_STATUS-0}"
    ;;
esac
"""


class ScriptsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.checkout = pathlib.Path(
            self.enter_context(tempfile.TemporaryDirectory()), "a checkout"
        )
        shutil.copytree(ROOT / "scripts", self.checkout / "scripts")
        for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.checkout)
        self.calls = self.checkout / "calls"
        python = self.checkout / "tools" / "python3.11"
        python.parent.mkdir()
        python.write_text(STAND_IN)
        python.chmod(0o755)

    def run_script(self, name, *arguments, **environment):
        """Returns the finished process and the calls it made."""
        self.calls.write_text("")
        process = subprocess.run(
            [self.checkout / "scripts" / name, *arguments],
            cwd="/",
            env={
                **os.environ,
                "PATH": f"{self.checkout / 'tools'}:{os.environ['PATH']}",
                "CALLS": str(self.calls),
                **environment,
            },
            capture_output=True,
            text=True,
        )
        return process, self.calls.read_text().splitlines()

    def state(self):
        return (self.checkout / ".venv" / "recsys-state").read_text()

    def test_test_creates_the_environment_once(self):
        process, calls = self.run_script("test", "-k", "name")
        self.assertEqual(process.returncode, 0, process.stderr)
        self.assertStartsWith(
            process.stderr, "Creating an environment in .venv"
        )
        self.assertEqual(calls[0], f"-m venv {self.checkout / '.venv'}")
        self.assertLen([call for call in calls if "-m pip" in call], 2)
        self.assertEndsWith(calls[2], f"{self.checkout}[lint,test]")
        self.assertEqual(calls[3:], ["-m pytest -k name"])
        process, calls = self.run_script("test")
        self.assertEqual(calls, [TESTS])
        self.assertEqual(process.stderr, "")

    def test_quickstart_trains_evaluates_and_recommends(self):
        process, calls = self.run_script("quickstart")
        self.assertEqual(process.returncode, 0, process.stderr)
        train, evaluate, recommend = calls[3:]
        self.assertEqual(train, "-m recsys.train")
        workdir = "--workdir=runs/movielens-small"
        self.assertEqual(evaluate, f"-m recsys.evaluate {workdir}")
        self.assertStartsWith(
            recommend, f"-m recsys.recommend {workdir} --history="
        )
        self.assertNotIn("pip speaks", process.stdout + process.stderr)

    def test_quickstart_reuses_the_environment_of_the_tests(self):
        self.run_script("test")
        _, calls = self.run_script("quickstart")
        self.assertLen(calls, 3)
        _, calls = self.run_script("test")
        self.assertEqual(calls, [TESTS])

    def test_tests_extend_the_environment_of_quickstart(self):
        self.run_script("quickstart")
        process, calls = self.run_script("test")
        self.assertStartsWith(process.stderr, "Updating the environment")
        self.assertLen(calls, 3)

    @parameterized.parameters("setup.cfg", "pyproject.toml", "constraints.txt")
    def test_a_changed_file_updates_the_environment(self, name):
        self.run_script("test")
        with (self.checkout / name).open("a") as file:
            file.write("# changed\n")
        process, calls = self.run_script("test")
        self.assertStartsWith(process.stderr, "Updating the environment")
        self.assertLen(calls, 3)

    def test_a_killed_installation_is_redone(self):
        process, _ = self.run_script("test", KILL_AT_PIP="1")
        self.assertNotEqual(process.returncode, 0)
        self.assertEqual(self.state(), "installing\n")
        process, calls = self.run_script("test")
        self.assertIn("incomplete; creating it again", process.stderr)
        self.assertStartsWith(calls[0], "-m venv")
        self.assertEqual(calls[-1], TESTS)

    def test_an_environment_without_its_python_is_recreated(self):
        self.run_script("test")
        (self.checkout / ".venv" / "bin" / "python").unlink()
        process, calls = self.run_script("test")
        self.assertIn("incomplete; creating it again", process.stderr)
        self.assertEqual(calls[-1], TESTS)

    def test_a_failure_of_pip_is_shown_and_retried(self):
        process, calls = self.run_script("test", PIP_STATUS="1")
        self.assertEqual(process.returncode, 1)
        self.assertIn("pip speaks", process.stderr)
        self.assertIn("pip could not install", process.stderr)
        self.assertLen(calls, 2)
        process, calls = self.run_script("test")
        self.assertEqual(calls[-1], TESTS)

    def test_a_failed_update_keeps_the_environment(self):
        self.run_script("test")
        before = self.state()
        with (self.checkout / "setup.cfg").open("a") as file:
            file.write("# changed\n")
        process, _ = self.run_script("test", PIP_STATUS="1")
        self.assertEqual(process.returncode, 1)
        self.assertEqual(self.state(), before)

    @parameterized.parameters("python3.12", "python3.13", "python3", "python")
    def test_whichever_python_is_there_is_taken(self, name):
        tools = self.checkout / "tools"
        (tools / "python3.11").rename(tools / name)
        # Only what the script itself needs: no other Python is found.
        for tool in ("bash", "cat", "cksum", "cp", "dirname", "mkdir", "rm"):
            (tools / tool).symlink_to(shutil.which(tool))
        process, calls = self.run_script("test", PATH=str(tools))
        self.assertEqual(process.returncode, 0, process.stderr)
        self.assertEqual(calls[0], f"-m venv {self.checkout / '.venv'}")

    @parameterized.parameters("quickstart", "test", "lint")
    def test_missing_python_is_reported(self, name):
        for candidate in ("python3.12", "python3.13", "python3", "python"):
            shutil.copy(
                self.checkout / "tools" / "python3.11",
                self.checkout / "tools" / candidate,
            )
        process, calls = self.run_script(name, PROBE_STATUS="1")
        self.assertEqual(process.returncode, 1)
        self.assertStartsWith(
            process.stderr, "Python 3.11, 3.12 or 3.13 is required"
        )
        self.assertEqual(calls, [])
        self.assertFalse((self.checkout / ".venv").exists())

    @parameterized.parameters("quickstart", "lint")
    def test_an_unknown_argument_is_an_error(self, name):
        process, calls = self.run_script(name, "--fast")
        self.assertEqual(process.returncode, 1)
        self.assertEndsWith(process.stderr, "Received: --fast\n")
        self.assertEqual(calls, [])

    def test_lint_runs_every_check(self):
        _, calls = self.run_script("lint")
        self.assertEqual(
            calls[3:],
            ["-m ruff format --check .", "-m ruff check .", "-m mypy"],
        )


if __name__ == "__main__":
    absltest.main()
