"""The ClientApp with real messages: what it answers, and how it answers when it cannot."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message

import client
from client.app import app
from client.door.ledger import entries
from client.door.outbound import POLICY_ERROR, SITE_ERROR
from client.door.policy import ClassesPolicy, LimitsPolicy, Policy
from client.settings import SiteSettings, parse_node_config
from common.errors import SettingsError, SiteDataError
from common.messages import (
    Request,
    decode_class_table,
    decode_introduction,
    decode_judged,
    decode_update,
    encode_request,
)
from common.plan import plan_for
from common.settings import Settings, Value
from tests.client.small import asking, context_of, first_request, message_of, settings_with, site_on

ROOT = Path(str(client.__file__)).parents[1]


@pytest.fixture
def settings(digit_sites: Path) -> Settings:
    return settings_with(data__sites=str(digit_sites))


@pytest.fixture
def context(settings: Settings) -> Context:
    """The context of the third simulated site."""
    return context_of({"partition-id": 2, "num-partitions": 8}, settings)


# --------------------------------------------------------------------------------------------- what it costs


@pytest.mark.parametrize(
    "module",
    [
        "client.app",
        "client.door.ledger",
        "client.door.outbound",
        "client.door.policy",
        "client.settings",
        "client.worker.wire",
        "common.messages",
    ],
)
def test_importing_it_does_not_import_torch(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}, sys; assert 'torch' not in sys.modules"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------ what it answers


def test_train_answers_with_the_update_of_the_site(settings: Settings, context: Context) -> None:
    reply = app(asking("train", settings), context)
    agreed = plan_for(settings).agreed
    found = decode_update(reply.content, agreed)
    expected = site_on(Path(settings.data.sites), settings, "site-2").train(first_request(settings))
    assert np.array_equal(found.delta, expected.delta) and np.abs(found.delta).max() > 0
    assert found.scalars.keys() == {"num-examples", "inner-steps", "seconds"}
    assert found.scalars["num-examples"] == settings.episode.way * settings.episode.shot


def test_train_also_judges_when_asked_to(settings: Settings, context: Context) -> None:
    scalars = decode_update(
        app(asking("train", settings, judge=True), context).content, plan_for(settings).agreed
    ).scalars
    assert scalars["num-query"] == settings.episode.way * settings.episode.query
    assert 0 <= scalars["accuracy-after"] <= 1


def test_evaluate_answers_with_figures_and_hits_by_class(settings: Settings, context: Context) -> None:
    found = decode_judged(app(asking("evaluate", settings), context).content)
    queries = settings.judge.episodes * settings.episode.way * settings.episode.query
    assert found.scalars["num-query"] == queries == sum(total for _, total in found.per_class.values())
    hits = sum(correct for correct, _ in found.per_class.values())
    assert found.scalars["accuracy-after"] == pytest.approx(hits / queries)


def test_query_answers_with_an_introduction(context: Context) -> None:
    found = decode_introduction(app(message_of("query"), context).content)
    assert found.name == "site-2" and found.classes == {str(digit): 20 for digit in range(10)}
    assert found.device == "cpu" and {"torch", "flwr", "numpy", "python"} == found.versions.keys()


def test_query_class_table_answers_with_sums_where_the_site_allows_it(settings: Settings, digit_sites: Path) -> None:
    own: dict[str, Value] = {"site-name": "site-2", "site-data": str(digit_sites), "site-class-tables": True}
    reply = app(asking("query.class_table", settings), context_of(own, settings))
    found = decode_class_table(reply.content, plan_for(settings).agreed)
    expected = site_on(digit_sites, settings, "site-2", class_tables=True).class_table(first_request(settings))
    assert found.names == expected.names == tuple(str(digit) for digit in range(10))
    assert np.array_equal(found.sums, expected.sums)


def test_a_site_may_be_a_folder_of_its_own(settings: Settings, digit_folders: Path) -> None:
    own = {"site-name": "line-2", "site-data": str(digit_folders / "line-2")}
    found = decode_introduction(app(message_of("query"), context_of(own, settings)).content)
    assert found.classes == {f"digit-{digit}": 12 for digit in range(5, 10)}


def test_a_private_site_names_no_class_in_any_answer(settings: Settings, digit_sites: Path) -> None:
    own: dict[str, Value] = {"site-name": "site-2", "site-data": str(digit_sites), "site-class-names": False}
    private = context_of(own, settings)
    assert decode_introduction(app(message_of("query"), private).content).classes == {}
    judged = decode_judged(app(asking("evaluate", settings), private).content)
    assert judged.per_class == {} and "accuracy-after" in judged.scalars


# ---------------------------------------------------------------------------------- when it cannot answer


def assert_refused(reply: Message, kind: str, *secrets: str) -> None:
    assert reply.has_error() and reply.error.code == SITE_ERROR
    reason = reply.error.reason or ""
    assert reason.startswith(f"{kind}: ") and reason.endswith("the site's own log has the details")
    assert not [secret for secret in secrets if secret in reason]


def request_with(settings: Settings, **changes: Any) -> Request:
    first = first_request(settings)
    return Request(**{"round": 1, "params": first.params, "slots": first.slots, "judge": False, **changes})


def test_a_class_table_that_the_site_does_not_allow_is_refused(settings: Settings, context: Context) -> None:
    reply = app(asking("query.class_table", settings), context)
    assert reply.error.code == POLICY_ERROR
    assert reply.error.reason == "the site's policy refuses: classes.tables (class tables may not leave)"


def test_params_of_another_network_are_refused(settings: Settings, context: Context) -> None:
    assert_refused(app(asking("train", settings_with(model__width=5)), context), "RequestError")


def test_params_that_are_not_finite_are_refused(settings: Settings, context: Context) -> None:
    params = first_request(settings).params.copy()
    params[3] = np.nan
    content = encode_request(request_with(settings, params=params), plan_for(settings).agreed.digest)
    assert_refused(app(message_of("train", content), context), "RequestError")


def test_too_few_params_under_the_right_manifest_are_refused(settings: Settings, context: Context) -> None:
    params = first_request(settings).params[:-1]
    content = encode_request(request_with(settings, params=params), plan_for(settings).agreed.digest)
    assert_refused(app(message_of("train", content), context), "RequestError")


def test_an_empty_message_is_refused(context: Context) -> None:
    assert_refused(app(message_of("train"), context), "RequestError")


def test_data_that_is_not_there_is_reported_without_its_path(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = {"site-name": "ward-7", "site-data": str(tmp_path / "secret")}
    reply = app(asking("train", settings), context_of(own, settings))
    assert_refused(reply, "SiteDataError", "secret", "ward-7", str(tmp_path))
    assert str(tmp_path / "secret") in caplog.text, "the site's own log must have the details"


def test_wrong_node_config_is_reported_without_its_values(settings: Settings) -> None:
    reply = app(asking("train", settings), context_of({"site-name": "ward-7", "site-dato": "/secret"}, settings))
    assert_refused(reply, "SettingsError", "secret", "ward-7", "dato")


def test_settings_of_the_run_that_the_site_does_not_know_are_refused(settings: Settings, context: Context) -> None:
    context.run_config["inner.secret"] = 1
    assert_refused(app(asking("train", settings), context), "SettingsError", "secret")


def test_an_error_that_nobody_foresaw_is_reported_without_its_text_and_kind(
    settings: Settings, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, request: Request) -> None:
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr("client.site.Site.train", fail)
    assert_refused(app(asking("train", settings), context), "unexpected error", "secret", "ZeroDivision")


def test_a_ledger_that_cannot_be_written_keeps_the_answer_here_and_sends_no_path(
    settings: Settings, digit_sites: Path, tmp_path: Path
) -> None:
    """An exception out of the ClientApp would be sent to the server by Flower, text and all."""
    (tmp_path / "secret").write_bytes(b"")
    own = {"site-name": "site-2", "site-data": str(digit_sites), "site-ledger": str(tmp_path / "secret" / "ledger")}
    assert_refused(app(asking("train", settings), context_of(own, settings)), "LedgerError", "secret")


def test_what_leaves_a_site_that_is_not_enrolled_is_entered_in_its_ledger(
    settings: Settings, digit_sites: Path, tmp_path: Path
) -> None:
    own = {"site-name": "site-2", "site-data": str(digit_sites), "site-ledger": str(tmp_path / "ledger")}
    for kind in ("query", "train", "query.class_table"):
        app(asking(kind, settings), context_of(own, settings))
    found = list(entries(tmp_path / "ledger"))
    assert [(entry.event, entry.kind, entry.content) for entry in found] == [
        ("left", "query", "Introduction"),
        ("left", "train", "Update"),
        ("refused", "query.class_table", "Error"),
    ]


def test_after_an_error_the_next_message_is_answered(settings: Settings, context: Context) -> None:
    assert app(message_of("train"), context).has_error()
    assert app(asking("train", settings), context).has_content()


def test_the_python_log_names_the_site_and_the_message_that_failed(
    context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        app(message_of("train"), context)
    assert "site site-2 could not answer train" in caplog.text


# ------------------------------------------------------------------------------------ the node's settings

RUN = settings_with()
NEEDED: dict[str, Value] = {"site-name": "line-3", "site-data": "/data/line-3"}


def test_a_name_and_data_are_enough() -> None:
    assert parse_node_config(NEEDED, RUN) == SiteSettings("line-3", "/data/line-3")


def test_unless_a_site_says_otherwise_no_class_table_leaves_and_never_the_sum_of_a_few() -> None:
    site = parse_node_config(NEEDED, RUN)
    assert not site.policy.classes.tables and site.policy.classes.minimum >= 5


def test_every_site_setting_has_its_node_config_key() -> None:
    given: dict[str, Value] = {
        **NEEDED,
        "site-device": "cuda:1",
        "site-threads": 4,
        "site-class-tables": True,
        "site-min-count": 20,
        "site-class-names": False,
        "site-max-way": 3,
        "site-max-shot": 2,
        "site-max-steps": 1,
        "site-cache": "off",
        "site-ledger": "/ledger",
    }
    policy = Policy(classes=ClassesPolicy(False, True, 20), limits=LimitsPolicy(3, 2, 1))
    expected = SiteSettings("line-3", "/data/line-3", "cuda:1", 4, "off", "/ledger", policy)
    assert parse_node_config(given, RUN) == expected


def test_flowers_own_keys_are_no_site_settings() -> None:
    given = {**NEEDED, "partition-id": 5, "num-partitions": 8}
    assert parse_node_config(given, RUN) == SiteSettings("line-3", "/data/line-3")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("site-nam", "site-name"),
        ("site-min_count", "site-min-count"),
        ("min-count", "site-min-count"),
        ("site-classtables", "site-class-tables"),
        ("data", "site-data"),
        ("site-max-step", "site-max-steps"),
        ("Site-Device", "site-device"),
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(key: str, nearest: str) -> None:
    with pytest.raises(SettingsError) as raised:
        parse_node_config({**NEEDED, key: "x"}, RUN)
    assert repr(key) in str(raised.value) and f"the nearest valid one is {nearest!r}" in str(raised.value)


@pytest.mark.parametrize("missing", ["site-name", "site-data"])
def test_what_is_missing_or_empty_is_named_with_an_example(missing: str) -> None:
    without = {key: value for key, value in NEEDED.items() if key != missing}
    for given in (without, {**NEEDED, missing: ""}):
        with pytest.raises(SettingsError, match=f"no {missing}.*--node-config"):
            parse_node_config(given, RUN)


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("site-name", 3, "str"),
        ("site-data", True, "str"),
        ("site-threads", "2", "int"),
        ("site-threads", 1.0, "int"),
        ("site-threads", True, "int"),
        ("site-min-count", "many", "a whole number"),
        ("site-class-tables", 1, "true or false"),
        ("site-class-tables", "true", "true or false"),
        ("site-class-names", "no", "true or false"),
        ("site-max-way", False, "a whole number"),
        ("site-ledger", 0, "str"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_the_right_one(key: str, value: Value, kind: str) -> None:
    with pytest.raises(SettingsError) as raised:
        parse_node_config({**NEEDED, key: value}, RUN)
    assert key in str(raised.value) and repr(value) in str(raised.value) and kind in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("site-threads", 0),
        ("site-threads", -1),
        ("site-min-count", 0),
        ("site-max-way", -1),
        ("site-max-way", 1),
        ("site-max-shot", -1),
        ("site-max-steps", -1),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_and_not_left_to_do_harm(key: str, value: int) -> None:
    with pytest.raises(SettingsError, match=key):
        parse_node_config({**NEEDED, key: value}, RUN)


@pytest.mark.parametrize("key", ["site-max-way", "site-max-shot", "site-max-steps"])
def test_a_limit_of_0_is_no_limit(key: str) -> None:
    assert parse_node_config({**NEEDED, key: 0}, RUN) == SiteSettings("line-3", "/data/line-3")


def test_a_simulated_node_is_the_site_of_its_position(digit_sites: Path) -> None:
    run = settings_with(data__sites=str(digit_sites))
    found = [parse_node_config({"partition-id": number, "num-partitions": 8}, run) for number in range(8)]
    assert found == [SiteSettings(f"site-{number}", str(digit_sites)) for number in range(8)]


def test_a_simulated_node_keeps_the_site_settings_that_it_is_given(digit_sites: Path) -> None:
    run = settings_with(data__sites=str(digit_sites))
    found = parse_node_config({"partition-id": 1, "num-partitions": 8, "site-max-way": 2}, run)
    assert found == SiteSettings("site-1", str(digit_sites), policy=Policy(limits=LimitsPolicy(way=2)))


def test_without_a_path_in_the_run_simulated_sites_are_those_of_the_data_home(
    digit_sites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDREPTILE_HOME", str(tmp_path))
    (tmp_path / "sites" / "digits").mkdir(parents=True)
    (tmp_path / "sites" / "digits" / "train").symlink_to(digit_sites)
    found = parse_node_config({"partition-id": 0, "num-partitions": 8}, settings_with())
    assert (found.name, found.data) == ("site-0", str(tmp_path / "sites" / "digits" / "train"))


@pytest.mark.parametrize("position", [8, 100, -1])
def test_a_partition_beyond_the_sites_is_refused_with_their_number(digit_sites: Path, position: int) -> None:
    run = settings_with(data__sites=str(digit_sites))
    with pytest.raises(SettingsError, match=f"partition-id is {position}, .* holds 8 sites, 0 to 7"):
        parse_node_config({"partition-id": position, "num-partitions": 101}, run)


@pytest.mark.parametrize("position", ["two", 1.5])
def test_a_partition_that_is_no_whole_number_is_refused(digit_sites: Path, position: Value) -> None:
    run = settings_with(data__sites=str(digit_sites))
    with pytest.raises(SettingsError, match="partition-id"):
        parse_node_config({"partition-id": position, "num-partitions": 8}, run)


def test_a_simulated_node_without_data_says_where_to_get_it(tmp_path: Path) -> None:
    run = settings_with(data__sites=str(tmp_path / "nowhere"))
    with pytest.raises(SiteDataError, match="fedreptile-sim data get"):
        parse_node_config({"partition-id": 0, "num-partitions": 1}, run)
