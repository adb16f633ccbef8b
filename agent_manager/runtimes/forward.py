"""The shim's forwarder: what connects to the agent port goes to the engine's port, as with Docker's own proxy.

Both on loopback. A connection made before the engine listens is reset. One epoll loop, no threads: a stream
costs two sockets and at most one unsent read.
"""

from __future__ import annotations

import errno
import select
import socket
import struct

_READ_BYTES = 64 << 10
_LOOPBACK = "127.0.0.1"
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, on, for no time: close() sends a reset


class _Side:
    """One end of a stream. `unsent` is what waits to be sent to it."""

    __slots__ = ("ended", "interest", "other", "sock", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.other = self
        self.unsent = b""
        self.ended = False  # it will send no more
        self.interest = 0  # what epoll watches it for; 0 is not watched


class Forwarder:
    """Accepts on `listener`, forwards to `engine_port`. The owner of `poll` hands it what happens there."""

    def __init__(self, poll: select.epoll, listener: socket.socket, engine_port: int) -> None:
        self._poll = poll
        self._listener = listener
        self._engine_port = engine_port
        self._sides: dict[int, _Side] = {}
        self._connecting: set[int] = set()
        self._accepting = False
        listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._accept_again()

    @property
    def busy(self) -> bool:
        """Whether there are streams."""
        return bool(self._sides)

    def stop_accepting(self) -> None:
        """Close the agent port. Streams go on to their end."""
        self._pause_accepting()
        self._listener.close()

    def handle(self, happened: list[tuple[int, int]]) -> None:
        """Take what epoll reported, `(descriptor, events)` each; what is not of this forwarder is left alone.

        New streams come last: they may get the descriptors of streams that ended in this very turn, whose
        events would otherwise be taken for theirs.
        """
        knocked = False
        for descriptor, events in happened:
            side = self._sides.get(descriptor)
            if side is None:
                knocked = knocked or descriptor == self._listener.fileno()
                continue
            try:
                self._serve(side, events)
            except OSError:
                self._close(side, reset=True)
        if knocked and self._accepting:
            self._accept()

    def _serve(self, side: _Side, events: int) -> None:
        if side.sock.fileno() in self._connecting:
            self._connected(side)
            return
        if events & select.EPOLLERR:
            raise ConnectionResetError
        if events & select.EPOLLOUT:
            self._send(side)
        if events & (select.EPOLLIN | select.EPOLLHUP) and side.sock.fileno() >= 0:
            self._receive(side)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._pause_accepting()  # else epoll would report it for ever; resumed when a stream ends
            return
        try:
            client, engine = _Side(sock), _Side(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        except OSError:
            _discard(sock, reset=True)
            self._pause_accepting()
            return
        client.other, engine.other = engine, client
        for side in (client, engine):
            self._sides[side.sock.fileno()] = side
        try:
            self._connect(client, engine)
        except OSError:
            self._close(client, reset=True)

    def _connect(self, client: _Side, engine: _Side) -> None:
        for side in (client, engine):
            side.sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
            side.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        failure = engine.sock.connect_ex((_LOOPBACK, self._engine_port))
        if failure not in (0, errno.EINPROGRESS):
            raise OSError(failure, "connect")
        self._connecting.add(engine.sock.fileno())
        self._watch(engine, select.EPOLLOUT)

    def _connected(self, engine: _Side) -> None:
        self._connecting.discard(engine.sock.fileno())
        # With nobody listening, a connection from a port of the system's choice can meet itself.
        failed = engine.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed or engine.sock.getsockname() == engine.sock.getpeername():
            raise ConnectionRefusedError
        self._watch(engine, select.EPOLLIN)
        self._watch(engine.other, select.EPOLLIN)

    def _receive(self, side: _Side) -> None:
        if side.ended or side.other.unsent:
            return
        try:
            data = side.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        if data:
            side.other.unsent = data
        else:
            side.ended = True
        self._send(side.other)

    def _send(self, side: _Side) -> None:
        # Send what waits for `side`, and its end of file once its other side has ended; then watch for what is next.
        try:
            if side.unsent:
                side.unsent = side.unsent[side.sock.send(side.unsent) :]
            if side.other.ended and not side.unsent:
                side.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        if side.ended and side.other.ended and not side.unsent and not side.other.unsent:
            self._close(side, reset=False)
            return
        for each in (side, side.other):
            reading = 0 if each.ended or each.other.unsent else select.EPOLLIN
            self._watch(each, reading | (select.EPOLLOUT if each.unsent else 0))

    def _watch(self, side: _Side, interest: int) -> None:
        # Not watched at all rather than watched for nothing: epoll always reports a hang-up.
        if interest == side.interest:
            return
        if not side.interest:
            self._poll.register(side.sock, interest)
        elif interest:
            self._poll.modify(side.sock, interest)
        else:
            self._poll.unregister(side.sock)
        side.interest = interest

    def _close(self, side: _Side, *, reset: bool) -> None:
        for each in (side, side.other):
            self._watch(each, 0)
            self._connecting.discard(each.sock.fileno())
            self._sides.pop(each.sock.fileno(), None)
            _discard(each.sock, reset=reset)
        self._accept_again()

    def _pause_accepting(self) -> None:
        if self._accepting:
            self._poll.unregister(self._listener)
            self._accepting = False

    def _accept_again(self) -> None:
        if not self._accepting and self._listener.fileno() >= 0:
            self._poll.register(self._listener, select.EPOLLIN)
            self._accepting = True


def _discard(sock: socket.socket, *, reset: bool) -> None:
    try:
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    except OSError:
        pass
    finally:
        sock.close()
