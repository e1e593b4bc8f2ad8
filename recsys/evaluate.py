"""`python -m recsys.evaluate`: a trained model's results."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from recsys.command_line import (
    EXIT_FAILED,
    Command,
    add_config_flags,
    add_model_flag,
    given_fields,
    load_tensorflow,
    model_folder,
)
from recsys.config import SOURCE_FIELDS, SPLITS, TEMPORAL_FIELDS

if TYPE_CHECKING:
    from recsys.evaluation.run import EvaluationRun

COMMAND = Command(
    "recsys.evaluate",
    "Ranks the full catalogue for every test query of a trained model, beside "
    "baselines on the same split. Writes metrics.json into the workdir.",
    [
        "python -m recsys.evaluate --workdir=runs/movielens-small",
        "python -m recsys.evaluate --workdir=runs/a --compare=runs/b",
    ],
)
add_model_flag(COMMAND)
COMMAND.add_flag(
    str,
    "protocol",
    f"What is held out: {', '.join(SPLITS)}. Default: as in training. Another "
    "one must not ask for what the model was trained on.",
    group="Data",
)
add_config_flags(COMMAND, (*SOURCE_FIELDS, *TEMPORAL_FIELDS))
COMMAND.add_flag(
    str,
    "baselines",
    "Names with commas between: popularity, recent_popularity, markov, "
    "item_knn, ease, and als and bpr, which need the extra [baselines] and "
    "have their settings chosen on the validation queries. Default: "
    "popularity,markov,ease.",
    group="Comparison",
)
COMMAND.add_flag(
    bool,
    "tune_baselines",
    "Choose the settings of the other baselines on the validation queries too, "
    "instead of taking their defaults.",
    group="Comparison",
    default=False,
)
COMMAND.add_flag(
    list,
    "rankings",
    "JSON lines of another system on the same queries, for the table: "
    '{"query_id": …, "items": […], "scores": […]}. May be repeated.',
    group="Comparison",
)
COMMAND.add_flag(
    str,
    "compare",
    "Another workdir, or a file as for --rankings: differences query by "
    "query, with interval and p-value.",
    group="Comparison",
)
COMMAND.add_flag(
    bool,
    "audit",
    "Prove from the data that the split holds no leak; exit code 1 if it does.",
    group="More",
    default=False,
)
COMMAND.add_flag(
    bool,
    "slices",
    "Results by popularity of the relevant item and by history length.",
    group="More",
    default=False,
)
COMMAND.add_flag(
    str,
    "write_rankings",
    "Write the model's lists to this file, as JSON lines.",
    group="More",
)
COMMAND.add_flag(
    str,
    "report",
    "Write a page of HTML with figures, index.html, into this folder. Needs "
    "the extra [report].",
    group="More",
)


def main(values: dict[str, Any]) -> int:
    """Evaluates a stored model, prints the table and writes metrics.json.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    folder = model_folder(values)
    # What needs no TensorFlow comes first, so that mistakes are told at once.
    from recsys.evaluation.run import prepare_run

    run = prepare_run(
        folder,
        fields=given_fields(values),
        protocol=values["protocol"],
        baselines=values["baselines"],
        compare=values["compare"],
        write_rankings=values["write_rankings"],
        report=values["report"],
    )
    if values["audit"] and not _audit(run):
        return EXIT_FAILED
    load_tensorflow()
    run.evaluate(
        values["rankings"] or [], tune_baselines=values["tune_baselines"]
    )
    print(run.report(slices=values["slices"]))
    run.write()
    if values["report"] is not None:
        print(f"\nThe report is in {run.write_report()}.")
    return 0


def _audit(run: EvaluationRun) -> bool:
    """Prints the audit of the split and returns whether it passed."""
    from recsys.evaluation import audit

    report = audit(run.data.split)
    print(f"{report}\n", flush=True)
    return report.passed


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
