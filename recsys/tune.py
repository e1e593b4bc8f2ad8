"""`python -m recsys.tune`: searches for the best preset for a log."""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import shutil
import sqlite3
import sys
import time
from typing import TYPE_CHECKING, Any

import recsys
from recsys import files
from recsys.command_line import (
    Command,
    add_config_flags,
    add_run_flags,
    given_fields,
    load_tensorflow,
    plain,
    run_folder,
    seconds_of,
)
from recsys.config import DEFAULTS, TABLE_INITS, TYPES, TrainConfig, make_config
from recsys.errors import InputError, missing_extra

if TYPE_CHECKING:
    from recsys.data.prepare import PreparedData
    from recsys.training.progress import Progress

COMMAND = Command(
    "recsys.tune",
    "Searches for the configuration with the best selection_metric on the "
    "validation queries, and writes it as a preset for recsys.train. Flags of "
    "the configuration are kept as given; the others in docs/tuning.md are "
    "searched. Rerun the same command to resume, also with a larger budget.",
    [
        "python -m recsys.tune --data=log.csv --budget=30m",
        "python -m recsys.tune --data=log.csv --encoder=gru --num_trials=20 "
        "\\\n      --workdir=runs/tuned",
    ],
    interrupted="stopped; rerun the command to resume its last trial",
)
_FOLDER = "runs/<preset>-tuned"
add_run_flags(COMMAND, _FOLDER, "Folder of the trials and their best preset.")
COMMAND.add_flag(
    str,
    "budget",
    "Time to train, over all runs of the command: a number with s, m or h. "
    "The trial that is running then ends with its epoch.",
    group="Search",
    default="30m",
)
COMMAND.add_flag(
    int, "num_trials", "How many trials, at most.", group="Search", default=100
)
add_config_flags(COMMAND)

# What is searched: choices, or a lowest and a highest value; the ranges in
# _LOGARITHMIC by their logarithm. The preset's own value always belongs to it.
_CHOICES: dict[str, tuple[Any, ...]] = {
    "embedding_dim": (32, 64, 128),
    "table_init": TABLE_INITS,
}
_RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (0.0005, 0.01),
    "dropout": (0.0, 0.6),
    "item_dropout": (0.0, 0.5),
    "positions_per_batch": (500, 8000),
    "num_blocks": (1, 3),
}
_LOGARITHMIC = ("learning_rate", "positions_per_batch")
# A trial is compared with the median of the others from its second epoch on,
# once there are this many.
_TRIALS_BEFORE_PRUNING = 4
_LISTED = 10


def main(values: dict[str, Any]) -> int:
    """Searches, and prints the best trials and what to do next.

    Args:
        values: The value of every flag.

    Returns:
        The exit code: 1 if no trial was finished.
    """
    budget = seconds_of(values["budget"])
    if budget is None:
        raise InputError(
            "--budget must be a positive number with s, m or h, such as 30m. "
            f"Received: {values['budget']!r}"
        )
    if values["num_trials"] < 1:
        raise InputError(
            f"--num_trials must be at least 1. Received: {values['num_trials']}"
        )
    given = given_fields(values)
    config = make_config(values["preset"], given)
    if config.strategy == "multi_worker":
        raise InputError(
            "--strategy must be single or mirrored, since one process runs "
            "all trials. Received: multi_worker"
        )
    search = _Search(config, given, run_folder(values, _FOLDER))
    search.check()
    data = recsys.data.prepare.build_data(config)
    search.config, why = recsys.data.prepare.choose(config, data)
    lines = [recsys.data.prepare.data_summary(data), *why]
    print("\n".join(lines), flush=True)
    # No trial has the test queries.
    split = dataclasses.replace(data.split, test=None)
    data = dataclasses.replace(data, split=split)
    with search.folder.lock():
        search.run(data, values["num_trials"], budget)
    print(f"\n{search.summary()}")
    return 0 if search.best else 1


