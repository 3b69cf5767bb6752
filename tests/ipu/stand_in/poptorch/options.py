"""poptorch.Options: names, types, freezing and the checks of PopTorch's Python layer."""

from __future__ import annotations

import copy
from enum import Enum, IntEnum

import torch


class OutputMode(Enum):
    Final, EveryN, All, Sum, Default = range(5)


class ReductionType(Enum):
    Sum, Mean, NoReduction = range(3)


class ConnectionType(Enum):
    Always, OnDemand, Never = range(3)


class AutoStage(Enum):
    SameAsIpu, AutoIncrement = range(2)


class MatMulSerializationMode(Enum):
    InputChannels = "input_channels"
    ReducingDim = "reducing_dim"
    OutputChannels = "output_channels"
    Disabled = "none"


class DataLoaderMode(IntEnum):
    Sync, Async, AsyncRebatched = range(3)


class Frozen:
    """Values by name; a frozen object refuses changes, and a value keeps its type."""

    def __init__(self, **defaults):
        self.__dict__["values"] = dict(defaults)
        self.__dict__["frozen"] = False

    def set(self, name, value):
        if self.frozen:
            raise AttributeError("Can't modify frozen Options")
        before = self.values.get(name)
        assert before is None or isinstance(value, type(before)), (
            f"Unexpected type {type(value)} for option {name}. Expected {type(before)}"
        )
        self.values[name] = value
        return self

    def __getattr__(self, name):
        if name in self.__dict__.get("values", {}):
            return self.values[name]
        raise AttributeError(f"Invalid attribute {name}.")

    def __setattr__(self, name, value):
        raise AttributeError(f"Invalid attribute {name}.")


class PipelinedExecution:
    def __init__(self, *args):
        assert args in ((AutoStage.AutoIncrement,), (AutoStage.SameAsIpu,)), args


class TensorLocationSettings(Frozen):
    def useOnChipStorage(self, use=True):
        assert isinstance(use, bool), use
        return self.set("onChip", int(use))

    def useReplicatedTensorSharding(self, use=True):
        assert isinstance(use, bool), use
        return self.set("useReplicatedTensorSharding", int(use))


class Training(Frozen):
    def gradientAccumulation(self, gradient_accumulation):
        return self.set("gradient_accumulation", gradient_accumulation)

    def accumulationAndReplicationReductionType(self, reduction_type):
        if reduction_type not in (ReductionType.Sum, ReductionType.Mean):
            raise ValueError("must be set to poptorch.ReductionType.Mean or poptorch.ReductionType.Sum")
        return self.set("accumulation_and_replication_reduction_type", reduction_type)

    def setAutomaticLossScaling(self, enabled):
        return self.set("automatic_loss_scaling", enabled)


class Precision(Frozen):
    def enableStochasticRounding(self, enabled):
        return self.set("enableStochasticRounding", enabled)

    def enableFloatingPointExceptions(self, enabled):
        assert isinstance(enabled, bool), enabled
        return self.set("enableFloatingPointChecks", enabled)

    def setPartialsType(self, dtype):
        if dtype not in (torch.float16, torch.float32):
            raise ValueError(f"partials type {dtype}")
        name = "half" if dtype == torch.float16 else "float"
        self.set("partialsTypeMatMuls", name)
        return self.set("convolutionOptions", {"partialsType": name})


class TensorLocations(Frozen):
    def setOptimizerLocation(self, location):
        assert isinstance(location, TensorLocationSettings), location
        return self.set("location_optimizer", dict(location.values))


class Distributed(Frozen):
    def configureProcessId(self, process_id, num_processes):
        self.set("distributed_process_id", process_id)
        return self.set("num_distributed_processes", num_processes)


class Popart(Frozen):
    def set(self, key, value):
        assert isinstance(key, str), key
        return super().set(key, value)

    def setEngineOptions(self, engine_options):
        return self.set("engineOptions", dict(engine_options))

    def setPatterns(self, patterns, level=2):
        self.set("patterns_level", level)
        return self.set("patterns", dict(patterns))


class Options(Frozen):
    def __init__(self):
        super().__init__(
            replication_factor=1,
            device_iterations=1,
            auto_round_num_ipus=False,
            available_memory_proportion={},
        )
        self.values.update(output_mode=OutputMode.Default, connection_type=0, output_return_period=1)
        parts = {
            "Training": Training(gradient_accumulation=1),
            "Precision": Precision(),
            "TensorLocations": TensorLocations(),
            "Distributed": Distributed(),
            "_Popart": Popart(),
        }
        self.__dict__.update(parts)
        self.__dict__["parts"] = tuple(parts)
        self.__dict__["strategy"] = PipelinedExecution(AutoStage.SameAsIpu)

    def deviceIterations(self, device_iterations):
        return self.set("device_iterations", device_iterations)

    def replicationFactor(self, replication_factor):
        return self.set("replication_factor", replication_factor)

    def autoRoundNumIPUs(self, auto_round_num_ipus=True):
        return self.set("auto_round_num_ipus", auto_round_num_ipus)

    def outputMode(self, output_mode, output_return_period=None):
        assert isinstance(output_mode, OutputMode), output_mode
        return self.set("output_mode", output_mode)

    def randomSeed(self, random_seed):
        assert isinstance(random_seed, int), random_seed
        torch.manual_seed(random_seed)
        return self.set("random_seed", random_seed)

    def setExecutionStrategy(self, strategy):
        assert isinstance(strategy, PipelinedExecution), strategy
        self.__dict__["strategy"] = strategy
        return self

    def setAvailableMemoryProportion(self, available_memory_proportion):
        assert all(key.startswith("IPU") for key in available_memory_proportion)
        by_ipu = {int(key[3:]): share for key, share in available_memory_proportion.items()}
        self.set("available_memory_proportion", by_ipu)

    def enableExecutableCaching(self, path):
        if path is None:
            self._Popart.set("enableEngineCaching", False)
        else:
            self._Popart.set("cachePath", path)
            self._Popart.set("enableEngineCaching", True)
        return self

    def enableSyntheticData(self, enabled):
        self._Popart.set("syntheticDataMode", 2 if enabled else 0)
        return self

    def useOfflineIpuTarget(self, ipu_version=2):
        self.values["connection_type"] = ConnectionType.Never.value
        return self.set("ipu_version", ipu_version)

    def useIpuId(self, ipu_id):
        return self.set("ipu_id", ipu_id)

    def freeze(self):
        self.__dict__["frozen"] = True
        for name in self.parts:
            self.__dict__[name].__dict__["frozen"] = True

    def clone(self):
        """An unfrozen copy."""
        made = copy.copy(self)
        for target, source in (
            (made, self),
            *((copy.copy(self.__dict__[p]), self.__dict__[p]) for p in self.parts),
        ):
            target.__dict__["values"] = dict(source.values)
            target.__dict__["frozen"] = False
            if target is not made:
                made.__dict__[type(target).__name__ if not isinstance(target, Popart) else "_Popart"] = target
        return made

    def toDict(self):
        """What the core gets: every name once."""
        assert self.output_mode is not OutputMode.Default, (
            "An output mode must be picked before serialisation"
        )
        merged = dict(self.values)
        for name in self.parts:
            part = self.__dict__[name].values
            assert not set(merged) & set(part), "the option is set twice"
            merged.update(part)
        return {name: value.value if isinstance(value, Enum) else value for name, value in merged.items()}
