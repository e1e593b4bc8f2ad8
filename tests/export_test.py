"""Exports, and what they answer where this package is not installed."""

from __future__ import annotations

import ast
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest
import warnings
from unittest import mock

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from absl.testing import absltest, parameterized
from commands import run, run_python

import recsys
from recsys import export, files
from recsys.config import TrainConfig
from recsys.data.vocabulary import Vocabulary
from recsys.errors import MismatchError
from recsys.recommender import Recommender
from recsys.serving import card, formats, onnx, saved_model, vectors
from recsys.workdir import Workdir

NUM_ITEMS = 30
DIM = 4
MAX_LENGTH = 6
# Ids that a careless table would confuse.
IDS = [f"id {i}" for i in range(NUM_ITEMS - 3)] + ["0", "a\\tb", "é\n"]
COUNTS = [(7 * i) % NUM_ITEMS for i in range(NUM_ITEMS)]


@keras.saving.register_keras_serializable(package="export_test")
class Parity(keras.layers.Layer):
    """Item features: one vector for odd ids, one for even."""

    def build(self, input_shape):
        self.rows = self.add_weight(
            name="rows", shape=(2, DIM), initializer="random_normal"
        )
        self.built = True

    def call(self, ids):
        return tf.gather(tf.convert_to_tensor(self.rows), ids % 2)


def make_vocabulary() -> Vocabulary:
    titles = [f"Film\t{i}" for i in range(NUM_ITEMS)]
    titles[3] = None
    columns = {"item_id": IDS, "title": titles, "train_count": COUNTS}
    return Vocabulary(IDS, pa.table(columns))


def make_recommender(
    encoder=None, features=None, transition_dim=0
) -> Recommender:
    """Returns a model with random weights."""
    table = recsys.SharedItemEmbedding(NUM_ITEMS + 2, DIM)
    model = recsys.TwoTower(
        recsys.HistoryTower(
            table,
            encoder or recsys.MeanPooling(),
            item_features=features,
            transition_dim=transition_dim,
        ),
        recsys.CandidateTower(
            table, item_features=features, transition_dim=transition_dim
        ),
    )
    model.build()
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    if transition_dim:
        keys = rng.normal(size=[NUM_ITEMS + 2, transition_dim])
        keys[:2] = 0
        model.history_tower.transition_keys.assign(keys)
        model.candidate_tower.transition_values.assign(keys[::-1])
    return Recommender(model, make_vocabulary(), MAX_LENGTH)


def write_workdir(recommender: Recommender, path: pathlib.Path) -> None:
    workdir = Workdir(path)
    config = TrainConfig(max_history_length=MAX_LENGTH)
    files.write_json(workdir.config, config.to_dict())
    recommender.vocabulary.save(workdir.vocabulary)
    recommender.model.save(workdir.model)


class Exported:
    """An export of all formats, made once, by the command."""

    def __init__(self) -> None:
        folder = pathlib.Path(
            unittest.enterModuleContext(tempfile.TemporaryDirectory())
        )
        self.recommender = make_recommender()
        workdir = folder / "workdir"
        workdir.mkdir()
        write_workdir(self.recommender, workdir)
        self.output = folder / "export"
        code, self.out, self.err = run(
            export, f"--workdir={workdir}", f"--output={self.output}"
        )
        if code:
            raise AssertionError(self.err)
        self.signatures = tf.saved_model.load(
            str(self.output / "saved_model")
        ).signatures


def setUpModule() -> None:
    global EXPORTED
    EXPORTED = Exported()


def slow_lists(table, history, k, excluded) -> list[tuple[str, float]]:
    """Recommends by hand: the mean of the newest known items' rows."""
    known = [IDS.index(item) + 2 for item in history if item in IDS]
    if known:
        scores = table @ table[known[-MAX_LENGTH:]].mean(axis=0)
    else:
        scores = np.array([0, 0, *COUNTS], float)
    order = sorted(range(2, NUM_ITEMS + 2), key=lambda i: (-scores[i], i))
    left = [i for i in order if IDS[i - 2] not in excluded]
    return [(IDS[i - 2], scores[i]) for i in left[:k]]


HISTORIES = [
    ["id 3", "id 9", "0"],
    [],
    ["never heard of"],
    ["id 1", "never heard of", "id 5", "é\n"],
    [f"id {i}" for i in range(11)],
]


def padded(rows: list[list[str]]) -> tf.Tensor:
    return tf.ragged.constant(rows, dtype=tf.string).to_tensor()


