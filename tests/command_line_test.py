"""Flags, help, one-line errors and exit codes of the commands."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import pathlib
import re
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized
from commands import run, run_python

import recsys
from recsys import __main__ as program
from recsys import command_line, evaluate, recommend, train
from recsys.command_line import Command
from recsys.config import FIELDS, TrainConfig, make_config
from recsys.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = {"train": train, "evaluate": evaluate, "recommend": recommend}


def snapshot(folder: pathlib.Path) -> dict[str, bytes | None]:
    """Returns everything below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


def write_log(path: pathlib.Path, num_users=20, length=8, num_items=12):
    """Writes a log in which every user steps around a circle of items."""
    rows = ["user,item,timestamp"]
    for user in range(num_users):
        for step in range(length):
            rows.append(f"u{user},i{(user + step) % num_items},{step}")
    path.write_text("\n".join(rows) + "\n")
    return path


class CommandTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.command = Command("recsys.thing", "Does things.", ["thing --n=1"])
        self.command.add_flag(int, "number", "A number.", group="A", default=3)
        self.command.add_flag(bool, "quickly", "Haste.", group="A")
        self.command.add_flag(float, "rate", "A rate.", group="B")
        self.command.add_flag(list, "word", "Words.", group="B")

    def test_values(self):
        self.assertEqual(
            self.command.parse(
                ["--number=5", "--noquickly", "--word=a b", "--word", "c"]
            ),
            {"number": 5, "quickly": False, "rate": None, "word": ["a b", "c"]},
        )

    def test_values_are_reset_between_calls(self):
        self.command.parse(["--number=5", "--word=a"])
        self.assertEqual(
            self.command.parse([]),
            {"number": 3, "quickly": None, "rate": None, "word": None},
        )

    @parameterized.parameters(
        (["--nubmer=5"], "did you mean --number. Received: --nubmer"),
        (["--zzz=5"], "no such flag; see --help. Received: --zzz"),
        (["--number=x"], "--number must be a whole number. Received: 'x'"),
        (["--number=1.5"], "--number must be a whole number. Received: '1.5'"),
        (["--number="], "--number must be a whole number. Received: ''"),
        (["--rate=fast"], "--rate must be a number. Received: 'fast'"),
        (["--quickly=7"], "--quickly must be true or false. Received: '7'"),
        (["--number"], "Missing value for flag --number"),
        (["--noquickly=1"], "--noquickly=1 does not take an argument"),
        (["a", "b"], "expected flags only, .*. Received: 'a b'"),
        (["--word=Toy", "Story"], "expected flags only, .* 'Story'"),
        (["--flagfile=/no/such"], "Unable to open flagfile.*/no/such"),
    )
    def test_mistakes(self, arguments, message):
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            code = self.command.run(lambda values: 0, arguments)
        self.assertEqual(code, 2)
        self.assertRegex(
            err.getvalue(), f"^python -m recsys.thing: error: .*{message}"
        )
        self.assertEqual(err.getvalue().count("\n"), 1)

    @parameterized.parameters("--help", "-h", "-help")
    def test_help(self, flag):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = self.command.run(lambda values: 1, ["--number=x", flag])
        self.assertEqual(code, 0)
        text = out.getvalue()
        self.assertIn("A:\n  --number=INTEGER\n", text)
        self.assertIn("\n      A number. Default: 3.\n", text)
        self.assertIn("B:\n  --rate=NUMBER\n      A rate.\n", text)
        self.assertIn("thing --n=1", text)
        # Nothing of absl's own.
        self.assertEqual(text.count("  --"), 4)

    @parameterized.parameters(
        (OSError(errno.ENOSPC, "No space", "a/b"), 1, "a/b: No space"),
        (OSError("a\nb"), 1, "a b"),
        (FloatingPointError("the loss\nis NaN"), 1, "the loss is NaN"),
        (MemoryError(), 1, "not enough memory"),
    )
    def test_failures_are_one_line(self, error, expected_code, message):
        code, err = self.run_raising(error)
        self.assertEqual(code, expected_code)
        self.assertEqual(err, f"python -m recsys.thing: error: {message}\n")

    def test_interrupted(self):
        code, err = self.run_raising(KeyboardInterrupt())
        self.assertEqual(code, 130)
        self.assertEqual(err, "\npython -m recsys.thing: stopped\n")

    def test_a_bug_prints_one_line_and_writes_a_traceback(self):
        code, err = self.run_raising(RuntimeError("a bug\nof two lines"))
        self.assertEqual(code, 1)
        self.assertRegex(
            err,
            r"^python -m recsys.thing: error: unexpected RuntimeError: a bug",
        )
        self.assertEqual(err.count("\n"), 1)
        path = pathlib.Path(re.search(r"; (\S+\.log) has the details", err)[1])
        self.addCleanup(path.unlink)
        self.assertIn("of two lines", path.read_text())
        self.assertIn("Traceback", path.read_text())

    def test_control_characters_are_escaped(self):
        _, err = self.run_raising(InputError("title \x1b[31mred\x07"))
        self.assertIn(r"title \x1b[31mred\x07", err)

    def run_raising(self, error):
        def main(values):
            raise error

        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            code = self.command.run(main, [])
        return code, err.getvalue()


