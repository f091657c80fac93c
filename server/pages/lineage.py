"""Where each release comes from, drawn: boxes from left to right, a line from parent to child."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 172, 64
"""Of a box, in pixels."""
GAP, LANE = 46, 26
"""Between boxes beside and below each other."""
EDGE = 4


@dataclass(frozen=True)
class Box:
    number: int
    word: str
    colour: str
    title: str
    x: int
    y: int


@dataclass(frozen=True)
class Drawing:
    width: int
    height: int
    boxes: Sequence[Box]
    paths: Sequence[str]
    """Of the lines, as SVG's 'd'."""
    box_width: int = WIDTH
    box_height: int = HEIGHT


def drawn(releases: Sequence[Mapping[str, Any]]) -> Drawing:
    """Return where boxes and lines lie.

    Args:
        releases: of ``shown.release``, the oldest first.
    """
    boxes: dict[int, Box] = {}
    followed: set[int] = set()
    deepest = -1
    for place, release in enumerate(releases):
        parent = boxes.get(release["parent"])
        if parent is not None and parent.number not in followed:
            followed.add(parent.number)
            y = parent.y
        else:
            deepest += 1
            y = EDGE + deepest * (HEIGHT + LANE)
        again = f"as {release['parent']}" if release["card"]["again"] else ""
        title = again or release["card"]["class"] or release["campaign"]
        x = EDGE + place * (WIDTH + GAP)
        boxes[release["number"]] = Box(release["number"], release["word"], release["colour"], title, x, y)
    lines = [_line(boxes[one["parent"]], boxes[one["number"]]) for one in releases if one["parent"] in boxes]
    width = EDGE + len(boxes) * (WIDTH + GAP) - GAP + EDGE
    return Drawing(width, EDGE + (deepest + 1) * (HEIGHT + LANE) - LANE + EDGE, [*boxes.values()], lines)


def _line(parent: Box, child: Box) -> str:
    """Return a line from the right edge of a box to the left edge of a later one, which lies beside or below it."""
    right, height = parent.x + WIDTH, HEIGHT // 2
    return f"M{right} {parent.y + height} H{right + GAP // 3} V{child.y + height} H{child.x}"
