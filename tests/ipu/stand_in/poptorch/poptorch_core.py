"""The compiled core: executables on IPUs that compute nothing. Records every call; refuses a wrong order.

Each run changes the weights by amounts that depend on the random state, the learning rate and the optimiser's
state, so a program that restores any of them wrongly ends with other weights.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import types
from pathlib import Path

import torch


class _Compiler(types.ModuleType):
    """PopTorch's torch 2.0.1 imports torch._dynamo for torch.compile alone; newer ones in every program, to
    exclude functions from a compilation: a second for each process here, none of which compiles. This gives
    way to it where anything else is asked for."""

    trace_rules = types.SimpleNamespace(clear_lru_cache=lambda: None)

    @staticmethod
    def disable(fn, *_arguments, **_words):
        return fn

    @staticmethod
    def graph_break(*_arguments, **_words):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        del sys.modules[self.__name__], torch._dynamo
        return getattr(importlib.import_module(self.__name__), name)


if "torch._compile" in sys.modules and "torch._dynamo" not in sys.modules:
    sys.modules["torch._dynamo"] = torch._dynamo = _Compiler("torch._dynamo")


class Error(Exception):
    """As PopTorch's: `type`, `message`, `location`."""

    def __init__(self, message, kind="poptorch_cpp_error"):
        super().__init__(f"In poptorch/source/stand_in.cpp:1: '{kind}': {message}")
        self.type, self.message, self.location = kind, message, ""


class RecoverableError(Error):
    pass


class UnrecoverableError(Error):
    pass


def record(call, **details):
    """One line of the file that STAND_IN_LOG names."""
    path = os.environ.get("STAND_IN_LOG")
    if path:
        with Path(path).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"call": call, **details}) + "\n")


# Options as the core knows them, with their types: PopTorch's, and of PopART's SessionOptions those that
# Graphcore's recipes set.
OPTIONS = {
    "accumulateOuterFragmentSettings.excludedVirtualGraphs": list,
    "accumulateOuterFragmentSettings.schedule": int,
    "accumulation_and_replication_reduction_type": int,
    "auto_round_num_ipus": bool,
    "automatic_loss_scaling": bool,
    "available_memory_proportion": dict,
    "cachePath": str,
    "connection_type": int,
    "convolutionOptions": dict,
    "device_iterations": int,
    "disableGradAccumulationTensorStreams": bool,
    "enableEngineCaching": bool,
    "enableFloatingPointChecks": bool,
    "enableStochasticRounding": bool,
    "engineOptions": dict,
    "execution_mode": int,
    "gradient_accumulation": int,
    "ipu_id": int,
    "ipu_version": int,
    "location_optimizer": dict,
    "num_distributed_processes": int,
    "distributed_process_id": int,
    "output_mode": int,
    "output_return_period": int,
    "partialsTypeMatMuls": str,
    "patterns": dict,
    "patterns_level": int,
    "random_seed": int,
    "replication_factor": int,
    "scheduleNonWeightUpdateGradientConsumersEarly": bool,
    "subgraphCopyingStrategy": int,
    "syntheticDataMode": int,
}
_NEVER = 2


def check_options(options):
    for name, value in options.items():
        if name not in OPTIONS:
            raise Error(f"Unknown {type(value).__name__} option '{name}' for value {value!r}")
        if type(value) is not OPTIONS[name]:
            raise Error(f"Option '{name}' is of type {type(value).__name__}, not {OPTIONS[name].__name__}")
    for name in ("convolutionOptions", "engineOptions"):
        if not all(isinstance(value, str) for value in options.get(name, {}).values()):
            raise Error(f"{name} must map strings to strings: {options[name]}")
    for ipu, share in options["available_memory_proportion"].items():
        if not isinstance(ipu, int) or not isinstance(share, float) or not 0 <= share <= 1:
            raise Error(f"available_memory_proportion: {ipu!r}: {share!r}")


