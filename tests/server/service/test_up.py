"""What the server does beside running its processes: sites that it could not register are registered later."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import DeployError
from server.home import FederationConfig, FederationHome
from server.service import up
from server.service.control import superlink_address

CONFIG = FederationConfig("lines", "fed.example.org:8443")


def test_sites_that_could_not_be_registered_are_when_it_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[Exception | list[str]] = [DeployError("database is locked"), DeployError("again"), ["line-1"]]
    home, asked = FederationHome(tmp_path), list[FederationHome]()
    supervisor: Any = None

    def register(home: FederationHome) -> list[str]:
        asked.append(home)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(up, "register_missing", register)
    up._link_is_up(home, "127.0.0.1:1234")
    assert (
        superlink_address(home) == "127.0.0.1:1234" and "sites cannot be registered: database is locked" in caplog.text
    )
    for _ in range(2):
        up.look_after(home, CONFIG, supervisor)
    assert asked == [home] * 3 and not answers


def test_the_address_of_another_user_s_server_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = FederationHome(tmp_path)

    def denied(path: Path, encoding: str) -> str:
        raise PermissionError(13, "Permission denied")

    (home.run).mkdir()
    (home.run / "superlink.json").write_text(json.dumps({"address": "127.0.0.1:1"}), encoding="utf-8")
    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(DeployError, match="is another user's; give the command as the user whose server it is"):
        superlink_address(home)
