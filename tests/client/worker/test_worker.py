"""What an enrolled site's worker answers, and what it refuses. In this process; the socket has its own tests."""

import dataclasses
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Error, Message, RecordDict
from typer.testing import CliRunner

from client import site as worker_site
from client.door import cli
from client.door.explain import KINDS, explain_site
from client.door.ledger import entries
from client.door.outbound import POLICY_ERROR, SITE_ERROR, bytes_of
from client.door.policy import read_policy
from client.worker import outbox as kept
from client.worker.worker import OF_A_CAMPAIGN, OF_THE_RUN, Worker, fingerprint
from common import VERSION
from common.errors import SettingsError, TrustError
from common.messages import Introduction, Request, Update, decode_introduction, decode_update
from common.paths import write_atomically
from common.plan import plan_for
from common.settings import Settings, Value, flatten
from common.trust.kit import encode_kit, read_kit
from common.trust.seals import Facts, digest_of, opened, unsealed
from tests.client.small import first_request, message_of, settings_with, site_on
from tests.client.worker.enrolled import ROOT, Enrolled, enrolled


@pytest.fixture
def site(digit_sites: Path) -> Iterator[Enrolled]:
    with enrolled(digit_sites, settings_with()) as found:
        yield found


@pytest.fixture
def worker(site: Enrolled) -> Iterator[Worker]:
    found = Worker(site.home)
    yield found
    found.close()


def ask(worker: Worker, message: Message, version: str = VERSION, **changes: Value) -> RecordDict | Error:
    config = {**flatten(worker.agreed), **{key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}}
    header = {"type": message.metadata.message_type, "config": config, "version": version}
    return worker.answer(header, message.content)


def content(answer: RecordDict | Error) -> RecordDict:
    assert isinstance(answer, RecordDict), answer
    return answer


def reason(answer: RecordDict | Error) -> str:
    assert isinstance(answer, Error)
    return str(answer.reason)


# ------------------------------------------------------------------------------------------------ what it answers


def test_an_answer_is_the_one_of_the_simulation_and_sealed_for_this_request(
    site: Enrolled, worker: Worker, digit_sites: Path
) -> None:
    message = site.asking("train", 4)
    answer = content(ask(worker, message))
    base = digest_of(unsealed(message.content))
    seal = opened(answer, site.site_key.public_key(), Facts("run-1", 4, "train", site="site-0", base=base))
    [entry] = entries(site.home.ledger)
    assert (seal.facts.ledger, seal.facts.policy) == (entry.stamp, read_policy(site.home.policy_file).digest)
    expected = site_on(digit_sites, site.settings).train(first_request(site.settings, 4))
    assert np.array_equal(decode_update(seal.content, plan_for(site.settings).agreed).delta, expected.delta)
    assert (entry.run, entry.round, entry.kind, entry.base) == ("run-1", 4, "train", base)


def test_a_site_introduces_itself(site: Enrolled, worker: Worker) -> None:
    answer = content(ask(worker, site.asking("query", 0)))
    assert decode_introduction(unsealed(answer)).name == "site-0"


def test_the_seed_is_the_runs_and_all_else_as_agreed(site: Enrolled, worker: Worker, digit_sites: Path) -> None:
    answer = content(ask(worker, site.asking(), run__seed=7, outer__quorum=1.0))
    seven = settings_with(run__seed=7)
    expected = site_on(digit_sites, seven).train(first_request(site.settings))
    assert np.array_equal(decode_update(unsealed(answer), plan_for(seven).agreed).delta, expected.delta)


def test_data_are_read_once_for_all_rounds_runs_and_policies(site: Enrolled, worker: Worker) -> None:
    ask(worker, site.asking())
    assert worker._site is not None
    data = worker._site.data
    site.policy("[limits]\nsteps = 1\n")
    ask(worker, site.asking(round_number=2), run__seed=5)
    assert worker._site.data is data and worker._site.settings.run.seed == 5


