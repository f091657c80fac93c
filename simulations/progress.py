"""Showing a run while it goes on: round, rate, time left, accuracy, bytes."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from server.reptile import RoundReport
from server.rounds import rounds_log

LINE_EVERY = 10.0
"""Seconds between lines where the output is no terminal."""


class RoundsHandler(logging.Handler):
    """Turns the record that the server logs for each round into a line of progress."""

    def __init__(self, console: Console, rounds: int) -> None:
        super().__init__()
        self._console = console
        self._rounds = rounds
        self._first: tuple[int, float] | None = None
        self._said = time.monotonic()
        self._bytes = 0
        self._accuracy = ""
        self.progress = Progress(
            TextColumn("rounds"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self.progress.add_task("rounds", total=rounds, detail="")

    def emit(self, record: logging.LogRecord) -> None:
        report: RoundReport = record.__dict__["report"]
        now = time.monotonic()
        self._first = self._first or (report.round - 1, now)
        self._bytes += report.bytes_down + report.bytes_up
        if "accuracy-after" in report.figures:
            before, after = report.figures["accuracy-before"], report.figures["accuracy-after"]
            self._accuracy = f"accuracy {before:.1%} -> {after:.1%}  "
        begun, since = self._first
        rate = (report.round - begun) / max(now - since, 1e-9)
        detail = f"{rate:.1f}/s  {self._accuracy}{self._bytes / 1e6:,.0f} MB"
        self.progress.update(self._task, completed=report.round, detail=detail)
        if not self._console.is_terminal and (now - self._said > LINE_EVERY or report.round == self._rounds):
            left = (self._rounds - report.round) / rate
            self._console.print(f"round {report.round}/{self._rounds}  {detail}  {left:.0f} s left", soft_wrap=True)
            self._said = now


@contextmanager
def shown(console: Console, rounds: int) -> Iterator[None]:
    """Show the progress of rounds that are run inside the block."""
    handler = RoundsHandler(console, rounds)
    level = rounds_log.level
    rounds_log.addHandler(handler)
    rounds_log.setLevel(logging.INFO)
    rounds_log.propagate = False
    try:
        with handler.progress:
            yield
    finally:
        rounds_log.removeHandler(handler)
        rounds_log.setLevel(level)
        rounds_log.propagate = True
