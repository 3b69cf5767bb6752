"""The IPUs of the simulated machine, of which each model that is attached holds some.

A machine offers devices of 1, 2, 4, ... IPUs. Devices that share an IPU exclude each other.

The processes of a program share the machine in equal parts, as PopRun divides it.
"""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipu_simulator import variables
from ipu_simulator.environment import TARGET_VARIABLE, target

from ..poptorch_core import createBackendError, usesIpuModel

if TYPE_CHECKING:
    from ..options import Options

_HOW_TO_RELEASE = (
    "Call detachFromDevice() on a model before another one uses its IPUs (for instance training before "
    "validation): it attaches again by itself at its next call. destroy() releases them for good."
)


@dataclass(frozen=True)
class Device:
    """Consecutive IPUs of a machine."""

    machine: str
    ipus: range

    def overlaps(self, other: Device) -> bool:
        """Whether the two have an IPU in common."""
        return (
            self.machine == other.machine
            and self.ipus.start < other.ipus.stop
            and other.ipus.start < self.ipus.stop
        )


class Lease:
    """A model's hold on a device; it ends with `release`, or when the lease is garbage-collected."""

    def __init__(self, device: Device, holder: str) -> None:
        number = next(_numbers)
        _leases[number] = device, holder
        # Atomic, without the lock: the garbage collector may run it anywhere.
        self.release = weakref.finalize(self, _leases.pop, number, None)
        self.release.atexit = False


_lock = threading.Lock()
_numbers = itertools.count()
_leases: dict[int, tuple[Device, str]] = {}  # (device, holder) by number


def acquire(options: Options, num_ipus: int, holder: str) -> Lease | None:
    """The lease of a free device, or of the one of options.useIpuId; None for Poplar's IPU model.

    :param num_ipus: of all replicas in this process.
    :param holder: the model, in the error of another one that needs the same IPUs.

    Raises poptorch.Error if the machine has too few IPUs or other models hold them, for an unknown id, and
    for a device that is too small.
    """
    if usesIpuModel(options._values):
        return None
    size = 1 << (num_ipus - 1).bit_length()
    machine = target()
    part, share = _part(options), ""
    if options.Distributed.numProcesses > 1:
        share = f", of which each of {options.Distributed.numProcesses} processes has {len(part)}"
    if size > len(part):
        raise createBackendError(
            f"Failed to acquire {size} IPU(s)\n"
            f"No device found on the system with {size} IPUs: the configuration needs changing "
            f"({machine.name} has {machine.num_ipus}{share}; {TARGET_VARIABLE} names the simulator's machine)"
        )
    if options.exists("ipu_id"):
        devices = [_by_id(options.ipu_id, size)]
    else:
        devices = [Device(machine.name, part[i : i + size]) for i in range(0, len(part), size)]
    with _lock:
        free = _first_free(devices)
        if free is None:
            # Executors in reference cycles still hold theirs; PyTorch's tensors take two passes.
            gc.collect()
            gc.collect()
            free = _first_free(devices)
        if free is None:
            raise _in_use(options, size, share)
        return Lease(free, holder)


def _first_free(devices: list[Device]) -> Device | None:
    taken = [device for device, _ in list(_leases.values())]
    return next((d for d in devices if not any(d.overlaps(other) for other in taken)), None)


def _part(options: Options) -> range:
    """This process's IPUs, a power of two."""
    count, distributed = target().num_ipus, options.Distributed
    size = count // (1 << (distributed.numProcesses - 1).bit_length())
    return range(distributed.processId * size, (distributed.processId + 1) * size)


def _by_id(wanted: int, size: int) -> Device:
    machine = target()
    ipus = machine.device_ipus(wanted)
    if ipus is None:
        raise createBackendError(
            f"Failed to acquire device Id: {wanted}\n{machine.name} has the ids 0 to "
            f"{machine.device_id(machine.num_ipus, 0)} ({TARGET_VARIABLE} names the simulator's machine): "
            f"first {machine.num_ipus} devices of one IPU, then those of two, up to the whole machine."
        )
    if len(ipus) < size:
        raise createBackendError(
            f"Failed to acquire device Id: {wanted}\nIt has {len(ipus)} IPUs, the model needs {size}: the "
            f"ids of devices with {size} begin at {machine.device_id(size, 0)}."
        )
    return Device(machine.name, ipus)


def _in_use(options: Options, size: int, share: str) -> Exception:
    machine = target()
    wanted = f"device Id: {options.ipu_id}" if options.exists("ipu_id") else f"{size} IPU(s)"
    leases = [lease for lease in list(_leases.values()) if lease[0].machine == machine.name]
    holders = ", ".join(f"{holder} holds {len(device.ipus)} IPU(s)" for device, holder in leases)
    text = (
        f"Failed to acquire {wanted}\n{machine.name} has {machine.num_ipus} IPUs{share}: {holders}. "
        f"{_HOW_TO_RELEASE}"
    )
    if variables.is_set(variables.WAIT_FOR_IPU):
        text += f" (On an IPU, {variables.WAIT_FOR_IPU} makes the program wait here.)"
    return createBackendError(text)
