"""Folders of keys, made whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from common.errors import TrustError
from common.paths import write_atomically
from common.trust.certificates import new_loopback
from common.trust.keys import new_tls_key, private_pem


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes ``folder`` when the block ends well; otherwise nothing is left.

    While it is being filled only its owner can look into it. An empty folder may be there already.

    Raises:
        TrustError: if something is there, or it cannot be made.
    """
    _check_free(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise TrustError(f"{folder} cannot be made: {error.strerror or error}") from error
    try:
        yield scratch
        _check_free(folder)
        scratch.chmod(0o755)
        if os.name != "posix" and folder.exists():
            folder.rmdir()
        scratch.replace(folder)
    except OSError as error:
        raise TrustError(f"{folder} cannot be made: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_loopback(folder: Path, now: datetime) -> None:
    """Write ca.crt, tls.crt and tls.key for 127.0.0.1. The key has no passphrase: it opens nothing but loopback."""
    key = new_tls_key()
    made = new_loopback(now, private_pem(key), key.public_key())
    write_atomically(folder / "ca.crt", made.ca, 0o644)
    write_atomically(folder / "tls.crt", made.certificate, 0o644)
    write_atomically(folder / "tls.key", made.key, 0o600)


def _check_free(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise TrustError(f"{folder} is there already and is left as it is; choose another folder")
