"""Small graphs made by hand: chains of layers `z = gelu(x w)`, forward and backward, over pipeline stages."""

from __future__ import annotations

from typing import Any, Sequence

from ipu_simulator.cost.settings import OptimizerSettings, Settings
from ipu_simulator.graph.ir import Graph, Op, Phase, Role, Tensor


class Builder:
    """Collects tensors and operations; `stage` and `segment` apply to the operations added next."""

    def __init__(self, stage_ipus: Sequence[int]) -> None:
        self.stage_ipus = tuple(stage_ipus)
        self.tensors: list[Tensor] = []
        self.ops: list[Op] = []
        self.gradients: dict[int, int] = {}
        self.checkpoints: set[int] = set()
        self.stage = self.segment = 0

    def tensor(
        self,
        shape: Sequence[int],
        role: Role = "activation",
        name: str = "",
        dtype: str = "float16",
        base: int | None = None,
    ) -> int:
        self.tensors.append(Tensor(len(self.tensors), tuple(shape), dtype, role, name, base))
        return self.tensors[-1].id

    def op(
        self,
        name: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        phase: Phase = "forward",
        module: str = "",
        **attributes: Any,
    ) -> None:
        self.ops.append(
            Op(
                index=len(self.ops),
                name=name,
                phase=phase,
                inputs=tuple(inputs),
                outputs=tuple(outputs),
                module=module or f"stage{self.stage}",
                stage=self.stage,
                ipu=self.stage_ipus[self.stage],
                segment=self.segment,
                attributes=attributes,
            )
        )

    def graph(self, inputs: Sequence[int] = (), outputs: Sequence[int] = ()) -> Graph:
        return Graph(
            tensors=tuple(self.tensors),
            ops=tuple(self.ops),
            gradients=self.gradients,
            checkpoints=frozenset(self.checkpoints),
            stage_ipus=self.stage_ipus,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
        )


def chain(
    stage_ipus: Sequence[int],
    widths: Sequence[Sequence[int]],
    batch: int = 8,
    checkpoints: bool = True,
    reads_outputs: bool = False,
) -> Graph:
    """`widths[stage]` are the output widths of its layers. The first input has the first width.

    A layer's output is a checkpoint unless `checkpoints` is false. Shapes: x [batch, in], w [in, out]. The
    backward pass of an activation reads its input, or with `reads_outputs` both of its outputs: z and a scale
    [batch, 1] for each row.
    """
    builder = Builder(stage_ipus)
    x = source = builder.tensor([batch, widths[0][0]], "input", "input/0")
    layers: list[tuple[int, int, list[int], int, int]] = []
    for stage, stage_widths in enumerate(widths):
        for segment, width in enumerate(stage_widths):
            builder.stage, builder.segment = stage, segment
            w = builder.tensor(
                [builder.tensors[x].shape[1], width], "parameter", f"layer{len(layers)}.weight"
            )
            y, z = builder.tensor([batch, width]), builder.tensor([batch, width])
            made = [z, builder.tensor([batch, 1])] if reads_outputs else [z]
            builder.op("mm", [x, w], [y], module=f"layer{len(layers)}")
            builder.op("gelu", [y], made, module=f"layer{len(layers)}")
            if checkpoints:
                builder.checkpoints.add(z)
            layers.append((x, w, made if reads_outputs else [y], stage, segment))
            x = z
    loss = builder.tensor([], dtype="float32")
    builder.op("sum", [x], [loss])
    d_z = builder.tensor(builder.tensors[x].shape)
    builder.op("expand", [loss], [d_z], "backward")
    for index, (x, w, read, stage, segment) in reversed(list(enumerate(layers))):
        builder.stage, builder.segment = stage, segment
        d_y, d_w = builder.tensor(builder.tensors[d_z].shape), builder.tensor(builder.tensors[w].shape)
        builder.op("gelu_backward", [d_z, *read], [d_y], "backward", f"layer{index}")
        builder.op("mm", [x, d_y], [d_w], "backward", f"layer{index}")
        builder.gradients[w] = d_w
        if x != source:
            d_x = builder.tensor(builder.tensors[x].shape)
            builder.op("mm", [d_y, w], [d_x], "backward", f"layer{index}")
            d_z = d_x
    return builder.graph([source], [loss])


def settings(ipus: int, **changes: Any) -> Settings:
    """Adam with float32 state on the chip, one replica; `changes` are fields of Settings."""
    values: dict[str, Any] = {
        "micro_batch_size": 8,
        "gradient_accumulation": 16,
        "replicas": 1,
        "device_iterations": 1,
        "matmul_proportions": (0.25,) * ipus,
        "half_partials": True,
        "execution": "pipelined",
        "recompute": True,
        "optimizer": OptimizerSettings("adam", (4, 4)),
    }
    return Settings(**{**values, **changes})
