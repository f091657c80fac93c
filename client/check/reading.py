"""A script of its own, without imports of ours, which a process of any user runs: what is there, and who may read it.

``python reading.py list PATH`` writes the paths of all files and folders there, each ended by a NUL.
``python reading.py try`` takes such a list and writes JSON: how many can be read and how many not, and some of each.
"""

import json
import os
import sys
from collections.abc import Iterator

SHOWN = 3


def paths_at(path: str) -> Iterator[str]:
    """Yield a path, and all below it but what begins with a dot."""
    yield path
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (f"{folder}{os.sep}{name}" for name in folders + files)


def tried(paths: Iterator[str]) -> dict[str, object]:
    """Return which of the paths this user can read: open a file, list a folder."""
    closed, readable, first = 0, 0, {"closed": [], "readable": []}  # type: tuple[int, int, dict[str, list[str]]]
    for path in paths:
        is_folder = os.path.isdir(path)  # noqa: PTH112 - of a million paths
        can = os.access(path, os.R_OK | os.X_OK if is_folder else os.R_OK)
        closed += not can
        readable += can and not is_folder
        if (not can or not is_folder) and len(kept := first["readable" if can else "closed"]) < SHOWN:
            kept.append(path)
    return {"closed": closed, "readable": readable, "first": first}


def main() -> None:
    if sys.argv[1] == "list":
        for path in paths_at(sys.argv[2]):
            sys.stdout.buffer.write(os.fsencode(path) + b"\0")
    else:
        paths = os.fsdecode(sys.stdin.buffer.read()).split("\0")
        print(json.dumps(tried(iter(paths[:-1]))))


if __name__ == "__main__":
    main()
