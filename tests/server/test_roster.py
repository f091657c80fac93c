"""Sites by name: joining, leaving, two of one name, and who is sampled."""

from collections import Counter
from collections.abc import Iterable, KeysView

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from common.errors import PolicyRefusal, RoundError
from common.messages import Introduction, encode_introduction
from common.settings import Settings
from server.roster import Roster, held_out, sample_sites
from tests.server.scripted import Answer, Clock, ScriptedGrid, introduction, site, small_plan

NAMES = [f"site-{i:02d}" for i in range(12)]


def test_sites_introduce_themselves_once() -> None:
    grid = ScriptedGrid({7: lambda m: introduction("north"), 5: lambda m: introduction("south")})
    roster = Roster()
    roster.welcome(grid)
    roster.welcome(grid)
    assert roster.nodes == {"north": 7, "south": 5} and len(grid.sent) == 2
    assert roster.introductions["north"].classes == {"a": 3, "b": 4}


def test_when_nobody_has_come_or_gone_nothing_is_worked_out_anew() -> None:
    class Looked(ScriptedGrid):
        looks = 0

        def get_nodes(self) -> Iterable[NodeInfo]:
            self.looks += 1
            return super().get_nodes()

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            self.looks += 1
            return super().pull_messages(message_ids)

    grid, roster = Looked({5: lambda m: introduction("north"), 7: lambda m: introduction("south")}), Roster()
    roster.welcome(grid)
    here, looks, news = roster.here, grid.looks, roster.news
    roster.welcome(grid)
    assert roster.here is roster.free() is here and (grid.looks, roster.news) == (looks, news)
    grid.answers[6] = lambda m: introduction("east")
    roster.welcome(grid)
    assert roster.here == ["east", "north", "south"] and here == ["north", "south"] and roster.news == news + 1
    del grid.answers[7]
    roster.welcome(grid)
    assert roster.here == ["east", "north"]


def test_what_many_sites_have_installed_is_kept_once() -> None:
    grid = ScriptedGrid({5: lambda m: introduction("north"), 7: lambda m: introduction("south")})
    roster = Roster()
    roster.welcome(grid)
    said = roster.introductions
    assert said["north"].versions is said["south"].versions and said["north"].versions == {"torch": "2"}


