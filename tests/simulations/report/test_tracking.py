"""TensorBoard and MLflow, read back from what a small real run wrote."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore[import-untyped]

from common.checkpoint import read_checkpoint
from common.errors import SettingsError
from common.settings import Settings, Value
from server.rounds import rounds_log
from server.service.runs import read_journal
from simulations.engine import in_process
from simulations.judging.evaluate import Protocol, evaluate, open_judged
from simulations.report import tracking
from simulations.report.page import write_report
from simulations.report.tracking import tracked

# MLflow uses what SQLAlchemy 2.1 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
ROUNDS = 4


class StopHereError(Exception):
    pass


@pytest.fixture
def rounds_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, rounds_log.name)


@pytest.fixture
def settings(digit_sites: Path, tmp_path: Path) -> Settings:
    values: dict[str, Value] = {
        "run.rounds": ROUNDS,
        "run.dir": str(tmp_path / "runs" / "it's small"),
        "data.sites": str(digit_sites),
        "data.size": 8,
        "episode.shot": 2,
        "model.width": 4,
        "model.depth": 2,
        "inner.steps": 1,
        "outer.sites-per-round": 2,
        "judge.every": 2,
    }
    return Settings.from_flat(values)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all tests, since making one takes seconds; each test has an experiment of its own."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def followed(settings: Settings, name: str, board: Path | None, uri: str | None, stop_after: int = ROUNDS) -> None:
    """Run, judge and report under the tools; or stop after a round as Ctrl-C would."""

    def stop(record: Any) -> bool:
        if record.report.round == stop_after < ROUNDS:
            raise StopHereError
        return True

    run = Path(settings.run.dir)
    with tracked(settings, name, board, uri) as tracker:
        rounds_log.addFilter(stop)
        try:
            in_process(settings, 8)
        finally:
            rounds_log.removeFilter(stop)
        sites = open_judged(Path(settings.data.sites), settings.data)
        result = evaluate(read_checkpoint(run), sites, "digits", Protocol(5, 2, 2, 4))
        result.write(run)
        tracker.judged(result)
        tracker.page(write_report(run))


def scalars(folder: Path) -> Callable[[str], list[tuple[int, Any]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return lambda name: [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_gets_each_round_the_results_and_the_settings(settings: Settings, tmp_path: Path) -> None:
    followed(settings, "digits", tmp_path / "board", None)
    run, folder = Path(settings.run.dir), tmp_path / "board" / "digits" / "it's small"
    found, journal = scalars(folder), read_journal(run)
    assert found("bytes/from the sites") == [(line["round"], line["bytes_up"]) for line in journal]
    assert found("sites/used") == [(number, 2) for number in range(1, ROUNDS + 1)]
    assert found("accuracy/after") == [(n, pytest.approx(journal[n - 1]["figures"]["accuracy-after"])) for n in (2, 4)]
    assert [step for step, _ in found("round/seconds")] == [1, 2, 3, 4]
    judged = json.loads((run / "judged-digits-5-way-2-shot.json").read_text())
    assert found("judged 5-way 2-shot/accuracy after") == [(ROUNDS, pytest.approx(judged["after"]["mean"]))]
    assert hyper_parameters(folder)["inner.steps"] == 1 and hyper_parameters(folder)["data.sites"] == "packed"


def hyper_parameters(folder: Path) -> dict[str, object]:
    events = EventAccumulator(str(folder))
    events.Reload()
    data = HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info.hparams
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in data.items()}


def test_a_resumed_run_goes_on_in_the_same_curves_of_tensorboard(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(StopHereError):
        followed(settings, "digits", tmp_path, None, stop_after=3)
    followed(settings, "digits", tmp_path, None)
    followed(settings, "digits", tmp_path, None)  # all is done: nothing is there twice
    found = scalars(tmp_path / "digits" / "it's small")
    assert [step for step, _ in found("round/seconds")] == [1, 2, 3, 4]
    assert [step for step, _ in found("judged 5-way 2-shot/accuracy after")] == [ROUNDS]


@pytest.fixture
def client(database: str) -> Iterator[MlflowClient]:
    yield MlflowClient(tracking_uri=database)


def only_run(client: MlflowClient, experiment: str) -> Any:
    (run,) = all_runs(client, experiment)
    return run


def all_runs(client: MlflowClient, experiment: str) -> list[Any]:
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id]) if found else []


def steps(client: MlflowClient, run: Any, metric: str) -> list[int]:
    return [point.step for point in client.get_metric_history(run.info.run_id, metric)]


def test_mlflow_gets_each_round_the_results_the_settings_and_the_page_without_examples(
    settings: Settings, database: str, client: MlflowClient, tmp_path: Path
) -> None:
    followed(settings, "whole", None, database)
    run, journal = only_run(client, "whole"), read_journal(Path(settings.run.dir))
    assert run.info.status == "FINISHED" and run.info.run_name == "it's small"
    assert run.data.params["inner.steps"] == "1" and run.data.params["data.sites"] == "packed"
    assert str(tmp_path) not in str([run.data.params, run.data.tags])
    assert steps(client, run, "bytes/to the sites") == [1, 2, 3, 4] and steps(client, run, "accuracy/after") == [2, 4]
    assert run.data.metrics["accuracy/after"] == pytest.approx(journal[-1]["figures"]["accuracy-after"])
    assert steps(client, run, "judged 5-way 2-shot/nll scratch") == [ROUNDS]
    page = Path(client.download_artifacts(run.info.run_id, "report.html", str(tmp_path))).read_text()
    assert "How well it does" in page and "<img" not in page
    assert "<img" in (Path(settings.run.dir) / "report.html").read_text()


def test_files_of_mlflow_lie_beside_its_database(
    settings: Settings, database: str, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    followed(settings, "files", None, database)
    assert Path(database.removeprefix("sqlite:///")).parent.as_uri() in only_run(client, "files").info.artifact_uri
    assert not (tmp_path / "mlruns").exists()


def test_a_resumed_run_is_found_again_at_mlflow(settings: Settings, database: str, client: MlflowClient) -> None:
    with pytest.raises(StopHereError):
        followed(settings, "resumed", None, database, stop_after=3)
    assert only_run(client, "resumed").info.status == "KILLED"
    followed(settings, "resumed", None, database)
    followed(settings, "resumed", None, database)
    run = only_run(client, "resumed")
    assert run.info.status == "FINISHED"
    assert steps(client, run, "round/seconds") == [1, 2, 3, 4]
    assert steps(client, run, "judged 5-way 2-shot/accuracy after") == [ROUNDS]


@pytest.mark.usefixtures("rounds_are_logged")
def test_rounds_that_are_done_again_after_a_crash_are_not_added_twice(
    settings: Settings, database: str, client: MlflowClient, tmp_path: Path
) -> None:
    rare = settings.with_values({"run.checkpoint-seconds": 1000.0})
    followed(rare, "crashed", None, database)
    run = Path(rare.run.dir)
    (run / "checkpoint.safetensors").rename(run / "last")
    early = rare.with_values({"run.dir": str(run.parent / "early")})
    with pytest.raises(StopHereError):
        followed(early, "early", None, None, stop_after=3)
    (run.parent / "early" / "checkpoint.safetensors").rename(run / "checkpoint.safetensors")
    followed(rare, "crashed", tmp_path / "board", database)
    assert steps(client, only_run(client, "crashed"), "round/seconds") == [1, 2, 3, 4]
    found = scalars(tmp_path / "board" / "crashed" / "it's small")
    assert [step for step, _ in found("round/seconds")] == [1, 2, 3, 4]


@pytest.mark.usefixtures("rounds_are_logged")
def test_a_run_that_is_followed_from_its_middle_has_its_beginning_from_the_journal(
    settings: Settings, database: str, client: MlflowClient, tmp_path: Path
) -> None:
    with pytest.raises(StopHereError):
        followed(settings, "late", None, None, stop_after=3)
    followed(settings, "late", tmp_path / "board", database)
    assert steps(client, only_run(client, "late"), "round/seconds") == [1, 2, 3, 4]
    assert len(scalars(tmp_path / "board" / "late" / "it's small")("round/seconds")) == ROUNDS


def test_a_run_that_begins_anew_in_a_folder_is_another_one(
    settings: Settings, database: str, client: MlflowClient, tmp_path: Path
) -> None:
    followed(settings, "anew", tmp_path / "board", database)
    for path in Path(settings.run.dir).iterdir():
        path.unlink()
    followed(settings, "anew", tmp_path / "board", database)
    assert [steps(client, run, "round/seconds") for run in all_runs(client, "anew")] == [[1, 2, 3, 4]] * 2
    assert len(scalars(tmp_path / "board" / "anew" / "it's small")("round/seconds")) == ROUNDS


def test_a_run_goes_on_when_mlflow_is_lost(
    settings: Settings, database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.exceptions import MlflowException

    def lost(*args: object, **named: object) -> None:
        raise MlflowException("no route to host")

    with tracked(settings, "lost", None, database):
        monkeypatch.setattr(MlflowClient, "log_batch", lost)
        monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.0)
        in_process(settings, 8)
    assert read_checkpoint(Path(settings.run.dir)).state.round == ROUNDS
    assert caplog.text.count("MLflow gets nothing more of this run, which goes on: no route to host") == 1


def test_mlflow_that_cannot_be_used_is_an_error_before_anything_starts(settings: Settings, tmp_path: Path) -> None:
    with (
        pytest.raises(SettingsError, match=r"MLflow at 'file:.*cannot be used.*sqlite"),
        tracked(settings, "x", None, (tmp_path / "files").as_uri()),
    ):
        pytest.fail("the run began")


@pytest.mark.parametrize(("tool", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")])
def test_a_tool_that_is_not_installed_is_an_error_that_says_how_to_get_it(
    settings: Settings, tmp_path: Path, tool: str, package: str
) -> None:
    code = (
        "import sys; sys.modules[sys.argv[1]] = None\n"
        "from common.settings import Settings\nfrom simulations.report.tracking import tracked\n"
        "with tracked(Settings.from_flat({'run.dir': sys.argv[2]}), 'x', **{sys.argv[1]: sys.argv[3]}): print('began')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, package, settings.run.dir, str(tmp_path / tool)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert f"SettingsError: {tool} is not installed; install it with 'pip install fedreptile[{tool}]'" in done.stderr
    assert "began" not in done.stdout


def test_without_tools_nothing_is_imported_or_written(settings: Settings) -> None:
    code = (
        "import sys\nfrom common.settings import Settings\nfrom simulations.report.tracking import tracked\n"
        "with tracked(Settings.from_flat({'run.dir': sys.argv[1]}), 'x') as tracker: pass\n"
        "print(sorted({'mlflow', 'tensorboard'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, settings.run.dir],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.stdout == "[]\n" and not Path(settings.run.dir).exists()


def test_mlflow_does_not_report_its_use(settings: Settings, database: str) -> None:
    code = (
        "import sys\nfrom common.settings import Settings\nfrom simulations.report.tracking import tracked\n"
        "with tracked(Settings.from_flat({'run.dir': sys.argv[1]}), 'quiet', None, sys.argv[2]): pass\n"
        "from mlflow.telemetry.utils import is_telemetry_disabled\nprint(is_telemetry_disabled())"
    )
    switches = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST")
    done = subprocess.run(
        [sys.executable, "-c", code, settings.run.dir, database],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
        env={key: value for key, value in os.environ.items() if key not in switches},
    )  # fmt: skip
    assert done.stdout == "True\n"
