"""The instances of one run: the processes that PopRun, or torchrun on the simulator, started together.

On IPUs the gradients of all replicas are reduced over the links between IPUs; the instances use Gloo only for
metrics and to synchronise stops and checkpoints. On the simulator gradients go over Gloo too.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, List, Sequence

from . import device as device_module
from .device import DeviceChoice, DeviceError
from .placement import nearest_divisors

if TYPE_CHECKING:
    import torch

_TOTAL_REPLICAS = "POPDIST_NUM_TOTAL_REPLICAS"
_TORCHRUN = "WORLD_SIZE"
# Rendezvous address of instances on one host, unless MASTER_ADDR is set; the port is torchrun's default.
_ADDRESS, _PORT = "127.0.0.1", "29500"
_LETTING_GO_S = 0.3  # on a busy host a thread may wait for its turn


@dataclass(frozen=True)
class Instances:
    """All processes of a run: this one's index, from 0, and their collective operations.

    Every method with a result must be called by all instances, in the same order.
    """

    index: int = 0
    count: int = 1
    launched: bool = False  # by PopRun or torchrun, even if it is the only one
    from_poprun: bool = False  # which then set popdist's options: the share of the replicas, the IPUs
    launcher: str = ""  # the command that started them, as far as it is known

    @property
    def is_first(self) -> bool:
        """True for the instance that logs and writes."""
        return self.index == 0

    @property
    def on_this_host(self) -> int:
        """How many of them share this host."""
        local = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE")
        return int(local) if self.count > 1 and local else self.count

    def sum(self, values: Sequence[float]) -> List[float]:
        """Each value summed over all instances (all-reduce), in float64."""
        if self.count == 1:
            return list(values)
        import torch

        total = torch.tensor(list(values), dtype=torch.float64)
        torch.distributed.all_reduce(total)
        return [float(value) for value in total]

    def gather(self, tensors: Sequence[torch.Tensor]) -> List[List[torch.Tensor]]:
        """Every instance's tensors (all-gather), by index; shapes and dtypes must be the same on all."""
        if self.count == 1:
            return [list(tensors)]
        import torch

        gathered: List[List[torch.Tensor]] = [[] for _ in range(self.count)]
        for tensor in tensors:
            parts = [torch.empty_like(tensor) for _ in range(self.count)]
            torch.distributed.all_gather(parts, tensor.contiguous())
            for instance, part in zip(gathered, parts):
                instance.append(part)
        return gathered

    def gather_values(self, value: Any) -> List[Any]:
        """Every instance's value, of any type that can be pickled, by index."""
        if self.count == 1:
            return [value]
        import torch

        values: List[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """True if the flag is set on any instance."""
        return self.sum([float(flag)])[0] > 0

    def wait(self) -> None:
        """Waits for all instances (barrier)."""
        if self.count > 1:
            import torch

            torch.distributed.barrier()

    def refuse_difference(self, what: str, value: str) -> None:
        """Raises DeviceError, on every instance, unless `value` is the same on all."""
        values = self.gather_values(value)
        for index, other in enumerate(values):
            if other != values[0]:
                raise DeviceError(
                    f"{what} must be the same on all instances, but is {values[0]!r} on instance 0 and "
                    f"{other!r} on instance {index}: use the same files (a shared file system for --output) "
                    "and the same command on all hosts"
                )

    @contextlib.contextmanager
    def only_first_prints(self) -> Iterator[None]:
        """Discards the stdout of all instances but the first; errors still reach stderr."""
        if self.is_first:
            yield
            return
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield


ALONE = Instances()


def join_instances(
    device: DeviceChoice,
    *,
    replication_factor: int,
    ipus_per_replica: int,
    replicated_tensor_sharding: bool = False,
) -> Instances:
    """The instances that were started together; ALONE without a launcher.

    `replication_factor` counts the replicas of all instances. Raises DeviceError if PopRun or torchrun
    started other numbers than those of the configuration, if the instances have no rendezvous address, or if
    the optimiser state shall be sharded and each has a single replica.
    """
    started_by_torchrun = _TORCHRUN in os.environ and _TOTAL_REPLICAS not in os.environ
    if not started_by_torchrun and _TOTAL_REPLICAS not in os.environ:
        return ALONE
    if started_by_torchrun and device.name != "simulator":
        if os.environ[_TORCHRUN] == "1":
            return ALONE
        raise DeviceError(
            f"torchrun started {os.environ[_TORCHRUN]} instances, but PopRun assigns the IPUs: start "
            "them with poprun (docs/ipu_pod.md has the commands), or use --device simulator"
        )
    popdist = device_module.popdist()
    popdist.init()
    # torchrun knows the number of processes only.
    count = popdist.getNumInstances()
    total = replication_factor if started_by_torchrun else popdist.getNumTotalReplicas()
    if device.name == "ipu-model" and (count > 1 or total > 1):
        raise DeviceError(
            f"{count} instances with {total} replicas were started, but Poplar's IPU model has no replicas: "
            "start the program alone, without poprun"
        )
    if total != replication_factor:
        raise DeviceError(
            f"PopRun started {total} replicas, but the configuration has replication_factor "
            f"{replication_factor}: use poprun --num-replicas {replication_factor}, or "
            f"--replication-factor {total} with a gradient_accumulation that keeps the global batch"
        )
    if replication_factor % count:
        raise DeviceError(
            f"replication_factor {replication_factor} can't be split equally among {count} instances: start "
            f"{nearest_divisors(replication_factor, count)[0]} of them"
        )
    reserved = ipus_per_replica if started_by_torchrun else popdist.getNumIpusPerReplica()
    if reserved != ipus_per_replica:
        raise DeviceError(
            f"ipus_per_replica is {ipus_per_replica}, but PopRun reserved {reserved} IPUs for each replica: "
            f"use poprun --ipus-per-replica {ipus_per_replica}"
        )
    if started_by_torchrun:
        launcher = f"torchrun --nproc_per_node {os.environ.get('LOCAL_WORLD_SIZE', count)}"
    else:
        launcher = (
            f"poprun --num-instances {count} --num-replicas {total} --ipus-per-replica {ipus_per_replica}"
        )
    instances = Instances(
        popdist.getInstanceIndex(),
        count,
        launched=True,
        from_poprun=not started_by_torchrun,
        launcher=launcher,
    )
    if replicated_tensor_sharding and count > 1:
        _check_sharding(device, instances, replication_factor)
    if count > 1:
        _meet(instances)
    return instances


def _check_sharding(device: DeviceChoice, instances: Instances, replicas: int) -> None:
    """Poplar shards over the replicas of one instance. For a single one PopART only logs that it doesn't."""
    local = replicas // instances.count
    if local == 1 and device.name == "ipu":
        raise DeviceError(
            "replicated_tensor_sharding shards the optimiser state over the replicas of one instance, but "
            f"each of the {instances.count} instances has 1 of the {replicas} replicas, so every one would "
            "have all of it: start one instance a host (poprun --num-instances with the number of hosts), or "
            "use --no-replicated-tensor-sharding and see with --dry-run whether the program still fits"
        )
    if instances.is_first:
        on = "" if device.name == "ipu" else "on IPUs, "
        print(
            f"warning: {on}replicated_tensor_sharding shards the optimiser state over the replicas of one "
            f"instance ({local}), not over all {replicas}: for the memory that this takes see --dry-run "
            f"--instances {instances.count}",
            file=sys.stderr,
        )


def _meet(instances: Instances) -> None:
    import torch

    if torch.distributed.is_initialized():
        return
    local = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    if "MASTER_ADDR" not in os.environ and local != str(instances.count):
        raise DeviceError(
            f"{instances.count} instances run on several hosts without a rendezvous address: set MASTER_ADDR "
            'to the first host\'s on all of them (poprun --mpi-local-args="-x MASTER_ADDR=...")'
        )
    address = os.environ.get("MASTER_ADDR", _ADDRESS)
    port = os.environ.get("MASTER_PORT", _PORT)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://{address}:{port}",
        rank=instances.index,
        world_size=instances.count,
    )
    # Gloo's threads abort a process that exits while they run.
    atexit.register(_part)


def _part() -> None:
    import torch

    if torch.distributed.is_initialized():
        # Gloo's threads need the GIL to free the tensors of the last collective. One that still waits for it
        # when the interpreter ends aborts the process ("terminate called without an active exception").
        time.sleep(_LETTING_GO_S)
        torch.distributed.destroy_process_group()
