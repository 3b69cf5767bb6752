"""PopTorch's optimisers: an argument that is passed is a variable until it is marked as a constant."""

from __future__ import annotations

import torch


class VariableAttributes:
    def __init__(self, variable, allowed):
        self.variable, self.allowed = set(variable), tuple(allowed)

    def _known(self, attr):
        assert attr in self.allowed, f"Unknown attribute {attr}, allowed values: {list(self.allowed)}"

    def isConstant(self, attr):
        self._known(attr)
        return attr not in self.variable

    def markAsConstant(self, attr):
        self._known(attr)
        self.variable.discard(attr)

    def markAsVariable(self, attr):
        self._known(attr)
        self.variable.add(attr)


class Optimizer(torch.optim.Optimizer):
    """`attributes` are those that a stream can carry; `switches` and `types` are part of the program."""

    attributes = ()
    switches = ()
    types = ("accum_type", "first_order_momentum_accum_type", "second_order_momentum_accum_type")

    def __init__(self, params, **given):
        unknown = set(given) - {*self.attributes, *self.switches, *self.types}
        if unknown:
            raise TypeError(f"{type(self).__name__} got unexpected arguments {sorted(unknown)}")
        for name in self.types:
            value = given.pop(name, None)
            assert value in (None, torch.float16, torch.float32), (
                "Accumulation types must be either torch.float32 or torch.float16"
            )
        self.switched = {name: given.pop(name, None) for name in self.switches}
        assert all(value in (None, True, False) for value in self.switched.values()), self.switched
        passed = [name for name, value in given.items() if value is not None]
        super().__init__(params, {name: given.get(name) for name in self.attributes})
        self.variable_attrs = VariableAttributes(passed, self.attributes)
        for group in self.param_groups:
            extra = set(group) - {"params", *self.attributes}
            assert not extra, f"a parameter group has attributes that the optimiser lacks: {extra}"
        self.executor = None  # the one that trains with it
        self.state_on_host = self.loaded = None

    def variables(self):
        return sorted(self.variable_attrs.variable)

    def step(self, closure=None):
        raise RuntimeError("PopTorch's optimisers step on the device")

    def state_dict(self):
        host = super().state_dict()
        if self.executor is not None:
            self.state_on_host = self.executor.optimizer_state()
        parameters = None
        if self.state_on_host is not None:
            parameters = {"learningRate___default": torch.tensor(float(self.param_groups[0]["lr"]))}
        return {**host, "ipu_state": self.state_on_host, "ipu_param": parameters}

    def load_state_dict(self, state):
        super().load_state_dict({name: state[name] for name in ("state", "param_groups")})
        if not {"ipu_state", "ipu_param"} <= set(state):
            raise RuntimeError("Only IPU optimizer states can be loaded onto the IPU.")
        self.state_on_host = self.loaded = state["ipu_state"]


_ADAM = ("lr", "betas", "eps", "weight_decay", "loss_scaling", "max_grad_norm")


class SGD(Optimizer):
    attributes = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "loss_scaling", "max_grad_norm")
    switches = ("use_combined_accum",)
    types = ("accum_type", "velocity_accum_type")


class Adam(Optimizer):
    attributes = _ADAM


class AdamW(Optimizer):
    attributes = _ADAM
    switches = ("bias_correction",)


class LAMB(Optimizer):
    attributes = (*_ADAM[:-1], "max_weight_norm")
    switches = ("bias_correction",)
