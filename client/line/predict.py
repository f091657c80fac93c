"""Predictions by the model in use, by one thread for all that ask: a network is one call's at a time."""

import asyncio
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

from client.data.images import read_image
from client.data.indexed import Pixels, as_input
from client.line.store import Entry, Store
from client.model import Prediction, SiteModel, read_model
from common.errors import CheckpointError, DeployError

T = TypeVar("T")


@dataclass(frozen=True)
class Loaded:
    """A model in memory, with what the store says of it."""

    entry: Entry
    model: SiteModel

    def pixels(self, picture: bytes) -> Pixels:
        """Return a picture's file as the model takes it.

        Raises:
            DeployError: if the model is not for single pictures.
            UnreadableImageError: if it is no picture, or unpacks to too many pixels.
        """
        data = self.model.settings.data
        if data.kind != "image" or data.beside:
            raise DeployError("the site's model is not for single pictures; use 'fedreptile-site classify'")
        return read_image(
            io.BytesIO(picture), data.channels, data.size, bits=data.bits, white=data.white, invert=data.invert
        )

    def predict(self, pixels: Pixels) -> Prediction:
        return self.model.predict(as_input(pixels[None], None))[0]


class Current:
    """The model in use, read again when another one comes into use. For one thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loaded: Loaded | None = None

    def get(self) -> Loaded:
        """Return the model in use. Raises CheckpointError if there is none, or it is damaged and none is loaded."""
        found, before = self._store.current(), self._loaded
        if found is None:
            raise CheckpointError(f"no model is in use in {self._store.folder}; make one with 'fedreptile-site adapt'")
        if before is None or before.entry != found:
            before = self._loaded = Loaded(found, read_model(found.path))
        return before

    def predict(self, picture: bytes) -> tuple[Loaded, Prediction]:
        """Say what a picture shows, by one model. Raises like ``get`` and ``Loaded.pixels``."""
        loaded = self.get()
        return loaded, loaded.predict(loaded.pixels(picture))


class Predictor:
    """The thread. An answer is that of one model as a whole: the one in use when the turn came."""

    def __init__(self, store: Store) -> None:
        self.current = Current(store)
        self._thread = ThreadPoolExecutor(1, "predict")

    async def ask(self, work: Callable[[], T]) -> T:
        """Return what a function of ``current``, or of what it loaded, returns in the thread; raise what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def start(self) -> None:
        self._thread.submit(torch.set_num_threads, 1).result()

    def stop(self) -> None:
        self._thread.shutdown(wait=True)
