"""The model card of an export: what is recorded of a model, and what is not.

After Mitchell et al. 2019, Model Cards for Model Reporting
(https://arxiv.org/abs/1810.03993).
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import recsys
from recsys import datasets, files
from recsys.config import TrainConfig
from recsys.evaluation.results import PROTOCOL_NOTES
from recsys.recommender import Recommender
from recsys.workdir import Workdir

_UNKNOWN = "**not recorded**"
_METRICS = ("recall@10", "ndcg@10")


def model_card(recommender: Recommender, folder: Workdir) -> str:
    """Describes a trained model, from what its workdir holds.

    Args:
        recommender: The model with its vocabulary.
        folder: Its workdir. Without `metrics.json` the card says that the
            model was not evaluated.

    Returns:
        Markdown.

    Raises:
        InputError: A file of the workdir is damaged.
    """
    config = folder.read_config()
    found: dict[str, Any] = {}
    if folder.metrics.is_file():
        found = files.read_json_object(
            folder.metrics,
            protocol=str,
            metrics=dict,
            baselines=dict,
            exclude_history=bool,
            num_queries=int,
            num_candidates=int,
        )
    return "\n".join(
        [
            "# Model card",
            "",
            f"Written by recsys {recsys.__version__} from the files of the "
            f"run. What they do not hold is marked {_UNKNOWN}; complete it "
            "before you pass the model on.",
            *_model(recommender, config, found),
            *_data(recommender, config),
            *_results(found),
            *_limits(recommender, found),
            "",
            "## Versions",
            "",
            f"At export: recsys {recsys.__version__}, TensorFlow "
            f"{tf.__version__}, Keras {keras.__version__}, NumPy "
            f"{np.__version__}, Python {platform.python_version()}. Those of "
            f"the training: {_UNKNOWN}.",
            "",
        ]
    )


def _model(
    recommender: Recommender, config: TrainConfig, found: Mapping[str, Any]
) -> list[str]:
    model = recommender.model
    size = sum(int(np.prod(each.shape)) for each in model.weights)
    epochs = f"training for at most {config.num_epochs} epochs"
    if found.get("best_epoch"):
        epochs = (
            f"the best of {len(found['training'])} epochs by "
            f"{config.selection_metric} on validation queries: epoch "
            f"{found['best_epoch']}"
        )
    return [
        "",
        "## Model",
        "",
        "A two-tower retrieval model: it encodes the items that someone "
        "interacted with, and scores every item of the catalog by a dot "
        "product.",
        "",
        *_table(
            ["property", "value"],
            [
                ("encoder", type(model.history_tower.encoder).__name__),
                ("dimensions", config.embedding_dim),
                ("parameters", f"{size:,}"),
                ("history read", f"newest {config.max_history_length} items"),
                ("item features", config.item_features or "none"),
                ("loss", config.loss),
                ("weights", epochs),
                ("seed", config.seed),
            ],
        ),
        "",
        f"- Intended use, and uses to avoid: {_UNKNOWN}.",
        f"- Owner, license of the model, contact: {_UNKNOWN}.",
    ]


def _data(recommender: Recommender, config: TrainConfig) -> list[str]:
    counts = recommender.popularity
    defaults = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    selected = [
        f"{name}={value}"
        for name in (
            "min_rating",
            "max_rating",
            "events",
            "target_events",
            "dislikes",
            "min_item_count",
            "min_user_count",
            "repeats",
        )
        if (value := getattr(config, name)) != defaults[name]
    ]
    name = config.data
    if name.startswith(("movielens-small", "tfds:movielens")):
        name = "ml-1m"  # All of GroupLens's sets have the same terms.
    public = datasets.find(name)
    terms = f"{_UNKNOWN}; look it up before you pass the model on"
    if public:
        terms = f"{public.terms} (the publisher's own text decides)"
    elif name.startswith("synthetic:"):
        terms = "none: the log is made up by a program"
    return [
        "",
        "## Data",
        "",
        f"- Log: `{config.data}`",
        f"- Items: {recommender.vocabulary.num_items:,}, of which "
        f"{int((counts[2:] > 0).sum()):,} have training interactions",
        f"- Training interactions: {int(counts.sum(dtype=np.float64)):,}",
        f"- Selected by: {', '.join(selected) or 'nothing; all rows count'}",
        f"- License of the data: {terms}",
        f"- How it was collected, consent, personal data in it: {_UNKNOWN}",
    ]


def _results(found: Mapping[str, Any]) -> list[str]:
    lines = ["", "## Results", ""]
    if "metrics" not in found:
        return [*lines, "The model was not evaluated."]
    intervals = found.get("intervals", {})
    rows: list[tuple[object, ...]] = []
    for name, metrics in (
        *found["baselines"].items(),
        ("**this model**", found["metrics"]),
    ):
        cells = [f"{metrics[each]:.4f}" for each in _METRICS]
        if metrics is found["metrics"] and intervals:
            cells = [
                f"{cell} ({intervals[each][0]:.4f} to {intervals[each][1]:.4f})"
                for cell, each in zip(cells, _METRICS, strict=True)
            ]
        rows.append((name, *cells))
    changed = found.get("evaluated_with")
    lines += [
        f"Protocol `{found['protocol']}`, {found['num_queries']:,} "
        f"{found.get('queries', 'test')} queries, each ranking all "
        f"{found['num_candidates']:,} items"
        + (", except those of its history" * found["exclude_history"])
        + f"; log: `{found.get('data', 'that of the training')}`. "
        + ("Intervals: 95 %, over queries." if intervals else ""),
        "",
        *_table(["model", *_METRICS], rows),
        "",
        *(
            f"- {name}: {why}"
            for name, why in found.get("skipped_baselines", {}).items()
        ),
        f"- {PROTOCOL_NOTES.get(found['protocol'], '')}",
        *(f"- {note}" for note in found.get("notes", ())),
        *([f"- Evaluated with other settings: {changed}"] if changed else []),
        f"- The spread between seeds: {_UNKNOWN}",
    ]
    slices = found.get("slices")
    if not slices:
        return [
            *lines,
            f"- Parts of the queries: {_UNKNOWN}; `python -m recsys.evaluate "
            "--slices` measures them",
        ]
    for by, parts in slices.items():
        shown = [
            (
                name,
                f"{part['num_queries']:,}",
                *(f"{part['metrics'][each]:.4f}" for each in _METRICS),
            )
            for name, part in parts.items()
        ]
        lines += ["", f"By {by}:", ""]
        lines += _table(["slice", "queries", *_METRICS], shown)
    return lines


def _limits(recommender: Recommender, found: Mapping[str, Any]) -> list[str]:
    counts = recommender.popularity
    unseen = int((counts[2:] == 0).sum())
    lines = [
        "",
        "## Limits",
        "",
        "- Items that were not in the log are ignored in a history and never "
        "recommended.",
        "- Without a known item in the history, the items with the most "
        "training interactions are recommended, the same to everyone.",
        "- It repeats what people did in this log, which depended on what "
        "they were shown.",
    ]
    if unseen:
        lines.append(
            f"- {unseen:,} items have no training interaction; without item "
            "features their vectors are not learned."
        )
    lists = found.get("lists", {})
    if lists.get("coverage@10") is not None:
        lines.append(
            f"- Lists of 10 for the queries show {lists['coverage@10']:.1%} "
            f"of the catalog (Gini index {lists['gini@10']:.2f}); their items "
            f"have {lists['popularity@10']:.0f} training interactions in the "
            f"mean, those of the histories {lists['history_popularity']:.0f}."
        )
    if warning := found.get("health", {}).get("warning"):
        lines.append(f"- Warning of the evaluation: {warning}.")
    return [
        *lines,
        f"- Results for groups of people, and effects on them: {_UNKNOWN}",
    ]


def _table(
    names: Iterable[object], rows: Iterable[Iterable[object]]
) -> list[str]:
    """Returns the lines of a Markdown table."""
    lines = [list(map(str, row)) for row in (names, *rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return [f"| {' | '.join(row)} |" for row in lines]
