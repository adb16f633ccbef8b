"""Starting an engine through a shim: program, environment, ports, hand-over, and what the shim answers."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agent_manager.errors import AgentManagerError, EngineFailed, EngineMissing
from agent_manager.runtimes import handover, proc
from agent_manager.runtimes.ports import listen, require_free
from agent_manager.state import unusable

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from agent_manager.runtimes.base import InstanceSpec

# Imported, not run as a script: a script is compiled anew each time. With -I and -S there is the standard library
# and nothing else; where our package lies is appended, so that nothing beside it can stand in for a module of that.
_SHIM = "import sys; sys.path.append(sys.argv.pop(1)); from agent_manager.runtimes.shim import main; main()"
_PACKAGES = str(Path(__file__).parents[2])
_ANSWER_TIMEOUT_S = 30.0
_INHERITED = frozenset(
    "HOME LANG LANGUAGE LD_LIBRARY_PATH LOGNAME PATH SHELL TMPDIR TZ USER VIRTUAL_ENV".split()  # noqa: SIM905 - fifteen quotes less
)
_INHERITED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "HF_", "XDG_")
_NOT_EXECUTABLE = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.ELIBBAD, errno.EPERM)
_SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")


def inherited(host_env: Mapping[str, str]) -> dict[str, str]:
    """What an engine gets of the host's own environment: paths and locale, never a secret."""
    return {
        name: value
        for name, value in host_env.items()
        if (name in _INHERITED or name.startswith(_INHERITED_PREFIXES))
        and not any(word in name for word in _SECRET_WORDS)
    }


def engine_environment(spec: InstanceSpec, host_env: Mapping[str, str], root: str) -> dict[str, str]:
    """The whole environment of an engine. Our marks come last: nothing may replace them."""
    return {
        **inherited(host_env),
        **spec.env,
        # setproctitle, which vLLM uses, otherwise writes over /proc/<pid>/environ, and with it over our marks.
        "SPT_NOENV": "1",
        proc.INSTANCE_VARIABLE: spec.id,
        proc.STATE_VARIABLE: root,
    }


def find_program(name: str, path: str | None) -> str:
    """The absolute path of a program, searched on `path` as a shell does. Raises EngineMissing."""
    found = shutil.which(name, path=path)
    if found:
        return str(Path(found).absolute())
    if "/" not in name:
        raise EngineMissing(
            f"program '{name}' was not found on PATH",
            hint="install it, or say in models.yaml how to start it (engines.<name>.command)",
            where=name,
        )
    what = "cannot be executed" if Path(name).exists() else "does not exist"
    raise EngineMissing(
        f"program '{name}' {what}", hint="see engines.<name>.command in models.yaml", where=name
    )


def launch(spec: InstanceSpec, folder: Path, *, run: int, root: str, host_env: Mapping[str, str]) -> None:
    """Start the engine under a new shim; it was executed when this returns. Blocks for some 30 ms.

    Raises EngineMissing or PortInUse before anything runs; StateUnusable when the folder cannot be written;
    EngineFailed when the system refuses.
    """
    env = engine_environment(spec, host_env, root)
    program = find_program(spec.argv[0], env.get("PATH"))
    require_free(spec.engine_port)
    listener = None if spec.agent_port is None else listen(spec.agent_port)
    try:
        order = handover.Order(
            run=run,
            root=root,
            instance_id=spec.id,
            engine_port=spec.engine_port,
            listener=listener.fileno() if listener else -1,
            program=program,
            argv=list(spec.argv),
            env=env,
        )
        answer = _hand_over(order, folder, listener, inherited(host_env))
    finally:
        if listener:
            listener.close()
    if answer != "ok":
        raise _failure(answer, spec, folder)


def _hand_over(
    order: handover.Order, folder: Path, listener: socket.socket | None, shim_env: Mapping[str, str]
) -> str:
    log = _open_log(folder)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _SHIM, _PACKAGES, str(folder)],
            input=order.encode(),
            stdout=subprocess.PIPE,
            stderr=log,  # the shim says nothing, unless it breaks
            pass_fds=(listener.fileno(),) if listener else (),
            start_new_session=True,  # a Ctrl-C of the terminal is not for it
            cwd="/",
            env={**shim_env, proc.SHIM_VARIABLE: order.instance_id, proc.STATE_VARIABLE: order.root},
            timeout=_ANSWER_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "timeout"
    except OSError as error:
        raise EngineFailed(f"cannot start a process: {error.strerror}", where=sys.executable) from error
    finally:
        os.close(log)
    return done.stdout.decode().strip()


def _open_log(folder: Path) -> int:
    path = folder / handover.LOG
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise unusable(path, error) from error


def _failure(answer: str, spec: InstanceSpec, folder: Path) -> AgentManagerError:
    what, _, number = answer.partition(" ")
    if what == "state":
        return unusable(folder, OSError(int(number), os.strerror(int(number))))
    if what == "exec" and int(number) not in _NOT_EXECUTABLE:
        return EngineFailed(f"cannot start '{spec.argv[0]}': {os.strerror(int(number))}", where=spec.argv[0])
    if what == "exec":
        return EngineMissing(
            f"program '{spec.argv[0]}' cannot be executed: {os.strerror(int(number))}",
            hint="is it a program for this machine, and is the interpreter in its first line there?",
            where=spec.argv[0],
        )
    what = "did not answer" if what == "timeout" else "broke"
    return EngineFailed(f"the shim of '{spec.id}' {what}", hint="its log may say why", where=spec.id)
