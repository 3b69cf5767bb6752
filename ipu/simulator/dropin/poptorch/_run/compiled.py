"""The executable: traces a model's forward once, holds its device weights, and runs it."""

from __future__ import annotations

import contextlib
import functools
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, Iterator

import torch
from ipu_simulator import numerics
from ipu_simulator.graph.recorder import Recorder
from ipu_simulator.host import keep_freed_memory

from .. import enums, poptorch_core
from .._logging import logger
from .._options.known import validate
from .._options.popart import Obeyed
from .._trace import Listener, bfloat16, bodies, onednn, popart_ir, strided_norm, watch
from .._trace import run as _trace
from .._trace.buffers import SharedBuffers, before_writes
from .._trace.casts import ImplicitCasts, place_on_ipu, version_of, widen_indices
from .._trace.checks import Checks
from .._trace.constants import Move, Moves
from .._trace.errors import ORIGIN, UNKNOWN, explained
from .._trace.losses import Losses, LossPlace, find_loss
from .._trace.patches import trusted_kernels
from .._trace.replay import Replay
from .._trace.running_statistics import RunningStatistics
from .._trace.tape import Tape
from ..optim.hyperparameters import tensor_names
from ..poptorch_core import createBackendError, createPoptorchError
from . import anchors as _anchors
from . import host_weights as _outputs
from .arguments import Arguments, FrozenArguments, check_batch_dimension
from .arithmetic import (
    arithmetic,
    computes_as_ipu,
    computes_in_bfloat16,
    exceptions,
    multiplies_by_onednn,
    reduction,
    state_rounding,
)
from .compilation import compile_lock, leave_note
from .device_weights import DeviceWeights, ReplicaGrouping
from .divergence import first_non_finite
from .merging import Merger
from .structure import check_types, map_leaves, tensors, with_tensors

if TYPE_CHECKING:
    from ..optim.on_device import OptimizerOnDevice
    from ..optim.settings import Extracted
    from ..options import Options

# Results of tracing that a file holds; everything else is rebuilt from the model and its options.
_SAVED = (
    "_inputs",
    "_flags",
    "_mixes_types",
    "_narrow_indices",
    "_names_ipu",
    "_constants",
    "_loss",
    "_output",
    "ir",
    "num_ipus",
)
_SAYS = {"plan": "counts of micro batches", "weights": "weights"}
# Norms with running statistics, and TorchScript modules, which can't replace their members.
_MAY_REPLACE = (torch.nn.modules.batchnorm._NormBase, torch.jit.ScriptModule)


