"""What a person sees of a run while it goes on."""

from __future__ import annotations

import sys
import types

import tqdm

from recsys.training.checkpoints import Progress


class ProgressDisplay:
    """A progress bar for one epoch, shown on a terminal only.

    Use it as a context manager.

    Args:
        progress: Where the run is at the start.
        num_epochs: Epochs of the run.
        num_steps: Steps of the epoch.
        verbose: Whether to show anything.
    """

    def __init__(
        self, progress: Progress, num_epochs: int, num_steps: int, verbose: bool
    ) -> None:
        self._bar = tqdm.tqdm(
            total=num_steps,
            initial=progress.step,
            desc=_epoch(progress.epoch, num_epochs),
            unit="step",
            leave=False,
            dynamic_ncols=True,
            disable=not (verbose and sys.stderr.isatty()),
        )
        self._targets_before = progress.num_targets

    def update(self, progress: Progress) -> None:
        """Shows one more step."""
        if self._bar.disable:
            return
        seconds = max(self._bar.format_dict["elapsed"], 1e-9)
        rate = (progress.num_targets - self._targets_before) / seconds
        loss = progress.loss_sum / max(progress.num_targets, 1)
        self._bar.set_postfix_str(
            f"loss {loss:.3f}, {rate:,.0f} interactions/s", refresh=False
        )
        self._bar.update()

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self._bar.close()


def show_start(progress: Progress, num_epochs: int) -> None:
    """Says where a run goes on, unless it is at its beginning.

    Args:
        progress: Where the run is.
        num_epochs: Epochs of the run.
    """
    if progress.finished:
        _show(
            f"this run is finished: {len(progress.history)} epochs, "
            "nothing to train"
        )
    elif progress.global_step:
        step = f", step {progress.step + 1}" if progress.step else ""
        _show(f"going on with {_epoch(progress.epoch, num_epochs)}{step}")


def show_method(text: str) -> None:
    """Shows what was chosen where the configuration says `auto`.

    Args:
        text: One line.
    """
    _show(text)


def show_epoch(progress: Progress, num_epochs: int) -> None:
    """Shows a line for the epoch that was finished last.

    Args:
        progress: Where the run is; its history ends with that epoch.
        num_epochs: Epochs of the run.
    """
    epoch = len(progress.history) - 1
    measures = progress.history[epoch]
    _show(
        f"{_epoch(epoch, num_epochs)}  "
        f"loss {measures['loss']:.4f}  "
        f"validation recall@10 {measures['validation_recall@10']:.4f}  "
        f"ndcg@10 {measures['validation_ndcg@10']:.4f}  "
        f"{measures['interactions_per_second']:>7,.0f} interactions/s  "
        f"{measures['seconds']:.1f} s"
        + ("  best so far" if progress.best_epoch == epoch else "")
    )


def _epoch(epoch: int, num_epochs: int) -> str:
    """Names an epoch, counted from 1, in a width that keeps lines aligned."""
    width = len(str(num_epochs))
    return f"epoch {epoch + 1:>{width}}/{num_epochs}"


def _show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
