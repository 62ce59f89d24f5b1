"""Progress of builds, exports and changes as bars on stderr.

Knows nothing of what is done.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from epic_retrieval.cli.wording import as_options

if TYPE_CHECKING:
    from epic_retrieval.index import Progress

# Passages are counted everywhere else.
_UNITS = {"measuring": " trials"}
_SHOWN = 100_000  # bytes that are worth a figure
# tqdm shows a bar when it is made, without a speed; this has it wait for the first update.
_AT_ONCE = 1e-9  # seconds


class _Bars:
    """One bar at a time: that of the present stage; and above it what was chosen and why."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: Any = None
        self._notes: set[str] = set()

    def __call__(self, now: "Progress") -> None:
        if now.stage != self._stage or (self._bar is not None and now.passages < self._bar.n):
            self.finish()
            self._stage = now.stage
        # Choosing takes no time, and before the first step there is nothing to see.
        if now.stage != "choosing" and now.passages:
            self._show(now)
        if now.note and now.note not in self._notes:
            self.finish()
            self._notes.add(now.note)
            typer.echo(now.note, err=True)

    def _show(self, now: "Progress") -> None:
        if self._bar is None:
            self._bar = _bar(now.stage, now.total, now.seconds)
        bar = self._bar
        bar.total = now.total
        if now.reused and not bar.initial:
            # What was done before must not make the rest look quicker than it is.
            bar.initial = now.reused
        if now.bytes_written >= _SHOWN:
            bar.set_postfix_str(f"{now.bytes_written / 1e6:,.1f} MB", refresh=False)
        bar.update(now.passages - bar.n)

    def finish(self) -> None:
        """Ends a stage that came to its end: blank passages, say, are counted but never come."""
        if self._bar is not None and self._bar.total is not None:
            self._bar.total = self._bar.n
        self.close()

    def close(self) -> None:
        """Leaves the bar where it is."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None


@contextmanager
def stage_bars() -> "Iterator[Callable[[Progress], None]]":
    """A progress bar for each stage of a build on stderr, and what was chosen and why.

    Who interrupts it is told what is kept.
    """
    bars = _Bars()
    try:
        yield bars
        bars.finish()
    except KeyboardInterrupt as error:
        bars.close()
        for note in getattr(error, "__notes__", []):
            typer.echo(f"epic: {as_options(note)}", err=True)
        raise
    finally:
        bars.close()


@contextmanager
def counting_bar(name: str) -> "Iterator[Callable[[int, int], None]]":
    """A progress bar for what tells how many passages are done, and how many there are."""
    since = time.time()
    bars: list[Any] = []

    def advance(done: int, total: int) -> None:
        if not bars:
            bars.append(_bar(name, total, time.time() - since))
        bars[0].update(done - bars[0].n)

    try:
        yield advance
    finally:
        for bar in bars:
            bar.close()


def _bar(stage: str, total: int | None, seconds: float) -> Any:  # noqa: ANN401 (tqdm has no types)
    from tqdm import tqdm

    bar = tqdm(
        desc=stage,
        total=total,
        unit=_UNITS.get(stage, " passages"),
        smoothing=0.1,
        delay=_AT_ONCE,
    )
    # The stage began before its first step was done.
    bar.start_t = bar.last_print_t = time.time() - seconds
    return bar