class Executable:
    """A model compiled for inputs of fixed shapes, dtypes and structure.

    The constructor traces the model's forward on the first micro batch. That changes no weight, buffer,
    random state or input. Raises poptorch.Error if the model or its options can't be compiled.

    :param optimizer: the attributes at compilation of a training model's optimizer.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        options: Options,
        training: bool,
        randomness: numerics.KeyedRandomness,
        compiled: Arguments | dict[str, Any],
        optimizer: Extracted | None = None,
        replica_groupings: dict[int, ReplicaGrouping] | None = None,
    ) -> None:
        self._model = model
        self._options = options
        self._training = training
        self._randomness = randomness
        self._optimizer = optimizer
        keep_freed_memory()
        # Dispatch modes for the model's arithmetic, and rounding of the training state; None in float32.
        as_ipu = computes_as_ipu()
        self._arithmetic = arithmetic(options)
        # Values are meaningless during compilation, so only runs check for floating-point exceptions.
        self._exceptions = None if as_ipu else exceptions(options)
        self.rounding = state_rounding(options, randomness) if as_ipu else None
        self._copies = numerics.WeightCopies() if computes_in_bfloat16() else None
        self._uses_onednn = multiplies_by_onednn()
        accumulation = options.Training.gradient_accumulation if training else 1
        if isinstance(compiled, Arguments):
            check_batch_dimension(compiled, options, accumulation)
        _check_target(options)
        self.processes = _processes(options, training)
        self.plan = numerics.StepPlan(
            device_iterations=options.device_iterations,
            gradient_accumulation=accumulation,
            replicas=options.replication_factor,
            input_group_size=options.input_group_size,
            groups_are_orthogonal=options.input_cgt == enums.CommGroupType.Orthogonal,
            processes=self.processes.count,
        )
        given = replica_groupings or {}
        groupings = {
            name: given[id(parameter)]
            for name, parameter in model.named_parameters()
            if id(parameter) in given
        }
        if isinstance(compiled, dict):
            _check_saved(compiled)
            groupings = compiled["replica_groupings"]
        if groupings and self.processes.count > 1:
            raise createPoptorchError(
                "On the simulator, replicas in several processes share every weight: replicaGrouping needs "
                "all replicas in one process."
            )
        self.weights = DeviceWeights(model, self.plan.replicas, options.broadcast_buffers, groupings)
        self.weights.check_buffer_names(options.updatable_named_buffers)
        self._loss: LossPlace | None = None
        self._has_loops = False  # between registered operators
        self._constants: dict[Move, torch.Tensor] = {}
        self._calls: Replay | None = None  # replays the forward; None: each run calls the forward
        self.anchored: dict[str, torch.Tensor] = {}  # of the last run, by short name
        self.num_ipus = self.plan.replicas  # of all replicas in this process
        self._reads_statistics = False  # whether the forward reads running statistics after their norm
        self._statistics: RunningStatistics | None = None  # of the micro batch that runs
        self._may_overwrite = False  # whether an in-place operation may overwrite what a gradient needs
        self._has_warned = False  # of a loss that is NaN or infinite
        self._merger: Merger | None = None
        if training and not as_ipu:
            self._merger = Merger(model, self.plan, self.weights, randomness, self._replaying)
        self._is_traced = isinstance(compiled, Arguments)  # otherwise the first run traces
        if isinstance(compiled, Arguments):
            self._inputs = compiled.frozen()
            # Tracing freezes the modules' training flags into the graph.
            self._flags = {name: module.training for name, module in model.named_modules()}
            with compile_lock(model, options):
                self._trace_model(compiled)
                leave_note(options, self.ir)
        else:
            self._restore(compiled)
        _anchors.check(options, self.tensor_names)

    @property
    def inputs(self) -> FrozenArguments:
        """The shapes, dtypes, structure and constants that the model was compiled for."""
        return self._inputs

    @property
    def tensor_names(self) -> list[str]:
        """The tensor names that options.anchorTensor accepts."""
        return _anchors.names(self.ir, self.weights.names, self._training, self._optimizer_tensors)

    @property
    def _optimizer_tensors(self) -> list[str]:
        if self._optimizer is None:
            return []
        weights = {self.weights.names[i]: self.weights.parameters[i] for i in self.weights.trainable}
        return tensor_names(self._optimizer, weights, Obeyed(self._options._Popart).scales_loss_automatically)

    @property
    def num_micro_batches(self) -> tuple[int, int]:
        """Micro batches per call, and how many of their outputs a call returns (Sum: one per replica)."""
        plan, mode = self.plan, self._options.output_mode
        by_iteration = plan.gradient_accumulation * plan.replicas
        kept_iterations = plan.device_iterations // self._options.output_return_period
        returned = {
            enums.OutputMode.All: plan.device_iterations * by_iteration,
            enums.OutputMode.EveryN: kept_iterations * by_iteration,
        }
        return plan.device_iterations * by_iteration, returned.get(mode, plan.replicas)

    def _module_paths(self) -> dict[int, str]:
        if not self._options.module_namescope_enabled:
            return {}
        return {id(module): path for path, module in self._model.named_modules()}

    def saved(self) -> dict[str, Any]:
        """The state that lets another process load this executable without compiling it."""
        return {
            **{name: getattr(self, name) for name in _SAVED},
            "plan": self.plan,
            "weights": self._weights(),
            "replica_groupings": self.weights.groupings,
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        for what, here in (("plan", self.plan), ("weights", self._weights())):
            if saved[what] != here:
                raise createPoptorchError(
                    f"The executable in the file was compiled for other {_SAYS[what]}: {saved[what]} in the "
                    f"file, {here} here."
                )
        for name in _SAVED:
            setattr(self, name, saved[name])

    def _weights(self) -> dict[str, tuple[Any, ...]]:
        return {
            name: (*tensor.shape, str(tensor.dtype))
            for name, tensor in zip(self.weights.names, self.weights.device_parameters)
        }

    @contextlib.contextmanager
    def _in_run(self) -> Iterator[None]:
        """Context of a micro batch's forward and backward pass: the arithmetic, and in-place operations."""
        mode = self._arithmetic
        is_needed = not isinstance(mode, numerics.Float16InFloat32) or mode.saw_float16
        saved = numerics.SavedTensors() if self._may_overwrite else None
        with (
            mode if is_needed else contextlib.nullcontext(),
            self._exceptions or contextlib.nullcontext(),
            saved or contextlib.nullcontext(),
        ):
            yield
        if self._statistics is not None:
            self._statistics.update()
        if saved is not None and self._calls is not None:
            self._may_overwrite = saved.has_copied  # all replays are alike

    def _watched(
        self,
        is_forward: bool,
        statistics: RunningStatistics | None,
        moves: Moves | None = None,
        device: Listener | None = None,
        losses: Losses | None = None,
    ) -> contextlib.AbstractContextManager[None]:
        """The listeners of a forward after compilation, or of its replay, which needs fewer."""
        return watch.later_run(
            is_forward,
            bodies.on_call if self._has_loops else None,
            statistics,
            moves,
            device,
            widen_indices if self._narrow_indices else None,
            ImplicitCasts() if self._mixes_types else None,
            losses,
            strided_norm.on_call if Obeyed(self._options._Popart).strides_group_norm else None,
            self._products() if is_forward else None,
        )

    def _products(self) -> Listener | None:
        """The listener for products of a forward that has no tape."""
        if self._uses_onednn:
            return onednn.on_call
        return None if self._copies is None else bfloat16.Products(self._copies).on_call

    @contextlib.contextmanager
    def _replaying(self, statistics: RunningStatistics | None = None) -> Iterator[None]:
        """Context of a replay of the forward."""
        with _trace.running(self._mixes_types), self._watched(False, statistics):
            yield

    def _trace_model(self, arguments: Arguments) -> None:
        first = numerics.MicroBatch(0, 0, 0)
        inputs = [self.plan.micro_input(_on_device(tensor), first).clone() for tensor in arguments.tensors]
        args, kwargs = arguments.replaced(inputs)
        with (
            self.weights.swapped_in(),
            self.weights.kept() as keep,
            numerics.host_generator_kept(),
            _members_kept(self._model),
            torch.set_grad_enabled(self._training),
            self._arithmetic,
            _stopping(),
            trusted_kernels(),
        ):
            self._randomness.seed_micro_batch(0, 0)
            checks = Checks([*inputs, *self._model.parameters(), *self._model.buffers()], self._constants)
            tape = Tape(inputs, checks.is_on_device)
            with _trace.tracing(self._options, inputs, tape.leave) as trace:
                recorder = trace.recorder = Recorder(trace.place, self._module_paths())
                for name, weight in zip(self.weights.names, self.weights.of_replica(0)):
                    recorder.declare(weight, "parameter", name)
                for index, tensor in enumerate(inputs):
                    recorder.declare(tensor, "input", f"input/{index}")
                losses, casts = Losses(), ImplicitCasts()
                statistics = RunningStatistics(defers=False)
                buffers = SharedBuffers(self.weights.shared_buffers, self.plan.replicas)

                def mark_on_device(*made: list[torch.Tensor]) -> None:
                    tape.leave()  # host code in the middle of a run
                    checks.mark_on_device(*made)

                trace.on_device = lambda: checks.computes
                trace.mark_on_device = mark_on_device
                trace.at_each_run = tape.call_later
                with (
                    explained(self._model, compiling=True),
                    recorder.in_modules(),
                    watch.compilation(
                        trace, tape, casts, checks, losses, statistics, buffers, recorder, before_writes(keep)
                    ),
                ):
                    output = self._model(*args, **kwargs)
            check_types(output, "An output")
            self._narrow_indices = checks.has_narrow_indices
            self._names_ipu = checks.names_ipu
            self._mixes_types = casts.has_cast
            self._has_loops = trace.has_loops
            self._may_overwrite = self._training and checks.writes_in_place
            statistics.look_at(tensors(output))
            self._reads_statistics = statistics.are_read
            for tensor in tensors(output):
                if not checks.is_on_device(tensor):
                    warnings.warn("Output expected to be on the IPU but is on cpu", stacklevel=2)
            trace.validate(self._training)
            trace.overlaps.check(tensors(output), checks.sources)
            self.num_ipus = trace.num_ipus
            self.ir = popart_ir.as_json(
                recorder.recording,
                [self.weights.names[i] for i in self.weights.trainable] if self._training else [],
                () if self._optimizer is None else self._optimizer.update_types,
                len(trace.stage_ipus) if self._options._execution_strategy._is_pipelined else 1,
                Obeyed(self._options._Popart).recomputation,
            )
            if self._training:
                self._loss = find_loss(losses.found, trace.identity_losses, tensors(output), checks.sources)
            if not trace.runs_python:
                loss = self._final_loss(tensors(output), trace.identity_losses, losses.found)
                fuses = isinstance(self._arithmetic, numerics.Float16InFloat32) and self._exceptions is None
                self._calls = tape.finish(loss, tensors(output), self._copies, fuses, self._uses_onednn)
                self._paths = arguments.paths
        self._output = map_leaves(output, _placeholder)

    def run(self, arguments: Arguments, optimizer: OptimizerOnDevice | None) -> Any:
        """Runs every micro batch of one call and returns the outputs, structured as the forward's.

        With an optimizer (required in training) it also runs the backward passes and `optimizer.update`.
        Raises poptorch.Error if the arguments differ from the compiled ones.
        """
        self._inputs.check(arguments)
        if not self._is_traced:
            self._trace_model(arguments)
            self._is_traced = True
        inputs = [_on_device(tensor) for tensor in arguments.tensors]
        synthetic = Obeyed(self._options._Popart).has_synthetic_data
        if synthetic:
            # Zeros in every mode: random integers could be out of range as indices.
            inputs = [torch.zeros_like(tensor) for tensor in inputs]
        versions = [version_of(tensor) for tensor in inputs]
        if self._copies is not None:
            self._copies.forget()  # the host may have changed weights
        collector = numerics.OutputCollector(
            self.plan, _anchors.RETURNED[self._options.output_mode], self._options.output_return_period
        )
        anchors = _anchors.Anchors(
            self._options,
            self.plan,
            dict(zip(self.weights.names, self.weights.parameters)),
            self._module_paths(),
            self._optimizer_tensors,
            optimizer,
        )
        program = numerics.StepProgram(
            self.plan,
            self._forward(arguments, anchors),
            self._randomness,
            self._enter_replica,
            self._in_run,
            functools.partial(self._warn_of_bad_loss, arguments, inputs),
            functools.partial(self._origin, arguments, inputs),
        )
        with (
            self.weights.swapped_in(),
            self._flags_of_compilation(),
            _stopping(),
            trusted_kernels(),
            anchors.gradients(),
        ):
            if optimizer is not None:
                trainable = [self.weights.parameters[i] for i in self.weights.trainable]
                update = anchors.following(self._updating(optimizer), self.weights.enter_replica)
                if self._merger is not None:
                    order = _order(self._paths, arguments.paths) if self._calls is not None else None
                    merge = self._merger.merge(
                        self._calls,
                        inputs,
                        order,
                        anchors,
                        optimizer,
                        self._in_run,
                        lambda: self._may_overwrite,
                    )
                    program = replace(program, merge=merge)
                results = numerics.run_training(
                    program, inputs, trainable, update, collector, self._gradients(optimizer)
                )
            else:
                results = numerics.run_inference(program, inputs, collector)
            self.anchored = anchors.result()
        if not synthetic:
            _copy_back(arguments.tensors, inputs, versions)
        for result in results:
            _outputs.mark(result)
        return with_tensors(self._output, results)

    def _enter_replica(self, replica: int) -> None:
        self.weights.enter_replica(replica)
        if self._copies is not None and self.weights.groups:
            self._copies.forget()

    def _updating(self, optimizer: OptimizerOnDevice) -> Callable[[list[torch.Tensor | None]], None]:
        """The optimizer's update; then copies of the old weights are of no use."""
        if self._copies is None:
            return optimizer.update
        copies = self._copies

        def update(gradients: list[torch.Tensor | None]) -> None:
            optimizer.update(gradients)
            copies.forget()

        return update

    def _warn_of_bad_loss(
        self, arguments: Arguments, inputs: list[torch.Tensor], which: numerics.MicroBatch, loss: float
    ) -> None:
        """Once: what made the loss NaN or infinite. Runs the micro batch again, before the weights change."""
        if self._has_warned:
            return
        self._has_warned = True
        where = self._origin(arguments, inputs, which)
        batch = f"micro batch {which.step} of replica {which.replica}"
        logger.warning("The loss of %s is %s: %s.", batch, loss, where or "its forward, run again, has none")

    def _origin(
        self, arguments: Arguments, inputs: list[torch.Tensor], which: numerics.MicroBatch
    ) -> str | None:
        """The operation, layer and line of this micro batch's first NaN and infinity, if there are any."""
        forward = self._forward(arguments, None)
        weights = [(f"the weight {name}", w) for name, w in zip(self.weights.names, self.weights.parameters)]
        batch = [self.plan.micro_input(tensor, which).clone() for tensor in inputs]
        named = [(f"input {index}", tensor) for index, tensor in enumerate(batch)]
        self._randomness.seed_micro_batch(which.replica, which.step)
        with self._arithmetic:
            return first_non_finite(self._model, [*weights, *named], lambda: forward(batch))

    def _gradients(self, optimizer: OptimizerOnDevice) -> numerics.BackwardSums | numerics.TypedAccumulators:
        """The accumulator that sums the micro batches' gradients."""
        groups = [self.weights.groups.get(i) for i in self.weights.trainable]
        if self.rounding is None:
            return numerics.BackwardSums(
                self.plan, reduction(self._options), self.processes, groups, optimizer.watch
            )
        settings = numerics.AccumulatorSettings(
            optimizer.accumulator_type, reduction(self._options), optimizer.loss_scaling, optimizer.watch
        )
        names = [self.weights.names[i] for i in self.weights.trainable]
        return numerics.TypedAccumulators(self.plan, settings, self.processes, self.rounding, names, groups)

    def _forward(
        self, arguments: Arguments, anchors: _anchors.Anchors | None
    ) -> Callable[[list[torch.Tensor]], tuple[torch.Tensor | None, list[torch.Tensor]]]:
        calls = None if anchors is None or anchors.need_operations else self._calls
        order = _order(self._paths, arguments.paths) if calls is not None else None

        def forward(inputs: list[torch.Tensor]) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
            kept = anchors.micro_batch(inputs) if anchors else contextlib.nullcontext()
            statistics = RunningStatistics(defers=True) if self._reads_statistics else None
            self._statistics = statistics
            if calls is not None and order is not None:
                with kept, self._replaying(statistics):
                    loss, outputs = calls([inputs[i] for i in order])
                return loss, outputs if statistics is None else statistics.returned(outputs)
            args, kwargs = arguments.replaced(inputs)
            losses = Losses() if self._loss is not None and self._loss.kind == "function" else None
            moves = Moves(self._constants) if self._constants else None
            device = place_on_ipu if self._names_ipu else None
            with (
                explained(self._model, compiling=False),
                _trace.running(self._mixes_types) as run,
                kept,
                self._watched(True, statistics, moves, device, losses),
            ):
                output = self._model(*args, **kwargs)
            outputs = tensors(output)
            called = losses.found if losses is not None else []
            loss = self._final_loss(outputs, run.identity_losses, called)
            return loss, outputs if statistics is None else statistics.returned(outputs)

        return forward

    def _final_loss(
        self, outputs: list[torch.Tensor], marked: list[torch.Tensor], called: list[torch.Tensor]
    ) -> torch.Tensor | None:
        if self._loss is None:
            return None
        return {"output": outputs, "identity": marked, "function": called}[self._loss.kind][self._loss.index]

    @contextlib.contextmanager
    def _flags_of_compilation(self) -> Iterator[None]:
        changed = [
            m for name, m in self._model.named_modules() if m.training != self._flags.get(name, m.training)
        ]
        for module in changed:
            module.training = not module.training
        try:
            yield
        finally:
            for module in changed:
                module.training = not module.training


