"""Learning for the page, in a process of its own: a network is one call's at a time, and predictions go on meanwhile.

The process is this module as a program, a child that says in lines of JSON how it goes. Its result lies in the site's
store like that of 'fedreptile-site adapt': it outlives the page, and two that learn at once each keep a model of their
own, since the store is changed by one process at a time.
"""

import contextlib
import json
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from client.home import SiteHome
from common.errors import FedreptileError


@dataclass(frozen=True)
class Course:
    """How learning goes."""

    running: bool = False
    words: str = ""
    """What it is doing."""
    error: str = ""
    """Why the last one failed; empty if it did not."""
    model: int = 0
    """The number of the model that the last one made; 0: none."""


class Learner:
    """One process at a time that learns."""

    def __init__(self, home: SiteHome) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self.course = Course()

    def start(self) -> bool:
        """Begin to learn; False if that is under way already."""
        with self._lock:
            if self.course.running:
                return False
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "client.line.learner", str(self._home.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            self.course = Course(running=True, words="starting")
            threading.Thread(target=self._follow, args=(self._process,), name="learner", daemon=True).start()
            return True

    def forget(self) -> None:
        """Say no more of the last one."""
        with self._lock:
            if not self.course.running:
                self.course = Course()

    def stop(self) -> None:
        """End the process, if there is one; the store stays as it is."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            process.wait()

    def _follow(self, process: subprocess.Popen[str]) -> None:
        last = ""
        with process:
            for line in process.stdout or ():
                course = _after(line, self.course)
                last = line.strip() if course is self.course else last
                self.course = course
        course = self.course
        if not course.model and not course.error:
            course = replace(course, error=f"learning ended before it was done: {last or process.returncode}")
        self.course = replace(course, running=False, words="")


def _after(line: str, course: Course) -> Course:
    """Return how it goes after a line of the child; the same if it is another's line."""
    with contextlib.suppress(ValueError):
        match json.loads(line):
            case {"words": str(words)}:
                return replace(course, words=words)
            case {"error": str(error)}:
                return replace(course, error=error)
            case {"model": int(model)}:
                return replace(course, model=model)
    return course


def main(home: SiteHome) -> None:
    """Learn as 'fedreptile-site adapt' does, and say how it goes."""
    from client.line.learn import learn

    def say(**what: str | int) -> None:
        print(json.dumps(what), flush=True)

    try:
        found = learn(home, progress=lambda text: say(words=text))
    except FedreptileError as error:
        say(error=str(error))
    else:
        say(model=found.entry.number)


if __name__ == "__main__":
    main(SiteHome(Path(sys.argv[1])))