class Executable:
    """A compiled program and its state on the device, which one program at a time holds."""

    holder = None

    def __init__(self, kind, options, ipus, inputs, constants=None):
        self.kind, self.options, self.inputs = kind, options, inputs
        self.attached = self.has_weights = False
        self.weights, self.state, self.parameters = {}, {}, None
        offset = options.get("distributed_process_id", 0)
        self.random = [options.get("random_seed", 0), offset, 0]
        used, offline = ipus * options["replication_factor"], options["connection_type"] == _NEVER
        if offline and "ipu_id" in options:
            raise Error("Offline compilation targeting a specific id not supported")
        rounded = 2 ** math.ceil(math.log2(used))
        if not offline and rounded != used and not options["auto_round_num_ipus"]:
            raise Error(
                f"The model specifies the use of {used} IPUs, however PopTorch must reserve {rounded}"
            )
        record(
            "compile",
            kind=kind,
            options=options,
            target_ipus=used if offline else rounded,
            offline=offline,
            constants=constants,
            inputs=inputs,
        )
        fault = os.environ.get("STAND_IN_COMPILATION")
        if fault == f"{kind} failed":
            raise Error("a pattern made an invalid graph", kind="popart_internal_exception")
        if fault == f"{kind} out of memory":
            raise Error(
                "Out of memory: Cannot fit all variable data onto one or more tiles. "
                "Peak memory 1.3 MiB of 624 KiB on tile 12 (IPU 0)",
                kind="popart_exception",
            )
        self.offline = offline

    def _called(self, call, **details):
        record(call, kind=self.kind, **details)

    def attach(self):
        if self.offline:
            raise Error("Trying to run a model on an offline device (ConnectionType.Never)")
        if self.attached:
            raise Error("Device is already attached")
        if Executable.holder is not None:
            raise Error(
                f"Failed to acquire {self.options['replication_factor']} device(s): another program has them"
            )
        Executable.holder, self.attached = self, True
        self._called("attach")

    def detach(self):
        self.need_device()
        Executable.holder, self.attached, self.has_weights = None, False, False
        self._called("detach")

    def need_device(self):
        if not self.attached:
            raise Error("Device is not attached")

    def write_weights(self, weights):
        self.need_device()
        self.weights, self.has_weights = {name: value.clone() for name, value in weights.items()}, True
        self._called("write weights")

    def read_weights(self):
        self.need_device()
        self._called("read weights")
        return self.weights

    def update_optimizer(self, learning_rates):
        self.need_device()
        self.parameters = [float(rate) for rate in learning_rates]
        self._called("update optimizer", learning_rates=self.parameters)

    def write_optimizer_state(self, state):
        self.need_device()
        if not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise Error("an optimiser's state consists of tensors")
        self.state = {name: value.clone() for name, value in state.items()}
        self._called("write optimizer state")

    def read_optimizer_state(self):
        self.need_device()
        self._called("read optimizer state")
        return {name: value.clone() for name, value in self.state.items()}

    def write_random_state(self, state):
        self.need_device()
        if not isinstance(state, list) or len(state) != 3 or not all(type(number) is int for number in state):
            raise Error(f"a random state is a list of integers of this executable's size: {state!r}")
        self.random = list(state)
        self._called("write random state", state=state)

    def read_random_state(self):
        self.need_device()
        self._called("read random state")
        return list(self.random)

    def run(self, inputs):
        self.need_device()
        if not self.has_weights:
            raise Error("run before the weights were written")
        if inputs != self.inputs:
            raise Error(f"Shape mismatch: expected {self.inputs} but got {inputs}")
        self.random[2] += 1
        if self.kind == "training":
            if self.parameters is None:
                raise Error("run before the optimizer was written")
            noise = 1 + self.random[1] / 64 + (self.random[2] % 16) / 1024
            for name, value in self.weights.items():
                moment = self.state.setdefault(f"Accl1___{name}", torch.zeros(()))
                moment += 1
                value -= self.parameters[0] * noise * (1 + float(moment) / 256)
        self._called("run")
