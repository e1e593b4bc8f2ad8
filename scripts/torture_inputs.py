"""Hostile logs, items, histories, flags, models and requests."""

from __future__ import annotations

import base64
import contextlib
import csv
import gzip
import io
import itertools
import json
import marshal
import pathlib
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from torture_state import odd_json
from torture_world import Try, World, flags, run_process

import recsys
from recsys import histories, recommend, train
from recsys.data import items, prepare, sources
from recsys.errors import InputError
from recsys.evaluation import rankings_files
from recsys.workdir import Workdir

# Seconds that a single input of a few kilobytes may take.
_HANG = 60
_ODD_TEXT = (
    "",
    " ",
    "a,b",
    'say "hi"',
    '"',
    '""',
    "two\nlines",
    "carriage\rreturn",
    "tab\there",
    "\x1b[2J\x1b]0;title\x07",
    "\u202eright to left",
    "é\u0301\u00a0",
    "\ufeffmark",
    "😀" * 40,
    "\x00",
    "NaN",
    "null",
    "None",
    "-0",
    "1e400",
    "9" * 320,
    "0x10",
    "007",
    "3.0",
    str(2**63),
    str(-(2**63) - 1),
    "=1+1",
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "x" * 70_000,
    "\\",
    '\\"',
    "'; DROP TABLE items; --",
)
_TIMES = (0, 1, 978_300_760, 2**31, 2**53, 2**62)
_ENCODINGS = ("utf-8-sig", "utf-16", "latin-1", "cp037", "utf-32")


def failure_of(action: Callable[[], str | None]) -> str | None:
    """Runs an action; returns what failed in it.

    An `InputError` is what bad input should give, and so is an error of the
    system that names its file.
    """

    def hang(*_: object) -> None:
        raise TimeoutError(f"took more than {_HANG} s")

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(_HANG)
    try:
        return action()
    except InputError as error:
        return None if str(error).strip() else "an error without a message"
    except Exception as error:
        if isinstance(error, OSError) and error.filename and error.strerror:
            return None
        return f"a stack trace: {type(error).__name__}: {error}"[:400]
    finally:
        signal.alarm(0)


def make_rows(rng: np.random.Generator) -> list[list[str]]:
    """Returns users, items and times; some are odd text."""

    def odd() -> str:
        return _ODD_TEXT[rng.integers(len(_ODD_TEXT))]

    rows = []
    start = _TIMES[rng.integers(len(_TIMES))]
    share = rng.choice([0.0, 0.01, 0.2])
    for user in range(8):
        for step in range(4):
            item = (user + step) % 6
            row = [f"u{user}", f"i{item}", str(start + step)]
            for column in range(3):
                if rng.random() < share:
                    row[column] = odd()
            rows.append(row)
    return rows


def as_csv(
    rows: list[list[str]], header: list[str], delimiter: str = ","
) -> bytes:
    """Writes rows as RFC 4180 has it."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerows([header, *rows])
    return text.getvalue().encode()


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Damages the bytes of a text file in one of many ways."""
    lines = content.split(b"\n")
    place = int(rng.integers(len(lines)))
    at = int(rng.integers(len(content)))
    junk = _ODD_TEXT[rng.integers(len(_ODD_TEXT))].encode()
    encoding = _ENCODINGS[rng.integers(len(_ENCODINGS))]
    choices = (
        lambda: content[:at] + junk + content[at:],
        lambda: content[:at],
        lambda: content.replace(b"\n", b"\r\n"),
        lambda: content.replace(b"\n", b"\r"),
        lambda: b"\n".join([*lines[:place], b"", b" ", *lines[place:]]),
        lambda: b"\n".join([*lines[:place], lines[place] + b",", junk]),
        lambda: b"\n".join(lines[1:]),
        lambda: content.decode().encode(encoding, "replace"),
        lambda: content.replace(b",", b";"),
        lambda: content.replace(b",", b"::"),
        lambda: content[:at] + bytes(rng.integers(0, 256, 9, np.uint8)),
        lambda: content[:at] + b'"' + content[at:],
        lambda: rng.integers(0, 256, 500, np.uint8).tobytes(),
        lambda: b"",
        lambda: b"\n" * 100,
        lambda: lines[0] + b"\n",
        lambda: lines[0] + b"," + lines[0] + content[len(lines[0]) :],
    )
    return choices[rng.integers(len(choices))]()


