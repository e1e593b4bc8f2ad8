"""What a person sees of a run while it goes on."""

from __future__ import annotations

import sys
import types

import tqdm

from recsys.training.checkpoints import Progress


class ProgressDisplay:
    """A progress bar for one epoch; nothing where there is no terminal.

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
            desc=f"epoch {progress.epoch + 1}/{num_epochs}",
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
