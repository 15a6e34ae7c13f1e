"""Batches drawn in the background, so that reading the data hides behind the training step."""

import threading
from collections.abc import Mapping
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from pgolf.data.loaders.batch import Batch, Loader


class Prefetch:
    """A loader whose next `depth` batches are drawn by a thread. Use it in a `with` block: leaving it ends the thread.

    The batches and their order are those of the loader itself, and `state_dict` gives the position after the last batch
    that was taken from here, whatever the thread has drawn beyond. An error in the thread is raised by the `next` that
    would have given the batch, and by every later one.

    Args:
        loader: belongs to this object from now on.
        depth: batches drawn ahead.
        pin: batches lie in page-locked memory, so that copies to a GPU overlap with its work.
    """

    def __init__(self, loader: Loader, *, depth: int = 2, pin: bool = False):
        if depth < 1:
            raise ValueError(f"depth={depth} must be at least 1")
        self.loader, self.depth, self.pin = loader, depth, pin
        self._position = loader.state_dict()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def next(self) -> Batch:
        """The next micro-batch; waits only when the thread has none ready."""
        if self._error is not None:
            raise self._error
        if self._thread is None:
            self._start()
        drawn = self._ready.get()
        if isinstance(drawn, BaseException):
            self._error = drawn
            raise drawn
        self._free.release()
        batch, self._position = drawn
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that `next` gave."""
        return self._position

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken; what was drawn ahead is dropped. UserError as the loader's own."""
        self.close()
        self.loader.load_state_dict(state)
        self._position, self._error = self.loader.state_dict(), None

    def close(self) -> None:
        """End the thread, and with it what it has drawn ahead: only `load_state_dict` makes this usable again."""
        if self._thread is not None:
            self._closing.set()
            self._free.release()
            self._thread.join()
            self._thread = None
            self._error = RuntimeError("this loader was closed")

    def _start(self) -> None:
        self._ready: SimpleQueue[tuple[Batch, dict[str, Any]] | BaseException] = SimpleQueue()
        self._free, self._closing = threading.Semaphore(self.depth), threading.Event()
        # a daemon: an interpreter that ends without close() does not wait for it
        self._thread = threading.Thread(target=self._draw, name="prefetch", daemon=True)
        self._thread.start()

    def _draw(self) -> None:
        while True:
            self._free.acquire()
            if self._closing.is_set():
                return
            try:
                batch = self.loader.next()
                self._ready.put((pinned(batch) if self.pin else batch, self.loader.state_dict()))
            except BaseException as error:
                self._ready.put(error)
                return


def pinned(batch: Batch) -> Batch:
    """The same batch in page-locked memory."""
    cu_seqlens = None if batch.cu_seqlens is None else batch.cu_seqlens.pin_memory()
    return Batch(batch.inputs.pin_memory(), batch.targets.pin_memory(), cu_seqlens)
