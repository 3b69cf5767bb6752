"""What one operation costs on one IPU."""

from __future__ import annotations

from dataclasses import dataclass

PRODUCTS = ("matmul", "convolution")  # kinds that the planner works on


@dataclass(frozen=True)
class OpCost:
    """Cycles of the fullest tile by cause, and memory while the operation runs.

    :param kind: for reports: "matmul", "convolution", "norm", "softmax", "elementwise", "reduction",
        "gather", "rearrangement", "random", "view", ...
    :param matmul_cycles: as planned (compute, exchange, reduction), before any fitted factor.
    :param vertex_cycles: elementwise and other vertices.
    :param compute_sets: compute sets that it takes; each costs a sync and an exchange phase.
    :param rearranged_elements: elements copied into another layout, over the whole IPU.
    :param working_set_bytes: over the whole IPU, beside its inputs and outputs as they are kept.
    :param flops: floating-point operations, 2 for a multiplication with addition.
    :param rule: which rule gave this, such as "matmul planner"; "bound" for an operation without a rule.
    """

    kind: str
    matmul_cycles: float = 0.0
    vertex_cycles: float = 0.0
    compute_sets: int = 0
    rearranged_elements: int = 0
    working_set_bytes: int = 0
    flops: int = 0
    rule: str = ""

    @property
    def known(self) -> bool:
        """False for an operation without a cost rule: a bound was used, and reports name it."""
        return self.rule != "bound"