def num_rows(content: bytes) -> int | None:
    """Counts the rows of a CSV file slowly; None where that is not clear."""
    if b'"' in content or b"\r" in content or b"\x00" in content:
        return None
    with contextlib.suppress(UnicodeDecodeError):
        lines = content.decode("utf-8-sig").split("\n")
        return sum(bool(line) for line in lines) - 1
    return None


def odd_columns(rng: np.random.Generator) -> pa.Table:
    """Returns a table of which one column has an odd type."""
    base = {
        "user": pa.array([f"u{i // 4}" for i in range(32)]),
        "item": pa.array([f"i{i % 6}" for i in range(32)]),
        "timestamp": pa.array(range(32)),
        "title": pa.array([f"t{i}" for i in range(32)]),
    }
    odd = (
        pa.array([None] * 32),
        pa.array([[i] for i in range(32)]),
        pa.array([{"a": i} for i in range(32)]),
        pa.array(np.arange(32, dtype=np.float16)),
        pa.array(np.arange(32) + 2.0**53),
        pa.array(np.arange(32) * np.nan),
        pa.array([True, False] * 16),
        pa.array([b"\xff\xfe"] * 32),
        pa.array(np.arange(32, dtype=np.uint64) + 2**63),
        pa.array(np.arange(32), pa.timestamp("ns")),
        pa.array(np.arange(32), pa.timestamp("us", "Europe/Berlin")),
        pa.array(np.arange(32), pa.duration("s")),
        pa.array(np.arange(32, dtype=np.int32), pa.date32()),
        pa.array(np.arange(32), pa.time64("us")),
        pa.array([f"i{i % 5}" for i in range(32)]).dictionary_encode(),
        pa.array(np.arange(32)).cast(pa.decimal128(38, 3)),
        pa.array(
            [[("k", i)] for i in range(32)], pa.map_(pa.string(), pa.int32())
        ),
        pa.array([f"{i}" for i in range(31)] + [None]),
        pa.array([f"i{i}" for i in range(32)], pa.large_string()),
        pa.array([f"i{i}" for i in range(32)], pa.string_view()),
        pa.nulls(32, pa.binary(3)),
    )
    names = list(base)
    name = names[rng.integers(len(names))]
    base[name] = odd[rng.integers(len(odd))]
    if rng.random() < 0.1:
        base["User"] = base["user"]
    return pa.table(base).slice(0, 0 if rng.random() < 0.05 else 32)


def as_archive(content: bytes, rng: np.random.Generator) -> bytes:
    """Returns a zip with odd members."""
    buffer = io.BytesIO()
    names = ["log.csv", "/", "../out.csv", "a/b/log.csv", "x" * 300, "log.zip"]
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in rng.permutation(names)[: rng.integers(0, 4)].tolist():
            archive.writestr(name, content)
    found = bytearray(buffer.getvalue())
    if rng.random() < 0.5 and found:
        for at in rng.integers(len(found), size=3).tolist():
            found[at] ^= 1 << int(rng.integers(8))
    return bytes(found)


