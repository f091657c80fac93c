"""Predictions over HTTP: what they say, who may ask, what is refused, and that no request sees half a swap."""

import io
import itertools
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from client.home import SiteHome
from client.line import api
from client.line.api import app_for
from client.line.predict import Current, Loaded
from client.line.store import store_of
from client.model import SiteModel
from common.errors import DeployError
from common.pages.serve import TOKEN as TOKEN_FILE
from common.pages.serve import config_for
from tests.client.line.place import checkpoint_in, in_use, model_of, site_at
from tests.client.line.test_label import bomb
from tests.deployment.measured import report

TOKEN = "a token of this test"
ASKERS = 3
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return site_at(tmp_path, tmp_path / "data")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[SiteModel, SiteModel]:
    """Two models that share no class."""
    checkpoint = checkpoint_in(tmp_path_factory.mktemp("models"))
    return model_of(checkpoint, "a", "b"), model_of(checkpoint, "c", "d")


@contextmanager
def asking(home: SiteHome, token: str = TOKEN, host: str = "") -> Iterator[httpx.Client]:
    """Serve in a thread, and ask; ``host`` is the name that requests give."""
    server = uvicorn.Server(config_for(app_for(home, TOKEN)))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        serving.start()
        headers = ({"Authorization": f"Bearer {token}"} if token else {}) | ({"Host": host} if host else {})
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            with httpx.Client(base_url=address, headers=headers, trust_env=False, timeout=60) as client:
                yield client
        finally:
            server.should_exit = True
            serving.join()


def picture(kind: str = "png", shade: int = 1) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 30), shade, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def test_a_picture_is_answered_with_class_confidence_unknown_and_the_model_that_says_so(
    home: SiteHome, models: tuple[SiteModel, SiteModel]
) -> None:
    in_use(home, models[0])
    with asking(home) as client:
        for kind in ("png", "jpeg", "bmp", "tiff"):
            done = client.post("/predict", content=picture(kind), headers={"Content-Type": f"image/{kind}"})
            assert done.status_code == 200, done.text
            found = done.json()
            assert found.keys() == {"class", "confidence", "unknown", "model"}
            assert found["class"] in ("a", "b") and found["model"] == 1 and 0 < found["confidence"] <= 1


def test_the_model_in_use_is_described(home: SiteHome, models: tuple[SiteModel, SiteModel]) -> None:
    in_use(home, models[0], release=3)
    with asking(home) as client:
        found = client.get("/model").json()
        assert (found["model"], found["made"], found["release"]) == (1, "release 3", 3)
        assert found["classes"] == ["a", "b"] and found["unknown"]


def test_another_model_answers_as_soon_as_it_is_in_use(home: SiteHome, models: tuple[SiteModel, SiteModel]) -> None:
    with asking(home) as client:
        assert client.get("/healthz").json() == {"ok": False}
        asked = client.post("/predict", content=picture(), headers={"Content-Type": "image/png"})
        assert asked.status_code == 503 and str(home.path) not in asked.text
        for number, model in enumerate(models, 1):
            in_use(home, model)
            assert client.get("/model").json()["model"] == number
        store_of(home).rollback()
        assert client.get("/model").json()["classes"] == ["a", "b"]
        assert client.get("/healthz").json() == {"ok": True}


@pytest.mark.parametrize("token", ["", "another", TOKEN + "x", TOKEN[:-1]])
def test_without_the_token_nothing_is_said(home: SiteHome, models: tuple[SiteModel, SiteModel], token: str) -> None:
    in_use(home, models[0])
    with asking(home, token) as client:
        for done in (
            client.get("/model"),
            client.post("/predict", content=picture(), headers={"Content-Type": "image/png"}),
        ):
            assert done.status_code == 401 and done.headers["WWW-Authenticate"] == "Bearer"
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "192.168.0.7:8765"])
def test_a_request_to_another_host_name_is_refused(
    home: SiteHome, models: tuple[SiteModel, SiteModel], host: str
) -> None:
    in_use(home, models[0])
    with asking(home, host=host) as client:
        assert client.get("/model").status_code == 400 and client.get("/healthz").status_code == 400


def test_the_api_describes_itself_and_no_page_asks_the_internet(home: SiteHome) -> None:
    with asking(home, token="") as client:
        described = client.get("/openapi.json").json()
        assert set(described["paths"]) == {"/predict", "/model", "/healthz"}
        assert set(described["paths"]["/predict"]["post"]["requestBody"]["content"]) == set(api.TYPES)
        assert "HTTPBearer" in described["components"]["securitySchemes"]
        assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