class ExportTest(parameterized.TestCase):
    """All formats of one model, by the command."""

    def setUp(self):
        super().setUp()
        self.table = EXPORTED.recommender.item_vectors()
        self.output = EXPORTED.output
        self.loaded = EXPORTED.signatures

    def test_the_command_says_where_it_is(self):
        by_default = set(formats.FORMATS) - {"onnx"}
        self.assertEqual(EXPORTED.err, "")
        self.assertIn(str(self.output), EXPORTED.out)
        self.assertCountEqual(
            [path.name for path in self.output.iterdir()],
            [*by_default, "export.json", "MODEL_CARD.md"],
        )
        manifest = json.loads((self.output / "export.json").read_text())
        self.assertEqual(manifest["num_items"], NUM_ITEMS)
        self.assertCountEqual(manifest["formats"], by_default)

    def recommend(self, histories, exclude=((),), k=(5,)):
        answer = self.loaded["recommend"](
            history=padded(histories),
            exclude=padded([list(row) for row in exclude]),
            k=tf.constant(list(k)),
        )
        return [
            [
                (item.decode(), score)
                for item, score in zip(items, scores)
                if item
            ]
            for items, scores in zip(
                answer["item_ids"].numpy(), answer["scores"].numpy()
            )
        ]

    def assert_lists(self, got, expected):
        self.assertEqual(
            [[item for item, _ in row] for row in got],
            [[item for item, _ in row] for row in expected],
        )
        for row, other in zip(got, expected):
            np.testing.assert_allclose(
                [s for _, s in row], [s for _, s in other], rtol=1e-5
            )

    def test_recommend(self):
        expected = [slow_lists(self.table, h, 5, h) for h in HISTORIES]
        self.assert_lists(self.recommend(HISTORIES), expected)

    def test_recommend_without_any_history(self):
        expected = [slow_lists(self.table, [], 3, [])] * 2
        self.assert_lists(self.recommend([[], []], k=[3]), expected)
        self.assertEqual(expected[0][0][1], max(COUNTS))

    def test_padding_may_stand_anywhere(self):
        rows = [["", "id 3", "", "id 9"], ["id 3", "id 9", "", ""]]
        first, second = self.recommend(rows)
        self.assertEqual(first, second)

    def test_each_row_has_exclusions_and_k_of_its_own(self):
        exclude = [["id 2", "unheard of"], [], ["0", "id 7"], ["id 8"], []]
        ks = [1, 4, 2, 30, 3]
        expected = [
            slow_lists(self.table, history, k, {*history, *excluded})
            for history, k, excluded in zip(HISTORIES, ks, exclude)
        ]
        self.assertLen(expected[3], NUM_ITEMS - 4)
        got = self.recommend(HISTORIES, exclude, ks)
        self.assert_lists(got, expected)

    def test_each_row_has_an_allow_list_of_its_own(self):
        allowed = [
            ["id 5", "id 9", "unheard of", "id 8"],
            ["", ""],
            ["", "id 4"],
            ["unheard of"],
            [],
        ]
        histories = HISTORIES[:5]
        answer = self.loaded["recommend_among"](
            history=padded(histories),
            items=padded(allowed),
            exclude=tf.constant([["id 8"]]),
            k=tf.constant([4]),
        )
        for row, (history, items) in enumerate(zip(histories, allowed)):
            left = {item for item in items if item} or set(IDS)
            forbidden = {*history, "id 8", *(set(IDS) - left)}
            expected = slow_lists(self.table, history, 4, forbidden)
            got = [each.decode() for each in answer["item_ids"][row].numpy()]
            ids = [item for item, _ in expected]
            self.assertEqual(got, ids + [""] * (4 - len(ids)))
            np.testing.assert_allclose(
                answer["scores"][row, : len(ids)].numpy(),
                [score for _, score in expected],
                rtol=1e-5,
            )
        self.assertEqual(answer["item_ids"][3].numpy().tolist(), [b""] * 4)

    def test_more_than_there_are(self):
        answer = self.loaded["recommend"](
            history=tf.constant([IDS[:29]]),
            exclude=tf.constant([[""]]),
            k=tf.constant([10**6]),
        )
        self.assertEqual(answer["item_ids"].shape, (1, NUM_ITEMS))
        self.assertEqual(answer["item_ids"][0, 0].numpy().decode(), IDS[29])
        self.assertTrue((answer["item_ids"][0, 1:].numpy() == b"").all())
        # Finite, for JSON.
        self.assertEqual(
            answer["scores"][0, 1].numpy(), np.float32(-3.4028235e38)
        )

    def test_no_row_at_all(self):
        answer = self.loaded["recommend"](
            history=tf.zeros([0, 0], tf.string),
            exclude=tf.constant([[""]]),
            k=tf.constant([4]),
        )
        self.assertEqual(answer["item_ids"].shape[0], 0)

    def test_k_must_be_positive(self):
        with self.assertRaisesRegex(
            tf.errors.InvalidArgumentError, "`k` must be positive"
        ):
            self.recommend(HISTORIES, k=[0])

    def test_user_embedding(self):
        got = self.loaded["user_embedding"](history=padded(HISTORIES))
        known = [
            [IDS.index(item) + 2 for item in history if item in IDS]
            for history in HISTORIES
        ]
        expected = [
            self.table[rows[-MAX_LENGTH:]].mean(axis=0)
            if rows
            else np.zeros(DIM)
            for rows in known
        ]
        np.testing.assert_allclose(
            got["embedding"].numpy(), expected, atol=1e-6
        )

    def test_item_embedding(self):
        got = self.loaded["item_embedding"](
            item_ids=tf.constant(["id 4", "", "unheard of", "0"])
        )
        np.testing.assert_array_equal(
            got["embedding"].numpy(),
            [self.table[6], np.zeros(DIM), np.zeros(DIM), self.table[29]],
        )
        self.assertEqual(
            got["is_known"].numpy().tolist(), [True, False, False, True]
        )

    def test_similar_items(self):
        got = self.loaded["similar_items"](
            item_ids=tf.constant(["id 4", "unheard of"]), k=tf.constant([3])
        )
        unit = self.table / np.linalg.norm(self.table, axis=1, keepdims=True)
        cosines = unit[2:] @ unit[6]
        expected = [i for i in np.argsort(-cosines) if i != 4][:3]
        self.assertEqual(
            [each.decode() for each in got["item_ids"][0].numpy()],
            [IDS[i] for i in expected],
        )
        np.testing.assert_allclose(
            got["scores"][0].numpy(), cosines[expected], rtol=1e-5
        )
        self.assertEqual(got["item_ids"][1].numpy().tolist(), [b""] * 3)

    def test_one_item_table(self):
        path = str(self.output / "saved_model" / "variables" / "variables")
        shapes = [
            shape
            for _, shape in tf.train.list_variables(path)
            if shape == [NUM_ITEMS + 2, DIM]
        ]
        self.assertLen(shapes, 1)
        # Nor is it a constant of the graph.
        graph = (self.output / "saved_model" / "saved_model.pb").read_bytes()
        self.assertNotIn(self.table[5:8].tobytes(), graph)

    def test_tensorflow_alone(self):
        code = """
import sys
# As if they were not installed.
sys.modules["recsys"] = sys.modules["keras"] = None
import tensorflow as tf
try:
    import recsys
except ImportError:
    pass
else:
    raise SystemExit("recsys can be imported")
recommend = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
answer = recommend(
    history=tf.constant([["id 3", "id 9", "0"]]),
    exclude=tf.constant([[""]]),
    k=tf.constant([5]),
)
print(*[each.decode() for each in answer["item_ids"][0].numpy()], sep="|")
"""
        process = subprocess.run(
            [sys.executable, "-I", "-c", code, self.output / "saved_model"],
            capture_output=True,
            text=True,
            cwd=self.output,
        )
        self.assertEqual(process.returncode, 0, process.stderr)
        expected = slow_lists(self.table, HISTORIES[0], 5, HISTORIES[0])
        self.assertEqual(
            process.stdout.strip(), "|".join(item for item, _ in expected)
        )

    def test_litert(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            interpreter = tf.lite.Interpreter(
                str(self.output / "litert" / "recommend.tflite")
            )
        run_device = interpreter.get_signature_runner()
        lines = (self.output / "litert" / "items.tsv").read_text().split("\n")
        self.assertEqual(lines[0], "index\titem_id\ttitle")
        self.assertEqual(lines[6], "7\tid 5\tFilm 5")
        self.assertEqual(lines[NUM_ITEMS], f"{NUM_ITEMS + 1}\té\\n\tFilm 29")
        self.assertEqual(lines[NUM_ITEMS - 1], f"{NUM_ITEMS}\ta\\\\tb\tFilm 28")
        for indices, history in (
            ([5, 0, 1, 11, 0, 29], ["id 3", "id 9", "0"]),
            ([0, 0, 1, 1, 0, 0], []),
        ):
            answer = run_device(history=np.array([indices], np.int32))
            found = answer["items"] > 0
            expected = slow_lists(self.table, history, NUM_ITEMS, history)
            self.assertEqual(
                [IDS[i - 2] for i in answer["items"][found]],
                [item for item, _ in expected],
            )
            np.testing.assert_allclose(
                answer["scores"][found], [s for _, s in expected], rtol=1e-5
            )

    def test_parquet_and_numpy(self):
        table = pq.read_table(self.output / "parquet" / "items.parquet")
        self.assertEqual(table["item_id"].to_pylist(), IDS)
        self.assertEqual(
            table["title"].to_pylist()[2:5], ["Film\t2", None, "Film\t4"]
        )
        np.testing.assert_array_equal(
            np.array(table["vector"].to_pylist(), np.float32), self.table[2:]
        )
        arrays = {
            name: np.load(self.output / "numpy" / f"{name}.npy")
            for name in ("vectors", "item_ids", "titles")
        }
        np.testing.assert_array_equal(arrays["vectors"], self.table[2:])
        self.assertEqual(arrays["item_ids"].tolist(), IDS)
        self.assertEqual(
            arrays["titles"][2:5].tolist(), ["Film\t2", "", "Film\t4"]
        )

    def test_projector(self):
        from google.protobuf import text_format
        from tensorboard.plugins.projector import projector_config_pb2

        folder = self.output / "projector"
        config = text_format.Parse(
            (folder / "projector_config.pbtxt").read_text(),
            projector_config_pb2.ProjectorConfig(),
        )
        vectors = np.loadtxt(folder / config.embeddings[0].tensor_path)
        np.testing.assert_array_equal(
            vectors.astype(np.float32), self.table[2:]
        )
        path = folder / config.embeddings[0].metadata_path
        lines = path.read_text().split("\n")
        self.assertEqual(lines[0], "title\titem_id\ttrain_count")
        # Without a title, its id.
        self.assertEqual(lines[4], f"id 3\tid 3\t{COUNTS[3]}")
        self.assertLen(lines, NUM_ITEMS + 2)


def as_json(value):
    if isinstance(value, list):
        return [as_json(each) for each in value]
    return value.decode() if isinstance(value, bytes) else value


def rest_predict(signatures, body: str) -> str:
    """Answers a request as TensorFlow Serving's REST interface does.

    After its documentation, api_rest.md: "instances" holds rows, each an
    object with every input (or the value of the only input), all rows of one
    shape; "inputs" holds columns. Answers come back the same way.
    """
    request = json.loads(body)
    signature = signatures[request.get("signature_name", "serving_default")]
    specs = signature.structured_input_signature[1]
    is_rows = "instances" in request
    if is_rows == ("inputs" in request):
        raise ValueError("either instances or inputs")
    columns = request.get("inputs")
    if is_rows:
        rows = request["instances"]
        if not isinstance(rows[0], dict):
            if len(specs) > 1:
                raise ValueError("expecting list of objects")
            rows = [{name: row} for row in rows for name in specs]
        if any(row.keys() != specs.keys() for row in rows):
            raise ValueError(f"keys must be equal to {', '.join(specs)}")
        columns = {name: [row[name] for row in rows] for name in specs}
    elif not isinstance(columns, dict):
        [name] = specs
        columns = {name: columns}
    if missing := specs.keys() - columns.keys():
        raise ValueError(f"Missing named input: {missing}")
    # A ValueError where rows differ in shape or values in type.
    tensors = {
        name: tf.constant(
            columns[name], spec.dtype, shape=np.array(columns[name]).shape
        )
        for name, spec in specs.items()
    }
    outputs = {
        name: as_json(value.numpy().tolist())
        for name, value in signature(**tensors).items()
    }
    if len(outputs) == 1:
        [values] = outputs.values()
        answer = values
    elif is_rows:
        rows = zip(*outputs.values(), strict=True)
        answer = [dict(zip(outputs, row)) for row in rows]
    else:
        answer = outputs
    key = "predictions" if is_rows else "outputs"
    # Strictly JSON: neither NaN nor Infinity.
    return json.dumps({key: answer}, allow_nan=False)


class RestTest(absltest.TestCase):
    """Requests as docs/serving.md shows them."""

    def setUp(self):
        super().setUp()
        self.table = EXPORTED.recommender.item_vectors()

    def predict(self, request):
        return json.loads(
            rest_predict(EXPORTED.signatures, json.dumps(request))
        )

    def test_rows(self):
        answer = self.predict(
            {
                "instances": [
                    {"history": ["id 3", "0"], "exclude": ["id 8"], "k": 3},
                    {"history": ["id 1", ""], "exclude": [""], "k": 2},
                ]
            }
        )
        for row, history, excluded, k in zip(
            answer["predictions"],
            [["id 3", "0"], ["id 1"]],
            [["id 3", "0", "id 8"], ["id 1"]],
            [3, 2],
        ):
            expected = slow_lists(self.table, history, k, excluded)
            ids = [item for item, _ in expected]
            self.assertEqual(row["item_ids"], ids + [""] * (3 - k))
            self.assertLen(row["scores"], 3)

    def test_columns(self):
        answer = self.predict(
            {
                "signature_name": "recommend",
                "inputs": {
                    "history": [["id 3", "0"], ["id 1", ""]],
                    "exclude": [[]],
                    "k": [4],
                },
            }
        )
        for row, history in enumerate([["id 3", "0"], ["id 1"]]):
            expected = slow_lists(self.table, history, 4, history)
            self.assertEqual(
                answer["outputs"]["item_ids"][row],
                [item for item, _ in expected],
            )

    def test_an_allow_list(self):
        answer = self.predict(
            {
                "signature_name": "recommend_among",
                "inputs": {
                    "history": [["id 3", "0"], ["id 1", ""]],
                    "items": [["id 9", "id 5", "0"]],
                    "exclude": [[]],
                    "k": [3],
                },
            }
        )
        for row, history in enumerate([["id 3", "0"], ["id 1"]]):
            others = set(IDS) - {"id 9", "id 5", "0"}
            expected = slow_lists(self.table, history, 3, {*history, *others})
            ids = [item for item, _ in expected]
            self.assertEqual(
                answer["outputs"]["item_ids"][row], ids + [""] * (3 - len(ids))
            )

    def test_an_empty_history(self):
        answer = self.predict(
            {"instances": [{"history": [], "exclude": [], "k": 1}]}
        )
        [(item, score)] = slow_lists(self.table, [], 1, [])
        self.assertEqual(
            answer["predictions"], [{"item_ids": [item], "scores": [score]}]
        )

    def test_the_other_signatures(self):
        answer = self.predict(
            {"signature_name": "user_embedding", "instances": [["id 3"]]}
        )
        np.testing.assert_allclose(
            answer["predictions"], [self.table[5]], rtol=1e-6
        )
        answer = self.predict(
            {"signature_name": "item_embedding", "instances": ["id 3"]}
        )
        self.assertEqual(
            answer["predictions"],
            [{"embedding": self.table[5].tolist(), "is_known": True}],
        )
        answer = self.predict(
            {
                "signature_name": "similar_items",
                "inputs": {"item_ids": ["id 3", "nothing"], "k": [2]},
            }
        )
        self.assertEqual(answer["outputs"]["item_ids"][1], ["", ""])

    def test_what_serving_would_refuse(self):
        with self.assertRaisesRegex(ValueError, "keys must be equal"):
            self.predict({"instances": [{"history": ["id 3"], "k": 3}]})


class OtherModelsTest(parameterized.TestCase):
    """Models that the export itself compares with its formats."""

    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enter_context(tempfile.TemporaryDirectory())
        )

    def test_features_and_self_attention(self):
        features = Parity()
        recommender = make_recommender(
            recsys.SelfAttentionEncoder(num_blocks=1), features
        )
        formats.write_export(
            recommender,
            self.folder / "out",
            ["saved_model", "litert"],
            exclude_history=False,
        )
        loaded = tf.saved_model.load(str(self.folder / "out" / "saved_model"))
        got = loaded.signatures["item_embedding"](item_ids=tf.constant(IDS[:2]))
        table, rows = (
            variable.numpy()
            for variable in (
                recommender.model.candidate_tower.embedding.embeddings,
                features.rows,
            )
        )
        np.testing.assert_allclose(
            got["embedding"].numpy(), table[2:4] + rows, rtol=1e-6
        )

    @parameterized.parameters(False, True)
    def test_transitions(self, with_features):
        features = Parity() if with_features else None
        recommender = make_recommender(features=features, transition_dim=3)
        names = ["saved_model", "onnx", "litert"]
        formats.write_export(
            recommender, self.folder / "out", names[: 1 if features else 3]
        )
        path = self.folder / "out" / "saved_model"
        signatures = tf.saved_model.load(str(path)).signatures
        vectors = recommender.item_vectors()
        got = signatures["item_embedding"](item_ids=tf.constant(IDS))
        np.testing.assert_allclose(got["embedding"], vectors[2:], rtol=1e-6)
        similar = signatures["similar_items"](
            item_ids=tf.constant(IDS[:1]), k=tf.constant([1])
        )
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = units[3:] @ units[2]
        np.testing.assert_allclose(
            similar["scores"][0, 0], cosines.max(), rtol=1e-5
        )
        if with_features:
            return
        # The table is there once: neither by itself nor within vectors again.
        shapes = sorted(
            shape[1]
            for _, shape in tf.train.list_variables(
                str(path / "variables" / "variables")
            )
            if shape[:1] == [NUM_ITEMS + 2]
        )
        self.assertEqual(shapes, sorted([3, 3, DIM]))

    def test_features_of_the_history_on_a_device(self):
        features = recsys.ItemFeatures(
            NUM_ITEMS + 2, DIM, num_values=3, values_per_item=2
        )
        rng = np.random.default_rng(0)
        features.set_features(
            rng.integers(3, size=(NUM_ITEMS, 2)), rng.random((NUM_ITEMS, 2))
        )
        formats.write_export(
            make_recommender(features=features), self.folder / "out", ["litert"]
        )
        self.assertTrue((self.folder / "out/litert/recommend.tflite").exists())

    def test_a_recurrent_encoder_on_a_device(self):
        formats.write_export(
            make_recommender(recsys.GRUEncoder()),
            self.folder / "out",
            ["litert"],
        )
        self.assertTrue((self.folder / "out/litert/recommend.tflite").exists())


