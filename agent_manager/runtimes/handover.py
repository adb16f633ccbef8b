"""What passes between a runtime and a shim: the order to start an engine, and the records the shim writes.

The shim imports this before it starts an engine, so it needs nothing but `os`. The records are JSON, written
here by hand because they hold numbers only; `records.py` reads them.
"""

from __future__ import annotations

import os

SHIM_RECORD = "shim.json"
EXIT_RECORD = "exit.json"
LOG = "engine.log"
ROTATED_LOG = "engine.log.1"

_RESERVED = ".exit-reserved"
_RESERVED_BYTES = 512
_END = b"."
_HEAD = 8  # parts before the arguments


class Order:
    """What to start, and for whom.

    `run` numbers the starts of an instance, growing. `root` is the state folder without links. `listener` is
    the inherited descriptor of the listening agent port, or -1; what connects there goes to `engine_port`.
    `program` is a path; `argv` begins with the name the program is to see.
    """

    __slots__ = ("argv", "engine_port", "env", "instance_id", "listener", "program", "root", "run")

    def __init__(  # noqa: PLR0913 - a value with eight fields; dataclasses cost the shim 10 ms
        self,
        *,
        run: int,
        root: str,
        instance_id: str,
        engine_port: int,
        listener: int,
        program: str,
        argv: list[str],
        env: dict[str, str],
    ) -> None:
        self.run = run
        self.root = root
        self.instance_id = instance_id
        self.engine_port = engine_port
        self.listener = listener
        self.program = program
        self.argv = argv
        self.env = env

    def encode(self) -> bytes:
        """The order as bytes, parts joined by NUL, with a last part that proves it whole."""
        counts = (len(self.argv), len(self.env))
        numbers = [str(number) for number in (self.run, self.engine_port, self.listener, *counts)]
        texts = [self.root, self.instance_id, self.program, *self.argv]
        variables = [f"{name}={value}" for name, value in self.env.items()]
        return b"\0".join([os.fsencode(part) for part in (*numbers, *texts, *variables)] + [_END])

    @classmethod
    def decode(cls, message: bytes) -> Order:
        """The order of these bytes. Raises ValueError when they are not whole: whoever wrote them died."""
        parts = message.split(b"\0")
        whole = parts.pop() == _END and len(parts) >= _HEAD
        if not whole or len(parts) != _HEAD + int(parts[3]) + int(parts[4]):
            raise ValueError("the order is not whole")
        run, engine_port, listener, count, _ = (int(part) for part in parts[:5])
        root, instance_id, program, *rest = (os.fsdecode(part) for part in parts[5:])
        return cls(
            run=run,
            root=root,
            instance_id=instance_id,
            engine_port=engine_port,
            listener=listener,
            program=program,
            argv=rest[:count],
            env=dict(_variable(text) for text in rest[count:]),
        )


def _variable(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def write_atomically(path: str, content: bytes) -> None:
    """Put `content` in place at once or not at all; only this user can read it. Raises OSError."""
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name}.{os.getpid()}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            file.write(content)
        os.replace(temporary, path)  # noqa: PTH105 - pathlib costs the shim 5 ms
    except OSError:
        _discard(temporary)
        raise


def reserve_exit_record(folder: str) -> None:
    """Take the disk space of `exit.json` now: the disk may be full when the engine ends. Raises OSError."""
    descriptor = os.open(f"{folder}/{_RESERVED}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
        file.write(b" " * _RESERVED_BYTES)


def write_exit_record(folder: str, content: bytes) -> None:
    """Turn the reserved space into `exit.json`. Raises OSError."""
    reserved = f"{folder}/{_RESERVED}"
    with open(reserved, "r+b") as file:  # noqa: PTH123 - as above
        file.write(content.ljust(_RESERVED_BYTES))
    os.replace(reserved, f"{folder}/{EXIT_RECORD}")  # noqa: PTH105 - as above


def _discard(path: str) -> None:
    try:
        os.unlink(path)  # noqa: PTH108 - as above
    except OSError:
        return