class ConfigFlagsTest(parameterized.TestCase):
    def test_every_field_is_explained(self):
        for name, info in FIELDS.items():
            self.assertRegex(info.help, r"^[A-Z].*\.$", name)
            self.assertEqual(
                f"  --{name}=" in train.COMMAND.help(), info.is_flag
            )

    def test_flags_have_no_default_of_their_own(self):
        values = train.COMMAND.parse([])
        for name, info in FIELDS.items():
            if info.is_flag:
                self.assertIsNone(values[name], name)

    def test_every_field_can_be_set(self):
        given = {
            name: value
            for name, value in TrainConfig(
                data="log.csv",
                user_column="u",
                item_column="i",
                timestamp_column="t",
                rating_column="r",
                items_file="items.csv",
                tfds_data_dir="a",
                tfds_manual_dir="b",
                min_rating=3.5,
                min_item_count=2,
                repeats="all",
                split="temporal",
                encoder="gru",
                embedding_dim=10,
                learning_rate=0.5,
                jit_compile=False,
                seed=7,
            )
            .to_dict()
            .items()
            if value is not None and FIELDS[name].is_flag
        }
        arguments = [f"--{name}={value}" for name, value in given.items()]
        values = train.COMMAND.parse(arguments)
        self.assertEqual(command_line.given_fields(values), given)

    def test_a_name_beyond_all_measure(self):
        with self.assertRaisesRegex(
            InputError, "^expected flags such as --name=value.*'--xxx[^=]*'$"
        ):
            train.COMMAND.parse([f"--{'x' * 5_000}=1"])

    def test_given_flags_override_the_preset(self):
        values = train.COMMAND.parse(["--num_epochs=3"])
        config = make_config(
            values["preset"], command_line.given_fields(values)
        )
        expected = make_config("movielens-small", {})
        self.assertEqual(config, dataclasses.replace(expected, num_epochs=3))