def test_what_is_no_picture_too_large_or_a_bomb_is_refused(
    home: SiteHome, models: tuple[SiteModel, SiteModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_use(home, models[0])
    monkeypatch.setattr(api, "MOST_BYTES", 10_000)
    with asking(home) as client:

        def status(content: bytes | Iterator[bytes], kind: str = "image/png") -> int:
            return client.post("/predict", content=content, headers={"Content-Type": kind}).status_code

        assert status(b"I am no picture") == status(b"") == status(picture()[:50]) == 422
        assert status(bomb(tmp_path / "bomb.png").read_bytes()) == 422
        assert status(b"\0" * 20_000) == 413
        assert status(itertools.repeat(b"\0" * 1000, 100)) == 413  # of a length that is not stated
        assert status(picture(), "text/html") == status(picture(), "application/x-www-form-urlencoded") == 415
        assert status(picture()) == 200


def test_a_model_of_rows_says_that_it_takes_no_pictures(home: SiteHome, models: tuple[SiteModel, SiteModel]) -> None:
    model = replace(models[0], settings=models[0].settings.with_values({"data.beside": "{stem}_mask.png"}))

    class Fixed(Current):
        def get(self) -> Loaded:
            return Loaded(entry, model)

    entry = in_use(home, models[0])
    with pytest.raises(DeployError, match="not for single pictures"):
        Fixed(store_of(home)).predict(picture())


# ------------------------------------------------------------------------------------------ as a real process


@contextmanager
def served(home: SiteHome) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command; return the process and where it answers."""
    command = shutil.which("fedreptile-site", path=str(Path(sys.executable).parent))
    assert command is not None
    with subprocess.Popen(
        [command, "ui", "--port", "0", "--home", str(home.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), line + process.stdout.read()
            yield process, line.split()[0]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def test_models_are_swapped_under_load_and_no_request_fails_or_sees_half_of_one(
    home: SiteHome, models: tuple[SiteModel, SiteModel]
) -> None:
    swapped_under_load(home, models, 20, 0.0)


@pytest.mark.endurance
def test_a_hundred_swaps_in_five_minutes_of_load(home: SiteHome, models: tuple[SiteModel, SiteModel]) -> None:
    took = sorted(swapped_under_load(home, models, 100, 300.0))
    middle, most, last = (1000 * took[int(part * (len(took) - 1))] for part in (0.5, 0.99, 1.0))
    rows = [(len(took), 100, 0, middle, most, last)]
    report("swaps", ("requests", "swaps", "failed", "p50 ms", "p99 ms", "longest ms"), rows, askers=ASKERS)


def swapped_under_load(home: SiteHome, models: tuple[SiteModel, SiteModel], swaps: int, seconds: float) -> list[float]:
    """Ask without pause while models are swapped, at least five times between two swaps; return what answers took."""
    for model in models:
        in_use(home, model)
    classes = {1: {"a", "b"}, 2: {"c", "d"}}
    found: list[tuple[int, dict[str, object]]] = []
    took: list[float] = []
    done = threading.Event()

    def ask(address: str, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "image/png"}
        with httpx.Client(base_url=address, headers=headers, timeout=60, trust_env=False) as client:
            while not done.is_set():
                began = time.monotonic()
                answer = client.post("/predict", content=picture())
                took.append(time.monotonic() - began)
                found.append((answer.status_code, answer.json()))

    with served(home) as (_, address):
        assert stat.S_IMODE((home.run / TOKEN_FILE).stat().st_mode) == 0o600
        token = (home.run / TOKEN_FILE).read_text().strip()
        askers = [threading.Thread(target=ask, args=(address, token)) for _ in range(ASKERS)]
        for one in askers:
            one.start()
        try:
            for swap in range(swaps):
                before = len(found)
                store_of(home).use(1 + swap % 2)
                done.wait(seconds / swaps)
                while len(found) < before + 5 and all(one.is_alive() for one in askers):
                    done.wait(0.005)
        finally:
            done.set()
            for one in askers:
                one.join()
    assert len(found) >= 5 * swaps
    assert {status for status, _ in found} == {200}, [one for one in found if one[0] != 200][:3]
    assert {answer["model"] for _, answer in found} == {1, 2}
    assert all(answer["class"] in classes[int(str(answer["model"]))] for _, answer in found)
    assert not (home.run / TOKEN_FILE).exists()  # it goes with the process
    return took


def test_a_port_that_is_taken_is_said(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(DeployError, match=r"cannot be used: .*give another --port"):
            api.serve(home, taken.getsockname()[1], print)
