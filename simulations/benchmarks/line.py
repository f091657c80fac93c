"""What one picture costs at the line, through the model and over HTTP, and how long samples take to a model.

python -m simulations.benchmarks.line [--pictures 300] [--adaptations 20]
"""

import argparse
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from client.data.images import read_image
from client.data.indexed import as_input
from client.home import SiteHome
from client.line.learn import learn
from client.line.store import store_of
from client.model import SiteModel, read_model
from common.checkpoint import NAME, RunState, write_checkpoint
from common.deployment.supervisor import script
from common.errors import FedreptileError, SourceError
from common.plan import plan_for
from simulations.federation import read_federation
from simulations.sources.prepare import MIRROR_VARIABLE, find_mirror

KNOWN, NEW = 30, 10
"""Samples of each known class, and of the new one."""


def main() -> None:
    words = argparse.ArgumentParser(prog="python -m simulations.benchmarks.line", description=__doc__)
    words.add_argument("--pictures", type=int, default=300)
    words.add_argument("--adaptations", type=int, default=20)
    given = words.parse_args()
    torch.set_num_threads(1)
    console = Console(soft_wrap=True)
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; one thread, the conv net "
        "of steel_lines (64 x 64, 32 wide), pictures of NEU steel"
    )
    with tempfile.TemporaryDirectory(prefix="fr-") as scratch:
        home, pictures = _site(Path(scratch))
        seconds = _adaptations(home, Path(scratch) / "run", given.adaptations)
        entry = store_of(home).entries()[-1]
        store_of(home).use(entry.number)
        contents = [picture.read_bytes() for picture in pictures[: given.pictures]]
        milliseconds = _per_picture(read_model(entry.path), contents)
        with _served(home) as client:
            milliseconds["over HTTP, model in use"] = _timed(contents, lambda content: _ask(client, content))
    table = Table("", "p50 ms", "p99 ms", "p50 to Pillow alone", title=f"One picture, {len(contents)} pictures")
    base = float(np.median(next(iter(milliseconds.values()))))
    for what, found in milliseconds.items():
        median, late = np.percentile(found, [50, 99])
        table.add_row(what, f"{median:.2f}", f"{late:.2f}", f"{median / base:.1f}")
    console.print(table)
    median, late = np.percentile(seconds, [50, 95])
    console.print(
        f"from {5 * KNOWN + NEW} labelled samples to the adapted model, judged beside the old one: p50 {median:.2f} s, "
        f"p95 {late:.2f} s ({len(seconds)} times, decoded pictures cached); {seconds[0]:.2f} s the first time"
    )


def _site(folder: Path) -> tuple[SiteHome, list[Path]]:
    """Make a site's folder with six classes of real pictures, and return pictures that it does not have.

    Raises:
        SourceError: if there is no mirror with them.
    """
    mirror = find_mirror(None)
    classes = sorted((mirror / "neu_steel" / "images").iterdir()) if mirror else []
    if not classes:
        raise SourceError(
            f"there is no data mirror with neu_steel/images/CLASS/NAME.jpg; name one in {MIRROR_VARIABLE}, or put it "
            "at shared/data beside the checkout"
        )
    others: list[Path] = []
    for number, label in enumerate(classes):
        found, count = sorted(label.glob("*.jpg")), NEW if number == len(classes) - 1 else KNOWN
        (folder / "data" / label.name).mkdir(parents=True)
        for picture in found[:count]:
            shutil.copy(picture, folder / "data" / label.name)
        others += found[count:]
    home = SiteHome(folder / "site")
    home.path.mkdir()
    home.config_file.write_text(f'name = "line"\ndata = {json.dumps(str(folder / "data"))}\n', encoding="utf-8")
    settings = read_federation("steel_lines").settings
    plan = plan_for(settings)
    state = RunState(1, plan.initial, plan.initial_slots, {}, {})
    write_checkpoint(folder / "run" / NAME, state, settings)
    order = np.random.default_rng(0).permutation(len(others))
    return home, [others[place] for place in order]


def _adaptations(home: SiteHome, run: Path, count: int) -> list[float]:
    return [learn(home, run, release=1).seconds for _ in range(count)]


def _per_picture(model: SiteModel, contents: Sequence[bytes]) -> dict[str, list[float]]:
    """Return milliseconds of each picture, by what is done with it; the kinds take turns with each picture."""
    data = model.settings.data
    learner = plan_for(model.settings).learner

    def decoded(content: bytes) -> torch.Tensor:
        return as_input(read_image(io.BytesIO(content), data.channels, data.size)[None], None)

    ready = decoded(contents[0])
    kinds: dict[str, Callable[[bytes], object]] = {
        "Pillow alone: decode and resize": lambda content: (
            Image.open(io.BytesIO(content)).convert("L").resize((data.size, data.size), Image.Resampling.BOX)
        ),
        "network alone: forward": lambda content: learner.embed(model.params, model.buffers, ready),
        "read and predict": lambda content: model.predict(decoded(content)),
    }
    return {what: _timed(contents, work) for what, work in kinds.items()}


def _timed(contents: Sequence[bytes], work: Callable[[bytes], object]) -> list[float]:
    work(contents[0])
    found = []
    for content in contents:
        began = time.perf_counter()
        work(content)
        found.append((time.perf_counter() - began) * 1000)
    return found


@contextmanager
def _served(home: SiteHome) -> Iterator[httpx.Client]:
    words = [*script("fedreptile-site"), "ui", "--port", "0", "--home", str(home.path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[0]
            token = (home.run / "ui.token").read_text(encoding="ascii").strip()
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "image/jpeg"}
            with httpx.Client(base_url=address, headers=headers, trust_env=False) as client:
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _ask(client: httpx.Client, content: bytes) -> None:
    client.post("/predict", content=content).raise_for_status()


if __name__ == "__main__":
    try:
        main()
    except FedreptileError as error:
        sys.exit(str(error))