class MistakesTest(parameterized.TestCase):
    """Each is one line, exit code 2, and leaves the disk as it was."""

    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enter_context(tempfile.TemporaryDirectory())
        )
        write_log(self.folder / "log.csv")
        (self.folder / "empty.csv").write_text("")
        (self.folder / "header.csv").write_text("user,item,timestamp\n")
        (self.folder / "no_item.csv").write_text("user,timestamp\n1,2\n")
        (self.folder / "row.csv").write_text(
            "user,item,timestamp\na,b,1\na,c,soon\n"
        )
        (self.folder / "one_item.csv").write_text(
            "user,item,timestamp\na,b,1\nc,b,2\n"
        )
        (self.folder / "lonely.csv").write_text(
            "user,item,timestamp\na,b,1\nc,d,2\n"
        )
        (self.folder / "file").write_text("no folder")
        self.other = self.folder / "other_run"
        self.other.mkdir()
        config = make_config("movielens-small", {"seed": 5})
        (self.other / "config.json").write_text(json.dumps(config.to_dict()))

    def check(self, module, arguments, message):
        before = snapshot(self.folder)
        arguments = [text.format(folder=self.folder) for text in arguments]
        code, out, err = run(module, *arguments)
        self.assertEqual(code, 2, err)
        self.assertRegex(err, message)
        self.assertEqual(err.count("\n"), 1)
        self.assertStartsWith(err, f"python -m {module.COMMAND.name}: error: ")
        self.assertEqual(out, "")
        self.assertEqual(snapshot(self.folder), before)

    @parameterized.parameters(
        (["--preset=netflix"], "--preset must be auto, one of movielens-small"),
        (["--split=random"], "--split must be one of .* Received: 'random'"),
        (["--split=temporal", "--test_from=soon"], "--test_from must be a sh"),
        (
            ["--split=temporal", "--test_from=2030-06-30"],
            "--test_from must lie within the times of the log.*2030-06-30$",
        ),
        (["--test_from=0.95"], "--test_from must go with --split=temporal"),
        (["--encoder=lstm"], "--encoder must be one of .* Received: 'lstm'"),
        (["--dropout=1"], "--dropout must be below 1. Received: 1"),
        (["--num_epochs=0"], "--num_epochs must be at least 1. Received: 0"),
        (["--learning_rate=nan"], "--learning_rate must be .* Received: nan"),
        (["--seed=4294967296"], "--seed must be at most 4294967295"),
        (["--workdir="], "--workdir must name a folder. Received: ''"),
        (["--data={folder}/nothing.csv"], "data.*nothing.csv"),
        (["--data={folder}/empty.csv"], "empty.csv"),
        (["--data={folder}/header.csv"], "header.csv"),
        (["--data={folder}/no_item.csv"], "no_item.csv.*item"),
        (["--data={folder}/row.csv"], "row.csv.*3.*soon"),
        (["--data={folder}/one_item.csv"], "at least two items.*: 1"),
        (["--data={folder}/lonely.csv"], "no user has enough interactions"),
        (["--data=tfds:movielens/9z-ratings"], "9z"),
        (["--user_column=who"], "who"),
        (["--min_item_count=10000"], "min_item_count"),
        (["--tfds_data_dir=x"], "tfds_data_dir"),
    )
    def test_train(self, arguments, message):
        workdir = "--workdir={folder}/new"
        self.check(train, [workdir, *arguments], message)

    @parameterized.parameters(
        (["--workdir={folder}/file"], "folder that can be written.*file"),
        (["--workdir={folder}/file/a/b"], "folder that can be written"),
        (
            ["--workdir={folder}/other_run", "--seed=6", "--dropout=0.77"],
            r"different dropout \(0.\d+ there, 0.77 now\), "
            r"seed \(5 there, 6 now\)$",
        ),
    )
    def test_train_into(self, arguments, message):
        self.check(train, arguments, message)

    @parameterized.parameters(
        ([], "--workdir must name a trained model. Received: none"),
        (["--workdir={folder}/new"], r"no such folder"),
        (["--workdir={folder}/other_run"], r"no model"),
        (["--wrokdir=x"], "did you mean --workdir"),
    )
    def test_evaluate_and_recommend(self, arguments, message):
        self.check(evaluate, arguments, message)
        self.check(recommend, arguments, message)

    @parameterized.parameters(
        (["--k=0"], "--k must be at least 1. Received: 0"),
        (["--output=x"], "--output goes with --histories=FILE"),
        (["--histories=x"], "--histories needs --output=FILE"),
        (["--history=1", "--histories=x"], "Received: --history, --histories"),
        (["--user=1", "--users=all"], "one of .* Received: --user, --users"),
        (["--users=all"], "--users needs --output=FILE"),
        (["--users=/no", "--output=x"], "--users must be all, or a file"),
        (["--user=1", "--output=x", "--explain"], "Received: --output"),
        (["--user=1", "--runner=DirectRunner"], "goes with --users=all"),
        (["--similar_to=1", "--where=x"], "with --k alone. Received: --where"),
        (["--histories=x", "--output=y", "--explain"], "goes with --history"),
        (
            ["--similar_to=1", "--history=2", "--explain"],
            "--similar_to goes with --k alone. Received: --history, --explain",
        ),
    )
    def test_recommend(self, arguments, message):
        self.check(recommend, ["--workdir=x", *arguments], message)


