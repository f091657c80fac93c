"""The list of sites: nothing that two processes change at once is lost."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import TrustError
from server.enrolment.registry import Enrolled, Registry, read_registry, update_registry, write_registry

SITE = Enrolled(
    "bm9kZQ==", "ab" * 32, ("1f", "2e"), "2027-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00", 7, ("a",)
)
FULL = Registry({"line-3": SITE}, {"3d": "2026 line-2: stolen"}, {"a2V5": "line-2"})

ADD = """
import sys
from dataclasses import replace
from pathlib import Path
from server.enrolment.registry import update_registry
for number in range(20):
    word = f"{sys.argv[2]}-{number}"
    update_registry(Path(sys.argv[1]), lambda now: replace(now, revoked={**now.revoked, word: ""}))
"""


def test_a_registry_comes_back_as_it_was_written(tmp_path: Path) -> None:
    assert read_registry(tmp_path / "sites.json") == Registry()
    write_registry(tmp_path / "sites.json", FULL)
    assert read_registry(tmp_path / "sites.json") == FULL
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "sites.json").stat().st_mode) == 0o600


def test_one_without_barred_keys_is_read_too(tmp_path: Path) -> None:
    write_registry(tmp_path / "sites.json", FULL)
    found = json.loads((tmp_path / "sites.json").read_text())
    del found["barred"]
    (tmp_path / "sites.json").write_text(json.dumps(found))
    assert read_registry(tmp_path / "sites.json") == replace(FULL, barred={})


@pytest.mark.parametrize("content", ["", "[]", '{"format": "2"}', '{"format": "1", "sites": {"a": {}}, "revoked": {}}'])
def test_a_damaged_one_is_an_error_and_not_an_empty_list(tmp_path: Path, content: str) -> None:
    (tmp_path / "sites.json").write_text(content)
    with pytest.raises(TrustError, match="restore it from a backup"):
        read_registry(tmp_path / "sites.json")


def test_a_node_is_known_by_its_id() -> None:
    assert (FULL.name_of_node(7), FULL.name_of_node(8)) == ("line-3", None)


def test_what_two_processes_change_at_once_is_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "sites.json"
    words = [sys.executable, "-c", ADD, str(path)]
    running = [subprocess.Popen([*words, name], cwd=Path(__file__).parents[3]) for name in ("a", "b")]
    assert [process.wait(120) for process in running] == [0, 0]
    assert len(read_registry(path).revoked) == 40


def test_a_change_that_fails_leaves_the_file_and_the_lock_free(tmp_path: Path) -> None:
    write_registry(tmp_path / "sites.json", FULL)

    def failing(registry: Registry) -> Registry:
        raise TrustError("no")

    with pytest.raises(TrustError, match="no"):
        update_registry(tmp_path / "sites.json", failing)
    assert update_registry(tmp_path / "sites.json", lambda now: now) == FULL
