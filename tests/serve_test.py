"""The HTTP service: answers, limits, new models, the command and the page."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized
from commands import ROOT, run
from recommend_test import IDS, VECTORS, write_workdir

import recsys
from recsys import serve
from recsys.errors import InputError
from recsys.reranking import Rules
from recsys.serving import formats

pytest.importorskip("fastapi")
pytest.importorskip("rapidfuzz")
import uvicorn

from recsys.serving import http as http_lib
from recsys.serving.batching import Batcher, Signatures
from recsys.serving.live import Folder, Place, answer_together, read_asked

sys.path.insert(0, str(ROOT / "scripts"))
import browser

# The last of each user is held out. u3's is as good as 50. u5's is newer than
# the model, and u4 has no other.
LOG = """user,item,time
u1,10,1
u1,40,2
u1,50,3
u2,20,1
u2,60,2
u3,30,1
u3,10,2
u4,60,1
u5,20,1
u5,99,2
u6,10,1
u6,20,2
u6,30,3
u6,40,4
"""


def listed(history: list[str], k: int = 6) -> list[tuple[str, float]]:
    """By hand: dot products with the mean of the history, without it."""
    query = np.mean([VECTORS[IDS.index(each)] for each in history], axis=0)
    scores = {
        item: float(query @ vector)
        for item, vector in zip(IDS, VECTORS)
        if item not in history
    }
    return sorted(scores.items(), key=lambda pair: -pair[1])[:k]


class Server:
    """An app on a port of its own."""

    def __init__(self, folders: dict, limits=None, **options):
        limits = limits or http_lib.Limits()
        self.lines: list[str] = []
        options.setdefault("log", self.lines.append)
        app = http_lib.make_app(folders, limits, **options)
        config = uvicorn.Config(app, log_level="error", access_log=False)
        self._server = uvicorn.Server(config)
        self._socket = serve._bind("127.0.0.1", 0)
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],)
        )

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def ask(self, path, body=None, headers=(), method=None):
        """Returns the status, the headers and the body, parsed if JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        text = body if isinstance(body, str | None) else json.dumps(body)
        method = method or ("GET" if body is None else "POST")
        connection.request(method, path, text and text.encode(), dict(headers))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if answer.headers.get_content_type() == "application/json":
            content = json.loads(content)
        return answer.status, answer.headers, content

    def get(self, path, body=None, status=200):
        """Returns the body of an answer with a status."""
        found, _, content = self.ask(path, body)
        assert found == status, (found, content)
        return content


def setUpModule() -> None:
    global FOLDER, WORKDIR, SERVER, EXIT
    EXIT = contextlib.ExitStack()
    FOLDER = pathlib.Path(EXIT.enter_context(tempfile.TemporaryDirectory()))
    (FOLDER / "log.csv").write_text(LOG)
    WORKDIR = FOLDER / "films"
    write_workdir(WORKDIR, FOLDER / "log.csv")
    formats.write_export(
        recsys.load(WORKDIR), FOLDER / "out", ["saved_model", "parquet"]
    )
    shutil.copytree(FOLDER / "out" / "saved_model", FOLDER / "bare" / "3")
    folders = {
        "films": Folder(WORKDIR, "films"),
        "out": Folder(FOLDER / "out", "out"),
        "bare": Folder(FOLDER / "bare", "bare"),
    }
    SERVER = EXIT.enter_context(Server(folders))


def tearDownModule() -> None:
    EXIT.close()