class StartTest(parameterized.TestCase):
    """Answers that need no TensorFlow do not wait for it."""

    @parameterized.parameters(
        ("train", ["--help"], 0, ("numpy", "pyarrow")),
        ("evaluate", ["--help"], 0, ("numpy", "pyarrow")),
        ("recommend", ["--help"], 0, ("numpy", "pyarrow")),
        ("train", ["--no_such_flag"], 2, ("numpy", "pyarrow")),
        ("train", ["--data=/no/such/file"], 2, ()),
        ("evaluate", ["--workdir=/no/such/folder"], 2, ()),
        ("recommend", ["--workdir=/no/such/folder"], 2, ()),
    )
    def test_loads_little(self, name, arguments, expected_code, absent):
        code = (
            "import sys\n"
            f"from recsys import {name} as module\n"
            f"code = module.COMMAND.run(module.main, {arguments})\n"
            "print(code, *sys.modules, file=sys.stderr)"
        )
        process = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        loaded = process.stderr.split("\n")[-2].split()
        self.assertEqual(int(loaded[0]), expected_code)
        for module in ("tensorflow", "keras", *absent):
            self.assertNotIn(module, loaded)

    @parameterized.parameters(*COMMANDS)
    def test_as_a_program(self, name):
        process = subprocess.run(
            [sys.executable, "-m", f"recsys.{name}", "--workdri=x"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        self.assertEqual(process.returncode, 2)
        self.assertEqual(process.stdout, "")
        self.assertEqual(
            process.stderr,
            f"python -m recsys.{name}: error: no such flag; did you mean "
            "--workdir? Received: --workdri\n",
        )


class ProgramTest(parameterized.TestCase):
    """`recsys` and `python -m recsys`."""

    def run_program(self, *arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = program.main(arguments)
        return code, out.getvalue(), err.getvalue()

    @parameterized.parameters([()], [("--help",)], [("-h",)], [("help",)])
    def test_lists_every_command(self, arguments):
        code, out, err = self.run_program(*arguments)
        self.assertEqual((code, err), (0, ""))
        modules = [
            path.stem
            for path in (ROOT / "recsys").glob("*.py")
            if "COMMAND.run(main)" in path.read_text("utf-8")
        ]
        listed = re.findall(r"^  (\w+) {2,}[A-Z]\w+ ", out, re.M)
        self.assertContainsSubset([*modules, "verify_rankings"], listed)
        self.assertNoCommonElements(["__main__", "command_line"], listed)

    def test_help_loads_nothing_heavy(self):
        code = (
            "import sys; from recsys.__main__ import main; main(['--help'])\n"
            "print({'absl', 'numpy', 'tensorflow'} & sys.modules.keys())"
        )
        self.assertEndsWith(run_python(code), "\nset()\n")

    def test_runs_a_command_with_its_flags_and_exit_code(self):
        for name in ("train", "prepare_shards", "prepare-shards"):
            code, out, err = self.run_program(name, "--preset=nonesuch")
            self.assertEqual((code, out), (2, ""))
            self.assertStartsWith(
                err, f"python -m recsys.{name.replace('-', '_')}: error: "
            )
        code, out, _ = self.run_program("recommend", "--help")
        self.assertEqual(code, 0)
        self.assertIn("--history=", out)

    def test_runs_a_script_in_a_process_of_its_own(self):
        process = subprocess.run(
            [sys.executable, "-m", "recsys", "verify_rankings", "--wrkdir=x"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        self.assertEqual(process.returncode, 2, process.stderr)
        self.assertIn("did you mean --workdir?", process.stderr)

    @parameterized.parameters(
        ("trian", "no such command; did you mean train? Received: 'trian'"),
        ("--data=x", "no such command; see recsys --help. Received: '--data="),
    )
    def test_an_unknown_command_is_one_line(self, name, message):
        code, out, err = self.run_program(name)
        self.assertEqual((code, out, err.count("\n")), (2, "", 1))
        self.assertStartsWith(err, f"recsys: error: {message}")

    def test_version(self):
        code, out, _ = self.run_program("--version")
        self.assertEqual((code, out), (0, f"recsys {recsys.__version__}\n"))


if __name__ == "__main__":
    absltest.main()
