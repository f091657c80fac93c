"""Processes that answer for sites. One that dies is replaced, and what it was at is done again."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from typing import Protocol

import numpy as np
import torch
from flwr.app import Error, RecordDict

from common.plan import plan_for
from common.settings import Settings, Value
from simulations.batched.shelf import Answers, Left, Shelf
from simulations.batched.sites import Sites

log = logging.getLogger("fedreptile.simulations")

START = "fork" if sys.platform == "linux" else "spawn"
"""How a worker starts: forked, it has all imports at once. (Where there is a GPU in use there are no workers.)"""
AHEAD = 2
"""Tasks for each worker that are handed out beforehand, so that it never waits."""
MOST_DEATHS = 2
"""Workers that may die over one site."""
HEADERS = 1024
"""Bytes that the arrays of an update have beside their numbers, at most."""
DIED = Error(2, "the worker process died over it")

LARGEST_SHELF = 256_000_000
"""Bytes. Larger models pass through a pipe, which their adaptation makes small."""


@dataclass(frozen=True)
class Task:
    """A message to several sites, by position."""

    kind: str
    content: RecordDict
    positions: Sequence[int]
    alone: bool = False
    """Whether a worker has died while this was at work: nothing else may be then, so that the culprit is known."""
    deaths: int = 0
    """Workers that died over it when it was alone."""


class Staff(Protocol):
    """Who does tasks: this process or others. The answers come in the order of the tasks and of the sites in them."""

    hands: int
    """Tasks that are done at the same time."""

    def add(self, tasks: Sequence[Task]) -> None:
        """Have tasks done after those that wait already."""

    def next(self) -> Answers:
        """Return the answers for the next few sites; none if nothing waits."""

    def close(self) -> None: ...


class OwnProcess:
    """Tasks are done in this process when their answers are asked for."""

    hands = 1

    def __init__(self, sites: Sites) -> None:
        self._sites = sites
        self._waiting: deque[Task] = deque()

    def add(self, tasks: Sequence[Task]) -> None:
        self._waiting.extend(tasks)

    def next(self) -> Answers:
        if not self._waiting:
            return []
        task = self._waiting.popleft()
        return self._sites.answer(task.kind, task.content, task.positions)

    def close(self) -> None:
        self._waiting.clear()


class Workers:
    """Tasks are done by ``count`` processes of one thread each."""

    def __init__(
        self, count: int, settings: Settings, node_config: Mapping[str, Value], data_bytes: int, together: int
    ) -> None:
        self.hands = count
        self._waiting: deque[Task] = deque()
        self._running: deque[tuple[Task, int, Future[tuple[Answers, Left]]]] = deque()
        """Tasks, places on the shelf, answers to come."""
        self._shelf = _shelf(settings, together, AHEAD * count)
        self._begun_with = (settings, dict(node_config), data_bytes // count, self._shelf)
        self._others = set(multiprocessing.active_children())
        self._pool = self._started()

    def _started(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context(START)
        return ProcessPoolExecutor(self.hands, context, _begin, self._begun_with)

    def add(self, tasks: Sequence[Task]) -> None:
        self._waiting.extend(tasks)
        self._hand_out()

    def next(self) -> Answers:
        self._hand_out()
        while self._running:
            try:
                answers, left = self._running[0][2].result()
                self._running.popleft()
                answers = self._shelf.take(answers, left) if self._shelf else answers
            except BrokenProcessPool:
                answers = self._replaced()
            self._hand_out()
            if answers:
                return answers
        return []

    def close(self) -> None:
        self._waiting.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in self.processes():
            process.terminate()

    def processes(self) -> set[BaseProcess]:
        """Return the workers that have been started and not ended."""
        return set(multiprocessing.active_children()) - self._others

    def _hand_out(self) -> None:
        while self._waiting and len(self._running) < AHEAD * self.hands:
            if self._running and (self._waiting[0].alone or self._running[-1][0].alone):
                return
            place = min(set(range(AHEAD * self.hands)) - {place for _, place, _ in self._running})
            try:
                future = self._pool.submit(_answer, self._waiting[0], place)
            except BrokenProcessPool:  # a worker died
                if self._running:
                    return
                self._pool = self._started()
            else:
                self._running.append((self._waiting.popleft(), place, future))

    def _replaced(self) -> Answers:
        """Start new processes, with what was at work first; return the error of a site over which too many died."""
        tasks = [task for task, _, _ in self._running]
        self._running.clear()
        self._pool.shutdown(wait=False)
        self._pool = self._started()
        first, guilty = tasks[0], len(tasks) == 1 and tasks[0].alone
        count = sum(len(task.positions) for task in tasks)
        log.warning("a worker process died; another takes its place, and %d site(s) are asked again", count)
        if not guilty:
            self._waiting.extendleft(replace(task, alone=True) for task in reversed(tasks))
            return []
        if len(first.positions) > 1:
            self._waiting.extendleft(replace(first, positions=[p], deaths=0) for p in reversed(first.positions))
            return []
        if first.deaths + 1 >= MOST_DEATHS:
            return [DIED]
        self._waiting.appendleft(replace(first, deaths=first.deaths + 1))
        return []


def _shelf(settings: Settings, together: int, places: int) -> Shelf | None:
    """Return a shelf for the updates of so many sites at each place; None if it would be too large, or cannot be shared
    with processes that are no forks."""
    plan = plan_for(settings)
    bytes_a_site = (plan.update.size + plan.slots.size) * np.dtype(plan.update.dtype).itemsize + HEADERS
    size = together * bytes_a_site
    return Shelf(places, size) if START == "fork" and places * size <= LARGEST_SHELF else None


_sites: Sites
_own_shelf: Shelf | None
"""In a worker."""


def _begin(settings: Settings, node_config: Mapping[str, Value], data_bytes: int, shelf: Shelf | None) -> None:
    global _sites, _own_shelf
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _sites, _own_shelf = Sites(settings, node_config, data_bytes), shelf


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answer(task: Task, place: int) -> tuple[Answers, Left]:
    answers = _sites.answer(task.kind, task.content, task.positions)
    return _own_shelf.put(place, answers) if _own_shelf else (answers, [])