def test_a_picture_that_is_added_is_seen_with_the_next_message(digit_folders: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(digit_folders / "line-1", tmp_path / "site-0"))
    with enrolled(data, settings_with()) as site:
        worker = Worker(site.home)
        first = decode_introduction(unsealed(content(ask(worker, site.asking("query", 0)))))
        picture = next((data / "digit-0").iterdir())
        shutil.copy(picture, data / "digit-0" / "another.png")
        second = decode_introduction(unsealed(content(ask(worker, site.asking("query", 0)))))
        worker.close()
    assert (first.classes["digit-0"], second.classes["digit-0"]) == (12, 13)


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("a", encoding="utf-8")
    before = fingerprint(file)
    file.write_text("ab", encoding="utf-8")
    after = fingerprint(file)
    assert after not in (before, fingerprint(tmp_path / "gone")) and fingerprint(file) == after


# --------------------------------------------------------------------------------------------------- a new kit


def test_a_kit_that_is_taken_while_the_worker_runs_counts_from_the_next_message_on(
    site: Enrolled, worker: Worker, digit_sites: Path
) -> None:
    content(ask(worker, site.asking()))
    of_before = site.asking(round_number=2)
    site.server_key = Ed25519PrivateKey.generate()
    site.renew(settings_with(model__width=6, inner__steps=3))
    answer = content(ask(worker, site.asking(round_number=2), model__width=6, inner__steps=3))
    expected = site_on(digit_sites, site.settings).train(first_request(site.settings, 2))
    assert np.array_equal(decode_update(unsealed(answer), plan_for(site.settings).agreed).delta, expected.delta)
    assert worker.agreed == site.settings and worker.sizes == plan_for(site.settings).agreed
    assert reason(ask(worker, of_before)).startswith("SealError")
    assert worker.status()["refused"] == {"bad-signature": 1}


def test_data_are_read_anew_if_a_new_kit_says_that_inputs_are_others(digit_folders: Path) -> None:
    with enrolled(digit_folders / "line-1", settings_with()) as site:
        worker = Worker(site.home)
        content(ask(worker, site.asking()))
        site.renew(settings_with(data__size=12))
        content(ask(worker, site.asking(round_number=2), data__size=12))
        assert worker._site is not None
        assert worker._site.data.inputs("digit-0", [0]).shape == (1, 1, 12, 12)
        worker.close()


