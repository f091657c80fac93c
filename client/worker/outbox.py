"""Finished answers, kept until they are stale: a site that loses power or network delivers them later.

One file an answer, in the form in which it goes over the socket; and one file that says how far each run has come.
"""

import hashlib
import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flwr.app import RecordDict

from client.door.outbound import Asked
from client.worker.wire import frame, unframe
from common.errors import CheckpointError, DeployError, StaleError
from common.paths import write_atomically

log = logging.getLogger("fedreptile.worker")

MOST_ANSWERS = 8
MOST_BYTES = 512 << 20
"""Kept at most; the newest answer is kept however large it is."""
MOST_RUNS = 32
"""Runs of which it is known how far they have come."""
PROGRESS = "progress.json"


@dataclass(frozen=True)
class Outbox:
    folder: Path

    def find(self, asked: Asked, policy: str) -> RecordDict | None:
        """Return the kept answer to a request under a policy (its digest), or None."""
        try:
            return unframe(self._file(asked, policy).read_bytes())[1]
        except FileNotFoundError:
            return None
        except (OSError, DeployError) as error:
            log.warning("a kept answer cannot be read and is made anew: %s", error)
            return None

    def keep(self, asked: Asked, policy: str, answer: RecordDict) -> None:
        """Keep an answer, and no more than the newest few. An answer that cannot be kept is given out all the same."""
        file = self._file(asked, policy)
        try:
            write_atomically(file, frame({"run": asked.run, "round": asked.round, "kind": asked.kind}, answer), 0o600)
            self._tidy(file)
        except (CheckpointError, OSError) as error:
            log.warning("an answer cannot be kept for a second delivery: %s", error)

    def check_progress(self, asked: Asked, issued: int) -> None:
        """Note how far a run has come.

        Args:
            issued: when the server made the request.

        Raises:
            StaleError: if the request is for a lower round, and was made earlier, than one that was answered. A server
                that resumes from an older checkpoint asks for a lower round later, and is answered.
        """
        seen = self._progress()
        number, time = seen.pop(asked.run, (0, 0))
        if asked.round < number and issued <= time:
            raise StaleError(f"run {asked.run} is at round {number}; this is a request for round {asked.round}")
        newest = dict([*seen.items(), (asked.run, (asked.round, max(issued, time)))][-MOST_RUNS:])
        try:
            write_atomically(self.folder / PROGRESS, json.dumps(newest).encode(), 0o600)
        except CheckpointError as error:
            log.warning("how far run %s has come cannot be noted: %s", asked.run, error)

    def _progress(self) -> dict[str, tuple[int, int]]:
        try:
            found = json.loads((self.folder / PROGRESS).read_bytes())
            return {str(run): (int(number), int(time)) for run, (number, time) in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _file(self, asked: Asked, policy: str) -> Path:
        named = json.dumps([asked.run, asked.round, asked.kind, asked.base, policy])
        return self.folder / f"{hashlib.sha256(named.encode()).hexdigest()}.answer"

    def _tidy(self, newest: Path) -> None:
        for scratch in self.folder.glob(".*.answer.*"):  # of a process that was killed as it wrote
            scratch.unlink(missing_ok=True)
        kept = sorted(self.folder.glob("*.answer"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        total = 0
        for place, file in enumerate(kept):
            total += file.stat().st_size
            if file != newest and (place >= MOST_ANSWERS or total > MOST_BYTES):
                with suppress(OSError):
                    file.unlink()