class _Search:
    """A search from `config`, whose `given` fields stay, and its folder."""

    def __init__(
        self, config: TrainConfig, given: dict[str, Any], path: pathlib.Path
    ) -> None:
        try:
            import optuna
        except ImportError as error:
            raise missing_extra("recsys.tune", "tune", error) from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._states = optuna, optuna.trial.TrialState
        self.config = config
        self._metric = f"validation_{config.selection_metric}"
        self.folder = recsys.workdir.Workdir(path)
        path = self.folder.path
        self._asked, self._trials = path / "search.json", path / "trials"
        self._preset = path / "preset.json"
        self._searched = [
            name
            for name in (*_CHOICES, *_RANGES)
            if name not in given
            and (name != "num_blocks" or config.encoder == "self_attention")
        ]
        # What the log is still to choose was not asked for.
        chosen = {"chosen", *config.chosen.split(",")}
        asked = {k: v for k, v in config.to_dict().items() if k not in chosen}
        self._asking = {**asked, "searched": self._searched}

    @property
    def best(self) -> Any:
        """The best complete trial; None if there is none."""
        done = [t for t in self._study.trials if t.state.name == "COMPLETE"]
        return max(done, key=lambda t: (t.value, -t.number), default=None)

    def check(self) -> None:
        """Raises InputError if the folder holds anything but this search."""
        path = self.folder.path
        if self._asked.is_file():
            differing = recsys.workdir.differences(
                files.read_json_object(self._asked), self._asking
            )
            if differing:
                raise InputError(
                    f"{path}: expected no search, or one with the same flags; "
                    "name another --workdir. Received: a search with "
                    f"different {differing}"
                )
        elif not files.can_write(path) or (
            path.exists() and {each.name for each in path.iterdir()} - {".lock"}
        ):
            raise InputError(
                "--workdir must be a new or empty folder that can be written, "
                f"or that of an earlier search. Received: {path}"
            )

    def run(self, data: PreparedData, num_trials: int, budget: float) -> None:
        """Runs the trials that are left, and writes the best one's preset."""
        files.write_json(self._asked, self._asking)
        load_tensorflow()
        self._study = self._optuna.create_study(
            study_name="recsys",
            # A path within a URL would have to be quoted.
            storage=self._optuna.storages.RDBStorage(
                "sqlite://",
                engine_kwargs={
                    "creator": lambda: sqlite3.connect(
                        self.folder.path / "trials.sqlite"
                    )
                },
            ),
            direction="maximize",
            pruner=self._optuna.pruners.MedianPruner(
                _TRIALS_BEFORE_PRUNING, n_warmup_steps=1
            ),
            load_if_exists=True,
        )
        if not self._study.trials:
            self._study.enqueue_trial(
                {name: getattr(self.config, name) for name in self._searched}
            )
        elif self.best:
            folder = recsys.workdir.Workdir(self._folder_of(self.best))
            folder.check_data(data.vocabulary)
        while trial := self._next_trial(num_trials, budget):
            self._run_trial(trial, data, budget)
        if self.best:
            fields = self._config_of(self.best.params).to_dict()
            changed = {k: v for k, v in fields.items() if v != DEFAULTS[k]}
            files.write_json(self._preset, changed)

    def _next_trial(self, num_trials: int, budget: float) -> Any:
        """Returns the interrupted trial, a new one, or None at the end."""
        trials = self._study.trials
        running = [t for t in trials if t.state == self._states.RUNNING]
        started = [t for t in trials if t.state != self._states.WAITING]
        number = running[0].number if running else len(started)
        # A resumed search draws what an uninterrupted one would have drawn.
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=(self.config.seed + number) % 2**32
        )
        if running:
            return self._optuna.trial.Trial(self._study, running[0]._trial_id)
        if number >= num_trials or self._seconds_used() >= budget:
            return None
        return self._study.ask()

    def _seconds_used(self) -> float:
        return sum(t.user_attrs.get("seconds", 0) for t in self._study.trials)

    def _folder_of(self, trial: Any) -> pathlib.Path:
        return self._trials / f"{trial.number:04d}"

    def _suggest(self, trial: Any) -> TrainConfig:
        """Draws the configuration of a trial."""
        for name in self._searched:
            own = getattr(self.config, name)
            if name in _CHOICES:
                choices = [
                    choice
                    for choice in dict.fromkeys((*_CHOICES[name], own))
                    if name != "embedding_dim"
                    or choice % self.config.num_heads == 0
                ]
                trial.suggest_categorical(name, choices)
                continue
            is_int = TYPES[name][0] is int
            suggest = trial.suggest_int if is_int else trial.suggest_float
            low, high = min(_RANGES[name][0], own), max(_RANGES[name][1], own)
            suggest(name, low, high, log=name in _LOGARITHMIC and low > 0)
        return self._config_of(trial.params)

    def _config_of(self, params: dict[str, Any]) -> TrainConfig:
        """Returns the configuration of a trial, with three digits."""
        changes: dict[str, Any] = {
            name: float(f"{value:.3g}") if isinstance(value, float) else value
            for name, value in params.items()
            if value != getattr(self.config, name)
        }
        return dataclasses.replace(self.config, **changes)

    def _run_trial(self, trial: Any, data: PreparedData, budget: float) -> None:
        """Trains a trial; only the best one's folder is kept."""
        import keras

        keras.backend.clear_session()
        state, value, note = self._states.COMPLETE, None, ""
        try:
            result = recsys.training.train(
                self._suggest(trial),
                self._folder_of(trial),
                data=data,
                verbose=False,
                evaluate=False,
                callbacks=[self._callback(trial, budget)],
            )
            value = max(epoch[self._metric] for epoch in result.history)
            note = trial.user_attrs.get("ended", "")
            if note:
                state, value = self._states.PRUNED, None
        except FloatingPointError as error:
            state, note = self._states.FAIL, str(error)
        self._study.tell(trial, value, state)
        best = self.best
        for path in self._trials.glob("[0-9]" * 4):
            if best is None or path != self._folder_of(best):
                shutil.rmtree(path)
        print(self._line(self._study.trials[trial.number], note), flush=True)

    def _callback(self, trial: Any, budget: float) -> Any:
        """Returns what ends a trial that is worse than others or too long."""
        search, num_epochs = self, self.config.num_epochs
        before = trial.user_attrs.get("seconds", 0.0)
        left = budget - self._seconds_used()
        began = time.monotonic()

        class Pruning(recsys.training.Callback):
            def on_epoch_end(self, progress: Progress) -> bool:
                trial.report(
                    progress.history[-1][search._metric], progress.epoch - 1
                )
                seconds = time.monotonic() - began
                trial.set_user_attr("seconds", before + seconds)
                trial.set_user_attr("epochs", progress.epoch)
                ended = ""
                if progress.epoch == num_epochs:
                    pass
                elif trial.should_prune():
                    ended = "pruned"
                elif seconds > left and trial.number:
                    ended = "out of time"
                if ended:
                    trial.set_user_attr("ended", ended)
                return bool(ended)

        return Pruning()

    def _line(self, trial: Any, note: str = "") -> str:
        """Describes a finished trial."""
        reached = max(trial.intermediate_values.values(), default=float("nan"))
        config = self._config_of(trial.params)
        settings = " ".join(
            f"{name}={plain(getattr(config, name))}" for name in self._searched
        )
        if self.best and self.best.number == trial.number:
            note = "best"
        return (
            f"trial {trial.number:>3}  "
            f"{self.config.selection_metric} {reached:.4f}  "
            f"{trial.user_attrs.get('epochs', 0):>3} epochs  "
            f"{trial.user_attrs.get('seconds', 0):>6.1f} s  {settings}"
            + (f"  ({note})" if note else "")
        )

    def summary(self) -> str:
        """Lists the best trials, and names the preset."""
        trials = self._study.trials
        states = [trial.state.name for trial in trials]
        done = [trial for trial in trials if trial.state.name == "COMPLETE"]
        done.sort(key=lambda trial: trial.value or 0, reverse=True)
        lines = [self._line(trial) for trial in done[:_LISTED]]
        lines.append(
            f"{len(done)} trials complete, {states.count('PRUNED')} ended "
            f"early, {states.count('FAIL')} failed, in "
            f"{self._seconds_used():.0f} s"
        )
        if done:
            model = shlex.quote(str(self.folder.path / "model"))
            lines.append(
                f"The best trial's settings are in {self._preset}. Next:\n"
                "  python -m recsys.train "
                f"--preset={shlex.quote(str(self._preset))} --workdir={model}"
            )
        return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
