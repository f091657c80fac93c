"""Independent random streams, addressed by name instead of by position in a sequence.

Every draw of a run comes from a stream named by (run seed, purpose, site, round), so nothing
needs to be carried from round to round and a resumed run draws exactly what it would have drawn.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(*address: str | int) -> int:
    """Return the 63-bit seed of the stream with this address, the same on every machine."""
    text = "/".join(str(part) for part in address)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let torch's global random state, which dropout draws from, follow a generator inside the block."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        seed = next_seed(generator)
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which costs a millisecond without a GPU
        if devices:
            torch.cuda.manual_seed(seed)
        yield


def next_seed(generator: torch.Generator) -> int:
    """Draw a seed: what ``drawing_from`` takes from a generator."""
    return int(torch.randint(2**62, (1,), generator=generator))