class JsonTest(parameterized.TestCase):
    def items(self, path, body=None):
        return [
            (each["item_id"], each["score"])
            for each in SERVER.get(path, body)["items"]
        ]

    def test_recommend(self):
        for history in (["20"], ["10", "40"], ["60", "20", "30", "10"]):
            body = {"history": history, "k": 4}
            found = self.items("/api/recommend", body)
            self.assertEqual(found, listed(history, 4))

    def test_titles_numbers_objects_and_what_is_unknown(self):
        history = ["bee", 40, {"item": "10"}, "Nobody knows", "99"]
        found = SERVER.get("/api/recommend", {"history": history, "k": 2})
        self.assertEqual(found["unknown"], ["Nobody knows", "99"])
        self.assertEqual(
            [each["item_id"] for each in found["items"]],
            [item for item, _ in listed(["20", "40", "10"], 2)],
        )
        self.assertEqual(found["model"], "films")
        self.assertEqual(
            found["items"][0]["metadata"],
            {"genres": ["y"], "price": 5, "train_count": 0, "year": None},
        )

    def test_without_a_history_the_popular(self):
        found = self.items("/api/recommend", {"k": 3})
        self.assertEqual(found, [("40", 9), ("60", 4), ("10", 3)])

    def test_rules(self):
        # The vector (3, 1); 30 and 50 have 6, 10 has 3, 40 has 2.
        ask = {"history": ["20"], "where": "genres has x and year >= 1990"}
        found = SERVER.get("/api/recommend", ask)
        self.assertEqual(
            [each["item_id"] for each in found["items"]], ["10", "40"]
        )
        self.assertEqual(found["notes"][-1], "3 of 6 items may be recommended")
        for more, expected in (
            ({"items": ["60", 10]}, ["10", "60"]),
            ({"exclude": ["30", "10"]}, ["50", "40", "60"]),
            ({"at_most": {"genres": 1}}, ["30", "10", "60"]),
            ({"exclude_history": False, "k": 1}, ["20"]),
        ):
            found = self.items("/api/recommend", {"history": ["20"], **more})
            self.assertEqual([item for item, _ in found], expected)
        # 30, (2, 0), is first; 50, 10, 40 and 60 have relevances of 1, 5/8,
        # 1/2 and 0, cosines with it of 0.32, 1, 0 and -0.71, and so values of
        # 0.34, -0.19, 0.25 and 0.35.
        ask = {"history": ["20"], "diversity": 0.5, "k": 2}
        self.assertEqual(
            self.items("/api/recommend", ask), [("30", 6), ("60", -2)]
        )

    def test_explain(self):
        # (3, 1) and (0, 2) give (1.5, 1.5); 50 is (1, 3).
        found = SERVER.get(
            "/api/explain", {"history": ["20", "40"], "item": "50"}
        )
        expected = [("40", "Dog (1993)", 6 - 6.0), ("20", "Bee (1991)", 0.0)]
        self.assertEqual({each["change"] for each in found}, {0.0})
        self.assertLen(found, len(expected))
        # Without 20 the score of 30, (2, 0), is 0, and without 40 it is 6.
        ask = {"history": ["20", "40"], "explain": True, "items": ["30"]}
        [item] = SERVER.get("/api/recommend", ask)["items"]
        self.assertEqual(
            [(e["item_id"], e["change"]) for e in item["influences"]],
            [("20", 3.0), ("40", -3.0)],
        )

    def test_similar(self):
        found = self.items("/api/similar?item=ant&k=2")
        self.assertEqual([item for item, _ in found], ["30", "20"])
        # (3, 1) beside (1, 0).
        np.testing.assert_allclose(
            [score for _, score in found], [1, 3 / 10**0.5], rtol=1e-6
        )

    @parameterized.parameters(
        ("be", ["20"]),
        ("BEE 19", ["20"]),
        ("1991 b", ["20"]),
        ("beee", ["20"]),
        ("zzzzzzzz", []),
        ("40", ["40"]),
        ("1991", ["20"]),
        ("", ["40", "60", "10", "20", "30", "50"]),
    )
    def test_search(self, text, expected):
        found = SERVER.get(f"/api/search?q={text.replace(' ', '+')}")
        self.assertEqual([each["item_id"] for each in found], expected)

    def test_items_and_models(self):
        self.assertEqual(
            SERVER.get("/api/items/10"), SERVER.get("/api/items/Ant%20(1990)")
        )
        films, _, bare = SERVER.get("/api/models")
        self.assertEqual(films["num_items"], 6)
        self.assertEqual(films["columns"]["price"], "int64")
        self.assertTrue(films["has_users"])
        self.assertEqual((bare["kind"], bare["version"]), ("export", 3))

    def test_users(self):
        found = SERVER.get("/api/users?q=u&limit=3")
        self.assertEqual(
            [(each["user_id"], each["length"]) for each in found],
            [("u1", 3), ("u2", 2), ("u3", 2)],
        )
        # By hand: the expected rank among those that are not in the history.
        for user, history, target, rank in (
            ("u1", ["10", "40"], "50", 1.0),
            ("u2", ["20"], "60", 5.0),
            ("u3", ["30"], "10", 2.5),
        ):
            found = SERVER.get(f"/api/users/{user}")
            self.assertEqual(found["held_out"], "test")
            self.assertEqual(
                [each["item_id"] for each in found["history"]], history
            )
            [after] = found["next"]
            self.assertEqual((after["item_id"], after["rank"]), (target, rank))
        newer = SERVER.get("/api/users/u5")
        self.assertEqual((newer["next"], newer["num_unknown"]), ([], 1))
        self.assertEqual(SERVER.get("/api/users/u4")["next"], [])
        error = SERVER.get("/api/users/u9", status=404)["error"]
        self.assertEqual(
            error, "a user must be one of the 6 of the log. Received: 'u9'"
        )

    def test_the_map_fills_its_square(self):
        found = SERVER.get("/api/map")
        # Without 50, which nobody has had.
        self.assertEqual(
            [each["item_id"] for each in found], ["40", "60", "10", "20", "30"]
        )
        for axis in ("x", "y"):
            places = [each[axis] for each in found]
            self.assertEqual((min(places), max(places)), (-1, 1))