class Reading:
    """Reads hostile logs and items files as training does.

    Args:
        world: Its folder.
    """

    def __init__(self, world: World) -> None:
        self.folder = world.folder / "hostile"
        self.config = Workdir(world.workdir).read_config()
        self.recommender = recsys.load(world.workdir)
        config = recsys.training.TrainConfig(data=str(world.log))
        self.queries = prepare.build_data(config).split.reported[0]

    def fresh(self) -> pathlib.Path:
        """Returns the empty folder of the next input."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        return self.folder

    def write_log(
        self, rng: np.random.Generator
    ) -> tuple[str, pathlib.Path, list[list[str]] | int | None]:
        """Writes a log.

        Returns:
            The kind, the path, and the rows that it has, their number, or
            None where it is unclear what it has.
        """
        folder = self.fresh()
        header = ["user", "item", "timestamp"]
        rows = make_rows(rng)
        content = as_csv(rows, header)
        form = int(rng.integers(7))
        if form == 0:
            path = folder / "log.csv"
            path.write_bytes(content)
            return "CSV with odd values", path, rows
        if form == 1:
            path = folder / "log.csv"
            content = mutated(content, rng)
            path.write_bytes(content)
            return "CSV, damaged or of another form", path, num_rows(content)
        if form == 2:
            path = folder / "log.tsv"
            content = mutated(content, rng) if rng.random() < 0.5 else content
            path.write_bytes(content.replace(b",", b"\t"))
            return "TSV", path, None
        if form == 3:
            path = folder / "log.csv.gz"
            packed = gzip.compress(content)
            cut = int(rng.integers(len(packed)))
            path.write_bytes(packed[:cut] + packed[cut + 1 :])
            return "gzip, cut or damaged", path, None
        if form == 4:
            path = folder / "log.zip"
            path.write_bytes(as_archive(content, rng))
            return "zip with odd members", path, None
        if form == 5:
            path = folder / "log.parquet"
            pq.write_table(odd_columns(rng), path)
            return "Parquet with an odd column", path, None
        path = folder / "log.parquet"
        table = dict(
            zip(header, np.transpose(make_rows(rng)).tolist(), strict=True)
        )
        pq.write_table(pa.table(table), path)
        found = bytearray(path.read_bytes())
        for at in rng.integers(len(found), size=2).tolist():
            found[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(found)
        return "Parquet, damaged", path, None

    def check_log(
        self, path: pathlib.Path, expected: list[list[str]] | int | None
    ) -> str | None:
        """Reads a log whole, in blocks, and up to its split."""
        log = sources.read(str(path)).interactions
        users, ids = log.user_ids[log.users], log.item_ids[log.items]
        found = list(zip(users.tolist(), ids.tolist(), strict=True))
        if isinstance(expected, list):
            slow = [(user.strip(), item.strip()) for user, item, _ in expected]
            # Times that are not whole numbers would have been an error.
            times = [
                int(time if time.strip("-").isdigit() else float(time))
                for *_, time in expected
            ]
            if found != slow:
                return f"other rows: {found[:3]} … for {slow[:3]} …"
            if log.timestamps.tolist() != times:
                return f"other times: {log.timestamps[:5]} for {times[:5]}"
        elif expected is not None and len(found) != expected:
            return f"{len(found)} rows read of {expected}"
        fault = self._check_blocks(path, len(found))
        if fault is None:
            prepare.build_data(
                recsys.training.TrainConfig(data=str(path), repeats="all")
            )
        return fault

    def _check_blocks(self, path: pathlib.Path, expected: int) -> str | None:
        """Compares with the streaming reader, which may refuse more."""
        with contextlib.suppress(InputError):
            units, _ = sources.Source(str(path)).units()
            found = sum(len(b) for unit in units for b in unit.blocks())
            if found != expected:
                return f"{found} rows in blocks, {expected} at once"
        return None

    def check_items(self, rng: np.random.Generator) -> str | None:
        """Reads an odd items file."""
        folder = self.fresh()
        if rng.random() < 0.3:
            path = folder / "items.parquet"
            pq.write_table(odd_columns(rng), path)
        else:
            path = folder / "items.csv"
            header = ["item", "title", "genres"]
            rows = [[f"i{n}", f"t{n}", "a|b"] for n in range(9)]
            for row in rows:
                if rng.random() < 0.3:
                    odd = _ODD_TEXT[rng.integers(len(_ODD_TEXT))]
                    row[rng.integers(3)] = odd
            content = as_csv(rows, header)
            if rng.random() < 0.6:
                content = mutated(content, rng)
            path.write_bytes(content)
        table = items.read_items(path, "item")
        if path.suffix == ".csv":
            expected = num_rows(path.read_bytes())
            if expected not in (None, len(table)):
                return f"{len(table)} items read of {expected}"
        return None

    def check_histories(self, rng: np.random.Generator) -> str | None:
        """Answers an odd file of histories, line for line."""
        folder = self.fresh()
        lines = [
            json.dumps({"query_id": f"q{n}", "history": [f"i{n % 25}", "i3"]})
            for n in range(6)
        ]
        if rng.random() < 0.4:
            lines = [f"i{n % 25} i3" for n in range(6)]
        for place in range(len(lines)):
            draw = rng.random()
            if draw < 0.1:
                odd = _ODD_TEXT[rng.integers(len(_ODD_TEXT))]
                lines[place] = json.dumps({"query_id": odd, "history": [odd]})
            elif draw < 0.2 and lines[place].startswith("{"):
                content = odd_json(lines[place].encode(), rng)
                lines[place] = content.decode(errors="replace")
        content = "\n".join(lines).encode(errors="replace")
        if rng.random() < 0.4:
            content = mutated(content, rng)
        path, output = folder / "in.jsonl", folder / "out.jsonl"
        path.write_bytes(content)
        summary = histories.recommend_file(self.recommender, path, output, 5)
        answers = output.read_text().split("\n")[:-1]
        if len(answers) != summary.num_queries:
            return f"{len(answers)} answers to {summary.num_queries} queries"
        for line in answers:
            scores = json.loads(line, parse_constant=float)["scores"]
            if not np.isfinite(scores).all():
                return f"a score that is not finite: {line[:200]}"
        return None

    def check_rankings(self, rng: np.random.Generator) -> str | None:
        """Evaluates odd rankings of another system."""
        path = self.fresh() / "rankings.jsonl"
        names = rankings_files.query_ids(self.queries)
        lines = [
            json.dumps({"query_id": name, "items": [f"i{n % 25}", "i3"]})
            for n, name in enumerate(names)
        ]
        place = int(rng.integers(len(lines)))
        if rng.random() < 0.6:
            odd = odd_json(lines[place].encode(), rng)
            lines[place] = odd.decode(errors="replace")
        content = "\n".join(lines).encode(errors="replace")
        if rng.random() < 0.5:
            content = mutated(content, rng)
        path.write_bytes(content)
        evaluation = rankings_files.read_rankings(
            path,
            self.queries,
            self.recommender.vocabulary,
            protocol="leave_last_out",
            exclude_history=False,
        )
        if evaluation.num_queries != len(names):
            return f"{evaluation.num_queries} of {len(names)} queries"
        return None


def odd_flags(rng: np.random.Generator) -> str | None:
    """Gives `train` and `recommend` odd flags and no data to go on with."""
    command, names = (
        (train, ("seed", "embedding_dim", "learning_rate", "min_rating"))
        if rng.random() < 0.5
        else (recommend, ("k", "history", "exclude_history", "output"))
    )
    odd = _ODD_TEXT[rng.integers(len(_ODD_TEXT))]
    name = str(rng.choice([*names, "data", "workdir", "no_such", odd]))
    arguments = [f"--{name}={odd}", "--workdir=/nowhere/at/all"]
    if command is train and name != "data":
        arguments.append("--data=/nowhere/at/all.csv")
    if rng.random() < 0.2:
        arguments.insert(0, odd)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command.COMMAND.run(command.main, arguments)
    lines = err.getvalue().splitlines()
    if code not in (1, 2) or len(lines) != 1 or "this is a bug" in lines[0]:
        return f"{arguments}: exit code {code}: {err.getvalue()[:300]}"
    if any(not character.isprintable() for character in lines[0]):
        return f"{arguments}: control characters in {lines[0][:300]!r}"
    return None


_READING = "one line that names what is wrong, or the right rows; no hang"


def inputs(world: World, rng: np.random.Generator) -> Iterator[Try]:
    """Reads hostile files and flags, a few of them with real commands."""
    reading = Reading(world)
    others = {
        "items files": reading.check_items,
        "histories": reading.check_histories,
        "rankings of other systems": reading.check_rankings,
        "flags": odd_flags,
    }
    for number in itertools.count():
        for name, check in others.items():
            fault = failure_of(lambda check=check: check(rng))
            yield Try(_READING, name, fault and f"{number}: {fault}")
        for _ in range(6):
            kind, path, expected = reading.write_log(rng)
            fault = failure_of(
                lambda path=path, rows=expected: reading.check_log(path, rows)
            )
            yield Try(_READING, kind, fault and f"{number}: {fault}")
        if number % 10 == 0:
            output = reading.folder / "shards"
            ended = run_process(
                "prepare_shards",
                flags(data=path, output=output, num_workers=1),
            )
            fault = ended.fault(0, 1, 2)
            kind = "logs, by `recsys.prepare_shards` in a process of its own"
            yield Try(_READING, kind, fault and f"{number}: {fault}")


def payloads(marker: pathlib.Path) -> list[tuple[str, Any]]:
    """Returns configurations that would create a file if they were run."""
    source = f"open({str(marker)!r}, 'w').close()"
    inner = eval(f"(lambda x: exec({source!r}))").__code__
    encoded = base64.b64encode(marshal.dumps(inner)).decode()
    function = {
        "class_name": "__lambda__",
        "config": {"code": encoded, "defaults": None, "closure": None},
    }

    def of(module: str | None, name: str, config: Any, **more: Any) -> Any:
        return {
            "module": module,
            "class_name": name,
            "config": config,
            "registered_name": more.pop("registered_name", None),
            **more,
        }

    touch = f"touch {marker}"
    found = [
        ("Lambda", of("keras.layers", "Lambda", {"function": function})),
        (
            "Lambda",
            of(
                "keras.layers",
                "Lambda",
                {"function": [encoded, None, None], "function_type": "lambda"},
            ),
        ),
        ("Lambda", function),
        ("Lambda", of("builtins", "__lambda__", {"code": encoded})),
        ("Lambda", {"class_name": "__bytes__", "config": encoded}),
    ]
    for module, name, config in (
        ("os", "system", touch),
        ("os", "system", {"command": touch}),
        ("posix", "system", {"command": touch}),
        ("subprocess", "Popen", {"args": ["touch", str(marker)]}),
        ("subprocess", "getoutput", {"cmd": touch}),
        ("builtins", "exec", source),
        ("builtins", "eval", {"source": source}),
        ("builtins", "open", {"file": str(marker), "mode": "w"}),
        ("pathlib", "Path.touch", {"self": str(marker)}),
        ("torture_payload", "Touch", {}),
        ("torture_payload.Touch", "Touch", {}),
        ("../torture_payload", "Touch", {}),
        ("keras.src.utils.file_utils", "copy", {}),
        ("keras.utils", "get_file", {"origin": "file:" + "///etc/hosts"}),
        ("keras.src.legacy.saving.serialization", "eval", source),
        ("recsys.training", "train", {"config": {}, "workdir": str(marker)}),
        ("recsys.files", "write_json", {"path": str(marker), "value": 1}),
    ):
        for kind in (None, "function", "type"):
            title = "foreign module or function"
            if kind is None:
                made = of(module, name, config)
            else:
                made = of("builtins", kind, name, registered_name=module)
                made["config"] = {"module": module, "name": name}
            found.append((title, made))
        found.append(
            (
                "registered name",
                of(None, name, config, registered_name=f"{module}>{name}"),
            )
        )
    return found


def places(config: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yields the paths of all nodes of a configuration."""
    if path:
        yield path
    if isinstance(config, dict):
        for key, value in config.items():
            yield from places(value, (*path, key))


