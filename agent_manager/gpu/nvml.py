"""NVIDIA GPUs through the driver's library NVML: what is free and who holds it, and every reading a GPU gives.

The only file that imports pynvml.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agent_manager.errors import NoGpu
from agent_manager.gpu.base import Card, GpuFacts, GpuSample, MemoryHolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SELECTOR_VARIABLE: Final = "AGENT_MANAGER_GPU"

_OTHER_ENGINES: Final = "or choose --engine simulated (no GPU needed) or --engine vllm-cpu"
_RESTART: Final = "reboot this host, or reload the NVIDIA driver"
_RESET: Final = "end what uses it and run 'nvidia-smi --gpu-reset', or reboot this host"
_FIRST: Final = "0"
_VITAL: Final = "memory"
"""Of a driver that went away some readings fail with any error: this is the one to believe."""
_NO_STATE: Final = 32
"""NVML's performance state for one that is not known."""
_CLOCK_REASONS: Final = (
    (0x002, "application clocks"),
    (0x004, "power cap"),
    (0x008, "hardware slowdown"),
    (0x010, "sync boost"),
    (0x020, "too warm"),
    (0x040, "too hot, slowed by hardware"),
    (0x080, "power brake"),
    (0x100, "display clocks"),
)
"""nvml.h, nvmlClocksEventReason*: why the clocks are not higher, but for being idle."""


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


class NvmlSampler:
    """Samples one GPU, chosen as in NvmlProbe, through one session that is held from sample to sample.

    What cannot change (name, UUID, power limit) is read once in a session, and what a card refused is not asked
    again in it. The session ends with an error, and the next sample begins another.
    """

    def __init__(self, selector: str | None = None) -> None:
        self._selector = selector or _FIRST
        self._session: _Session | None = None

    def sample(self) -> GpuSample:
        """The GPU now: some 25 µs of ours, and what the driver takes. The first one begins the session.

        Raises NoGpu, saying why: no driver, no such GPU, a GPU that fell off the bus.
        """
        try:
            if self._session is None:
                self._session = _Session(_open(self._selector))
            with _as_no_gpu():
                return self._session.sample()
        except NoGpu:
            self.close()
            raise

    def others(self) -> tuple[str, ...]:
        """The host's other GPUs, such as `1 (NVIDIA RTX A4000)`; empty before the first sample."""
        return self._session.others if self._session else ()

    def close(self) -> None:
        """End the session; a later sample begins another. Never raises."""
        if self._session is not None:
            self._session = None
            _shut_down()


class _Session:
    """One GPU for as long as NVML goes on knowing it. Raises NVML's errors."""

    def __init__(self, handle: Any) -> None:  # noqa: ANN401 - NVML's handle is opaque
        self.others: tuple[str, ...] = ()
        self._nvml = _pynvml()
        self._handle = handle
        self._facts: dict[str, Any] = {}
        self._readings = _readings(handle)
        self._used_bytes: dict[int, int | None] = {}
        self._holders: tuple[MemoryHolder, ...] = ()

    def sample(self) -> GpuSample:
        self._facts = self._facts or self._read_facts()
        said = self._ask()
        memory, utilization, power_mw = said("memory"), said("utilization"), said("power")
        reasons, state = said("reasons"), said("state")
        return GpuSample(
            **self._facts,
            total_bytes=memory and memory.total - memory.reserved,
            free_bytes=memory and memory.free,
            utilization_pct=utilization and utilization.gpu,
            memory_utilization_pct=utilization and utilization.memory,
            temperature_c=said("temperature"),
            power_w=None if power_mw is None else power_mw / 1000,
            sm_clock_mhz=said("sm_clock"),
            memory_clock_mhz=said("memory_clock"),
            fan_pct=said("fan"),
            performance_state=None if state == _NO_STATE else state,
            throttle_reasons=None if reasons is None else _words(reasons),
            processes=self._processes(*(said("graphics") or ()), *(said("compute") or ())),
        )

    def _ask(self) -> Callable[[str], Any]:
        """All readings, by name; None for what failed. Those that the card refuses are not asked again."""
        said: dict[str, Any] = {}
        for name, read in tuple(self._readings.items()):
            try:
                said[name] = read()
            except self._nvml.NVMLError as error:
                self._failed(name, error)
        return said.get

    def _failed(self, name: str, error: Any) -> None:  # noqa: ANN401 - the module is untyped
        nvml = self._nvml
        never = [nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_NO_PERMISSION]
        if name != _VITAL:
            never.append(nvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        if error.value in never:
            del self._readings[name]
        elif name == _VITAL or error.value in {
            nvml.NVML_ERROR_UNINITIALIZED,
            nvml.NVML_ERROR_DRIVER_NOT_LOADED,
            nvml.NVML_ERROR_GPU_IS_LOST,
            nvml.NVML_ERROR_RESET_REQUIRED,
            nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        }:
            raise error

    def _read_facts(self) -> dict[str, Any]:
        nvml = self._nvml
        index = nvml.nvmlDeviceGetIndex(self._handle)
        try:
            limit_mw = nvml.nvmlDeviceGetEnforcedPowerLimit(self._handle)
        except nvml.NVMLError:
            limit_mw = None
        others = (each for each in range(nvml.nvmlDeviceGetCount()) if each != index)
        self.others = tuple(f"{each} ({self._name_of(each)})" for each in others)
        return {
            "index": index,
            "uuid": nvml.nvmlDeviceGetUUID(self._handle),
            "name": nvml.nvmlDeviceGetName(self._handle),
            "power_limit_w": None if limit_mw is None else limit_mw / 1000,
        }

    def _name_of(self, index: int) -> str:
        nvml = self._nvml
        try:
            return str(nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(index)))
        except nvml.NVMLError:
            return "it cannot be read"

    def _processes(self, *processes: Any) -> tuple[MemoryHolder, ...]:  # noqa: ANN401 - the module is untyped
        used_bytes = {each.pid: each.usedGpuMemory for each in processes}
        if used_bytes != self._used_bytes:
            known = {each.pid: each.name for each in self._holders}
            self._used_bytes = used_bytes
            self._holders = tuple(
                MemoryHolder(pid=pid, name=known.get(pid) or _process_name(pid), used_bytes=used_bytes[pid])
                for pid in sorted(used_bytes)
            )
        return self._holders