class PredictTest(absltest.TestCase):
    """TensorFlow Serving's interface; docs/serving.md has its forms."""

    def predict(self, name="films", status=200, **body):
        return SERVER.get(f"/v1/models/{name}:predict", body, status)

    def test_rows_and_columns_of_a_workdir_and_of_an_export(self):
        for name in ("films", "out", "bare"):
            rows = [
                {"history": ["10", "40"], "exclude": [""], "k": 2},
                {"history": ["20", ""], "exclude": ["30"], "k": 1},
            ]
            [first, second] = self.predict(name, instances=rows)["predictions"]
            self.assertEqual(
                list(zip(first["item_ids"], first["scores"])),
                listed(["10", "40"], 2),
            )
            self.assertEqual(second["item_ids"], ["50", ""])
            columns = {
                "history": [["10", "40"], ["20", ""]],
                "exclude": [[]],
                "k": [2],
            }
            found = self.predict(
                name, signature_name="recommend", inputs=columns
            )
            self.assertEqual(
                found["outputs"]["item_ids"], [["50", "20"], ["30", "50"]]
            )
            found = self.predict(
                name,
                signature_name="recommend_among",
                inputs={**columns, "items": [["60", "10"]]},
            )
            self.assertEqual(
                found["outputs"]["item_ids"], [["60", ""], ["10", "60"]]
            )

    def test_the_other_signatures(self):
        self.assertEqual(
            self.predict(signature_name="user_embedding", instances=[["20"]]),
            {"predictions": [[3, 1]]},
        )
        self.assertEqual(
            self.predict(signature_name="item_embedding", inputs=["30", "?"]),
            {
                "outputs": {
                    "embedding": [[2, 0], [0, 0]],
                    "is_known": [True, False],
                }
            },
        )
        [found] = self.predict(
            signature_name="similar_items",
            instances=[{"item_ids": "10", "k": 1}],
        )["predictions"]
        self.assertEqual(found, {"item_ids": ["30"], "scores": [1]})

    def test_status(self):
        self.assertEqual(
            SERVER.get("/v1/models/bare"),
            {
                "model_version_status": [
                    {
                        "version": "3",
                        "state": "AVAILABLE",
                        "status": {"error_code": "OK", "error_message": ""},
                    }
                ]
            },
        )

    def test_mistakes(self):
        row = {"history": ["10"], "exclude": [""], "k": 2}
        for body, message in (
            ({}, "either `instances` or `inputs`. Received: neither"),
            ({"instances": [row], "inputs": row}, "Received: both"),
            ({"instances": [{"k": 2}]}, "the inputs history, exclude, k"),
            ({"instances": [{**row, "k": 0}]}, "whole numbers from 1"),
            ({"instances": [{**row, "k": 2.5}]}, "whole numbers from 1"),
            ({"instances": [{**row, "k": 501}]}, "`k` must be at most 500"),
            ({"instances": [{**row, "history": [1]}]}, "lists of texts"),
            (
                {"instances": [row, {**row, "history": ["1", "2"]}]},
                "all of one length",
            ),
            ({"instances": []}, "a row or more|lists of texts"),
            ({"instances": [row] * 1025}, "at most 1024 rows"),
            ({"inputs": row, "signature_name": "x"}, "`signature_name`"),
            (
                {"inputs": {**row, "history": [["a"], ["b"], ["c"]]}},
                "`exclude`",
            ),
            ({"instances": 3}, "`instances`: Input should be a valid list"),
        ):
            error = self.predict(status=400, **body)["error"]
            self.assertRegex(error, message)
        self.assertRegex(
            self.predict("nobody", 404)["error"], "one of films, out, bare"
        )


