"""The model card of an export: what is recorded of a model, and what is not.

After Mitchell et al. 2019, https://arxiv.org/abs/1810.03993.
"""

from __future__ import annotations

import math
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
from recsys.ids import FIRST_ITEM_INDEX
from recsys.models.towers import HistoryTower
from recsys.recommender import Recommender
from recsys.workdir import Workdir

_UNKNOWN = "**not recorded**"
_METRICS = ("recall@10", "ndcg@10")
# Settings that select or weigh rows of the log.
_SELECTION = (
    *("min_rating", "max_rating", "events", "target_events", "dislikes"),
    *("min_item_count", "min_user_count", "repeats"),
)
_FEATURES = tuple(
    f"{of}_features" for of in ("item", "event", "time", "context", "user")
)
_CARD = """\
# Model card

Written by recsys {recsys} from the files of the run. What they do not hold is
marked {unknown}; complete it before you pass the model on.

## Model

A two-tower retrieval model: it encodes the items that someone interacted with,
and scores every item of the catalog by a dot product.

| property | value |
| --- | --- |
| encoder | {encoder} |
| dimensions | {dimensions} |
| trained parameters | {parameters:,} |
| history read | newest {config.max_history_length} items |
| features | {features} |
| loss | {loss} |
| weights | {weights} |
| seed | {seed} |

- Intended use, and uses to avoid: {unknown}
- Owner, license of the model, contact: {unknown}

## Data

- Log: `{config.data}`
- Items: {items:,}, of which {seen:,} have training interactions
- Training interactions: {interactions:,}
- Selected by: {selection}
- License of the data: {terms}
- How it was collected, consent, personal data in it: {unknown}

## Results

{results}

## Limits

- Items that were not in the log are ignored in a history and never recommended.
- Without a known item in the history, the items with the most training
  interactions are recommended, the same to everyone.
- Items without training interactions ({unseen:,} here) have no learned vector
  of their own, at best their features.
- It repeats what people did in this log, which depended on what they were
  shown.
{limits}- Results for groups of people, and effects on them: {unknown}

## Versions

At export: recsys {recsys}, TensorFlow {tensorflow}, Keras {keras}, NumPy
{numpy}, Python {python}. Those of the training: {unknown}
"""


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
    counts = recommender.popularity[FIRST_ITEM_INDEX:]
    seed, loss, weights = _origin(folder, config, found)
    return _CARD.format(
        unknown=_UNKNOWN,
        config=config,
        encoder=type(recommender.model.history_tower.encoder).__name__,
        dimensions=_dimensions(recommender.model.history_tower),
        seed=seed,
        loss=loss,
        parameters=sum(
            math.prod(weight.shape)
            for weight in recommender.model.trainable_weights
        ),
        features=_named(config, _FEATURES) or "none",
        weights=weights,
        items=len(counts),
        seen=int((counts > 0).sum()),
        unseen=int((counts == 0).sum()),
        interactions=int(counts.sum(dtype=np.float64)),
        selection=_named(config, _SELECTION) or "nothing; all rows count",
        terms=_terms(config.data),
        results="\n".join(_results(found)),
        limits="".join(f"- {limit}\n" for limit in _limits(found)),
        recsys=recsys.__version__,
        tensorflow=tf.__version__,
        keras=keras.__version__,
        numpy=np.__version__,
        python=platform.python_version(),
    )


def _origin(
    folder: Workdir, config: TrainConfig, found: Mapping[str, Any]
) -> tuple[str, str, str]:
    """Returns the seed and the loss, or several, and where weights are from."""
    parts = folder.parts()
    if len(parts) > 1:
        seeds, losses = (
            [str(part[n]) for part in parts] for n in ("seed", "loss")
        )
        return (
            ", ".join(seeds),
            ", ".join(dict.fromkeys(losses)),
            f"the sum of {len(parts)} models, each at its best epoch",
        )
    weights = f"training for at most {config.num_epochs} epochs"
    if found.get("best_epoch"):
        weights = (
            f"epoch {found['best_epoch']}, the best of "
            f"{len(found['training'])} by validation {config.selection_metric}"
        )
    return str(config.seed), config.loss, weights


