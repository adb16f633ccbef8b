"""Blocking calls in threads: one that is not abandoned half way, and streams that end when they are not wanted."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Item = TypeVar("_Item")
_Read_co = TypeVar("_Read_co", covariant=True)
_CLOSE_TIMEOUT_S = 2.0


async def to_the_end(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """In a thread, and to the end even when cancelled: it is short, and half of it would help nobody."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # else asyncio complains that nobody asked for it
        raise


class Stream(Protocol[_Read_co]):
    """Something that blocks for its next item. `close` may be called from any thread, and ends the waiting."""

    def __iter__(self) -> Iterator[_Read_co]:
        """Its items, until it ends or is closed."""
        ...

    def close(self) -> None:
        """End it. Never raises."""
        ...


class Items(Generic[_Item]):
    """The items of a stream, in the event loop."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[_Item | BaseException | None] = asyncio.Queue()
        self._over: BaseException | None = None
        self._ended = False

    async def next(self) -> _Item | None:
        """The next item; None when the stream has ended. Raises what the stream raised."""
        if not self._ended:
            item = await self._queue.get()
            if item is not None and not isinstance(item, BaseException):
                return item
            self._ended, self._over = True, item
        if self._over is not None:
            raise self._over
        return None

    def put(self, item: _Item | BaseException | None) -> None:
        """Take what the stream gave; None is its end. In the event loop only."""
        self._queue.put_nowait(item)


@asynccontextmanager
async def streaming(begin: Callable[[], Stream[_Item]]) -> AsyncIterator[Items[_Item]]:
    """Read a stream in a thread of its own for as long as the block lasts.

    `begin` runs in that thread too. A thread of asyncio's own pool would hold up the end of the program for as
    long as the stream goes on; this one is closed when the block ends, and nobody waits long for it.
    """
    items: Items[_Item] = Items()
    reader = _Reader(begin, items, asyncio.get_running_loop())
    thread = threading.Thread(target=reader.run, daemon=True, name="stream")
    thread.start()
    try:
        yield items
    finally:
        reader.close()
        # It ends at once when it reads; only one that is still being opened may take a moment.
        await asyncio.shield(asyncio.to_thread(thread.join, _CLOSE_TIMEOUT_S))


class _Reader(Generic[_Item]):
    def __init__(
        self, begin: Callable[[], Stream[_Item]], items: Items[_Item], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._begin = begin
        self._items = items
        self._loop = loop
        self._lock = threading.Lock()
        self._stream: Stream[_Item] | None = None
        self._closed = False

    def run(self) -> None:
        end: BaseException | None = None
        try:
            stream = self._begin()
            with self._lock:
                self._stream = stream
                wanted = not self._closed
            try:
                if wanted:
                    for item in stream:
                        self._put(item)
            finally:
                stream.close()
        except Exception as error:  # noqa: BLE001 - the top of a thread: it is raised where the items are read
            end = error
        self._put(end)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            stream = self._stream
        if stream is not None:
            stream.close()

    def _put(self, item: _Item | BaseException | None) -> None:
        if self._closed:
            return
        try:
            self._loop.call_soon_threadsafe(self._items.put, item)
        except RuntimeError:
            self._closed = True  # the loop is over, and so is whoever wanted the items