class ExportTest(absltest.TestCase):
    def test_what_an_export_answers(self):
        for name in ("out", "bare"):
            body = {"history": ["10", "40"], "k": 2, "exclude": ["50"]}
            found = SERVER.get(f"/api/recommend?model={name}", body)["items"]
            self.assertEqual(
                [(each["item_id"], each["score"]) for each in found],
                [("20", 2.5), ("30", 1)],
            )
            title = "Bee (1991)" if name == "out" else "20"
            self.assertEqual(found[0]["title"], title)
            found = SERVER.get(f"/api/similar?item=10&k=1&model={name}")
            self.assertEqual(found["items"][0]["item_id"], "30")
        found = SERVER.get("/api/search?q=be&model=out")
        self.assertEqual(found[0]["title"], "Bee (1991)")
        self.assertLen(SERVER.get("/api/map?model=out"), 6)

    def test_what_it_cannot_answer_and_why(self):
        for path in ("/api/search?", "/api/items/10?", "/api/map?"):
            error = SERVER.get(f"{path}model=bare", status=404)["error"]
            self.assertRegex(error, "needs the items, .*a SavedModel alone")
        body = {"history": ["10"], "item": "20"}
        for path, sent in (("users?", None), ("explain?", body)):
            error = SERVER.get(f"/api/{path}model=out", sent, 404)["error"]
            self.assertRegex(error, "needs the workdir of a model")
        for more, name in (
            ({"diversity": 0.5}, "diversity"),
            ({"user": {"age": 3}}, "age"),
            ({"exclude_history": False}, "exclude_history"),
        ):
            error = SERVER.get("/api/recommend?model=out", more, 400)["error"]
            self.assertEndsWith(error, f"alone. Received: {name}")


class RefusalTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"k": 501}, "`k` must be at most 500. Received: 501"),
        ({"k": 0}, "`k`: .*greater than or equal to 1. Received: 0"),
        ({"history": ["1"] * 1001}, "`history` must be at most 1,000 long"),
        ({"history": [{}]}, "`history"),
        ({"history": [{"item": "10", "rating": 3}]}, "reads items alone"),
        ({"context": {"hour": 3}}, "reads items alone"),
        ({"where": "colour = red"}, "`where` at character 1: .*`price`"),
        ({"diversity": 2}, "`diversity`"),
        ({"heights": 2}, "`heights`: Extra inputs are not permitted"),
        ('{"history": ', "must be JSON"),
        ("[" * 100000, "error parsing the body"),
        ('{"history": ["\\ud800"]}', "an id must be text"),
    )
    def test_a_clear_400(self, body, message):
        self.assertRegex(
            SERVER.get("/api/recommend", body, 400)["error"], message
        )

    def test_other_statuses(self):
        for path, method, status in (
            ("/nothing", "GET", 404),
            ("/api/items/nothing", "GET", 404),
            ("/api/search?model=nothing", "GET", 404),
            ("/page/../http.py", "GET", 404),
            ("/api/recommend", "GET", 405),
        ):
            found, _, body = SERVER.ask(path, method=method)
            self.assertEqual((found, [*body]), (status, ["error"]))
        big = json.dumps({"history": ["x" * 2**20]})
        self.assertEqual(
            SERVER.get("/api/recommend", big, 413)["error"],
            "a body may have 1,048,576 bytes",
        )
        for path in ("search", "map", "users"):
            self.assertEqual(
                SERVER.get(f"/api/{path}?limit=501", status=400)["error"],
                "`limit` must be at most 500. Received: 501",
            )

    def test_time(self):
        def slowly(requests):
            time.sleep(1)
            return [[] for _ in requests]

        folders = {"films": Folder(WORKDIR, "films")}
        folders["films"].model.recommend._answer = slowly
        limits = http_lib.Limits(seconds=0.2)
        with Server(folders, limits) as server:
            error = server.get("/api/recommend", {"history": []}, 408)["error"]
            self.assertRegex(error, "a request may take 0.2 s")
            self.assertEqual(server.get("/health"), {"status": "ok"})

    def test_no_trace_leaves(self):
        folders = {"films": Folder(WORKDIR, "films")}
        folders["films"].model.recommend._answer = mock.Mock(
            side_effect=ZeroDivisionError("a secret")
        )
        with Server(folders) as server, mock.patch("traceback.print_exc"):
            found = server.get("/api/recommend", {}, 500)
        self.assertEqual(
            found, {"error": "the server failed; its log has the details"}
        )

    def test_token_origin_users_and_headers(self):
        folders = {"films": Folder(WORKDIR, "films")}
        options = {"token": "abc", "origins": ["https://a.example"]}
        with Server(folders, has_users=False, **options) as server:
            for path in ("/", "/docs", "/health", "/ready", "/page/page.js"):
                status, headers, _ = server.ask(path)
                self.assertEqual(status, 200)
                self.assertIn(
                    "default-src 'self'", headers["content-security-policy"]
                )
            for given in ({}, {"Authorization": "Bearer abd"}):
                for path in ("/api/models", "/metrics", "/nothing"):
                    status, headers, body = server.ask(path, headers=given)
                    self.assertEqual(status, 401)
                    self.assertEqual(headers["www-authenticate"], "Bearer")
            given = {"Authorization": "Bearer abc"}
            own = {**given, "Origin": "https://a.example"}
            other = {**given, "Origin": "https://b.example"}
            _, headers, _ = server.ask("/api/models", headers=own)
            self.assertEqual(
                headers["access-control-allow-origin"], "https://a.example"
            )
            _, headers, _ = server.ask("/api/models", headers=other)
            self.assertNotIn("access-control-allow-origin", headers)
            status, _, body = server.ask("/api/users/u1", headers=given)
            self.assertEqual(status, 404)
            self.assertIn("--users", body["error"])
        # Not asked for: none.
        _, headers, _ = SERVER.ask("/api/models", headers=own)
        self.assertNotIn("access-control-allow-origin", headers)

    def test_metrics_and_log(self):
        SERVER.get("/api/items/10")
        SERVER.get("/api/items/nothing", status=404)
        text = SERVER.get("/metrics").decode()
        for line in (
            r'recsys_requests_total\{path="/api/items/\{item_id:path\}",'
            r'status="404"\} \d',
            r'recsys_request_seconds_count\{path="/api/items',
            r'recsys_model_version\{model="bare"\} 3.0',
        ):
            self.assertRegex(text, line)
        # Neither titles nor what was searched for.
        SERVER.get("/api/search?q=secret%0a")
        time.sleep(0.1)  # The line follows the answer.
        self.assertRegex(
            SERVER.lines[-1],
            r"^\d{4}-\S+ 127.0.0.1 GET /api/search 200 \d+\.\d ms$",
        )

    def test_the_interface_describes_the_limits(self):
        schema = SERVER.get("/openapi.json")
        found = schema["components"]["schemas"]["Recommend"]["properties"]
        self.assertEqual(found["k"]["maximum"], 500)
        self.assertEqual(found["history"]["maxItems"], 1000)
        for methods in schema["paths"].values():
            for operation in methods.values():
                self.assertNotIn("422", operation["responses"])