class OnnxTest(parameterized.TestCase):
    """The ONNX file, and the example that runs it."""

    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enter_context(tempfile.TemporaryDirectory())
        )

    @parameterized.named_parameters(
        ("recurrent", recsys.GRUEncoder, None),
        (
            "self_attention",
            lambda: recsys.SelfAttentionEncoder(num_blocks=1),
            Parity(),
        ),
    )
    def test_any_batch_and_length(self, make_encoder, features):
        import onnxruntime

        recommender = make_recommender(make_encoder(), features)
        formats.write_export(recommender, self.folder / "out", ["onnx"])
        tower = onnxruntime.InferenceSession(
            self.folder / "out" / "onnx" / "history_tower.onnx"
        )
        rng = np.random.default_rng(0)
        for rows, length in ((1, 0), (3, 1), (4, MAX_LENGTH), (5, 25)):
            history = rng.integers(0, NUM_ITEMS + 2, (rows, length), np.int32)
            history[0] = 1
            [got] = tower.run(None, {"history": history})
            for row, vector in zip(history, got):
                known = row[row > 1]
                expected = recommender.user_vectors(
                    known, np.array([0, len(known)])
                )
                np.testing.assert_allclose(vector, expected[0], atol=1e-5)
            self.assertEqual(got[0].tolist(), [0] * DIM)

    def test_the_example_needs_neither_tensorflow_nor_this_package(self):
        recommender = make_recommender()
        formats.write_export(recommender, self.folder / "out", ["onnx"])
        code = f"""
import runpy, sys
for name in ("tensorflow", "keras", "recsys", "pyarrow", "onnx"):
    sys.modules[name] = None
run = runpy.run_path("examples/onnx_recommend.py")
model = run["OnnxRecommender"]({str(self.folder / "out" / "onnx")!r})
print([model.recommend(history, 40) for history in {HISTORIES!r}])
"""
        lists = ast.literal_eval(run_python(code))
        table = recommender.item_vectors()
        for got, history in zip(lists, HISTORIES):
            expected = slow_lists(table, history, NUM_ITEMS, history)
            self.assertEqual([i for i, _ in got], [i for i, _ in expected])
            np.testing.assert_allclose(
                [s for _, s in got], [s for _, s in expected], rtol=1e-5
            )

    def test_an_operation_that_onnx_does_not_have(self):
        class SingularValues(keras.layers.Layer):
            def call(self, x):
                values = tf.linalg.svd(x, compute_uv=False)
                return x * values[:, :1, tf.newaxis]

        with self.assertRaisesRegex(
            recsys.InputError,
            "operations ONNX has.*Received: SingularValues: .*Svd",
        ):
            formats.write_export(
                make_recommender(SingularValues()),
                self.folder / "out",
                ["onnx"],
            )
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_other_vectors_are_noticed(self):
        with (
            mock.patch.object(
                onnx, "known_first", lambda history: history[:, ::-1]
            ),
            self.assertRaisesRegex(MismatchError, "onnx: user_vectors differ"),
        ):
            formats.write_export(
                make_recommender(), self.folder / "out", ["onnx"]
            )


