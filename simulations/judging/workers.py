"""Judging a run in several processes, one a core: each site alone first, then each protocol."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from common.checkpoint import read_checkpoint
from common.learning.params import Params
from simulations.judging.alone import Alone, train_alone
from simulations.judging.evaluate import Evaluation, Protocol, evaluate, open_judged

SHOWN_EVERY = 0.2
"""Seconds between calls of a progress."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

_done: "Synchronized[int]"
"""In a worker: the episodes that all workers have judged."""


def judge_run(
    run: Path,
    name: str,
    train: Path,
    judge: Path,
    protocols: Sequence[Protocol],
    alone_steps: int,
    progress: Progress,
) -> list[Evaluation]:
    """Judge the checkpoint of a run by several protocols, and write the results into its folder.

    Args:
        name: what the sites are called in results.
        train: the sites that it was trained on.
        judge: the sites to judge on; those that are in ``train`` too held these inputs back.
        alone_steps: inner steps of a new site alone; 0 leaves out what sites reach without a federation.
    """
    settings = read_checkpoint(run).settings
    with _workers(max(len(protocols), 2)) as (pool, done):
        trained: dict[str, Params] = {}
        if alone_steps:
            names = sorted(open_judged(judge, settings.data, train).known)
            training = {site: pool.submit(train_alone, site, train, settings, run) for site in names}
            _watch(
                list(training.values()),
                lambda: progress("training each site alone", sum(f.done() for f in training.values()), len(training)),
            )
            trained = {site: future.result() for site, future in training.items()}
        alone = Alone(trained, alone_steps) if alone_steps else None
        judging = [pool.submit(_judge, run, name, train, judge, protocol, alone) for protocol in protocols]
        episodes = sum(protocol.episodes for protocol in protocols)
        _watch(judging, lambda: progress("judging", done.value, episodes))
        results = [future.result() for future in judging]
    for result in results:
        result.write(run)
    return results


def _judge(run: Path, name: str, train: Path, judge: Path, protocol: Protocol, alone: Alone | None) -> Evaluation:
    found = read_checkpoint(run)
    sites = open_judged(judge, found.settings.data, train)

    def count(_: int) -> None:
        with _done.get_lock():
            _done.value += 1

    return evaluate(found, sites, name, protocol, alone, done=count)


def _watch(futures: Sequence[Future[Any]], show: Callable[[], None]) -> None:
    """Show progress until all are done. Raises what one of them raised."""
    waiting = set(futures)
    while waiting:
        finished, waiting = wait(waiting, SHOWN_EVERY)
        for future in finished:
            future.result()
        show()


@contextmanager
def _workers(most: int) -> "Iterator[tuple[ProcessPoolExecutor, Synchronized[int]]]":
    """Start processes, as many as there are cores; whatever ends the block ends them."""
    context = multiprocessing.get_context("spawn")
    done: Synchronized[int] = context.Value("q", 0)
    before = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(most, os.cpu_count() or 1), context, _begin, (done,)) as pool:
        try:
            yield pool, done
        except BaseException:
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
            raise


def _begin(done: "Synchronized[int]") -> None:
    global _done  # noqa: PLW0603 - a worker is given it once, when it starts
    _done = done
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one ends the others