def _readings(handle: Any) -> dict[str, Callable[[], Any]]:  # noqa: ANN401 - NVML's handle is opaque
    """What is read for each sample. PCIe throughput is not: the driver takes 20 ms to measure it."""
    nvml = _pynvml()
    return {
        _VITAL: partial(nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2),
        "utilization": partial(nvml.nvmlDeviceGetUtilizationRates, handle),
        "power": partial(nvml.nvmlDeviceGetPowerUsage, handle),
        "temperature": partial(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        "sm_clock": partial(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        "memory_clock": partial(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
        "fan": partial(nvml.nvmlDeviceGetFanSpeed, handle),
        "state": partial(nvml.nvmlDeviceGetPerformanceState, handle),
        "reasons": partial(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle),
        "graphics": partial(nvml.nvmlDeviceGetGraphicsRunningProcesses, handle),
        "compute": partial(nvml.nvmlDeviceGetComputeRunningProcesses, handle),
    }


def _words(reasons: int) -> tuple[str, ...]:
    return tuple(word for bit, word in _CLOCK_REASONS if reasons & bit)


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
    except nvml.NVMLError_ResetRequired as error:
        raise NoGpu("the GPU needs a reset after an error it cannot mend", hint=_RESET) from error
    except nvml.NVMLError_LibRmVersionMismatch as error:
        raise NoGpu("the NVIDIA driver was updated and the old one is still loaded", hint=_RESTART) from error
    except nvml.NVMLError_FunctionNotFound as error:
        raise NoGpu("the NVIDIA driver is too old", hint="install NVIDIA driver 580 or newer") from error
    except nvml.NVMLError as error:
        raise NoGpu(
            f"the GPU cannot be read: {str(error).rstrip('.').lower()}",
            hint=f"check nvidia-smi, {_OTHER_ENGINES}",
        ) from error


def read_facts(selector: str | None = None) -> GpuFacts:
    """What the GPU and its driver are, in a session of its own. Blocks for some milliseconds; raises NoGpu."""
    nvml = _pynvml()
    handle = _open(selector or _FIRST)
    try:
        with _as_no_gpu():
            drawing = _told(nvml.nvmlDeviceGetGraphicsRunningProcesses, handle) or ()
            cuda = _told(nvml.nvmlSystemGetCudaDriverVersion_v2)
            active = _told(nvml.nvmlDeviceGetDisplayActive, handle)
            return GpuFacts(
                driver_version=str(nvml.nvmlSystemGetDriverVersion()),
                cuda_version=None if cuda is None else (cuda // 1000, cuda % 1000 // 10),
                compute_capability=_told(nvml.nvmlDeviceGetCudaComputeCapability, handle),
                display_active=None if active is None else bool(active),
                drawing=tuple(
                    MemoryHolder(pid=each.pid, name=_process_name(each.pid), used_bytes=each.usedGpuMemory)
                    for each in sorted(drawing, key=lambda each: int(each.pid))
                ),
            )
    finally:
        _shut_down()


def _told(ask: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 - whatever NVML answers
    """What NVML answers, None for what this GPU or this driver does not tell."""
    nvml = _pynvml()
    try:
        return ask(*arguments)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission):
        return None