class CardTest(parameterized.TestCase):
    def card(self, *, metrics=None, **fields) -> str:
        folder = self.enter_context(tempfile.TemporaryDirectory())
        recommender = make_recommender()
        workdir = Workdir(pathlib.Path(folder))
        write_workdir(recommender, workdir.path)
        config = TrainConfig(max_history_length=MAX_LENGTH, **fields)
        files.write_json(workdir.config, config.to_dict())
        if metrics is not None:
            files.write_json(workdir.metrics, metrics)
        return card.model_card(recommender, workdir)

    def test_results_with_intervals_and_slices(self):
        metrics = {"recall@10": 0.25, "ndcg@10": 0.125}
        text = self.card(
            metrics={
                "protocol": "temporal",
                "queries": "test",
                "exclude_history": True,
                "num_queries": 1200,
                "num_candidates": NUM_ITEMS,
                "metrics": metrics,
                "intervals": {
                    "recall@10": [0.2, 0.3],
                    "ndcg@10": [0.1, 0.15],
                },
                "baselines": {"popularity": {**metrics, "recall@10": 0.1}},
                "skipped_baselines": {"ease": "too many items"},
                "data": "my log",
                "notes": ["3 of 30 items are unknown to the model."],
                "lists": {
                    "coverage@10": 0.5,
                    "gini@10": 0.75,
                    "popularity@10": 12,
                    "history_popularity": 20,
                },
                "slices": {
                    "popularity of the relevant item": {
                        "tail": {"num_queries": 40, "metrics": metrics}
                    }
                },
                "health": {"warning": "the lists have collapsed"},
                "evaluated_with": {"protocol": "temporal"},
                "best_epoch": 2,
                "training": [{}, {}, {}],
            },
            time_features="gap",
        )
        for line in (
            "| popularity | 0.1000 | 0.1250 |",
            "| **this model** | 0.2500 (0.2000 to 0.3000) | "
            "0.1250 (0.1000 to 0.1500) |",
            "- ease: too many items",
            "- 3 of 30 items are unknown to the model.",
            "By popularity of the relevant item:",
            "| tail (40 queries) | 0.2500 | 0.1250 |",
            "- Evaluated with other settings: {'protocol': 'temporal'}",
            "- Warning of the evaluation: the lists have collapsed.",
            "- Nothing in training happened at or after the time of any query.",
            "| encoder | MeanPooling |",
            "| features | time_features=gap |",
            # 32 rows of four numbers.
            "| trained parameters | 128 |",
            # Counts are 0, 7, 14, … modulo 30: every number below 30 once.
            "- Items: 30, of which 29 have training interactions",
            "- Training interactions: 435",
        ):
            self.assertIn(line, text.split("\n"))
        self.assertIn("1,200 test queries, each ranking all 30 items", text)
        self.assertIn("epoch 2, the best of 3 by validation ndcg@10", text)
        self.assertIn("show 50.0% of the catalog (Gini index 0.75)", text)

    def test_a_model_that_was_not_evaluated(self):
        text = self.card()
        self.assertIn("The model was not evaluated.", text)
        self.assertNotIn("| **this model**", text)

    @parameterized.parameters(
        ("movielens-small", "GroupLens's terms"),
        ("tfds:movielens/1m-ratings", "GroupLens's terms"),
        ("amazon-2014/Beauty", "no license stated"),
        ("synthetic:users=9,items=30,interactions=99,seed=1", "none: the log"),
        ("logs/mine.csv", r"\*\*not recorded\*\*"),
    )
    def test_license_of_the_data(self, data, expected):
        self.assertRegex(
            self.card(data=data, min_item_count=5),
            rf"Selected by: min_item_count=5\n- License.* data: {expected}",
        )

    def test_results_of_another_program(self):
        with self.assertRaisesRegex(
            recsys.InputError, "metrics.json: expected `protocol`"
        ):
            self.card(metrics={"accuracy": 1.0})


class MistakesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enter_context(tempfile.TemporaryDirectory())
        )
        self.workdir = self.folder / "workdir"
        self.workdir.mkdir()
        write_workdir(make_recommender(), self.workdir)
        self.output = self.folder / "folders" / "out"

    def run_export(self, *arguments, formats="numpy"):
        return run(
            export,
            f"--workdir={self.workdir}",
            f"--output={self.output}",
            f"--formats={formats}",
            *arguments,
        )

    def assert_fails(self, result, code, message):
        self.assertEqual(result[0], code, result[2])
        self.assertLen(result[2].splitlines(), 1)
        self.assertRegex(result[2], message)

    @parameterized.parameters("tf2onnx", "onnxruntime")
    def test_a_package_of_the_extra_is_missing(self, name):
        find_spec = importlib.util.find_spec
        with mock.patch.object(
            importlib.util,
            "find_spec",
            lambda package: None if package == name else find_spec(package),
        ):
            self.assert_fails(
                self.run_export(formats="numpy,onnx"),
                2,
                rf"--formats=onnx needs the extra \[onnx\].*`{name}`",
            )
        self.assertFalse(self.output.exists())

    def test_text_that_numpy_would_pad_to_gigabytes(self):
        titles = ["x" * 40_000_000, *map(str, range(1, NUM_ITEMS))]
        table = make_vocabulary().items.drop_columns(["title"])
        table = table.append_column("title", pa.array(titles))
        Vocabulary(IDS, table).save(self.workdir / "vocabulary.parquet")
        # 30 items times 40 million characters of 4 bytes are 4.5 GiB.
        self.assert_fails(
            self.run_export(),
            2,
            "titles.npy: expected .* at most 4 GiB .*Received: 30 items, the "
            "longest of 40000000 characters",
        )
        self.assertEqual(self.run_export(formats="parquet")[0], 0)

    def test_a_format_with_other_answers_leaves_nothing(self):
        original = saved_model.ServedModel._products
        with mock.patch.object(
            saved_model.ServedModel,
            "_products",
            lambda served, vectors: original(served, vectors) * 1.01,
        ):
            result = self.run_export(formats="numpy,saved_model")
        self.assert_fails(result, 1, "saved_model: scores differ .* by ")
        self.assertEqual(list(self.output.parent.iterdir()), [])

    @parameterized.parameters(
        ("numpy", "read_numpy"),
        ("parquet", "read_parquet"),
        ("projector", "read_projector"),
    )
    def test_other_vectors_or_ids_are_noticed(self, name, function):
        read = getattr(vectors, function)

        def wrong(what, change):
            return lambda *args: {
                **(answers := read(*args)),
                what: change(answers[what]),
            }

        for what, change, message in (
            ("item_vectors", lambda v: v + 1, f"{name}: item_vectors differ"),
            ("item_vectors", lambda v: v[1:], f"{name}: expected item_vectors"),
            ("item_ids", lambda v: v[::-1], f"{name}: item_ids differ"),
        ):
            with mock.patch.object(vectors, function, wrong(what, change)):
                self.assert_fails(self.run_export(formats=name), 1, message)
        self.assertEqual(list(self.output.parent.iterdir()), [])

    def test_other_items_are_noticed(self):
        recommender = make_recommender()
        answers = formats.ask_model(recommender, exclude_history=True)
        items, scores = recommender.recommend_indices(
            np.concatenate(answers.histories),
            np.cumsum([0, *map(len, answers.histories)]),
            20,
        )
        right = {"items": items, "scores": scores}
        answers.check("right", right)
        moved = np.where(items > 0, (items - 1) % NUM_ITEMS + 2, 0)
        with self.assertRaisesRegex(MismatchError, "wrong: scores of items"):
            answers.check("wrong", {**right, "items": moved})
        fewer = items.copy()
        fewer[0, -1] = 0
        with self.assertRaisesRegex(MismatchError, "short: scores have other"):
            answers.check("short", {**right, "items": fewer})
        twice = items.copy()
        twice[0, 1] = twice[0, 0]
        with self.assertRaisesRegex(MismatchError, "an item is listed twice"):
            answers.check("twice", {**right, "items": twice})
        with self.assertRaisesRegex(MismatchError, "scores differ .* by nan"):
            answers.check("nan", {**right, "scores": scores * np.nan})

    def test_an_earlier_export_stays_until_the_new_one_is_good(self):
        self.assertEqual(self.run_export()[0], 0)
        before = (self.output / "export.json").read_bytes()
        with mock.patch.object(np, "save", side_effect=OSError(28, "full")):
            self.assert_fails(self.run_export(), 1, "full")
        self.assertEqual((self.output / "export.json").read_bytes(), before)
        self.assertEqual(self.run_export(formats="parquet")[0], 0)
        self.assertFalse((self.output / "numpy").exists())

    def test_without_a_card(self):
        self.assertEqual(self.run_export("--card=false")[0], 0)
        self.assertCountEqual(
            [path.name for path in self.output.iterdir()],
            ["numpy", "export.json"],
        )

    def test_the_export_json_of_another_program_is_not_ours(self):
        self.output.mkdir(parents=True)
        for text in ('{"tool": "another"}', "[]", "no JSON", "[" * 100_000):
            (self.output / "export.json").write_text(text)
            self.assert_fails(self.run_export(), 2, "no export.json of recsys")
            self.assertEqual((self.output / "export.json").read_text(), text)

    @parameterized.parameters("thesis.tex", "numpy/thesis.tex", "a/b/.hidden")
    def test_a_file_beside_an_export_is_not_deleted(self, name):
        self.assertEqual(self.run_export()[0], 0)
        path = self.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("years of work")
        self.assert_fails(self.run_export(), 2, f"earlier export.*with {name}")
        self.assertEqual(path.read_text(), "years of work")

    def test_an_export_of_an_earlier_version_is_replaced(self):
        self.assertEqual(self.run_export()[0], 0)
        manifest = self.output / "export.json"
        about = files.read_json(manifest)
        self.assertEqual(about["recsys"], recsys.__version__)
        self.assertEqual(
            about.pop("files"),
            [
                "MODEL_CARD.md",
                *(f"numpy/{n}.npy" for n in ("item_ids", "titles", "vectors")),
            ],
        )
        (self.output / "MODEL_CARD.md").unlink()  # It wrote no card.
        manifest.write_text(json.dumps(about))
        self.assertEqual(self.run_export(formats="parquet")[0], 0)
        self.assertIn("parquet", json.loads(manifest.read_text())["formats"])

    def test_a_link_stays_a_link(self):
        self.output.parent.mkdir()
        target = self.folder / "target"
        self.output.symlink_to(target)
        for name in ("numpy", "parquet"):  # New, then replaced.
            self.assertEqual(self.run_export(formats=name)[0], 0)
            self.assertTrue(self.output.is_symlink())
            self.assertTrue((target / name).is_dir())
        self.assertCountEqual(
            [path.name for path in target.iterdir()],
            ["parquet", "export.json", "MODEL_CARD.md"],
        )

    def test_leftovers_of_a_killed_export_are_removed(self):
        self.output.parent.mkdir()
        dead = self.output.parent / ".recsys-99999999-out"
        dead.mkdir()
        (dead / "half").write_text("an export")
        self.assertEqual(self.run_export()[0], 0)
        self.assertEqual(list(self.output.parent.iterdir()), [self.output])

    def test_a_foreign_folder_is_not_replaced(self):
        self.output.mkdir(parents=True)
        (self.output / "thesis.tex").write_text("years of work")
        self.assert_fails(self.run_export(), 2, "--output must be a new or")
        self.assertTrue((self.output / "thesis.tex").exists())

    @parameterized.parameters(
        (["--formats=pmml"], "--formats must be some of .*Received: 'pmml'"),
        (["--formats="], "--formats must be some of .*Received: ''"),
        (["--output="], "--output must name a folder"),
        (["--workdir="], "--workdir must name a trained model"),
        (["--workdir=/nowhere"], "no such folder"),
        ([f"--output={__file__}/x"], "--output must be a"),
    )
    def test_arguments(self, arguments, message):
        self.assert_fails(self.run_export(*arguments), 2, message)


if __name__ == "__main__":
    absltest.main()