@pytest.mark.parametrize("case", ["damaged", "another site's", "of settings unknown here", "gone"])
def test_a_kit_that_cannot_be_used_is_counted_once_and_the_one_before_counts(
    site: Enrolled, worker: Worker, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    match case:
        case "damaged":
            write_atomically(site.home.kit_file, site.home.kit_file.read_bytes().replace(b"wards", b"warts"))
        case "another site's":
            site.renew(site="site-1")
        case "of settings unknown here":
            kit = dataclasses.replace(read_kit(site.home.kit_file), settings={"inner.magic": 1})
            write_atomically(site.home.kit_file, encode_kit(kit, site.server_key))
        case _:
            site.home.kit_file.unlink()
    for number in (1, 2):
        content(ask(worker, site.asking(round_number=number)))
    assert worker.status()["refused"] == {"kit": 1}
    assert "the kit before stays in use" in caplog.text
    site.home.kit_file.unlink(missing_ok=True)


def test_a_kit_is_not_exchanged_under_a_message_at_work(
    site: Enrolled, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, train = worker.agreed, worker_site.Site.train

    def meanwhile(self: worker_site.Site, request: Request) -> Update:
        site.renew(settings_with(inner__steps=3))
        other = threading.Thread(target=worker.look_at_kit)
        other.start()
        other.join()
        assert worker.agreed == before
        return train(self, request)

    monkeypatch.setattr(worker_site.Site, "train", meanwhile)
    content(ask(worker, site.asking()))
    worker.look_at_kit()
    assert worker.agreed == site.settings != before


# ------------------------------------------------------------------------------------------------- what it refuses


def tampered(site: Enrolled, case: str) -> Message:
    request, later = site.request(1), site.request(2)
    good = site.seal(request, "train")
    stranger = dataclasses.replace(site, server_key=Ed25519PrivateKey.generate())
    messages: dict[str, tuple[str, RecordDict]] = {
        "no seal": ("train", request),
        "another's key": ("train", stranger.seal(request, "train")),
        "another body": ("train", RecordDict({**later, "seal": good["seal"]})),
        "for another kind": ("evaluate", good),
        "for another round": ("train", site.seal(later, "train", 1)),
        "for no run": ("train", site.seal(request, "train", run="")),
        "a seal of another form": ("train", RecordDict({**request, "seal": ConfigRecord({"round": 1})})),
    }
    return message_of(*messages[case])


@pytest.mark.parametrize(
    ("case", "cause"),
    [
        ("no seal", "unsigned"),
        ("another's key", "bad-signature"),
        ("another body", "altered"),
        ("for another kind", "replayed"),
        ("for another round", "replayed"),
        ("for no run", "unsigned"),
        ("a seal of another form", "unsigned"),
    ],
)
def test_a_request_that_the_server_did_not_seal_for_this_is_refused_and_counted(
    site: Enrolled, worker: Worker, case: str, cause: str
) -> None:
    answer = ask(worker, tampered(site, case))
    assert reason(answer).startswith("SealError: the request is not signed by the federation's server")
    assert worker.status()["refused"] == {cause: 1}
    assert [entry.content for entry in entries(site.home.ledger)] == ["Error"]


def test_code_of_another_version_is_refused_with_both_versions_named(site: Enrolled, worker: Worker) -> None:
    answer = ask(worker, site.asking(), version="0.9.9")
    assert reason(answer) == f"VersionError: the run's code is 0.9.9 and the site has {VERSION}"


def test_the_version_of_the_code_is_that_of_the_package() -> None:
    assert f'\nversion = "{VERSION}"\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


OTHER: dict[str, Value] = {
    "data.kind": "vector",
    "data.channels": 3,
    "data.bits": 16,
    "model.network": "mlp",
    "model.head": "linear",
    "campaign.delta": "bf16",
    "model.normalisation": "batch",
    "inner.optimizer": "adam",
    "inner.augment": "flip",
    "inner.precision": "bf16",
    "adapt.augment": "flip",
    "outer.optimizer": "adam",
    "outer.average": 0.5,
    "outer.quorum": 1.0,
    "outer.join-sites": 3,
    "outer.weighting": "num-examples",
    "outer.layer-step-sizes": "head.*=2",
    "gate.least-recall": 0.5,
    "gate.least-by-table": 0.5,
    "gate.most-ece-rise": 0.5,
    "gate.least-unknown": 0.5,
    "gate.quorum": 1.0,
}


@pytest.mark.parametrize("key", flatten(Settings()))
def test_a_run_may_change_what_only_the_server_does_and_nothing_that_a_site_computes(worker: Worker, key: str) -> None:
    agreed = flatten(worker.agreed)
    value = agreed[key]
    changed = OTHER.get(key, f"{value}x" if isinstance(value, str) else 1 - value if value in (0, 1) else value + 1)
    changed = bool(changed) if isinstance(value, bool) else changed
    assert changed != value
    if key.startswith(OF_THE_RUN):
        assert flatten(worker.effective({**agreed, key: changed})) == agreed | (
            {key: changed} if key in ("run.seed", "campaign.class") else {}
        )
    else:
        with pytest.raises(SettingsError, match=f"{key}|judge.transductive|views"):
            worker.effective({**agreed, key: changed})


def test_the_refusal_of_settings_names_the_key_here_and_not_to_the_server(
    site: Enrolled, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    assert reason(ask(worker, site.asking(), inner__steps=99)) == SettingsError("").told()
    assert "inner.steps" in caplog.text


@pytest.mark.parametrize("key", OF_A_CAMPAIGN)
def test_a_campaign_may_choose_how_its_sites_learn_and_another_run_may_not(worker: Worker, key: str) -> None:
    value = 0.25 if key == "inner.learning-rate" else 3
    campaign = {"campaign.class": "dent", key: value}
    assert flatten(worker.effective({**flatten(worker.agreed), **campaign})) == flatten(worker.agreed) | campaign
    with pytest.raises(SettingsError, match=key):
        worker.effective({**flatten(worker.agreed), key: value})


def test_a_campaign_may_change_nothing_else(worker: Worker) -> None:
    with pytest.raises(SettingsError, match=r"episode\.way"):
        worker.effective({**flatten(worker.agreed), "campaign.class": "dent", "episode.way": 4})


def introduced(site: Enrolled, worker: Worker) -> Introduction:
    return decode_introduction(unsealed(content(ask(worker, site.asking("query")))))


def stand(site: Enrolled, text: str) -> None:
    site.home.models.mkdir(exist_ok=True)
    (site.home.models / "standing.json").write_text(text, encoding="utf-8")


def test_a_site_says_which_release_it_runs_and_what_it_wishes(site: Enrolled, worker: Worker) -> None:
    assert introduced(site, worker).release == 0
    stand(site, '{"release": 4, "refused": 3, "wishes": {"dent": 10}}')
    found = introduced(site, worker)
    assert (found.release, found.refused, found.wishes) == (4, 3, {"dent": 10})
    site.policy("[classes]\nnames = false\n")
    found = introduced(site, worker)
    assert (found.release, found.wishes, found.classes) == (4, {}, {})


@pytest.mark.parametrize(
    "text",
    ['{"release": -1}', '{"release": true}', '{"refused": "3"}', '{"wishes": {"dent": 1.5}}', '{"wishes": 3}', "["],
)
def test_a_damaged_note_of_the_release_is_left_out(site: Enrolled, worker: Worker, text: str) -> None:
    stand(site, text)
    found = introduced(site, worker)
    assert (found.release, found.refused, found.wishes) == (0, 0, {}) and found.classes


def test_settings_that_this_version_does_not_know_are_refused(worker: Worker) -> None:
    with pytest.raises(SettingsError, match=r"the nearest valid one is 'inner\.steps'"):
        worker.effective({"inner.step": 1})


def test_an_older_request_for_a_round_that_is_over_is_dropped(site: Enrolled, worker: Worker) -> None:
    early, late = site.asking(round_number=3), site.asking(round_number=4)
    content(ask(worker, late))
    assert (
        reason(ask(worker, early))
        == "StaleError: the request is for a round that is over; the site's own log has the details"
    )
    assert worker.status()["refused"] == {"StaleError": 1}


def test_a_server_that_resumes_from_an_earlier_round_is_answered(site: Enrolled, worker: Worker) -> None:
    content(ask(worker, site.asking(round_number=4)))
    content(ask(worker, site.asking(round_number=3)))


def test_another_run_begins_at_its_own_first_round(site: Enrolled, worker: Worker) -> None:
    first = site.asking(run="run-2")
    content(ask(worker, site.asking(round_number=9)))
    content(ask(worker, first))


def test_what_the_policy_refuses_reaches_the_operator_with_its_clause(site: Enrolled, worker: Worker) -> None:
    answer = ask(worker, site.asking("query.class_table"))
    assert isinstance(answer, Error) and answer.code == POLICY_ERROR
    assert answer.reason == "the site's policy refuses: classes.tables (class tables may not leave)"
    assert worker.status()["refused"] == {"classes.tables": 1}


def test_a_policy_counts_from_the_next_message_on(site: Enrolled, worker: Worker) -> None:
    message = site.asking()
    content(ask(worker, message))
    site.policy("[parameters]\nmay-leave = ['head.*']\n")
    assert "parameters.may-leave" in reason(ask(worker, message)), "the kept answer left under another policy"
    site.policy("[hours]\nwork = ['mon 00:00-00:01']\n")
    if not read_policy(site.home.policy_file).works_at(worker.clock()):
        assert "hours.work" in reason(ask(worker, site.asking(round_number=2)))
    site.policy("[hours]\nwork = 'never'\n")
    assert reason(ask(worker, site.asking(round_number=3))) == SettingsError("").told()
    site.policy("")
    content(ask(worker, site.asking(round_number=4)))


def test_an_error_that_nobody_foresaw_leaves_as_a_constant(
    site: Enrolled, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, request: object) -> None:
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr("client.site.Site.train", fail)
    answer = ask(worker, site.asking())
    assert isinstance(answer, Error) and answer.code == SITE_ERROR and "secret" not in reason(answer)


# ------------------------------------------------------------------------------------------------- kept answers


def test_the_same_request_gets_the_same_answer_without_new_work(
    site: Enrolled, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = site.asking()
    first = content(ask(worker, message))
    monkeypatch.delattr("client.site.Site.train")
    again = content(ask(worker, message))
    assert again == first
    found = list(entries(site.home.ledger))
    assert [entry.event for entry in found] == ["left", "again"]
    assert found[0].sha256 == found[1].sha256 and found[0].objects == found[1].objects


def test_a_kept_answer_survives_the_process_that_made_it(site: Enrolled) -> None:
    message = site.asking()
    answers = []
    for _ in range(2):
        worker = Worker(site.home)
        answers.append(content(ask(worker, message)))
        worker.close()
    assert answers[0] == answers[1]


def test_a_kept_answer_that_was_damaged_is_made_anew(site: Enrolled, worker: Worker) -> None:
    message = site.asking()
    content(ask(worker, message))
    [file] = site.home.outbox.glob("*.answer")
    file.write_bytes(b"\x00garbage")
    content(ask(worker, message))
    assert [entry.event for entry in entries(site.home.ledger)] == ["left", "left"]


def test_no_more_than_a_few_answers_and_so_many_bytes_are_kept(
    site: Enrolled, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, kept.MOST_ANSWERS + 4):
        ask(worker, site.asking(round_number=number))
    files = list(site.home.outbox.glob("*.answer"))
    assert len(files) == kept.MOST_ANSWERS
    monkeypatch.setattr(kept, "MOST_BYTES", 2 * files[0].stat().st_size + 10)
    ask(worker, site.asking(round_number=number + 1))
    assert len(list(site.home.outbox.glob("*.answer"))) == 2


def test_an_outbox_that_cannot_be_written_does_not_hold_the_answer_up(site: Enrolled, worker: Worker) -> None:
    site.home.outbox.write_bytes(b"")
    content(ask(worker, site.asking()))


# --------------------------------------------------------------------------------------------- status and start


def test_status_says_what_the_worker_is_and_has_done(site: Enrolled, worker: Worker) -> None:
    worker.warm()
    ask(worker, site.asking(round_number=6))
    found = worker.status()
    assert found["classes"] == {str(digit): 20 for digit in range(10)} and found["memory"] > 10_000_000
    assert (found["site"], found["doing"], found["run"], found["round"]) == ("site-0", "waiting", "run-1", 6)
    site.policy("[classes]\nnames = false\n")
    ask(worker, site.asking(round_number=7))
    assert worker.status()["classes"] == {}


@pytest.mark.parametrize("file", ["kit.json", "policy.toml", "site.toml", "keys/signing.key"])
def test_a_worker_without_its_files_says_which_is_missing(site: Enrolled, file: str) -> None:
    (site.home.path / file).unlink()
    with pytest.raises((SettingsError, TrustError), match=Path(file).name):
        Worker(site.home)


def test_a_kit_with_one_byte_changed_is_refused(site: Enrolled) -> None:
    text = site.home.kit_file.read_text(encoding="utf-8")
    site.home.kit_file.write_text(text.replace("wards", "warts"), encoding="utf-8")
    with pytest.raises(TrustError, match="changed"):
        Worker(site.home)


# ------------------------------------------------------------------------------------------------------- explain


def test_explain_says_what_would_leave_and_nothing_does(site: Enrolled, worker: Worker) -> None:
    found = {item.kind: item for item in explain_site(site.home)}
    assert found.keys() == KINDS.keys()
    message = message_of("train", site.seal(site.request(judge=True), "train"))
    left = unsealed(content(ask(worker, message)))
    train = found["train"].passing
    assert train is not None
    assert train.shapes == {"update/delta": [plan_for(site.settings).agreed.update]}
    assert train.record.metric_records["scalars"].keys() == left.metric_records["scalars"].keys()
    assert abs(found["train"].bytes - bytes_of(left)) < 100
    assert found["query"].counts == {str(digit): 20 for digit in range(10)}
    assert found["query.class_table"].passing is None and "classes.tables" in found["query.class_table"].refusal
    assert [entry.kind for entry in entries(site.home.ledger)] == ["train"]


def test_the_command_prints_names_shapes_bytes_counts_and_the_clause(
    site: Enrolled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.console, "width", 200)
    command = typer.Typer()
    command.command()(cli.explain)
    done = CliRunner().invoke(command, ["--home", str(site.home.path)])
    assert done.exit_code == 0, done.exception
    size = plan_for(site.settings).agreed.update
    for text in (
        f"update/delta [{size}]",
        "classes and counts: 0 (20), 1 (20)",
        "allowed by parameters.may-leave, metrics.may-leave",
        "nothing; the server is told: the site's policy refuses: classes.tables",
    ):
        assert text in " ".join(done.output.split())