def test_many_nodes_are_asked_for_without_a_list_of_all_for_each_reply() -> None:
    """A grid that does one message a call can tell by the keys alone whether a message is asked for."""

    class OneByOne(ScriptedGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            assert isinstance(message_ids, KeysView)
            return super().pull_messages([next(iter(message_ids))])

    grid = OneByOne({node: lambda m, node=node: introduction(f"site-{node}") for node in range(20)})  # type: ignore[misc]
    roster = Roster()
    roster.welcome(grid)
    assert len(roster.here) == 20 and not roster.waiting


def test_a_site_that_left_is_forgotten_and_may_come_back_as_another_node() -> None:
    grid = ScriptedGrid({7: lambda m: introduction("north"), 5: lambda m: introduction("south")})
    roster = Roster()
    roster.welcome(grid)
    grid.answers[9] = grid.answers.pop(7)
    roster.welcome(grid)
    assert roster.nodes == {"north": 9, "south": 5}


def test_a_second_site_of_the_same_name_is_refused_and_not_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    grid = ScriptedGrid({5: lambda m: introduction("north"), 7: lambda m: introduction("north")})
    roster = Roster()
    roster.welcome(grid)
    roster.welcome(grid)
    assert roster.nodes == {"north": 5} and len(grid.sent) == 2
    assert "a site named 'north' is already here" in caplog.text


@pytest.mark.parametrize(
    "answer",
    [Error(100, "SettingsError"), RecordDict(), RecordDict({"introduction": ConfigRecord({"name": 3})})],
    ids=["an error", "nothing", "nonsense"],
)
def test_a_node_that_answers_with_something_else_takes_no_part(answer: RecordDict | Error) -> None:
    grid = ScriptedGrid({5: lambda m: introduction("north"), 7: lambda m: answer})
    roster = Roster()
    roster.welcome(grid)
    assert roster.nodes == {"north": 5}


def test_a_refused_node_is_asked_again_after_a_while_since_its_site_may_have_been_mended() -> None:
    clock = Clock()
    grid = ScriptedGrid({7: lambda m: Error(100, "broken")})
    roster = Roster(now=clock.now)
    roster.welcome(grid)
    grid.answers[7] = lambda m: introduction("north")
    roster.welcome(grid)
    assert not roster.nodes
    clock.sleep(61)
    roster.welcome(grid)
    assert roster.nodes == {"north": 7}


def test_a_slow_node_holds_nobody_up_and_is_admitted_when_it_answers() -> None:
    grid = ScriptedGrid({5: lambda m: introduction("north"), 7: lambda m: None})
    roster = Roster()
    roster.wait_for(grid, 1, 60.0, lambda seconds: pytest.fail("waited"))
    assert roster.nodes == {"north": 5} and roster.waiting
    grid.answers[7] = lambda m: introduction("south")
    roster.welcome(grid)
    assert roster.nodes == {"north": 5, "south": 7} and not roster.waiting
    assert len(grid.sent) == 2


def test_waiting_ends_when_enough_sites_are_here() -> None:
    grid, clock = ScriptedGrid({}), Clock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        node = len(grid.answers)
        grid.answers[node] = lambda m: introduction(f"site-{node}")

    Roster(now=clock.now).wait_for(grid, 3, 60.0, sleep)
    assert clock.time < 10


def test_too_few_sites_end_the_wait_with_their_names() -> None:
    grid, clock = ScriptedGrid({5: lambda m: introduction("north")}), Clock()
    with pytest.raises(RoundError, match=r"1 of 2 sites joined within 60 s \(here: north\)"):
        Roster(now=clock.now).wait_for(grid, 2, 60.0, clock.sleep)
    assert clock.time >= 60


def test_when_enough_nodes_are_here_but_refused_the_wait_ends_at_once_with_the_reason() -> None:
    grid, clock = ScriptedGrid({5: lambda m: introduction("north"), 7: lambda m: Error(100, "no data")}), Clock()
    with pytest.raises(RoundError, match=r"1 of 2 sites joined .* no data"):
        Roster(now=clock.now).wait_for(grid, 2, 60.0, clock.sleep)
    assert clock.time < 1


def test_every_site_is_sampled_about_equally_often_and_never_twice_in_a_round() -> None:
    settings = Settings.from_flat({"outer.sites-per-round": 5})
    draws = [sample_sites(NAMES, number, settings) for number in range(2400)]
    assert all(len(set(draw)) == 5 and draw == sorted(draw) for draw in draws)
    counts = Counter(name for draw in draws for name in draw)
    # 1000 expected each; five standard deviations of a binomial with n = 2400, p = 5/12 are about 121.
    assert all(abs(counts[name] - 1000) < 121 for name in NAMES)


def test_a_round_s_sample_depends_on_seed_and_round_only() -> None:
    settings = Settings.from_flat({"outer.sites-per-round": 5})
    assert sample_sites(NAMES, 3, settings) == sample_sites(NAMES[::-1], 3, settings)
    other = settings.with_values({"run.seed": 1})
    assert [sample_sites(NAMES, n, settings) for n in range(9)] != [sample_sites(NAMES, n, other) for n in range(9)]


def test_zero_sites_per_round_means_all_and_more_than_there_are_means_all() -> None:
    for count in (0, 99):
        assert sample_sites(NAMES, 0, Settings.from_flat({"outer.sites-per-round": count})) == NAMES


def test_held_out_sites_depend_on_the_seed_and_not_on_the_order_of_names() -> None:
    settings = Settings.from_flat({"judge.held-out": 3})
    assert held_out(NAMES, settings) == held_out(NAMES[::-1], settings)
    assert len(held_out(NAMES, settings)) == 3
    seeds = {tuple(held_out(NAMES, settings.with_values({"run.seed": seed}))) for seed in range(9)}
    assert len(seeds) > 1


def test_a_site_that_has_not_answered_is_not_asked_again_until_it_has() -> None:
    plan = small_plan()
    late: list[RecordDict] = []
    grid = ScriptedGrid({1: site("a", plan), 2: site("b", plan)})
    roster = Roster()
    roster.welcome(grid)
    asked = Message(RecordDict(), 2, "train")
    grid.push_messages([asked])
    grid.answers[2] = lambda message: late.pop() if late else None
    roster.keep_busy(grid, {"b": {asked.metadata.message_id}}, 4, 600.0)
    roster.welcome(grid)
    assert roster.free() == ["a"] and roster.absent() == {"b": "still at work on round 4"}
    late.append(RecordDict())
    roster.welcome(grid)
    assert roster.free() == ["a", "b"] and not roster.absent()


def test_a_busy_site_whose_node_started_anew_is_free_again() -> None:
    plan = small_plan()
    since = {1: "monday"}

    class Grid(ScriptedGrid):
        def get_nodes(self) -> list[NodeInfo]:
            return [NodeInfo(node_id=node, last_activated_at=text) for node, text in since.items()]

    grid, roster = Grid({1: site("a", plan)}), Roster()
    roster.welcome(grid)
    asked = Message(RecordDict(), 1, "train")
    grid.push_messages([asked])
    grid.answers[1] = lambda message: None
    roster.keep_busy(grid, {"a": {asked.metadata.message_id}}, 1, 600.0)
    roster.welcome(grid)
    assert roster.free() == []
    since[1] = "tuesday"
    roster.welcome(grid)
    assert roster.free() == ["a"]


def test_a_round_waits_for_sites_that_left_and_goes_on_without_them_once_they_stay_away() -> None:
    plan, clock = small_plan(), Clock()
    grid, roster = ScriptedGrid({n: site(f"site-{n}", plan) for n in (1, 2, 3, 4)}), Roster(now=clock.now)
    roster.welcome(grid)
    gone = [grid.answers.pop(n) for n in (2, 3, 4)]

    def back_after_a_minute(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.time > 60:
            grid.answers[2] = gone[0]

    roster.wait_for_share(grid, 0.5, 600.0, back_after_a_minute)
    assert roster.free() == ["site-1", "site-2"] and 60 < clock.time < 70
    assert roster.absent() == {"site-3": "not connected", "site-4": "not connected"}
    began = clock.time
    roster.wait_for_share(grid, 1.0, 100.0, clock.sleep)
    assert 100 <= clock.time - began < 110 and not roster.absent()
    began = clock.time
    roster.wait_for_share(grid, 1.0, 100.0, clock.sleep)
    assert clock.time - began < 1


def test_a_node_that_started_anew_before_it_answered_is_asked_again() -> None:
    plan, since = small_plan(), {1: "monday"}

    class Grid(ScriptedGrid):
        def get_nodes(self) -> list[NodeInfo]:
            return [NodeInfo(node_id=node, last_activated_at=text) for node, text in since.items()]

    grid, roster = Grid({1: lambda message: None}), Roster()
    roster.welcome(grid)
    roster.welcome(grid)
    assert len(grid.sent) == 1 and roster.waiting
    since[1] = "tuesday"
    grid.answers[1] = site("a", plan)
    roster.welcome(grid)
    assert roster.free() == ["a"] and len(grid.sent) == 2


RESTS = PolicyRefusal("hours.work", "").told()
FULL = PolicyRefusal("traffic.bytes-a-day", "").told()


def test_a_run_waits_without_end_for_sites_that_only_rest_and_says_so() -> None:
    told: list[str] = []
    clock, plan = Clock(), small_plan()
    grid = ScriptedGrid({5: lambda m: introduction("north"), 7: lambda m: Error(101, RESTS)})

    def morning(seconds: float) -> None:
        clock.sleep(100.0)
        if clock.time > 40_000:
            grid.answers[7] = site("south", plan)

    Roster(now=clock.now, tell=told.append).wait_for(grid, 2, 60.0, morning)
    assert 40_000 < clock.time < 40_500 and told[-1] == ""
    assert "waiting for 1 more site(s); node 7: error-reply: code 101: the site's policy refuses: hours.work" in told[0]
    assert len(grid.sent) < 150, "a site that rests is asked every few minutes"


def test_a_site_that_rests_is_not_asked_stays_expected_and_is_waited_for() -> None:
    clock, plan = Clock(), small_plan()
    grid = ScriptedGrid({1: site("a", plan), 2: site("b", plan), 3: site("c", plan)})
    roster = Roster(now=clock.now)
    roster.welcome(grid)
    grid.answers[2] = grid.answers[3] = lambda m: Error(101, RESTS)
    for name in ("b", "c"):
        roster.let_rest(grid, {name: RESTS})
    assert roster.free() == ["a"] and roster.absent() == {"b": RESTS, "c": RESTS}
    roster.wait_for_share(grid, 0.3, 60.0, lambda seconds: pytest.fail("waited"))

    def later(seconds: float) -> None:
        clock.sleep(10.0)
        if clock.time > 5000:
            grid.answers[2] = site("b", plan)

    roster.wait_for_share(grid, 0.5, 60.0, later)
    assert 5000 < clock.time < 5400 and roster.free() == ["a", "b"] and set(roster.absent()) == {"c"}


def test_sites_that_are_gone_are_given_up_while_others_rest() -> None:
    clock, plan = Clock(), small_plan()
    grid = ScriptedGrid({n: site(name, plan) for n, name in enumerate("abcd", 1)})
    roster = Roster(now=clock.now)
    roster.welcome(grid)
    del grid.answers[3], grid.answers[4]
    grid.answers[2] = lambda m: Error(101, RESTS)
    roster.welcome(grid)
    roster.let_rest(grid, {"b": RESTS})

    def later(seconds: float) -> None:
        clock.sleep(10.0)
        if clock.time > 90:
            grid.answers[2] = site("b", plan)

    roster.wait_for_share(grid, 0.6, 60.0, later)
    assert roster.free() == ["a", "b"] and roster.expected == {"a", "b"}


def test_a_site_at_its_limit_of_bytes_is_asked_again_on_the_next_day_or_when_it_starts_anew() -> None:
    clock, plan, since = Clock(), small_plan(), {1: "monday"}

    class Grid(ScriptedGrid):
        def get_nodes(self) -> list[NodeInfo]:
            return [NodeInfo(node_id=node, last_activated_at=text) for node, text in since.items()]

    grid = Grid({1: site("a", plan)})
    roster = Roster(now=clock.now, utc=lambda: clock.time + 3 * 86400 + 80000)
    roster.welcome(grid)
    roster.let_rest(grid, {"a": FULL})
    clock.sleep(6390.0)
    roster.welcome(grid)
    assert not roster.nodes
    clock.sleep(20.0)
    roster.welcome(grid)
    assert roster.free() == ["a"]
    roster.let_rest(grid, {"a": FULL})
    since[1] = "tuesday"
    roster.welcome(grid)
    assert roster.free() == ["a"]


def test_a_site_whose_answer_never_comes_is_asked_again_in_the_end() -> None:
    clock, plan = Clock(), small_plan()
    grid = ScriptedGrid({1: site("a", plan)})
    roster = Roster(now=clock.now)
    roster.welcome(grid)
    grid.answers[1] = lambda message: None
    asked = Message(RecordDict(), 1, "train")
    grid.push_messages([asked])
    roster.keep_busy(grid, {"a": {asked.metadata.message_id}}, 1, 30.0)
    clock.sleep(290.0)
    roster.welcome(grid)
    assert roster.free() == []
    clock.sleep(20.0)
    roster.welcome(grid)
    assert roster.free() == ["a"]


# Campaigns: some of the sites, asked again which release they run


def releasing(name: str, releases: dict[str, int]) -> Answer:
    return lambda message: encode_introduction(Introduction(name, {}, "cpu", {}, releases.get(name, 0)))


def test_only_chosen_sites_take_part_and_the_others_are_known() -> None:
    grid = ScriptedGrid({5: lambda m: introduction("north"), 7: lambda m: introduction("south")})
    roster = Roster(only=("south", "west"))
    roster.welcome(grid)
    assert roster.nodes.keys() == roster.introductions.keys() == {"north", "south"}
    assert roster.here == roster.free() == ["south"] and roster.expected == {"south", "west"}
    assert roster.absent() == {"west": "not connected"}


def test_sites_that_were_not_chosen_are_not_counted_when_sites_are_waited_for() -> None:
    clock = Clock()
    grid = ScriptedGrid({5: lambda m: introduction("north"), 7: lambda m: introduction("south")})
    roster = Roster(now=clock.now, only=("south", "west"))
    with pytest.raises(RoundError, match=r"1 of 2 sites joined.*here: south"):
        roster.wait_for(grid, 2, 1.0, sleep=clock.sleep)


def test_sites_are_asked_again_which_release_they_run() -> None:
    releases: dict[str, int] = {}
    grid = ScriptedGrid({5: releasing("north", releases), 7: releasing("south", releases)})
    roster = Roster()
    roster.welcome(grid)
    releases |= {"north": 3, "south": 4}
    assert roster.introductions["north"].release == 0
    roster.ask_anew(grid, 1.0)
    assert {name: said.release for name, said in roster.introductions.items()} == {"north": 3, "south": 4}


@pytest.mark.parametrize("answer", [Error(100, "broken"), RecordDict(), introduction("south")])
def test_a_site_that_does_not_say_it_again_keeps_its_last_word(answer: RecordDict | Error) -> None:
    grid = ScriptedGrid({5: lambda m: introduction("north")})
    roster = Roster()
    roster.welcome(grid)
    before = roster.introductions["north"]
    grid.answers[5] = lambda m: answer
    roster.ask_anew(grid, 0.1)
    assert roster.introductions == {"north": before} and roster.nodes == {"north": 5}


def test_a_busy_site_is_not_asked_again() -> None:
    grid = ScriptedGrid({5: lambda m: introduction("north")})
    roster = Roster()
    roster.welcome(grid)
    roster.keep_busy(grid, {"north": {"m9"}}, 1, 60.0)
    before = len(grid.sent)
    roster.ask_anew(grid, 0.1)
    assert len(grid.sent) == before
