"""Taking up a release: adapted, judged on what the site holds back, used if it is no worse; whole at any moment."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client.adoption.adopt import Adoption, take_up
from client.adoption.fetch import Fetched
from client.home import SiteHome
from client.line.store import is_new, store_of
from client.model import read_model
from common.checkpoint import read_checkpoint
from common.releases.artefact import Artefact, encode, of_checkpoint
from common.settings import Settings, flatten
from common.trust.keys import new_signing_key
from simulations.engine import in_process
from tests.common.trust.papers import new_keys, new_kit
from tests.deployment.digits import digit_folders

TIMES = 5 * int(os.environ.get("FEDREPTILE_ENDURANCE_TIMES", "10"))
SETTINGS = {
    "run.rounds": 25,
    "data.size": 8,
    "data.hold-back": 0.3,
    "model.width": 8,
    "model.sharpness": 20.0,
    "episode.way": 5,
    "episode.shot": 5,
    "inner.learning-rate": 0.2,
    "inner.steps": 2,
    "outer.sites-per-round": 0,
    "outer.join-sites": 2,
    "outer.class-tables": True,
    "judge.every": 0,
    "adapt.steps": 2,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artefact]:
    """Return two sites' folders of real digits, and what they have learned together."""
    folder = tmp_path_factory.mktemp("trained")
    digit_folders(folder / "sites", ("line-1", "line-2"))
    settings = Settings.from_flat({**SETTINGS, "run.dir": str(folder / "run"), "data.sites": str(folder / "sites")})
    in_process(settings, 2, {"site-class-tables": True})
    return folder / "sites", of_checkpoint(read_checkpoint(folder / "run"))


@pytest.fixture
def site(trained: tuple[Path, Artefact], tmp_path: Path) -> SiteHome:
    home = SiteHome(tmp_path / "site")
    home.path.mkdir()
    data = json.dumps(str(trained[0] / "line-1"))
    home.config_file.write_text(f'name = "line-1"\ndata = {data}\n', encoding="utf-8")
    _, kit = new_kit(new_keys(), new_signing_key(), settings=flatten(trained[1].settings))
    home.kit_file.write_bytes(kit)
    return home


def fetched(site: SiteHome, number: int, artefact: Artefact) -> Fetched:
    path = site.path / f"release-{number}.safetensors"
    path.write_bytes(encode(artefact))
    return Fetched(number, path, {}, "full", 0)


def poisoned(artefact: Artefact) -> Artefact:
    generator = torch.Generator().manual_seed(3)
    noise = {name: torch.randn(value.shape, generator=generator) for name, value in artefact.params.items()}
    return replace(artefact, params=noise)


def taken(site: SiteHome, number: int, artefact: Artefact) -> Adoption:
    return take_up(site, fetched(site, number, artefact))


def test_a_release_is_adapted_to_the_sites_classes_and_used(site: SiteHome, trained: tuple[Path, Artefact]) -> None:
    found = taken(site, 1, trained[1])
    store = store_of(site)
    current = store.current()
    assert not found.refused and found.before is None and current is not None
    assert (current.about.made, current.about.release, store.standing().release) == ("release 1", 1, 1)
    model = read_model(current.path)
    assert set(model.classes) == {f"digit-{digit}" for digit in range(6)}, "one of them only the other site has"
    assert found.learned and found.learned.comparison.new.accuracy > 0.6
    second = taken(site, 2, trained[1])
    assert not second.refused and second.before == current and second.known[0] > 20
    assert second.known[1] == second.known[2], "the same release is as good as itself"


def test_a_release_that_is_worse_here_is_refused_and_the_old_model_stays(
    site: SiteHome, trained: tuple[Path, Artefact]
) -> None:
    taken(site, 1, trained[1])
    before = store_of(site).current()
    found = taken(site, 2, poisoned(trained[1]))
    store = store_of(site)
    assert "held-back samples of known classes" in found.refused and store.current() == before
    assert (store.standing().release, store.standing().refused) == (1, 2)
    assert [event["why"] for event in store.history() if event["what"] == "refused"] == [f"release 2: {found.refused}"]
    assert not is_new(store, 2) and is_new(store, 3)


def test_a_release_of_another_network_than_was_agreed_is_refused(
    site: SiteHome, trained: tuple[Path, Artefact]
) -> None:
    other = replace(trained[1], settings=trained[1].settings.with_values({"model.sharpness": 1.0}))
    found = taken(site, 1, other)
    assert found.refused == ("the release has model.sharpness = 1.0 and 20.0 was agreed; a new kit can agree to that")
    assert store_of(site).current() is None and store_of(site).standing().refused == 1


def test_what_a_site_went_back_from_is_not_taken_up_again(site: SiteHome, trained: tuple[Path, Artefact]) -> None:
    for number in (1, 2):
        taken(site, number, trained[1])
    store = store_of(site)
    store.rollback()
    assert store.standing().release == 1
    assert not is_new(store, 2) and is_new(store, 3)


def test_a_wish_ends_when_a_release_has_the_class(site: SiteHome, trained: tuple[Path, Artefact]) -> None:
    store = store_of(site)
    store.wish("digit-4", 10)
    store.wish("digit-9", 10)
    taken(site, 1, trained[1])
    assert store.standing().wishes == {"digit-9": 10}


FOR_EVER = """
import sys
from pathlib import Path
from client.adoption.adopt import take_up
from client.adoption.fetch import Fetched
from client.home import SiteHome
home, number = SiteHome(Path(sys.argv[1])), int(sys.argv[2])
while True:
    number += 1
    print(number, flush=True)
    assert not take_up(home, Fetched(number, home.path / "release-1.safetensors", {}, "full", 0)).refused
"""


def test_a_process_that_is_killed_as_it_takes_up_a_release_leaves_the_old_or_the_new_model(
    site: SiteHome, trained: tuple[Path, Artefact]
) -> None:
    kill_and_look(site, trained[1], 1)


@pytest.mark.endurance
def test_processes_that_are_killed_again_and_again_as_they_take_up_a_release(
    site: SiteHome, trained: tuple[Path, Artefact]
) -> None:
    kill_and_look(site, trained[1], TIMES)


def kill_and_look(site: SiteHome, artefact: Artefact, times: int) -> None:
    """Kill a process that takes up one release after another, at random moments; each time a whole model is left."""
    taken(site, 1, artefact)
    chance, store = random.Random(os.environ.get("FEDREPTILE_ENDURANCE_SEED", "0")), store_of(site)
    for _ in range(times):
        before = max(entry.about.release for entry in store.entries())
        words = [sys.executable, "-c", FOR_EVER, str(site.path), str(before)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as process:
            assert process.stdout and process.stdout.readline()
            time.sleep(chance.uniform(0.0, 1.5))
            process.send_signal(signal.SIGKILL)
            process.wait()
        current = store.current()
        assert current is not None and current.about.release >= before
        assert set(read_model(current.path).classes) == {f"digit-{digit}" for digit in range(6)}
        assert taken(site, before + 100, artefact).refused == "", "it goes on as if nothing had been"
