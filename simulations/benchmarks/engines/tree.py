"""CPU time and memory of a command and of everything that it started, on Linux; elsewhere there are no such figures."""

import math
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "FEDREPTILE_BENCHMARK"
"""Variable by which a command's processes are known, whoever their parents are by now."""
PROC = Path("/proc")
SHARE = 0.05
"""Part of the time that looking at memory may take."""


class Tree:
    """The processes of one command."""

    def __init__(self, mark: str) -> None:
        self._mark = f"{MARK}={mark}".encode()
        self._others: set[int] = set()
        self._spent: dict[int, float] = {}
        self._lock = threading.Lock()
        self.peak = math.nan
        """Most bytes seen at once, shared pages counted once (PSS)."""

    def cpu(self) -> float:
        """Return the CPU seconds that its processes have taken so far, those that have ended as last seen."""
        tick = os.sysconf("SC_CLK_TCK") if PROC.is_dir() else 1
        with self._lock:
            for process in self._processes():
                with suppress(OSError, IndexError):
                    fields = (PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
                    self._spent[process] = (int(fields[11]) + int(fields[12])) / tick
            return sum(self._spent.values()) if self._spent else math.nan

    def look(self) -> None:
        """Look at memory once."""
        total = 0
        with self._lock:
            for process in self._processes():
                with suppress(OSError):
                    lines = (PROC / str(process) / "smaps_rollup").read_text().splitlines()
                    total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        if total:
            self.peak = max(total, 0 if math.isnan(self.peak) else self.peak)

    def end(self) -> None:
        """Kill what is left of it."""
        self._others.clear()  # a process gets its mark when it becomes another program
        for process in self._processes():
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)

    def _processes(self) -> list[int]:
        found = []
        for entry in PROC.iterdir() if PROC.is_dir() else ():
            if not entry.name.isdigit() or (process := int(entry.name)) in self._others:
                continue
            try:
                ours = self._mark in (entry / "environ").read_bytes()
            except OSError:
                continue
            if ours:
                found.append(process)
            else:
                self._others.add(process)
        return found


@contextmanager
def started(words: list[str], log: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Tree]]:
    """Have a command for a block, its output in a file and its memory looked at; with the block all of it ends."""
    mark = uuid.uuid4().hex
    with log.open("wb") as output:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, MARK: mark},
        )
    tree, over = Tree(mark), threading.Event()
    watcher = threading.Thread(target=_watch, args=(tree, over), daemon=True)
    watcher.start()
    try:
        yield process, tree
    finally:
        over.set()
        watcher.join()
        process.kill()
        process.wait()
        tree.end()


def _watch(tree: Tree, over: threading.Event) -> None:
    pause = 0.1
    while not over.wait(pause):
        began = time.perf_counter()
        tree.look()
        pause = max(0.1, (time.perf_counter() - began) / SHARE)
