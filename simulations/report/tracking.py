"""Following a run live in TensorBoard and MLflow, extras that are imported only if asked for.

What goes to them: figures of each round, settings without paths, results of judging, and the page without its
examples; no input of a site. MLflow's own usage reports are off unless MLFLOW_DISABLE_TELEMETRY says otherwise.

A resumed run goes on in the same curves: the journal says what they lack, and what they have is not added again.
"""

import hashlib
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from common.checkpoint import read_checkpoint
from common.errors import SettingsError
from common.settings import Settings
from server.reptile import RoundReport
from server.rounds import RunFolder, rounds_log
from server.service.runs import read_journal
from simulations.judging.evaluate import Evaluation
from simulations.report.recorded import read_rounds, read_run, shown_settings

log = logging.getLogger("fedreptile.simulations")

TAG = "fedreptile.run"
"""By this tag a run is found again at MLflow."""
FLUSH_SECONDS = 1.0
"""For so long figures for MLflow are collected, because a database takes longer for a row than a small round does."""
MOST_METRICS, MOST_PARAMS = 1000, 100
"""That MLflow takes in one request."""


class Tool(Protocol):
    """Another tool's record of a run."""

    last_round: int
    """The last round that it has figures of."""

    def add(self, round_number: int, figures: Mapping[str, float]) -> None: ...

    def judged(self, round_number: int, figures: Mapping[str, float]) -> None:
        """Add results of judging, but for those that it has."""

    def page(self, text: str) -> None: ...

    def close(self, finished: bool) -> None: ...


class Tracker(logging.Handler):
    """Passes on to other tools what a run comes to, and the rounds as the server logs them."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__()
        self._tools = tools
        self._since = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        self._add(record.__dict__["report"], now - self._since)
        self._since = now

    def catch_up(self, run: Path) -> None:
        """Add what a tool lacks of the rounds and results of a run that is to be resumed."""
        seconds = {line["round"]: line["seconds"] for line in read_journal(run)}
        done = _rounds_done(run)
        for report in read_rounds(run):
            if report.round <= done:
                self._add(report, seconds[report.round])
        for evaluation in read_run(run).judged if done else []:
            self.judged(evaluation)

    def judged(self, evaluation: Evaluation) -> None:
        """Pass on a result of judging, under the name of its protocol."""
        for tool in self._tools:
            tool.judged(evaluation.round, judged_figures(evaluation))

    def page(self, path: Path) -> None:
        """Pass on the page of the run in whose folder it lies, without the examples, which are sites' inputs."""
        from simulations.report.page import render  # here: plots take long to import

        text = render(read_run(path.parent).without_samples()) if self._tools else ""
        for tool in self._tools:
            tool.page(text)

    def _add(self, report: RoundReport, seconds: float) -> None:
        for tool in self._tools:
            if report.round > tool.last_round:
                tool.add(report.round, {**round_figures(report), "round/seconds": seconds})


@contextmanager
def tracked(
    settings: Settings, name: str, tensorboard: str | Path | None = None, mlflow: str | None = None
) -> Iterator[Tracker]:
    """Follow the run of the block.

    Args:
        name: of the federation. TensorBoard's curves lie in the folder TENSORBOARD/NAME/RUN-FOLDER's-name, MLflow's
            run is in the experiment of this name.
        tensorboard: folder of TensorBoard; None leaves it out.
        mlflow: tracking URI of MLflow, such as 'sqlite:////srv/mlflow.db'; None leaves it out.

    Raises:
        SettingsError: before anything starts, if a tool is not installed or cannot be reached.
    """
    run = RunFolder.of(settings).path
    tools: list[Tool] = []
    if tensorboard:
        tools.append(TensorBoard(Path(tensorboard) / name / run.name, settings))
    if mlflow:
        tools.append(MLflow(mlflow, name, run, settings))
    tracker = Tracker(tools)
    level, finished = rounds_log.level, False
    if tools:
        tracker.catch_up(run)
        rounds_log.addHandler(tracker)
        rounds_log.setLevel(logging.INFO)
    try:
        yield tracker
        finished = True
    finally:
        rounds_log.removeHandler(tracker)
        rounds_log.setLevel(level)
        for tool in tools:
            tool.close(finished)


class TensorBoard:
    """Curves in a folder. What stands there of an earlier run, or of this one before, is hidden and written anew."""

    last_round = 0

    def __init__(self, folder: Path, settings: Settings) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _not_installed("tensorboard") from error
        self._settings = shown_settings(settings)
        self._judged: dict[str, float] = {}
        try:
            self._writer = SummaryWriter(folder, purge_step=1, flush_secs=10)
        except OSError as error:
            raise SettingsError(f"{folder} cannot be written for TensorBoard: {error.strerror or error}") from error
        lines = "\n".join(f"    {key} = {value}" for key, value in self._settings.items())
        self._writer.add_text("settings", lines, 1)

    def add(self, round_number: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, round_number)

    def judged(self, round_number: int, figures: Mapping[str, float]) -> None:
        self.add(round_number, {name: value for name, value in figures.items() if self._judged.get(name) != value})
        self._judged.update(figures)

    def page(self, text: str) -> None:
        """TensorBoard has no place for pages."""

    def close(self, finished: bool) -> None:
        if finished:
            self._add_hyper_parameters()
        self._writer.close()

    def _add_hyper_parameters(self) -> None:
        """Once only, at the end: TensorBoard takes the first that it finds, and it has to name the judged figures."""
        from torch.utils.tensorboard.summary import hparams

        events: Any = self._writer.file_writer
        for summary in hparams(dict(self._settings), dict(self._judged)):  # type: ignore[no-untyped-call]
            events.add_summary(summary)