class BatcherTest(absltest.TestCase):
    def run_batches(self, sizes, answer=None, max_rows=None):
        """Returns the answers, and the requests of each call."""
        calls = []

        def answering(requests):
            calls.append(list(requests))
            time.sleep(0.05)
            return (answer or list)(requests)

        async def main():
            batcher = Batcher(answering, lambda size: size, 1, lambda _: None)
            batcher.max_rows = max_rows or batcher.max_rows
            first = asyncio.create_task(batcher(sizes[0]))
            await asyncio.sleep(0.02)
            others = [asyncio.create_task(batcher(each)) for each in sizes[1:]]
            return await asyncio.gather(first, *others, return_exceptions=True)

        return asyncio.run(main()), calls

    def test_those_that_wait_go_together(self):
        answers, calls = self.run_batches([1, 2, 3, 4])
        self.assertEqual(answers, [1, 2, 3, 4])
        self.assertEqual(calls, [[1], [2, 3, 4]])

    def test_not_more_rows_than_a_call_may_have(self):
        answers, calls = self.run_batches([1, 2, 3, 9, 4], max_rows=5)
        self.assertEqual(answers, [1, 2, 3, 9, 4])
        self.assertEqual(calls, [[1], [2, 3], [9], [4]])

    def test_a_failure_is_told_and_the_next_answered(self):
        def answer(requests):
            if 2 in requests:
                raise InputError("no")
            return list(requests)

        answers, _ = self.run_batches([1, 2, 3], answer, max_rows=2)
        self.assertIsInstance(answers[1], InputError)
        self.assertEqual([answers[0], answers[2]], [1, 3])

    def test_numbers_are_padded_with_what_means_unknown(self):
        function = tf.function(
            lambda time, rating: {"time": time, "rating": rating}
        ).get_concrete_function(
            tf.TensorSpec([None, None], tf.int64, "time"),
            tf.TensorSpec([None, None], tf.float32, "rating"),
        )
        signatures = Signatures({"serving_default": function})
        calls = [
            signatures.read({"instances": [row]})
            for row in (
                {"time": [5], "rating": [2]},
                {"time": [7, 8], "rating": [1.5, 3]},
            )
        ]
        first, second = signatures.answer(calls)
        np.testing.assert_array_equal(first["time"], [[5, -1]])
        np.testing.assert_array_equal(first["rating"], [[2, np.nan]])
        np.testing.assert_array_equal(second["time"], [[7, 8]])
        np.testing.assert_array_equal(second["rating"], [[1.5, 3]])

    def test_features_of_events_and_vectors_are_as_long_as_they_must(self):
        function = tf.function(
            lambda history, tags, images, image: {
                "tags": tags,
                "images": images,
                "image": image,
            }
        ).get_concrete_function(
            tf.TensorSpec([None, None], tf.string, "history"),
            tf.TensorSpec([None, None], tf.string, "history_tags"),
            tf.TensorSpec([None, None, 2], tf.float32, "history_images"),
            tf.TensorSpec([None, 2], tf.float32, "context_image"),
        )
        signatures = Signatures({"serving_default": function})

        def read(history, tags, images, image):
            row = {
                "history": history,
                "history_tags": tags,
                "history_images": images,
                "context_image": image,
            }
            return signatures.read({"instances": [row]})

        first, second, third = signatures.answer(
            [
                read(["a", "b"], ["x"], [[1, 2]], [3, 4]),
                read(["c"] * 3, list("xyz"), [[0, 1]] * 3, [5, 6]),
                read([], [], [], [7, 8]),
            ]
        )
        # One value goes for each event of its own history, not of others.
        self.assertEqual(first["tags"].tolist(), [[b"x", b"x", b""]])
        nan = [np.nan] * 2
        np.testing.assert_array_equal(first["images"], [[[1, 2], [1, 2], nan]])
        np.testing.assert_array_equal(second["images"], [[[0, 1]] * 3])
        np.testing.assert_array_equal(third["images"], [[nan] * 3])
        for found, image in (
            (first, [3, 4]),
            (second, [5, 6]),
            (third, [7, 8]),
        ):
            np.testing.assert_array_equal(found["image"], [image])
        # Where every history is empty, too.
        [only] = signatures.answer([read([], ["x"], [[1, 2]], [7, 8])])
        self.assertEqual(only["images"].shape, (1, 0, 2))

        for message, *wrong in (
            (
                "`history_tags` must have a value for each of the 3 .*: 2$",
                *(["a"] * 3, ["x", "y"], [[1, 2]], [3, 4]),
            ),
            (
                "`context_image` must have lists of 2 numbers. .*: .*3, 4, 5",
                *(["a"], ["x"], [[1, 2]], [3, 4, 5]),
            ),
            (
                "`history_images` must have lists of lists of 2 numbers, all",
                *(["a"], ["x"], [[1]], [3, 4]),
            ),
            (
                "`history_images` must have lists of lists of 2 numbers, all",
                *(["a", "b"], ["x"], [[1, 2], [1]], [3, 4]),
            ),
        ):
            with self.assertRaisesRegex(InputError, message):
                read(*wrong)

    def test_requests_of_any_kind_are_answered_together(self):
        model = recsys.load(WORKDIR)
        rules = Rules.make(model.vocabulary, items=["20", "50"])
        with mock.patch.object(
            model, "user_vectors", wraps=model.user_vectors
        ) as encode:
            found = answer_together(
                model,
                [
                    read_asked(model, ["20"], k=3),
                    read_asked(model, ["10", "40"], k=2, rules=rules),
                    read_asked(model, [], k=2),
                    read_asked(model, ["60"], k=3),
                    read_asked(model, ["20"], k=1, exclude_history=False),
                ],
            )
        self.assertEqual(encode.call_count, 1)
        self.assertEqual(
            [model.vocabulary.decode(items).tolist() for items, _ in found],
            [
                ["30", "50", "10"],
                ["50", "20"],
                ["40", "60"],
                [item for item, _ in listed(["60"], 3)],
                ["20"],
            ],
        )


class NewModelTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enter_context(tempfile.TemporaryDirectory())
        )

    def test_swaps_while_requests_are_answered(self):
        for name in ("a", "b"):
            write_workdir(self.folder / name, FOLDER / "log.csv")
        served = self.folder / "served"
        served.symlink_to("a")
        folder = Folder(served, "films")
        bodies = [{"history": [each], "k": 2} for each in IDS]
        expected = [[item for item, _ in listed([each], 2)] for each in IDS]
        found: list[object] = []
        stop = threading.Event()

        def ask(server):
            number = 0
            while not stop.is_set():
                place, number = number % len(IDS), number + 1
                status, _, body = server.ask("/api/recommend", bodies[place])
                ids = [e["item_id"] for e in body.get("items", [])]
                found.append((status, ids == expected[place]))

        with Server({"films": folder}) as server:
            threads = [
                threading.Thread(target=ask, args=(server,)) for _ in range(2)
            ]
            for each in threads:
                each.start()
            for swap, name in enumerate("ba", start=1):
                # As somebody would who trains beside it.
                new = self.folder / "new"
                new.symlink_to(name)
                new.replace(served)
                os.utime(self.folder / name / "model.keras")
                folder.poll()  # It may be written still.
                self.assertEqual(folder.num_swaps, swap - 1)
                folder.poll()
                self.assertEqual(folder.num_swaps, swap)
            stop.set()
            for each in threads:
                each.join()
        self.assertGreater(len(found), 10)
        self.assertEqual(set(found), {(200, True)})

    def test_one_that_cannot_be_loaded_is_left(self):
        path = self.folder / "films"
        write_workdir(path, FOLDER / "log.csv")
        folder = Folder(path, "films")
        before = folder.model
        (path / "model.keras").write_bytes(b"half of a model")
        with mock.patch.object(sys, "stderr") as err:
            for _ in range(4):
                folder.poll()
        said = "".join(str(call.args[0]) for call in err.write.mock_calls)
        self.assertEqual(said.count("goes on answering"), 1)
        self.assertIs(folder.model, before)
        self.assertEqual(folder.num_refused, 1)
        shutil.rmtree(path)
        folder.poll()
        self.assertIs(folder.model, before)

    def test_every_file_that_is_loaded_is_watched(self):
        path = self.folder / "films"
        write_workdir(path, FOLDER / "log.csv")
        for name in (
            *("config.json", "vocabulary.parquet", "model.keras"),
            *("item_features.json", "side_information.json"),
        ):
            before = Place.find(path)
            with (path / name).open("ab") as file:
                file.write(b" ")
            self.assertNotEqual(Place.find(path).files, before.files, name)

    def test_a_new_number_is_a_new_version(self):
        shutil.copytree(FOLDER / "bare", self.folder / "bare")
        folder = Folder(self.folder / "bare", "bare")
        shutil.copytree(
            FOLDER / "out" / "saved_model", self.folder / "bare" / "12"
        )
        folder.poll()
        folder.poll()
        self.assertEqual(folder.model.place.version, 12)