def _dimensions(tower: HistoryTower) -> str:
    """Returns the length of vectors, and what of it is not learned."""
    learned = tower.embedding.embedding_dim
    if not tower.transition_dim:
        return str(learned)
    return (
        f"{learned} learned, {tower.transition_dim} of transitions with a "
        f"weight of {tower.transition_weight:g}"
    )


def _named(config: TrainConfig, names: Iterable[str]) -> str:
    """Returns the settings among some that are not the default."""
    return ", ".join(
        f"{name}={getattr(config, name)}"
        for name in names
        if getattr(config, name) != getattr(TrainConfig, name)
    )


def _terms(data: str) -> str:
    """Returns the license of a log, as far as it is known."""
    if data.startswith("synthetic:"):
        return "none: the log is made up by a program"
    if data.startswith(("movielens-small", "tfds:movielens")):
        data = "ml-1m"  # All of GroupLens's sets have the same terms.
    public = datasets.find(data)
    return (
        f"{public.terms} (the publisher's own text decides)"
        if public
        else f"{_UNKNOWN}; look it up before you pass the model on"
    )


def _results(found: Mapping[str, Any]) -> list[str]:
    if not found:
        return ["The model was not evaluated."]
    intervals = found.get("intervals", {})
    own = [f"{found['metrics'][each]:.4f}" for each in _METRICS]
    if intervals:
        own = [
            "{} ({:.4f} to {:.4f})".format(value, *intervals[each])
            for value, each in zip(own, _METRICS, strict=True)
        ]
    notes = [
        f"{name}: {why}"
        for name, why in found.get("skipped_baselines", {}).items()
    ]
    notes += [
        PROTOCOL_NOTES.get(found["protocol"], ""),
        *found.get("notes", ()),
    ]
    if found.get("evaluated_with"):
        notes.append(
            f"Evaluated with other settings: {found['evaluated_with']}"
        )
    notes.append(f"The spread between seeds: {_UNKNOWN}")
    if not found.get("slices"):
        notes.append(
            f"Parts of the queries: {_UNKNOWN} (`python -m recsys.evaluate "
            "--slices` measures them)"
        )
    lines = [
        f"Protocol `{found['protocol']}`, {found['num_queries']:,} "
        f"{found.get('queries', 'test')} queries, each ranking all "
        f"{found['num_candidates']:,} items"
        + ", except those of its history" * found["exclude_history"]
        + ". Intervals: 95 %, over queries." * bool(intervals),
        "",
        *_table("model", found["baselines"].items()),
        f"| **this model** | {' | '.join(own)} |",
        "",
        *(f"- {note}" for note in notes if note),
    ]
    for by, parts in found.get("slices", {}).items():
        rows = [
            (f"{name} ({part['num_queries']:,} queries)", part["metrics"])
            for name, part in parts.items()
        ]
        lines += ["", f"By {by}:", "", *_table("slice", rows)]
    return lines


def _limits(found: Mapping[str, Any]) -> list[str]:
    """Returns the limits that the evaluation found."""
    limits = []
    lists = found.get("lists", {})
    if lists.get("coverage@10") is not None:
        limits.append(
            f"Lists of 10 for the queries show {lists['coverage@10']:.1%} of "
            f"the catalog (Gini index {lists['gini@10']:.2f}). Their items "
            f"have {lists['popularity@10']:.0f} training interactions in the "
            f"mean, those of the histories {lists['history_popularity']:.0f}."
        )
    if warning := found.get("health", {}).get("warning"):
        limits.append(f"Warning of the evaluation: {warning}.")
    return limits


def _table(
    name: str, rows: Iterable[tuple[str, Mapping[str, float]]]
) -> list[str]:
    """Returns the lines of a Markdown table of metrics."""
    return [
        f"| {name} | {' | '.join(_METRICS)} |",
        "| --- | ---: | ---: |",
        *(
            f"| {what} | "
            + " | ".join(f"{values[each]:.4f}" for each in _METRICS)
            + " |"
            for what, values in rows
        ),
    ]