class MLflow:
    """A run at MLflow, which this run finds again when it is resumed."""

    def __init__(self, uri: str, experiment: str, run: Path, settings: Settings) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow looks when it is imported
        try:
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise _not_installed("mlflow") from error
        self._error = MlflowException
        self._waiting: list[tuple[int, str, float]] = []
        self._sent = time.monotonic()
        self._lost = False
        try:
            self._client = MlflowClient(tracking_uri=uri)
            place = self._experiment(experiment, uri)
            found = self._found(place, run) or self._new(place, run, settings)
            self._id = found.info.run_id
            self._judged = dict(found.data.metrics)
            self.last_round = self._last_step("round/seconds")
            self._client.update_run(self._id, status="RUNNING")
        except MlflowException as error:
            raise SettingsError(f"MLflow at {uri!r} cannot be used: {error}") from error

    def add(self, round_number: int, figures: Mapping[str, float]) -> None:
        self._waiting += [(round_number, name, value) for name, value in figures.items()]
        if time.monotonic() - self._sent > FLUSH_SECONDS:
            self._send()

    def judged(self, round_number: int, figures: Mapping[str, float]) -> None:
        self.add(round_number, {name: value for name, value in figures.items() if self._judged.get(name) != value})
        self._judged.update(figures)

    def page(self, text: str) -> None:
        from simulations.report.page import NAME

        self._try(lambda: self._client.log_text(self._id, text, NAME))

    def close(self, finished: bool) -> None:
        self._send()
        self._try(lambda: self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED"))

    def _send(self) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for some in _parts([Metric(name, value, now, step) for step, name, value in self._waiting], MOST_METRICS):
            self._try(lambda some=some: self._client.log_batch(self._id, metrics=some))
        self._waiting = []
        self._sent = time.monotonic()

    def _try(self, request: Any) -> None:
        """Send something. If it fails the run goes on without MLflow; when resumed it sends what is missing."""
        if self._lost:
            return
        try:
            request()
        except self._error as error:
            self._lost = True
            log.warning("MLflow gets nothing more of this run, which goes on: %s", error)

    def _experiment(self, name: str, uri: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found:
            return str(found.experiment_id)
        # Files beside the database: MLflow would put them into the folder that the command was given in.
        beside = (
            Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlruns" if uri.startswith("sqlite:///") else None
        )
        return str(self._client.create_experiment(name, beside.as_uri() if beside else None))

    def _found(self, experiment: str, run: Path) -> Any:
        """Return the newest run at MLflow of this folder, if the folder holds a run to resume."""
        if not _rounds_done(run):
            return None
        found = self._client.search_runs([experiment], f"tags.`{TAG}` = '{_tag(run)}'", max_results=1)
        return found[0] if found else None

    def _new(self, experiment: str, run: Path, settings: Settings) -> Any:
        from mlflow.entities import Param

        made = self._client.create_run(experiment, tags={TAG: _tag(run)}, run_name=run.name)
        for some in _parts([Param(key, str(value)) for key, value in shown_settings(settings).items()], MOST_PARAMS):
            self._client.log_batch(made.info.run_id, params=some)
        return made

    def _last_step(self, metric: str) -> int:
        steps = [entry.step for entry in self._client.get_metric_history(self._id, metric)]
        return max(steps, default=0)


def round_figures(report: RoundReport) -> dict[str, float]:
    """Return the figures of a round, by names that other tools group by what is before the slash."""
    figures = {
        "bytes/to the sites": report.bytes_down,
        "bytes/from the sites": report.bytes_up,
        "sites/asked": len(report.asked),
        "sites/used": len(report.used),
        "sites/dropped": len(report.dropped),
        "round/step size": report.step_size,
    }
    means = {_figure_name(name): value for name, value in report.figures.items()}
    return {name: value for name, value in {**figures, **means}.items() if math.isfinite(value)}


def judged_figures(evaluation: Evaluation) -> dict[str, float]:
    """Return the results of judging by names such as 'judged 5-way 1-shot/accuracy after'."""
    group = f"judged {evaluation.protocol.name}"
    figures: dict[str, float] = {}
    for kind in ("before", "after", "scratch", "alone"):
        if score := getattr(evaluation, kind):
            measures = {"accuracy": score.mean, "nll": score.nll, "ece": score.ece}
            figures |= {f"{group}/{measure} {kind}": value for measure, value in measures.items()}
    if not evaluation.protocol.pooled:
        figures[f"{group}/accuracy after at the worst site"] = evaluation.sites[evaluation.worst_site].after
        figures[f"{group}/share hurt"] = evaluation.share_hurt
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _figure_name(name: str) -> str:
    """Group 'accuracy-before' with 'accuracy-after'; other figures of sites stand together."""
    what, _, when = name.rpartition("-")
    return f"{what}/{when}" if when in ("before", "after") else f"mean over sites/{name}"


def _rounds_done(run: Path) -> int:
    folder = RunFolder(run)
    return read_checkpoint(folder.checkpoint).state.round if folder.checkpoint.exists() else 0


def _tag(run: Path) -> str:
    """Name a run's folder without telling where it lies; quoted, as it becomes part of a query."""
    return f"{quote(run.name)}-{hashlib.sha256(str(run).encode()).hexdigest()[:8]}"


def _parts(items: Sequence[Any], most: int) -> list[list[Any]]:
    return [list(items[start : start + most]) for start in range(0, len(items), most)]


def _not_installed(extra: str) -> SettingsError:
    return SettingsError(f"{extra} is not installed; install it with 'pip install fedreptile[{extra}]'")