class CommandTest(parameterized.TestCase):
    @parameterized.parameters(
        ([], "--workdir must name a trained model"),
        (["--workdir={folder}/no"], "--workdir must be a folder of a trained"),
        (["--workdir={folder}", "--max_k=0"], "--max_k must be positive"),
        (
            ["--workdir={folder}/films", "--token_file={folder}/no"],
            "--token_file must be a file with a token",
        ),
        (
            ["--workdir={folder}/films", "--port=99999"],
            "--port must be from 0 to 65535. Received: 99999",
        ),
    )
    def test_mistakes(self, flags, message):
        code, _, err = run(serve, *(f.format(folder=FOLDER) for f in flags))
        self.assertEqual(code, 2)
        self.assertRegex(err, f"^python -m recsys.serve: error: {message}")
        self.assertEqual(err.count("\n"), 1)

    def test_a_port_that_is_taken(self):
        flags = [f"--workdir={WORKDIR}", f"--port={SERVER.port}"]
        code, _, err = run(serve, *flags)
        self.assertEqual(code, 2)
        self.assertRegex(err, f"a free port. Received: .*:{SERVER.port}")

    def test_a_missing_package(self):
        with mock.patch("importlib.util.find_spec", return_value=None):
            code, _, err = run(serve, f"--workdir={WORKDIR}")
        self.assertEqual(code, 2)
        self.assertIn("pip install 'recsys-towers[serve]'", err)

    def test_in_a_process_until_it_is_terminated(self):
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "recsys.serve",
                f"--workdir={WORKDIR}",
                "--port=0",
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(process.kill)
        line = process.stdout.readline()
        self.assertRegex(line, r"^films: http://127\.0\.0\.1:\d+/\n$")
        address = line.split("//")[1].strip("/\n")
        connection = http.client.HTTPConnection(address)
        body = json.dumps({"history": ["20"], "k": 1})
        connection.request("POST", "/api/recommend", body)
        answer = json.load(connection.getresponse())
        self.assertEqual(answer["items"][0]["item_id"], "30")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        self.assertEqual(process.returncode, 0, err)
        self.assertRegex(err, r"^\S+ 127.0.0.1 POST /api/recommend 200 \S+ ms")


