"""Executors: compilation, attachment, and transfers to and from the device, in PopTorch's order."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch.func import functional_call

from . import poptorch_core as core
from .ops import Trace
from .optim import Optimizer
from .options import Options, OutputMode

_NOT_COMPILED = "Model has not been compiled or has been destroyed."


def trainingModel(model, options=None, optimizer=None):
    if type(model).__name__.startswith("Poptorch"):
        raise RuntimeError("Model has already been wrapped in 'poptorch.trainingModel'.")
    return PoplarExecutor(model, options, True, "3.4.0", optimizer=optimizer, user_model=model)


def inferenceModel(model, options=None):
    if options.Training.gradient_accumulation != 1:
        raise core.Error("You must set poptorch.Options().Training.gradientAccumulation to 1")
    return PoplarExecutor(copy.copy(model), options, False, "3.4.0", user_model=model)


def host_weights(model):
    """name -> tensor, of parameters and buffers, each once; no download."""
    named = [*torch.nn.Module.named_parameters(model), *torch.nn.Module.named_buffers(model)]
    return {name: tensor.detach() for name, tensor in named}


VERSIONS = {}  # of the host's weights, by the id of the user's model


class PoplarExecutor:
    def __init__(self, model, options, training, poptorch_version, optimizer=None, user_model=None):
        if not isinstance(options, Options):
            raise core.Error("Invalid type: 'options' (Expected poptorch.Options)")
        options.freeze()
        self._options = options.clone()
        if options.output_mode is OutputMode.Default:
            self._options.outputMode(OutputMode.Final if training else OutputMode.All)
        self._options.freeze()
        core.check_options(self._options.toDict())
        self._model, self._user_model, self._training = model, user_model, training
        self._executable, self._dirty, self._seen = None, False, None
        self._random = self._state = None
        if training:
            self._wrap(user_model)
            self._set(optimizer)

    model = property(lambda self: self._user_model)
    options = property(lambda self: self._options)

    def _wrap(self, model):
        executor, original = self, type(model)

        def fetching(name):
            def method(self, *arguments, **words):
                executor.copyWeightsToHostIfNeeded()
                return getattr(original, name)(self, *arguments, **words)

            return method

        names = ("state_dict", "parameters", "named_parameters", "forward")
        model.__class__ = type(
            f"Poptorch{original.__name__}", (original,), {name: fetching(name) for name in names}
        )
        self._original = original

    # ------------------------------------------------------------------------------------- the optimiser
    def _set(self, optimizer):
        assert isinstance(optimizer, Optimizer), f"Unsupported optimizer type {type(optimizer)}"
        self._optimizer, self._sent = optimizer, None
        optimizer.executor = self

    def setOptimizer(self, optimizer):
        if optimizer is not self._optimizer:
            self._set(optimizer)

    def _send_optimizer(self):
        rates = [group["lr"] for group in self._optimizer.param_groups]
        if rates != self._sent:
            self._executable.update_optimizer(rates)
            self._sent = rates
        if self._optimizer.loaded:
            self._executable.write_optimizer_state(self._optimizer.loaded)
            self._optimizer.loaded = None

    def optimizer_state(self):
        """As on the device, or as it was when the program was detached."""
        if self.isCompiled() and self.isAttachedToDevice() and self._state is None:
            self._state = self._executable.read_optimizer_state()
        return self._optimizer.state_on_host if self._state is None else self._state

    # ------------------------------------------------------------------------------------ the executable
    def isCompiled(self):
        return self._executable is not None

    def isAttachedToDevice(self):
        return self.isCompiled() and self._executable.attached

    def _build(self, batch):
        options = self._options
        micro_batches = options.device_iterations * options.Training.gradient_accumulation
        micro_batches *= options.replication_factor
        for tensor in batch:
            if tensor.shape[0] % micro_batches:
                raise AssertionError(f"Invalid batch dimension: {tuple(tensor.shape)}, {micro_batches}")
        inputs = [
            torch.empty(
                (tensor.shape[0] // micro_batches, *tensor.shape[1:]), dtype=tensor.dtype, device="meta"
            )
            for tensor in batch
        ]
        weights = {name: tensor.to("meta") for name, tensor in host_weights(self._user_model).items()}
        with Trace() as trace, torch.no_grad():
            self._outputs = functional_call(self._model, weights, tuple(inputs))
        if self._training and trace.losses != 1:
            raise core.Error(f"{trace.losses} losses found: Graph must have one final loss.")
        depth, what = trace.stages, options.device_iterations
        if self._training:
            depth, what = 2 * depth - 1, options.Training.gradient_accumulation
        if what < depth:
            raise core.Error(
                f"must be greater than or equal to the number of pipeline stages ({depth}): {what}"
            )
        constants = None
        if self._training:
            constants = sorted(set(self._optimizer.attributes) - set(self._optimizer.variables()))
        kind = "training" if self._training else "inference"
        shapes = [[*tensor.shape] for tensor in batch]
        self._executable = core.Executable(kind, options.toDict(), trace.ipus, shapes, constants)

    def compile(self, *args, **kwargs):
        assert not self.isCompiled(), "Call to compile() ignored: the executable is already compiled"
        self._build(args)
        if not self._executable.offline:
            self._attach()

    def compileAndExport(self, filename, *args, export_model=True, **kwargs):
        self._build(args)
        if Path(filename).parent != Path():
            Path(filename).parent.mkdir(parents=True, exist_ok=True)
        Path(filename).write_text("executable")
        core.record("export", file=str(filename), export_model=export_model)

    def _attach(self):
        self._executable.attach()
        self._executable.write_weights(host_weights(self._user_model))
        self._seen = VERSIONS.get(id(self._user_model), 0)
        if self._training:
            self._sent = None
            if self._state is not None and self._optimizer.loaded is None:
                self._optimizer.loaded = self._state
            self._send_optimizer()
        if self._random is not None:
            self._executable.write_random_state(self._random)
        elif not self._training:
            core.record("seed", kind="inference")

    def attachToDevice(self):
        if not self.isCompiled():
            raise core.Error(_NOT_COMPILED)
        self._attach()

    def detachFromDevice(self):
        if not self.isCompiled():
            raise core.Error(_NOT_COMPILED)
        self._executable.need_device()
        if self._training:
            self.copyWeightsToHostIfNeeded()
            self.optimizer_state()
        self._random = self._executable.read_random_state()
        self._executable.detach()

    def destroy(self):
        if not self.isCompiled():
            return
        if self.isAttachedToDevice():
            self.detachFromDevice()
        self._executable = None
        if self._training:
            self._user_model.__class__ = self._original

    def copyWeightsToHost(self):
        if not self.isCompiled():
            raise core.Error(_NOT_COMPILED)
        host = host_weights(self._user_model)
        for name, value in self._executable.read_weights().items():
            host[name].copy_(value)
        VERSIONS[id(self._user_model)] = VERSIONS.get(id(self._user_model), 0) + 1
        self._dirty = False

    def copyWeightsToHostIfNeeded(self):
        if self._dirty:
            self.copyWeightsToHost()
            return True
        return False

    def copyWeightsToDevice(self):
        if not self.isCompiled():
            raise core.Error(_NOT_COMPILED)
        self._executable.write_weights(host_weights(self._user_model))

    def rng_state(self):
        if not self.isCompiled():
            raise core.Error(_NOT_COMPILED)
        return self._executable.read_random_state() if self.isAttachedToDevice() else list(self._random)

    def _set_rng_state(self, state):
        if not self.isCompiled():
            raise core.Error(_NOT_COMPILED)
        self._executable.write_random_state(state)

    rng_state = property(rng_state, _set_rng_state)

    def __call__(self, *args, **kwargs):
        if not self.isCompiled():
            self.compile(*args)
        if not self.isAttachedToDevice():
            self._attach()
        elif self._training:
            self._send_optimizer()
        elif VERSIONS.get(id(self._user_model), 0) != self._seen:
            self._seen = VERSIONS[id(self._user_model)]
            self.copyWeightsToDevice()
        assert not self._model.training or self._training, "an inference model in training mode"
        self._executable.run([[*tensor.shape] for tensor in args])
        self._dirty, self._state, self._random = self._training, None, None
        return tuple(self._value(output) for output in self._outputs)

    def _value(self, output):
        options = self._options
        iterations = options.device_iterations * options.Training.gradient_accumulation
        factor = options.replication_factor * (iterations if options.output_mode is OutputMode.All else 1)
        dtype = torch.int32 if not output.dtype.is_floating_point else output.dtype
        shape = (factor * output.shape[0], *output.shape[1:]) if output.dim() else (factor,) * (factor > 1)
        return torch.full(shape, iterations if options.output_mode is OutputMode.Sum else 1, dtype=dtype)
