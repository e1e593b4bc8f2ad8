from __future__ import annotations

import ast
import dataclasses
import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized

import recsys
from recsys.config import (
    EVENT_FIELDS,
    PRESETS,
    SOURCE_FIELDS,
    TrainConfig,
    auto_fields,
    make_config,
)
from recsys.errors import InputError

PACKAGE = pathlib.Path(recsys.__file__).parent


def _attributes_read() -> set[str]:
    """Every `….name` in the package that takes part in a run.

    Reading a field to check it or to name it as a flag does not count.
    """
    apart = {PACKAGE / "config.py", PACKAGE / "command_line.py"}
    names = set()
    for path in PACKAGE.rglob("*.py"):
        if path not in apart:
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Attribute):
                    owner = ast.unparse(node.value)
                    if owner.endswith("config"):
                        names.add(node.attr)
    return names


class TrainConfigTest(parameterized.TestCase):
    def test_every_field_is_read_by_someone(self):
        fields = {field.name for field in dataclasses.fields(TrainConfig)}
        # `sources.read` and `EventRules.of` take theirs by name.
        by_name = {*SOURCE_FIELDS, *EVENT_FIELDS}
        self.assertEmpty(fields - _attributes_read() - by_name)

    @parameterized.parameters(*PRESETS)
    def test_presets_are_valid(self, preset):
        config = make_config(preset, {})
        for name, value in PRESETS[preset].items():
            self.assertEqual(getattr(config, name), value)

    @parameterized.parameters(
        # Amazon Beauty, MovieLens-100K and MovieLens-1M without what is held
        # out: 6.9, 104 and 164 interactions per user, 13, 58 and 289 per item.
        # 4.8e13 operations are 33 epochs of 6 * 12,101 * 128 * 153,776.
        (22_363, 12_101, 153_776, 0.5, 0.0, 30),
        (943, 1_682, 98_114, 0.3, 0.3, 40),
        (6_040, 3_416, 987_531, 0.2, 0.2, 34),
        # Long histories and many interactions per item begin here.
        (10, 8, 799, 0.5, 0.0, 30),
        (10, 8, 800, 0.2, 0.2, 34),
        (10, 9, 800, 0.3, 0.3, 40),
        # 4.8e13 / (6 * 20,000 * 128 * 200,000) = 15.6
        (30_000, 20_000, 200_000, 0.5, 0.0, 15),
        # Beyond 300,000 interactions the limit is 1.6e8 for each of them:
        # 1.6e8 / (6 * 10,000 * 128) = 20.8
        (300_000, 10_000, 2_000_000, 0.5, 0.0, 20),
        # 40,000,000 / 2,000,000 = 20
        (10_000, 200, 2_000_000, 0.2, 0.2, 20),
        (100_000, 100, 20_000_000, 0.2, 0.2, 5),
    )
    def test_auto_goes_by_histories_and_items(
        self, users, items, interactions, dropout, item_dropout, epochs
    ):
        fields, why = auto_fields(users, items, interactions)
        self.assertEqual(fields["loss"], "full_softmax")
        self.assertEqual(fields["embedding_dim"], 128)
        self.assertEqual(fields["dropout"], dropout)
        self.assertEqual(fields["item_dropout"], item_dropout)
        self.assertEqual(fields["num_epochs"], epochs)
        self.assertEqual(fields["num_blocks"], 4 if dropout == 0.2 else 2)
        self.assertEqual(fields["mask_known_items"], dropout == 0.2)
        dim = 0 if dropout == 0.2 else 256
        self.assertEqual(fields["transition_dim"], dim)
        self.assertIn(f"{interactions / users:,.0f} interactions per user", why)
        config = make_config("auto", {"seed": 3}).with_chosen(fields)
        self.assertEqual(config, TrainConfig(**fields, seed=3))

    def test_known_items_are_masked_where_they_are_not_recommended(self):
        fields, _ = auto_fields(10, 8, 800, excludes_history=False)
        self.assertFalse(fields["mask_known_items"])
        for more in ({"repeats": "all"}, {"target_events": "buy"}):
            self.assertFalse(make_config("movielens-1m", more).mask_known_items)
            small = make_config("movielens-small", more)
            self.assertEqual(small.transition_dim, 0)
            for preset in ("auto", "movielens-1m"):
                with self.assertRaisesRegex(
                    InputError, "--mask_known_items must be false .*: true$"
                ):
                    make_config(preset, {"mask_known_items": True, **more})
            # A run of an earlier version is read.
            fields = {"mask_known_items": True, "num_epochs": 3, **more}
            config = TrainConfig.from_dict(fields, "config.json")
            self.assertTrue(config.mask_known_items)

    def test_transitions_of_a_preset(self):
        for overrides, expected in (
            ({}, (256, 16.0)),
            ({"transition_dim": 64}, (64, 16.0)),
            ({"transition_weight": 4.0}, (256, 4.0)),
            ({"transition_dim": 0}, (0, 8.0)),
            ({"item_features": "auto"}, (0, 8.0)),
            ({"item_features": "auto", "transition_dim": 8}, (8, 16.0)),
            ({"repeats": "all"}, (0, 8.0)),
        ):
            folder = self.enter_context(tempfile.TemporaryDirectory())
            preset = pathlib.Path(folder) / "preset.json"
            fields = make_config("movielens-small", {}).to_dict()
            preset.write_text(json.dumps(fields))
            for name in ("movielens-small", str(preset)):
                config = make_config(name, overrides)
                found = config.transition_dim, config.transition_weight
                self.assertEqual(found, expected)

    @parameterized.parameters(
        (10, 900, True, False, 256),
        (10, 900, False, False, 0),
        (10, 900, True, True, 0),
        (40_000, 100_000, True, False, 256),
        (40_000, 100_001, True, False, 0),
    )
    def test_auto_sketches_transitions(
        self, users, items, excludes, featured, dim
    ):
        fields, _ = auto_fields(users, items, 900, "auto", excludes, featured)
        self.assertEqual(fields["transition_dim"], dim)

    def test_a_weight_without_a_sketch(self):
        with self.assertRaisesRegex(
            InputError, "transition_weight must go with --transition_dim"
        ):
            TrainConfig(transition_weight=3.0)
        config = make_config("auto", {"transition_weight": 3.0})
        fields, _ = auto_fields(10, 900, 900)
        self.assertEqual(config.with_chosen(fields).transition_dim, 256)

    def test_auto_keeps_the_loss_that_is_given(self):
        # Too many items for the full softmax, which was asked for all the same.
        fields, why = auto_fields(40_000, 54_000, 300_000, "full_softmax")
        self.assertEqual(fields["loss"], "full_softmax")
        self.assertEqual(fields["num_negatives"], 1024)
        self.assertEqual(fields["negatives"], "mixed")
        self.assertEqual(fields["table_optimizer"], "auto")
        self.assertNotIn("many for", why)
        fields, why = auto_fields(943, 1_682, 98_114, "sampled_softmax")
        self.assertEqual(fields["loss"], "sampled_softmax")
        self.assertEqual(fields["negatives"], "popularity")
        self.assertEqual(fields["embedding_dim"], 128)
        self.assertNotIn("many for", why)

    def test_auto_halves_the_dims_to_keep_the_full_softmax(self):
        # 1.6e8 / (6 * 20,000 * 64) = 20.8 epochs, and 10.4 of 128 dims.
        fields, _ = auto_fields(40_000, 20_000, 300_000)
        self.assertEqual(fields["loss"], "full_softmax")
        self.assertEqual(fields["embedding_dim"], 64)
        self.assertEqual(fields["num_epochs"], 20)

    @parameterized.parameters((54_000, "dense"), (100_001, "lazy_adam"))
    def test_auto_samples_where_the_full_softmax_takes_too_long(
        self, items, table_optimizer
    ):
        # 1.6e8 / (6 * 54,000 * 64) = 7.7 epochs
        fields, why = auto_fields(40_000, items, 300_000)
        self.assertEqual(fields["loss"], "sampled_softmax")
        self.assertEqual(fields["negatives"], "popularity")
        self.assertEqual(fields["num_negatives"], 4096)
        self.assertEqual(fields["embedding_dim"], 64)
        self.assertEqual(fields["table_optimizer"], table_optimizer)
        self.assertEqual(fields["num_epochs"], 30)
        self.assertIn(f"many for the full softmax ({items:,} items)", why)

    def test_auto_leaves_what_is_given(self):
        config = make_config(None, {"data": "log.csv", "dropout": 0.1})
        self.assertNotIn("dropout", config.chosen.split(","))
        chosen = config.with_chosen(auto_fields(10, 10, 100)[0])
        self.assertEqual(chosen.dropout, 0.1)
        self.assertEqual(chosen.table_init, "co_occurrence")
        self.assertEqual(chosen.chosen, "")

    def test_the_default_preset_is_the_bundled_datas_own(self):
        bundled = make_config("movielens-small", {})
        self.assertEqual(make_config(None, {}), bundled)
        self.assertEqual(
            make_config(None, {"data": "movielens-small"}), bundled
        )

    def test_overrides_win_over_the_preset(self):
        config = make_config("movielens-small", {"dropout": 0.05, "seed": 7})
        self.assertEqual(config.dropout, 0.05)
        self.assertEqual(config.seed, 7)

    def test_full_softmax_rejects_sampling_fields(self):
        config = TrainConfig(seed=7, num_negatives=64, negatives="uniform")
        self.assertEqual(
            config.with_full_softmax(), TrainConfig(seed=7, loss="full_softmax")
        )

    def test_unknown_preset(self):
        with self.assertRaisesRegex(
            InputError,
            r"^--preset must be auto, one of movielens-.*Received: 'ml'$",
        ):
            make_config("ml", {})

    def test_round_trip_through_json(self):
        config = make_config("movielens-small", {"min_rating": 3.5})
        fields = json.loads(json.dumps(config.to_dict()))
        self.assertEqual(TrainConfig.from_dict(fields, "config.json"), config)

    @parameterized.parameters(
        ("encoder", "lstm", "must be one of .* Received: 'lstm'"),
        ("repeats", "never", "must be one of .* Received: 'never'"),
        ("split", "random", "must be one of .* Received: 'random'"),
        ("strategy", "horovod", "must be one of .* Received: 'horovod'"),
        ("embedding_dim", 0, "must be at least 1. Received: 0"),
        ("num_blocks", 0, "must be at least 1. Received: 0"),
        ("num_heads", 0, "must be at least 1. Received: 0"),
        ("num_heads", 3, "must divide --embedding_dim=64. Received: 3"),
        ("dropout", -0.1, "must be at least 0. Received: -0.1"),
        ("dropout", 1.0, "must be below 1. Received: 1.0"),
        ("item_dropout", 1.0, "must be below 1. Received: 1.0"),
        ("id_dropout", -0.1, "must be at least 0. Received: -0.1"),
        ("id_dropout", 1.0, "must be below 1. Received: 1.0"),
        ("adam_beta_2", 1.0, "must be below 1. Received: 1.0"),
        ("learning_rate", float("nan"), "must be at least 0. Received: nan"),
        ("learning_rate", -1.0, "must be at least 0. Received: -1.0"),
        ("num_epochs", 0, "must be at least 1. Received: 0"),
        ("patience", 0, "must be at least 1. Received: 0"),
        ("seed", -1, "must be at least 0. Received: -1"),
        ("checkpoint_steps", 0, "must be at least 1. Received: 0"),
        ("max_history_length", 0, "must be at least 1. Received: 0"),
        ("positions_per_batch", 0, "must be at least 1. Received: 0"),
        ("min_item_count", 0, "must be at least 1. Received: 0"),
        ("queries_per_user", -1, "must be at least 0. Received: -1"),
    )
    def test_a_field_out_of_range(self, name, value, message):
        with self.assertRaisesRegex(InputError, f"^--{name} {message}$"):
            TrainConfig(**{name: value})

    @parameterized.parameters(
        ({"validation_from": "0.9"}, "validation_from", "below .* 0.9$"),
        ({"test_from": "0.5"}, "validation_from", "below --test_from=0.5"),
        ({"test_from": "soon"}, "test_from", "a share .*Received: 'soon'$"),
        ({"test_from": "nan"}, "test_from", "a share .*Received: 'nan'$"),
        ({"test_from": ""}, "test_from", "a share .*Received: ''$"),
        ({"test_from": "2015-02-30"}, "test_from", ".*: '2015-02-30'$"),
    )
    def test_cutoffs(self, fields, name, message):
        with self.assertRaisesRegex(InputError, f"^--{name} must be {message}"):
            TrainConfig(split="temporal", **fields)

    @parameterized.parameters(
        {"validation_from": "0.7"}, {"test_from": "5"}, {"queries_per_user": 1}
    )
    def test_cutoffs_need_the_temporal_split(self, **fields):
        TrainConfig(split="temporal", **{"test_from": "0.95", **fields})
        with self.assertRaisesRegex(
            InputError, "must go with --split=temporal. Received: .*_last_out$"
        ):
            TrainConfig(**fields)

    @parameterized.parameters("mirrored", "multi_worker")
    def test_replicas_reject_jit_compile(self, strategy):
        with self.assertRaisesRegex(
            InputError,
            f"^--jit_compile must be false with --strategy={strategy}. "
            "Received: true$",
        ):
            TrainConfig(jit_compile=True, strategy=strategy)

    def test_only_attention_checks_the_heads(self):
        config = TrainConfig(encoder="gru", num_heads=3)
        self.assertEqual(config.num_heads, 3)

    @parameterized.parameters(
        ({"epochs": 3}, (), "Received: unknown epochs$"),
        ({"num_epochs": "many"}, (), "must be of type int. Received: 'many'"),
        ({"seed": True}, (), "--seed must be of type int. Received: True"),
        ({"weight_average": 0.9}, (), "Received: unknown weight_average$"),
        ({"num_epochs": 0}, (), "--num_epochs must be at least 1"),
    )
    def test_from_dict_names_the_file_and_the_fault(
        self, added, removed, message
    ):
        fields = {**TrainConfig().to_dict(), **added}
        for name in removed:
            del fields[name]
        with self.assertRaisesRegex(
            InputError, f"^run/config.json: .*{message}"
        ):
            TrainConfig.from_dict(fields, "run/config.json")

    def test_a_configuration_of_an_earlier_version(self):
        fields = TrainConfig(seed=3).to_dict()
        # One field is newer, and one has been removed since.
        del fields["selection_metric"]
        fields["weight_average"] = 0.0
        config = TrainConfig.from_dict(fields, "run/config.json")
        self.assertEqual(config, TrainConfig(seed=3))

    def test_data_differences(self):
        config = TrainConfig(seed=1, num_epochs=2)
        other = TrainConfig(min_rating=4.0, seed=2, num_epochs=3)
        self.assertEqual(config.data_differences(other), {"min_rating": 4.0})
        config, other = (
            TrainConfig(split="held_out_items", seed=seed) for seed in (1, 2)
        )
        self.assertEqual(config.data_differences(other), {"seed": 2})

    def test_from_dict_rejects_other_types(self):
        with self.assertRaisesRegex(InputError, "^c.json: .* Received: list$"):
            TrainConfig.from_dict([], "c.json")

    def test_is_frozen(self):
        with self.assertRaises(dataclasses.FrozenInstanceError):
            TrainConfig().seed = 3


if __name__ == "__main__":
    absltest.main()
