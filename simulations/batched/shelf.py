"""Memory that a process and its forks share, through which large arrays pass instead of through a pipe."""

import mmap
from collections.abc import Sequence

from flwr.app import Array, ArrayRecord, Error, RecordDict

Answers = list[RecordDict | Error]
Left = list[tuple[int, str, str, int, int]]
"""What lies on the shelf: number of the answer, its record, the array's name, where its bytes begin and end."""


class Shelf:
    """Places of one size, each for the arrays of some answers."""

    def __init__(self, places: int, size: int) -> None:
        self._memory = mmap.mmap(-1, places * size)
        self._size = size

    def put(self, place: int, answers: Sequence[RecordDict | Error]) -> tuple[Answers, Left]:
        """Lay the arrays of answers on a place, as many as it holds; return the answers without them."""
        found, left, at = list(answers), Left(), place * self._size
        for number, answer in enumerate(answers):
            if isinstance(answer, Error):
                continue
            kept = RecordDict(dict(answer))
            for key, record in answer.array_records.items():
                size = sum(len(array.data) for array in record.values())
                if at + size > (place + 1) * self._size:
                    continue
                bare = {}
                for name, array in record.items():
                    self._memory[at : at + len(array.data)] = array.data
                    left.append((number, key, name, at, at + len(array.data)))
                    at += len(array.data)
                    bare[name] = Array(array.dtype, array.shape, array.stype, b"")
                kept[key] = ArrayRecord(bare)
            found[number] = kept
        return found, left

    def take(self, answers: Answers, left: Left) -> Answers:
        """Return answers with their arrays again, which are copied from the shelf."""
        for number, key, name, start, stop in left:
            record = answers[number][key]  # type: ignore[index]
            assert isinstance(record, ArrayRecord)
            bare = record[name]
            record[name] = Array(bare.dtype, bare.shape, bare.stype, self._memory[start:stop])
        return answers
