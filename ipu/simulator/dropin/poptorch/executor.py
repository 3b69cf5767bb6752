"""PoplarExecutor, which trainingModel and inferenceModel return."""

from __future__ import annotations

import os
import time
from typing import Any, Callable, Mapping

import torch
from ipu_simulator import numerics

from . import enums
from ._logging import limit_repeats, logger
from ._options.popart import Obeyed
from ._run import compilation, devices, files, host_weights, predictions
from ._run.arguments import ArgumentParser, Arguments, CompiledCall
from ._run.compiled import Executable
from ._run.device_weights import ReplicaGrouping, register
from ._run.host_weights import is_of_inference_mode, outside_inference_mode
from ._run.predictions import Measured, Predictions
from ._run.structure import tensors

# PopTorch's name, for libraries that register context managers around forwards.
from ._trace.patches import Substitutions as _OverwriteContextManager  # noqa: F401
from .optim.base import Optimizer
from .optim.on_device import OptimizerOnDevice, check_values
from .optim.settings import Extracted, extract
from .options import Options
from .poptorch_core import createPoptorchError
from .tools import module_repr


class PoplarExecutor(Measured):
    """Runs a wrapped model. The first call compiles it; input shapes and dtypes are fixed from then on.

    Attributes that the executor lacks are looked up in its model: the user's in training, in inference the
    copy that runs.

    :param model: the model to run: a shallow copy of the user's.
    :param options: with the output mode resolved; frozen by the constructor.
    :param user_model: the model that `.model` gives and attributes are looked up in; default: `model`. A
        training model's is the program's, which is wrapped in place.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        options: Options,
        training: bool,
        poptorch_version: str,
        optimizer: torch.optim.Optimizer | None = None,
        user_model: torch.nn.Module | None = None,
    ) -> None:
        self._model = model
        self._user_model = model if user_model is None else user_model
        self._options = options
        self._training = training
        self._poptorch_version = poptorch_version
        self._parser = ArgumentParser(model.forward)
        seed = (
            options.random_seed if options.exists("random_seed") else int.from_bytes(os.urandom(4), "little")
        )
        first_replica = options.Distributed.processId * options.replication_factor
        self._randomness = numerics.KeyedRandomness(seed, first_replica)
        self._executable: Executable | None = None
        self._optimizer_on_device: OptimizerOnDevice | None = None
        self._attached = False
        self._lease: devices.Lease | None = None  # None: detached, or on Poplar's IPU model
        self._seen_downloads: set[int] = set()
        self._optimizer = optimizer
        self.replica_groupings: dict[int, ReplicaGrouping] = {}  # by the id of the parameter
        self._found: Extracted | None = None
        self._first_found: Extracted | None = None
        self._logged: set[str] = set()
        limit_repeats(options.max_repeat_logs)
        host_weights.check_buffers(self._user_model)
        self.is_of_inference_mode = is_of_inference_mode(model)
        if training:
            assert optimizer is not None, "A training model needs an optimizer"
            self.setOptimizer(optimizer)
            host_weights.wrap(self._user_model, host_weights.HostWeights(self))
        register(self)
        options._freeze()

    def __repr__(self) -> str:
        """The model's, with `BeginBlock(...)` before each module that begins a block."""
        return module_repr(self._user_model)

    # ---- model, options, random state

    @property
    def model(self) -> torch.nn.Module:
        """The user's model; of an inference model, the copy that runs."""
        return self._user_model

    @property
    def options(self) -> Options:
        """The executor's options: a frozen copy of the user's with the output mode resolved."""
        return self._options

    @property
    def _executable_inputs(self) -> CompiledCall | None:
        # Private in PopTorch too, but optimum-graphcore's pipelines read the compiled batch size from it.
        executable = self._executable
        return None if executable is None else executable.inputs.as_call(self._parser.positional)

    @property
    def rng_state(self) -> list[int]:
        """The device's random state: [seed, device iterations done]."""
        return self._randomness.state

    @rng_state.setter
    def rng_state(self, state: list[int]) -> None:
        self._randomness.state = state

    def __getattr__(self, attribute: str) -> Any:
        # Called only if ordinary lookup fails, also before __init__ has run (copy, pickle).
        if attribute.startswith("__") or "_user_model" not in self.__dict__:
            raise AttributeError(attribute)
        return getattr(self._user_model, attribute)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """Loads weights into the user's model, and uploads them if a device is attached."""
        result = self._user_model.load_state_dict(state_dict, strict)
        if self.isAttachedToDevice():
            self.copyWeightsToDevice()
        return result

    # ---- compile and run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs a combined batch: [deviceIterations * gradientAccumulation * replicas * micro batch, ...].

        Compiles first if needed. Returns the forward's structure of outputs, whose first dimension depends on
        the output mode. Raises poptorch.Error if the arguments differ from those of the compilation,
        or other models hold the IPUs that it needs; AssertionError for an offline device and a batch
        dimension that can't be split.
        """
        assert not self._offline, (
            "Trying to run a model on an offline device (ConnectionType.Never): use model.compile(inputs) "
            "instead of model(inputs)"
        )
        arguments = self._parser.parse(args, kwargs)
        if self._executable is None:
            self._compile(arguments)
        if not self._attached:
            self.attachToDevice()
        self._fetch_training_weights()
        return self._run(arguments)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles for these inputs without running; a warning if the model is compiled already.

        Raises AssertionError and poptorch.Error as a call does, and the errors of the model's forward.
        """
        arguments = self._parser.parse(args, kwargs)
        if self._executable is not None:
            logger.warning("Call to compile() ignored: the executable is already compiled")
            return
        self._compile(arguments)

    @outside_inference_mode
    def _compile(self, compiled: Arguments | dict[str, Any]) -> None:
        """`compiled`: the arguments to compile for, or the saved state of an executable."""
        compilation.pre_compile.call()
        if self._found is not None:
            check_values(self._found)
        start_s = time.perf_counter()
        with host_weights.no_downloads(self._synced()):
            executable = Executable(
                self._model,
                self._options,
                self._training,
                self._randomness,
                compiled,
                self._found,
                self.replica_groupings,
            )
        # Before the optimizer's state is on the device, so that a refused model remains as it was.
        lease = None if self._offline else self._acquire(executable)
        if self._optimizer is not None and self._found is not None and not self._offline:
            popart = Obeyed(self._options._Popart)
            self._optimizer_on_device = OptimizerOnDevice(
                self._optimizer,
                self._found,
                executable.weights,
                accumulators=executable.plan.gradient_accumulation > 1 and popart.shows_accumulators,
                rounding=executable.rounding,
                automatic_scale=popart.scales_loss_automatically,
                processes=executable.processes,
            )
        self._executable = executable
        self._lease, self._attached = lease, not self._offline
        self._compilation_s = time.perf_counter() - start_s
        self._predictions = None
        if isinstance(compiled, Arguments):
            self._predictions = Predictions(
                self._model, compiled, executable.plan, self._options, self._optimizer
            )
        with self._weights_of_groups():
            predictions.report(self._predictions, self._options, self._training)
        compilation.post_compile.call()

    @outside_inference_mode
    def _run(self, arguments: Arguments) -> Any:
        executable, hosts = self._compiled(), self._hosts
        start_s = time.time()
        for host in hosts:
            # Set before the run: if it is interrupted, the device may hold newer weights all the same.
            host.stale = host.stale or self._training
        with host_weights.no_downloads(hosts):
            output = executable.run(arguments, self._optimizer_on_device)
        end_s = time.time()
        steps, returned = executable.num_micro_batches
        self._note_call(start_s, end_s, (len(arguments.tensors), steps), (len(tensors(output)), returned))
        return output

    @property
    def _offline(self) -> bool:
        return self._options.connection_type == enums.ConnectionType.Never.value

    @property
    def _hosts(self) -> list[host_weights.HostWeights]:
        """States of the host's weights: this training model's, or those that share an inference model's."""
        if not self._training:
            return host_weights.hosts_of(self._model)
        host = host_weights.host_of(self._user_model)
        return [] if host is None else [host]

    def _synced(self) -> list[host_weights.HostWeights]:
        """`_hosts`, after downloads of newer weights, which count as seen."""
        hosts = self._hosts
        for host in hosts:
            host.sync()
        self._seen_downloads = {host.version for host in hosts}
        return hosts

    def _fetch_training_weights(self) -> None:
        """Before inference: uploads the latest weights of training models that share them."""
        if self._training:
            return
        seen = {host_weights.NEVER_DOWNLOADED, *self._seen_downloads}
        self._synced()
        if self._seen_downloads - seen:
            logger.debug("Implicit copyWeightsToDevice()")
            self.copyWeightsToDevice()

    # ---- weights and device

    def _compiled(self) -> Executable:
        if self._executable is None:
            raise createPoptorchError("Model has not been compiled or has been destroyed.")
        return self._executable

    @outside_inference_mode
    def copyWeightsToHost(self) -> None:
        """Downloads the weights into the user's model. Raises poptorch.Error if it isn't compiled."""
        executable = self._compiled()
        for host in self._hosts:
            # Before the download, which accesses the wrapped tensors and would sync again.
            host.downloaded()
        executable.weights.download()

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Downloads the weights if the device has newer ones; returns whether it did."""
        downloaded = [host.sync() for host in self._hosts]
        return any(downloaded)

    @outside_inference_mode
    def copyWeightsToDevice(self) -> None:
        """Uploads the user model's weights; without it, edits on the host have no effect on the device.

        Raises poptorch.Error if the model isn't compiled.
        """
        executable = self._compiled()
        if self._training:
            for host in self._hosts:
                host.stale = False
        else:
            self._synced()
        executable.weights.upload()

    @outside_inference_mode
    def copyNamedBuffersToDevice(self) -> None:
        """Uploads the buffers of options.updatableNamedBuffers.

        Raises poptorch.Error if it lists none, and if the model isn't compiled.
        """
        names = self._options.updatable_named_buffers
        if not names:
            raise createPoptorchError("No named buffers marked as updatable via updatableNamedBuffers option")
        self._compiled().weights.upload_buffers(names)

    def _acquire(self, executable: Executable) -> devices.Lease | None:
        kind = "training" if self._training else "inference"
        holder = f"the {kind} model of {type(self._model).__name__}"
        return devices.acquire(self._options, executable.num_ipus, holder)

    def _release(self) -> None:
        if self._lease is not None:
            self._lease.release()
        self._lease, self._attached = None, False

    def isCompiled(self) -> bool:
        """Whether there is an executable."""
        return self._executable is not None

    def isAttachedToDevice(self) -> bool:
        """Whether the executable is on the device."""
        return self._attached

    def detachFromDevice(self) -> None:
        """Downloads weights and optimizer state and releases the device.

        Raises poptorch.Error if the model isn't compiled or isn't attached.
        """
        self._compiled()
        if not self._attached:
            raise createPoptorchError("Device is not attached")
        self.copyWeightsToHostIfNeeded()
        if self._optimizer_on_device is not None:
            self._optimizer_on_device.refresh()
        self._release()

    def attachToDevice(self) -> None:
        """Acquires a device again and uploads everything.

        Raises poptorch.Error if the model isn't compiled or is attached already, and if other models hold the
        IPUs that it needs; AssertionError for an offline device.
        """
        executable = self._compiled()
        assert not self._offline, "Can't attach to an offline device (ConnectionType.Never)"
        if self._attached:
            raise createPoptorchError("Device is already attached")
        self._lease = self._acquire(executable)
        self.copyWeightsToDevice()
        self._attached = True

    def destroy(self) -> None:
        """Downloads the weights, drops the executable, unwraps the user's model. No-op if not compiled."""
        if self._executable is None:
            return
        if self._training:
            self.copyWeightsToHostIfNeeded()
            if self._optimizer_on_device is not None:
                self._optimizer_on_device.release()
            host_weights.unwrap(self._user_model)
        self._executable = None
        self._optimizer_on_device = None
        self._release()

    # ---- optimizer

    def setOptimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Applies the optimizer's current attributes; without it, a scheduler's changes have no effect.

        Raises AssertionError for an unsupported class and for an inference model, ValueError for amsgrad and
        if it would change the mean reduction strategy of a compiled model, poptorch.Error for a changed
        constant.
        """
        assert self._training, "setOptimizer is only for training models"
        if isinstance(optimizer, Optimizer):
            optimizer._attributes_applied()
            if Obeyed(self._options._Popart).scales_loss_automatically:
                optimizer.variable_attrs.markAsVariable("loss_scaling")
        found = extract(optimizer)
        self._choose_reduction_strategy(found)
        if self._first_found is None:
            self._first_found = found
        relaxed = self._options.relax_optimizer_checks
        self._log_once(found.unexpected(self._first_found), logger.debug if relaxed else logger.warning)
        self._log_once([found.warning] if found.warning else [], logger.warning)
        if self._optimizer_on_device is not None:
            self._optimizer_on_device.follow(optimizer, found)
        self._optimizer = optimizer
        self._found = found

    def _log_once(self, texts: list[str], log: Callable[[str], None]) -> None:
        for text in texts:
            if text not in self._logged:
                self._logged.add(text)
                log(text)

    def _choose_reduction_strategy(self, found: Extracted) -> None:
        """Selects a running mean for float16 accumulators, which would overflow before a final division."""
        training = self._options.Training
        running = enums.MeanReductionStrategy.Running
        if (
            not found.needs_running_mean
            or training.meanAccumulationAndReplicationReductionStrategy == running
        ):
            return
        if self._executable is not None:
            raise ValueError(
                "Invalid optimizer: the new optimizer would require changing options.Training."
                "meanAccumulationAndReplicationReductionStrategy to poptorch.MeanReductionStrategy.Running "
                "but the executable is already compiled."
            )
        self._options = self._options.clone()
        self._options.Training.setMeanAccumulationAndReplicationReductionStrategy(running)
        self._options._freeze()

    # ---- tensors and graph

    def getTensorNames(self) -> list[str]:
        """The names that options.anchorTensor accepts: weights, their gradients and updates, results.

        Raises AssertionError if the model isn't compiled.
        """
        assert self._executable is not None, "Model must be compiled first"
        return self._executable.tensor_names

    def getAnchoredTensor(self, short_name: str) -> torch.Tensor:
        """The last run's anchored tensor, laid out as an output is. AssertionError for an unknown name."""
        kept = self._executable.anchored if self._executable is not None else {}
        assert short_name in kept, f"No tensor with name {short_name} found."
        return kept[short_name]

    def _debugGetPopartIR(self) -> str:
        """The traced graph as JSON: {"maingraph": [{name, type, attributes, inputs, outputs}, ...]}."""
        return self._compiled().ir

    # ---- executable files

    def compileAndExport(self, filename: str, *args: Any, export_model: bool = True, **kwargs: Any) -> None:
        """Compiles for these inputs, unless the model is compiled already, and saves as `save` does.

        Raises AssertionError and poptorch.Error as `compile` and `save` do.
        """
        arguments = self._parser.parse(args, kwargs)
        if self._executable is None:
            self._compile(arguments)
        self.save(filename, export_model)

    def save(self, filename: str, export_model: bool = True, save_rng_state: bool = True) -> None:
        """Writes the executable to a file, by default with the model, its optimizer and the random state.

        In a directory, the file is model.poptorch; missing parent directories are created. poptorch.load
        reads a file with the model, loadExecutable any. Raises poptorch.Error if the model isn't compiled.
        """
        executable = self._compiled()
        if export_model and any(isinstance(m, torch.jit.ScriptModule) for m in self._user_model.modules()):
            raise createPoptorchError(
                "A TorchScript module can't be pickled into the file: save the executable with "
                "export_model=False, and the module with torch.jit.save."
            )
        saved = executable.saved()
        if save_rng_state:
            saved["rng_state"] = self.rng_state
        files.write(
            filename,
            files.Contents(
                version=self._poptorch_version,
                training=self._training,
                options=self._options,
                model=self._user_model if export_model else None,
                optimizer=self._optimizer if export_model else None,
                executable=saved,
            ),
        )

    def loadExecutable(self, filename: str) -> None:
        """Loads an executable from a file instead of compiling; the weights remain this model's.

        The file is a pickle: load only files that you trust. Raises AssertionError for another version's
        file and if the model is compiled already, poptorch.Error for the executable of another model or kind
        of model.
        """
        assert self._executable is None, "The model is compiled already: call destroy() first"
        contents = files.read(filename, self._poptorch_version)
        if contents.training != self._training:
            kinds = {True: "training", False: "inference"}
            raise createPoptorchError(
                f"{filename} holds an executable for {kinds[contents.training]}, this model is for "
                f"{kinds[self._training]}."
            )
        self._compile(contents.executable)
        if "rng_state" in contents.executable:
            self.rng_state = contents.executable["rng_state"]