def _order(compiled: list[tuple[Any, ...]], given: list[tuple[Any, ...]]) -> list[int] | None:
    """For each compiled tensor, the index of the call's tensor; None if the call passes other arguments."""
    index = {path: i for i, path in enumerate(given)}
    return [index[path] for path in compiled] if set(compiled) == set(index) else None


def _on_device(tensor: torch.Tensor) -> torch.Tensor:
    """The caller's tensor in the device's dtype, contiguous; shares memory if nothing is converted."""
    tensor = numerics.to_device_dtype(tensor).contiguous()
    # Autograd doesn't accept inference tensors.
    return tensor.clone() if tensor.is_inference() else tensor


def _copy_back(callers: list[torch.Tensor], inputs: list[torch.Tensor], versions: list[int]) -> None:
    """Copies in-place changes of the inputs back to the caller's tensors."""
    for caller, tensor, version in zip(callers, inputs, versions):
        if version_of(tensor) != version and tensor.data_ptr() != caller.data_ptr():
            with torch.inference_mode(caller.is_inference()), torch.no_grad():
                caller.copy_(tensor)


def _check_saved(saved: dict[str, Any]) -> None:
    """Raises poptorch.Error for the state of an executable that another version of the simulator saved."""
    missing = sorted({"plan", "weights", "replica_groupings", *_SAVED} - saved.keys())
    if missing:
        raise createPoptorchError(
            "The executable in the file was saved by another version of the simulator, without "
            f"{', '.join(missing)}: compile the model again."
        )