def with_payload(config: Any, path: tuple, payload: Any) -> Any:
    """Returns a configuration with another value in a place."""
    if not path:
        return payload
    inner = with_payload(config[path[0]], path[1:], payload)
    return {**config, path[0]: inner}


def models(world: World, rng: np.random.Generator) -> Iterator[Try]:
    """Loads `.keras` files that hold code, or the names of code."""
    folder = world.folder / "hostile-models"
    folder.mkdir()
    marker = folder / "code-was-run"
    (folder / "torture_payload.py").write_text(
        f"open({str(marker)!r}, 'w').close()\nclass Touch: pass\n"
    )
    sys.path.insert(0, str(folder))
    workdir = folder / "run"
    shutil.copytree(world.workdir, workdir)
    (workdir / "checksums.json").unlink()
    with zipfile.ZipFile(world.workdir / "model.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    all_places = list(places(config))
    all_payloads = payloads(marker)
    for number in itertools.count():
        title, payload = all_payloads[number % len(all_payloads)]
        path = all_places[rng.integers(len(all_places))]
        if number < len(all_payloads):
            # Each once where Keras surely deserializes it: as the model.
            path = ()
        changed = json.dumps(with_payload(config, path, payload)).encode()
        outside = folder / "outside"
        with zipfile.ZipFile(workdir / "model.keras", "w") as archive:
            for name, content in {**parts, "config.json": changed}.items():
                archive.writestr(name, content)
            archive.writestr("../outside", b"")
        where = ".".join(map(str, path)) or "the whole"
        fault = None
        try:
            recsys.load(workdir)
        except InputError as error:
            if "model.keras" not in str(error):
                fault = f"the file is not named: {error}"
        except Exception as error:
            fault = f"a stack trace: {type(error).__name__}: {error}"[:300]
        with contextlib.suppress(Exception):
            keras.saving.load_model(workdir / "model.keras")
        for made in (marker, outside):
            if made.exists():
                fault = f"{made.name} was made"
                made.unlink()
        sys.modules.pop("torture_payload", None)
        yield Try(
            "no code of a `.keras` file is run; an error that names the file",
            title,
            fault and f"{payload['class_name']} at {where}: {fault}",
        )


def requests(world: World, rng: np.random.Generator) -> Iterator[Try]:
    """Asks the exported SavedModel odd things, and compares with ours."""
    recommender = recsys.load(world.workdir)
    vocabulary = recommender.vocabulary
    known = vocabulary.item_ids.tolist()
    folder = world.export / "saved_model"
    signatures = tf.saved_model.load(str(folder)).signatures

    def text() -> bytes:
        draw = rng.random()
        if draw < 0.6:
            return str(rng.choice(known)).encode()
        if draw < 0.8:
            return _ODD_TEXT[rng.integers(len(_ODD_TEXT))].encode()
        return rng.integers(0, 256, rng.integers(0, 40), np.uint8).tobytes()

    def texts(*shape: int) -> tf.Tensor:
        flat = [text() for _ in range(int(np.prod(shape)))]
        return tf.reshape(tf.constant(flat, tf.string), shape)

    def numbers(batch: int) -> tf.Tensor:
        odd = (-(2**31), -1, 0, 1, 3, 10, 25, 26, 1000, 2**31 - 1)
        return tf.constant(rng.choice(odd, batch), tf.int32)

    def answer(name: str, asked: dict[str, tf.Tensor]) -> str | None:
        valid = bool(tf.reduce_all(asked.get("k", tf.constant([1])) > 0))
        batch = asked["history" if "history" in asked else "item_ids"].shape[0]
        fits = all(
            each.shape[0] in (1, batch)
            for part, each in asked.items()
            if part != "item_ids" and part != "history"
        )
        try:
            found = signatures[name](**asked)
        except tf.errors.OpError as error:
            return f"refused: {error}"[:300] if valid and fits else None
        if not valid:
            return "k below 1 was answered"
        if not all(
            bool(tf.reduce_all(tf.math.is_finite(value)))
            for value in found.values()
            if value.dtype == tf.float32
        ):
            return "a value that is not finite"
        if name != "recommend":
            return None
        return compare_lists(asked, found)

    def compare_lists(asked: dict, found: dict) -> str | None:
        """Compares each list with the one that this package computes."""
        excluded = np.broadcast_to(
            asked["exclude"].numpy(),
            (asked["history"].shape[0], asked["exclude"].shape[1]),
        )
        ks = np.broadcast_to(asked["k"].numpy(), len(excluded))
        for row, (history, left_out, k) in enumerate(
            zip(asked["history"].numpy(), excluded, ks, strict=True)
        ):
            ids = [
                each.decode()
                for each in history
                if each.decode(errors="replace") in known
            ]
            indices = np.array([vocabulary.find(i) for i in ids], np.int32)
            items, scores = recommender.recommend_indices(
                indices, np.array([0, len(indices)]), len(known)
            )
            expected = [
                (vocabulary.decode([item])[0], score)
                for item, score in zip(items[0], scores[0], strict=True)
                if item > 0
            ]
            # Those without a history get popular items, none excluded but
            # the asked ones.
            expected = [
                (item, score)
                for item, score in expected
                if item.encode() not in set(left_out.tolist())
            ][:k]
            got = [
                (item.decode(), score)
                for item, score in zip(
                    found["item_ids"][row].numpy(),
                    found["scores"][row].numpy(),
                    strict=True,
                )
                if item
            ]
            if len(got) != len(expected) or not np.allclose(
                [score for _, score in got],
                [score for _, score in expected],
                atol=1e-4,
            ):
                return f"row {row}: {got[:3]} for {expected[:3]}"
        return None

    for number in itertools.count():
        batch, length, width = rng.integers(0, 6, 3).tolist()
        if rng.random() < 0.05:
            length = 3000
        other = batch if rng.random() < 0.6 else int(rng.choice([1, 2, 7]))
        k = numbers(batch if rng.random() < 0.6 else int(rng.choice([1, 3])))
        name, asked = (
            (
                "recommend",
                {
                    "history": texts(batch, length),
                    "exclude": texts(other, width),
                    "k": k,
                },
            ),
            ("user_embedding", {"history": texts(batch, length)}),
            ("item_embedding", {"item_ids": texts(batch)}),
            ("similar_items", {"item_ids": texts(batch), "k": k}),
        )[number % 4]
        fault = failure_of(lambda name=name, asked=asked: answer(name, asked))
        shapes = {part: each.shape.as_list() for part, each in asked.items()}
        yield Try(
            "the exported SavedModel answers as the model, or refuses",
            name,
            fault and f"{shapes}: {fault}",
        )
