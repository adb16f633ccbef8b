"""An NVIDIA GPU's memory and who holds it, from the driver's library NVML. The only file that imports pynvml."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agent_manager.errors import NoGpu
from agent_manager.gpu.base import Card, MemoryHolder

if TYPE_CHECKING:
    from collections.abc import Iterator

SELECTOR_VARIABLE: Final = "AGENT_MANAGER_GPU"

_OTHER_ENGINES: Final = "or choose --engine simulated (no GPU needed) or --engine vllm-cpu"
_RESTART: Final = "reboot this host, or reload the NVIDIA driver"
_FIRST: Final = "0"


class NvmlProbe:
    """Reads one GPU: `selector` is its index or UUID, as AGENT_MANAGER_GPU says; None is the first one.

    It holds one NVML session from the first read until `close`, and opens a new one after an error.
    """

    def __init__(self, selector: str | None = None) -> None:
        self._selector = selector or _FIRST
        self._handle: Any = None

    def read(self) -> Card:
        """The GPU now. `total_bytes` leaves out what the driver reserves. Blocks for some milliseconds.

        Raises NoGpu, saying why: no driver, no such GPU, a GPU that fell off the bus.
        """
        try:
            if self._handle is None:
                self._handle = _open(self._selector)
            with _as_no_gpu():
                return _card(self._handle)
        except NoGpu:
            self.close()
            raise

    def close(self) -> None:
        """End the session; a later read opens another. Never raises."""
        if self._handle is not None:
            self._handle = None
            _shut_down()


def _pynvml() -> Any:  # noqa: ANN401 - the module is untyped
    import pynvml  # noqa: PLC0415 - only where a GPU is read: it takes tens of milliseconds

    return pynvml


def _open(selector: str) -> Any:  # noqa: ANN401 - NVML's handle is opaque
    nvml = _pynvml()
    with _as_no_gpu():
        nvml.nvmlInit()
        try:
            return _find(selector)
        except BaseException:
            _shut_down()
            raise


def _find(selector: str) -> Any:  # noqa: ANN401 - NVML's handle is opaque
    nvml = _pynvml()
    count = nvml.nvmlDeviceGetCount()
    if not count:
        raise NoGpu("the NVIDIA driver sees no GPU", hint=f"check nvidia-smi, {_OTHER_ENGINES}")
    if selector.isdecimal() and int(selector) < count:
        return nvml.nvmlDeviceGetHandleByIndex(int(selector))
    if not selector.isdecimal():
        try:
            return nvml.nvmlDeviceGetHandleByUUID(selector)
        except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
            pass  # said below, with the GPUs there are
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    present = ", ".join(f"{index} ({nvml.nvmlDeviceGetUUID(handle)})" for index, handle in enumerate(handles))
    raise NoGpu(
        f"there is no GPU '{selector}' here",
        hint=f"set {SELECTOR_VARIABLE} to one of: {present}",
        where=SELECTOR_VARIABLE,
    )


def _card(handle: Any) -> Card:  # noqa: ANN401 - NVML's handle is opaque
    nvml = _pynvml()
    memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    return Card(
        id=nvml.nvmlDeviceGetUUID(handle),
        name=nvml.nvmlDeviceGetName(handle),
        total_bytes=memory.total - memory.reserved,
        free_bytes=memory.free,
        holders=_holders(handle),
    )


def _holders(handle: Any) -> tuple[MemoryHolder, ...]:  # noqa: ANN401 - NVML's handle is opaque
    """Processes that compute or draw on the GPU, by pid; none where the driver does not list them."""
    nvml = _pynvml()
    used_bytes: dict[int, int | None] = {}
    for list_processes in (
        nvml.nvmlDeviceGetGraphicsRunningProcesses,
        nvml.nvmlDeviceGetComputeRunningProcesses,
    ):
        try:
            used_bytes.update({process.pid: process.usedGpuMemory for process in list_processes(handle)})
        except nvml.NVMLError_NotSupported:
            continue
    return tuple(
        MemoryHolder(pid=pid, name=_process_name(pid), used_bytes=used_bytes[pid])
        for pid in sorted(used_bytes)
    )


def _process_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8", errors="replace").strip()
    except OSError:
        return "unknown"


def _shut_down() -> None:
    nvml = _pynvml()
    try:
        nvml.nvmlShutdown()
    except nvml.NVMLError:
        return  # a session that is gone already


@contextmanager
def _as_no_gpu() -> Iterator[None]:
    """Say an NVML error in our words."""
    nvml = _pynvml()
    try:
        yield
    except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded) as error:
        raise NoGpu(
            "no NVIDIA driver is loaded on this host",
            hint=f"install NVIDIA driver 580 or newer, {_OTHER_ENGINES}",
        ) from error
    except nvml.NVMLError_GpuIsLost as error:
        raise NoGpu("the GPU is lost: it fell off the bus or its driver crashed", hint=_RESTART) from error
    except nvml.NVMLError_LibRmVersionMismatch as error:
        raise NoGpu("the NVIDIA driver was updated and the old one is still loaded", hint=_RESTART) from error
    except nvml.NVMLError_FunctionNotFound as error:
        raise NoGpu("the NVIDIA driver is too old", hint="install NVIDIA driver 580 or newer") from error
    except nvml.NVMLError as error:
        raise NoGpu(
            f"the GPU cannot be read: {str(error).rstrip('.').lower()}",
            hint=f"check nvidia-smi, {_OTHER_ENGINES}",
        ) from error