@pytest.mark.skipif(
    browser.find_browser() is None, reason="needs Chromium, found none"
)
class PageTest(absltest.TestCase):
    """What a person does with the page, in a browser."""

    def test_page(self):
        folders = {
            "films": Folder(WORKDIR, "films"),
            "other": Folder(WORKDIR, "other"),
        }
        with Server(folders) as server:
            asyncio.run(self.check(f"http://127.0.0.1:{server.port}/"))

    async def check(self, address):
        async with browser.open_browser() as page:
            for width in (390, 1280):
                for dark in (False, True):
                    await page.show(address, width, dark=dark)
                    for tab in ("map", "users", "list"):
                        await page.click(f"#tab-{tab}")
                        await self.check_width(page)
            await self.check_lists(page)
            await self.check_map_and_users(page)
            await page.show(address + "docs", 390)
            await self.check_width(page)
            self.assertEqual(page.complaints, [])
            self.assertEqual(
                {url.startswith(address) for url in page.requests}, {True}
            )

    async def check_width(self, page):
        scrolled, visible = await page.evaluate(
            "[document.documentElement.scrollWidth, innerWidth]"
        )
        self.assertLessEqual(scrolled, visible)

    async def names(self, page, selector):
        return await page.evaluate(
            f"[...document.querySelectorAll('{selector} .name')]"
            ".map(each => each.textContent)"
        )

    async def check_lists(self, page):
        first = "#lists section:first-child .item"
        self.assertEqual((await self.names(page, first))[0], "Dog")
        # Typed, with a mistake, and chosen by the keyboard.
        await page.evaluate("document.getElementById('search').focus()")
        await page.type("beee")
        await page.wait("document.querySelector('#found [aria-selected=true]')")
        await page.press("Enter")
        await page.wait("document.querySelectorAll('#history li').length == 1")
        titles = ["Cat", "50", "Ant", "Dog", "60"]
        await page.wait(f"document.querySelectorAll('{first}').length == 5")
        self.assertEqual(await self.names(page, first), titles)
        # The first is open: what moved it, in numbers and on the history.
        self.assertEqual(
            await page.evaluate(
                "document.querySelector('.number').textContent"
            ),
            "+6.00",
        )
        self.assertTrue(
            await page.evaluate("!!document.querySelector('#history .bar .up')")
        )
        await page.click(".why button")
        await page.wait("document.querySelectorAll('.why .chips li').length")
        await page.click(f"{first}:nth-child(4) .add")
        await page.wait("document.querySelectorAll('#history li').length == 2")
        await page.click("#genre-list button:first-child")
        await page.wait(f"document.querySelectorAll('{first}').length == 1")
        self.assertEqual(await self.names(page, first), ["Ant"])
        await page.click("#genre-list button:first-child")
        await page.click(".remove")
        await page.wait(f"document.querySelectorAll('{first}').length == 5")
        self.assertEqual(await self.names(page, first), titles)
        await page.evaluate(
            "(() => {const e = document.getElementById('variety');"
            "e.value = 0.9; e.dispatchEvent(new Event('input'));})()"
        )
        await page.wait(
            f"document.querySelectorAll('{first} .name')[1].textContent == '60'"
        )

    async def check_map_and_users(self, page):
        await page.click("#tab-map")
        await page.evaluate("document.getElementById('map').focus()")
        await page.press("ArrowRight")
        said = "document.getElementById('map-live').textContent"
        await page.wait(said)
        before = await page.evaluate(said)
        for key in ("ArrowRight", "ArrowDown"):
            await page.press(key)
        self.assertNotEqual(await page.evaluate(said), before)
        await page.click("#tab-users")
        await page.wait("document.querySelectorAll('#user-list button').length")
        await page.click("#user-list li:nth-child(3) button")
        await page.wait("document.querySelector('.next .rank')")
        self.assertEqual(
            await page.evaluate(
                "document.querySelector('.next .rank').textContent"
            ),
            "#2.5",
        )
        await page.click("#user-view .solid")
        self.assertEqual(await self.names(page, "#history"), ["Cat"])


if __name__ == "__main__":
    absltest.main()