def _check_target(options: Options) -> None:
    validate(options.toDict())
    never = options.connection_type == enums.ConnectionType.Never.value
    on_model = poptorch_core.usesIpuModel(options._values)
    if on_model and never:
        raise createBackendError(
            "ConnectionType.Never / poptorch.Options.useOfflineIpuTarget not supported for the IPU model"
        )
    if on_model and options.replication_factor > 1:
        raise createBackendError(
            f"Replicated graphs are not supported on the IPU model: replicationFactor is "
            f"{options.replication_factor}, set it to 1.",
            "popart_exception",
        )
    if on_model and Obeyed(options._Popart).counts_cycles:
        raise createBackendError("Cycle count logging is only supported on actual IPU hardware.")


def _processes(options: Options, training: bool) -> numerics.Processes:
    """The processes that train together; only this one for inference, which needs no communication."""
    count = options.Distributed.numProcesses if training else 1
    try:
        return numerics.Processes(options.Distributed.processId, count)
    except ValueError as problem:
        raise createPoptorchError(str(problem)) from problem


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Turns floating-point exceptions into poptorch.Error, as on the device."""
    try:
        yield
    except numerics.FloatingPointException as exception:
        origin = getattr(exception, ORIGIN, UNKNOWN)
        raise createBackendError(
            f"{exception}. Precision.enableFloatingPointExceptions(True) stops the program here; a lower "
            f"loss_scaling or learning rate may help.{origin.stack()}",
            "poplar_application_runtime_error",
            origin.place,
        ) from exception


@contextlib.contextmanager
def _members_kept(model: torch.nn.Module) -> Iterator[None]:
    """If a forward replaces or removes parameters or buffers, restores them and raises poptorch.Error."""
    before = [
        (path, module, kind, dict(getattr(module, kind)))
        for path, module in model.named_modules()
        if not isinstance(module, _MAY_REPLACE)
        for kind in ("_parameters", "_buffers")
    ]
    yield
    for path, module, kind, members in before:
        now = getattr(module, kind)
        for name, tensor in members.items():
            if now.get(name) is tensor:
                continue
            full_name = f"{path}.{name}" if path else name
            removed = name not in now
            now[name] = tensor
            if tensor is None:  # created lazily
                continue
            if removed:
                problem = "is removed from the model when calling the forward method."
            else:
                problem = (
                    "is reassigned within the model when calling the forward method. This is not "
                    f"supported. Consider using self.{full_name}.copy_(src) to copy data from a source "
                    "tensor, where src is the name of the source tensor."
                )
            what = "Parameter" if kind == "_parameters" else "Buffer"
            raise createPoptorchError(f"{what} {full_name} {problem}")


def _placeholder(leaf: Any) -> Any:
    """An empty tensor for the outputs' structure, so that the real one's graph and memory are freed."""
    return torch.empty(0) if isinstance(leaf, torch.Tensor) else leaf
