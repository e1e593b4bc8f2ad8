"""The progress of a run: callbacks that follow it, and its display."""

from __future__ import annotations

import dataclasses
import pathlib
import sys

import tqdm.auto
import tqdm.notebook

from recsys.config import TrainConfig

_IN_NOTEBOOK = issubclass(tqdm.auto.tqdm, tqdm.notebook.tqdm)


@dataclasses.dataclass
class Progress:
    """The state of a run besides its variables.

    Attributes:
        epoch: The current epoch, from 0.
        step: Number of finished steps in that epoch.
        global_step: Number of finished steps in the run.
        loss_sum: Sum of the losses of the epoch's targets so far.
        num_targets: Number of those targets, or the sum of their weights.
        history: One dictionary of measures per finished epoch.
        finished: Whether the run has ended.
        skips_padding: Whether its encoder does; see `SelfAttentionEncoder`.
    """

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    loss_sum: float = 0.0
    num_targets: float = 0.0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    finished: bool = False
    # Runs of earlier versions did not, and are resumed as they began.
    skips_padding: bool = False


class Callback:
    """Follows a training run; override what you need.

    Only the process that writes the workdir calls it, in the thread that
    trains. `progress` is the run's own: read it, never change it. An exception
    ends the run, which the same call resumes from its last checkpoint; `on_end`
    is not called then.
    """

    def on_start(
        self, config: TrainConfig, workdir: pathlib.Path, progress: Progress
    ) -> None:
        """Called before the first step, also of a run that is resumed.

        Args:
            config: The configuration.
            workdir: The folder of the run.
            progress: Where the run starts.
        """

    def on_step(self, progress: Progress, loss: float) -> None:
        """Called after each step.

        Args:
            progress: `global_step` counts this step.
            loss: The mean loss of the step's targets.
        """

    def on_epoch_end(self, progress: Progress) -> bool | None:
        """Called after each epoch and its validation, before its checkpoint.

        Args:
            progress: `epoch` counts this epoch; `history[-1]` holds its
                measures, as `TrainResult.history` describes them.

        Returns:
            True to end the run here: it is finished then, as with the last
            epoch, and is not resumed.
        """

    def on_end(self, progress: Progress) -> None:
        """Called once the run is finished, before the test queries.

        Args:
            progress: `history` holds the measures of all epochs. Where there
                was nothing left to train, only `on_start` came before.
        """


class ProgressBar(tqdm.auto.tqdm):
    """The progress bar of one epoch, on a terminal or in a notebook.

    Args:
        progress: The run's progress at the start.
        num_epochs: Number of epochs in the run.
        num_steps: Number of steps in the epoch.
        verbose: Whether to show anything.
        mean_weight: Of the targets, which `progress` counts by weight.
    """

    def __init__(
        self,
        progress: Progress,
        num_epochs: int,
        num_steps: int,
        verbose: bool,
        mean_weight: float = 1.0,
    ) -> None:
        super().__init__(
            total=num_steps,
            initial=progress.step,
            desc=_epoch_name(progress.epoch, num_epochs),
            unit="step",
            leave=False,
            dynamic_ncols=True,
            disable=not (verbose and (_IN_NOTEBOOK or sys.stderr.isatty())),
        )
        self._targets_before = progress.num_targets
        self._mean_weight = mean_weight

    def show(self, progress: Progress) -> None:
        """Shows one more step."""
        if self.disable:
            return
        seconds = max(self.format_dict["elapsed"], 1e-9)
        trained = (progress.num_targets - self._targets_before) / seconds
        rate = trained / self._mean_weight
        loss = progress.loss_sum / (progress.num_targets or 1)
        self.set_postfix_str(
            f"loss {loss:.3f}, {rate:,.0f} interactions/s", refresh=False
        )
        self.update()


def start_line(progress: Progress, num_epochs: int) -> str | None:
    """Describes where a run resumes; None for a new run."""
    if progress.finished:
        return (
            f"this run is finished: {len(progress.history)} epochs, "
            "nothing to train"
        )
    if not progress.global_step:
        return None
    step = f", step {progress.step + 1}" if progress.step else ""
    return f"resuming at {_epoch_name(progress.epoch, num_epochs)}{step}"


def epoch_line(progress: Progress, num_epochs: int, is_best: bool) -> str:
    """Describes the epoch that ended last.

    Args:
        progress: The run's progress; its history ends with that epoch.
        num_epochs: Number of epochs in the run.
        is_best: Whether it is the best epoch so far.
    """
    epoch = len(progress.history) - 1
    measures = progress.history[epoch]
    validation = "  ".join(
        f"{name.removeprefix('validation_')} {value:.4f}"
        for name, value in measures.items()
        if name.startswith("validation_")
    )
    return (
        f"{_epoch_name(epoch, num_epochs)}  loss {measures['loss']:.4f}  "
        f"validation {validation}  "
        f"{measures['interactions_per_second']:>7,.0f} interactions/s  "
        f"{measures['seconds']:.1f} s" + ("  best so far" if is_best else "")
    )


def _epoch_name(epoch: int, num_epochs: int) -> str:
    """Names an epoch, counted from 1, in a width that keeps lines aligned."""
    width = len(str(num_epochs))
    return f"epoch {epoch + 1:>{width}}/{num_epochs}"
