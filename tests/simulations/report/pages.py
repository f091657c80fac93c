"""Small made-up runs, and what a reader sees of a page."""

import dataclasses
from base64 import b64encode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from common.checkpoint import NAME, RunState, write_checkpoint
from common.settings import Settings
from server.reptile import RoundReport
from server.rounds import RunFolder
from simulations.judging.evaluate import Answer, Evaluation, Protocol, Score, ShownEpisode, SiteRow
from simulations.judging.samples import Sample

MAGENTA, BLUE = (255, 0, 255), (0, 0x72, 0xB2)
SETTINGS = Settings.from_flat({"run.rounds": 2, "run.dir": "/secret/run", "data.sites": "/secret/plants"})
ATTACK = "<script>alert('x')</script><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """What a reader of a page is shown, and what the page would make a browser do."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.in_cell = False
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        self.text = " ".join(" ".join(self.words).split())  # a no-break space counts as one
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = {name: value or "" for name, value in attrs}
        self.addresses += [named[name] for name in ("src", "href", "xlink:href", "srcset", "action") if name in named]
        self.handlers += [name for name in named if name.startswith("on")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True
        if tag == "img":
            assert named["alt"]

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.in_cell:
            self.rows[-1][-1] += data

    @property
    def plots(self) -> list[str]:
        return [part.partition("</svg>")[0] for part in self.html.split("<svg ")[1:]]

    def row(self, head: str) -> list[str]:
        """Return the first table row that begins with this."""
        return next(row for row in self.rows if row and row[0] == head)


def png(colour: tuple[int, int, int] = MAGENTA) -> str:
    stream = BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return b64encode(stream.getvalue()).decode()


def judged(way: int = 2, **changes: Any) -> Evaluation:
    """Return a small result in which adaptation helps at site C and hurts at site D."""
    query = (
        Answer(Sample(png()), "oak", "elm", "oak", 0.9),
        Answer(Sample(png()), "elm", "elm", "oak", 0.6),
    )
    result = Evaluation(
        data="judged",
        protocol=Protocol(way=way, shot=5, episodes=20),
        round=2,
        before=Score(0.5, 0.04, 1.0, 0.2),
        after=Score(0.75, 0.03, 0.5, 0.1, ((0, 0.0, 0), (8, 4.8, 4), (12, 10.8, 11))),
        scratch=Score(0.4, 0.02, 2, 0.3),
        worst_site="D",
        share_hurt=0.5,
        sites={"C": SiteRow(10, 0.4, 0.9, 0.4), "D": SiteRow(10, 0.7, 0.6, 0.4)},
        confusion=(("C/elm", "C/oak", 3), ("C/oak", "C/elm", 1), ("C/oak", "C/oak", 9), ("C/elm", "C/elm", 7)),
        shown=(ShownEpisode("C", {"oak": (Sample(png()),), "elm": (Sample(png()),)}, query),),
    )
    return dataclasses.replace(result, **changes)


def journal() -> list[RoundReport]:
    accuracies = {"accuracy-before": 0.5, "accuracy-after": 0.625}
    return [
        RoundReport(1, 1.0, ("A", "B"), ("A", "B"), {}, True, 2000, 1500, accuracies),
        RoundReport(
            2, 0.5, ("A", "B"), (), {"B": "no-reply: no reply within the deadline"}, False, 2000, 500, {}, {},
            {"no-reply": 1},
        ),
    ]  # fmt: skip


def make_run(run: Path, lines: list[RoundReport], evaluations: list[Evaluation], settings: Settings = SETTINGS) -> Path:
    write_checkpoint(run / NAME, RunState(2, {"w": torch.zeros(2)}, {}, {}, {}), settings)
    for line in lines:
        RunFolder(run).append(line, 0.1)
    for evaluation in evaluations:
        evaluation.write(run)
    return run
