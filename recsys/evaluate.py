"""`python -m recsys.evaluate`: measures a trained model beside baselines."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import recsys
from recsys import files
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
from recsys.errors import InputError

COMMAND = Command(
    "recsys.evaluate",
    "Ranks the full catalog for every test query of a trained model, beside "
    "baselines on the same split, and writes metrics.json into the workdir. "
    "Without further flags, prints the results that recsys.train has stored.",
    [
        "python -m recsys.evaluate --workdir=runs/movielens-small",
        "python -m recsys.evaluate --workdir=runs/a --compare=runs/b",
    ],
)
add_model_flag(COMMAND)
COMMAND.add_flag(
    str,
    "protocol",
    f"What to hold out: {', '.join(SPLITS)}. Default: as in training. Another "
    "protocol must not test on what the model was trained on.",
    group="Data",
)
add_config_flags(COMMAND, (*SOURCE_FIELDS, *TEMPORAL_FIELDS))
COMMAND.add_flag(
    str,
    "baselines",
    "Names separated by commas: popularity, recent_popularity, markov, "
    "item_knn, ease, and als and bpr, which need the extra [baselines] and are "
    "always tuned on the validation queries. Default: popularity,markov,ease.",
    group="Comparison",
)
COMMAND.add_flag(
    bool,
    "tune_baselines",
    "Tune the other baselines on the validation queries, too.",
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
    pathlib.Path,
    "compare",
    "Another workdir, or a file as for --rankings: differences query by "
    "query, with interval and p-value.",
    group="Comparison",
)
COMMAND.add_flag(
    bool,
    "audit",
    "Prove from the data that the split has no leak; exit code 1 if it does.",
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
    pathlib.Path,
    "write_rankings",
    "Write the model's lists to this file, as JSON lines.",
    group="More",
)
COMMAND.add_flag(
    pathlib.Path,
    "report",
    "Write an HTML page with figures, index.html, into this folder. Needs the "
    "extra [report].",
    group="More",
)
COMMAND.add_flag(
    bool,
    "again",
    "Evaluate again even if the results are stored.",
    group="More",
    default=False,
)


# Flags that do not change the results.
_HARMLESS = (
    "workdir",
    "audit",
    "slices",
    "again",
    "report",
    "write_rankings",
)


def main(values: dict[str, Any]) -> int:
    """Evaluates a stored model, prints the table and writes metrics.json.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    # What needs no TensorFlow comes first, so that errors come at once.
    from recsys.evaluation import comparison, run

    folder = recsys.workdir.Workdir(model_folder(values))
    config = folder.read_config()
    if not any(v for name, v in values.items() if name != "workdir"):
        stored = folder.stored_results()
        if stored is not None:
            print(f"{stored}\n\nStored by recsys.train; --again evaluates.")
            return 0
    names = list(comparison.DEFAULT_BASELINES)
    if values["baselines"] is not None:
        names = [n.strip() for n in values["baselines"].split(",") if n.strip()]
    comparison.check_baselines(names)
    if rival := _path(values, "compare"):
        run.check_rival(rival, config)
    if report := _path(values, "report"):
        run.check_report(report)
    if lists := _path(values, "write_rankings"):
        _check_lists(lists)
    given, protocol = given_fields(values), values["protocol"]
    asked = run.evaluation_data(
        config, folder.read_vocabulary(), given, protocol
    )
    if values["audit"]:
        side = folder.read_side_encoder()
        audit = recsys.evaluation.audit(asked.data.split, side)
        print(f"{audit}\n", flush=True)
        if not audit.passed:
            return EXIT_FAILED
    load_tensorflow()
    results = run.evaluate_workdir(
        folder,
        config,
        asked,
        baselines=names,
        tune_baselines=values["tune_baselines"],
        rankings=[pathlib.Path(path) for path in values["rankings"] or []],
        rival=rival,
    )
    print(results.text(slices=values["slices"]))
    results.write_metrics(
        {n: v for n, v in values.items() if v and n not in _HARMLESS},
        slices=values["slices"],
    )
    if lists:
        results.write_rankings(lists)
    if report:
        print(f"\nThe report is in {results.write_report(report)}.")
    return 0


def _path(values: dict[str, Any], name: str) -> pathlib.Path | None:
    """Returns the path that a flag names."""
    if values[name] == "":
        raise InputError(f"--{name} must name a path. Received: ''")
    return None if values[name] is None else pathlib.Path(values[name])


def _check_lists(path: pathlib.Path) -> None:
    if not files.may_be_file(path):
        raise InputError(
            "--write_rankings must name a file in a folder that exists. "
            f"Received: {str(path)!r}"
        )


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
