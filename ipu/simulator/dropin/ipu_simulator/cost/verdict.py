"""The verdict: does the program fit, how fast is it, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Mapping

COMPONENTS = (
    "weights",
    "gradient_accumulators",
    "optimizer_state",
    "stashes",
    "recompute",
    "temporary",
    "matmul_working_set",
    "code",
    "exchange_code",
    "stream_buffers",
)

# Sizes of code are assumed, as no figure is published. If a quarter more or less of it changes the
# verdict, that is near the edge.
_CODE = ("code", "exchange_code")
CODE_BAND = 0.25
# Components whose sizes rest on assumptions: on those, and on the plan of a product.
ASSUMED_COMPONENTS = (*_CODE, "matmul_working_set")

Origin = Literal["published", "derived", "fitted", "assumed", "measured"]


@dataclass(frozen=True)
class IpuMemory:
    """Memory of one IPU over a step. Components are bytes by name of COMPONENTS.

    `components` sum to peak_bytes: the live bytes at the peak. `always_live_components` sum to
    always_live_bytes. `fullest_tile_components` are the estimate for the fullest tile when it is fullest,
    which may be at another moment; what is spread over the tiles has an assumed imbalance. They sum to
    fullest_tile_bytes; the program fits if that is at most `tile_capacity_bytes`.
    """

    ipu: int
    capacity_bytes: int
    always_live_bytes: int
    peak_bytes: int
    components: Mapping[str, int]
    always_live_components: Mapping[str, int]
    fullest_tile_bytes: int
    tile_capacity_bytes: int
    fullest_tile_components: Mapping[str, int] = field(default_factory=dict)

    @property
    def filled(self) -> float:
        """Fill level of the fullest tile: above 1, the program doesn't fit."""
        return self.fullest_tile_bytes / self.tile_capacity_bytes

    @property
    def code_bytes(self) -> int:
        """Code at the peak, exchange code included."""
        return sum(self.components.get(name, 0) for name in _CODE)

    @property
    def filled_band(self) -> tuple[float, float]:
        """Fill levels with CODE_BAND less and more of the assumed code."""
        if not self.peak_bytes:
            return self.filled, self.filled
        change = CODE_BAND * self.code_bytes / self.peak_bytes
        return self.filled * (1 - change), self.filled * (1 + change)

    @property
    def usable_bytes(self) -> int:
        """Bytes on the IPU when its fullest tile is full."""
        return int(self.peak_bytes / self.filled) if self.peak_bytes else self.capacity_bytes


@dataclass(frozen=True)
class Pipeline:
    """F forward stages; N pipeline cycles in a weight update; a cycle lasts as long as the busiest IPU.

    :param cycle_s: a cycle in which every stage is busy.
    :param cycles_s: all N cycles; those of filling and emptying are shorter.
    """

    forward_stages: int
    pipeline_cycles_per_update: int
    cycle_s: float
    bubble_fraction: float
    cycles_s: float

    @property
    def micro_batches(self) -> int:
        """Micro batches per weight update, G. Without a pipeline as many as cycles."""
        return round(self.pipeline_cycles_per_update * (1 - self.bubble_fraction))

    @property
    def pipelined(self) -> bool:
        return self.micro_batches < self.pipeline_cycles_per_update


@dataclass(frozen=True)
class StageTime:
    """Seconds of one stage in one pipeline cycle.

    :param copies_back_s: the part of `copies_s` that sends gradients.
    """

    stage: int
    ipu: int
    forward_s: float
    recompute_s: float
    backward_s: float
    stash_s: float
    copies_s: float
    copies_back_s: float = 0.0


@dataclass(frozen=True)
class Work:
    """Cycles of one module's operations of one kind, summed.

    `phase` is forward, recompute, backward or update.
    """

    ipu: int
    stage: int
    phase: str
    module: str
    op: str
    kind: str
    cycles: float
    count: int
    flops: int


@dataclass(frozen=True)
class LivenessPoint:
    """Live bytes of an IPU after one operation of the step."""

    ipu: int
    phase: str
    label: str
    live_bytes: int


@dataclass(frozen=True)
class Buffer:
    """A buffer that is live at the peak."""

    name: str
    component: str
    module: str
    bytes: int


@dataclass(frozen=True)
class Overflow:
    """Why a memory is too small: the fewest buffers, largest first, that exceed it alone.

    :param ipu: the IPU; for streaming memory, the first IPU that stores something there.
    :param m2000: the M2000 (a machine of four IPUs) whose streaming memory it is; None for an IPU's memory.
    """

    ipu: int
    moment: str
    over_bytes: int
    buffers: tuple[Buffer, ...]
    m2000: int | None = None

    @property
    def is_proof(self) -> bool:
        """Whether no buffer's size rests on an assumption."""
        return not any(buffer.component in ASSUMED_COMPONENTS for buffer in self.buffers)

    @property
    def memory(self) -> str:
        """Name of the memory, for messages."""
        return f"IPU {self.ipu}" if self.m2000 is None else f"the streaming memory of M2000 {self.m2000}"


@dataclass(frozen=True)
class Remedy:
    """A change evaluated by the model: bytes saved on the fullest IPU, seconds added per update."""

    change: str
    saves_bytes: int
    costs_s: float
    fits: bool


@dataclass(frozen=True)
class Assumption:
    """A number that the verdict depends on."""

    name: str
    value: float
    unit: str
    origin: Origin
    source: str


@dataclass(frozen=True)
class Bound:
    """An operation without a cost rule, and the cycles assumed for it."""

    op: str
    module: str
    count: int
    cycles: float


@dataclass(frozen=True)
class Details:
    """What reports show besides the verdict's fields.

    :param assumptions: the numbers that this verdict depends on: changing one can change a result.
    :param expected_time_error: relative error of predicted times of published programs of this kind, left out
        of the fit; None: none was measured.
    :param kind: of program, for messages about that error: "pretraining of BERT", "convolutional networks".
    :param input_s: seconds of a step's inputs from the host, also while the IPUs compute.
    :param lacking_ipus: number of IPUs that the replicas need beyond those of the machine.
    :param largest_buffers: (IPU, buffer): the largest buffers of each component that are live at the peak.
    :param peak_moments: IPU -> the operation during which its memory peaks.
    :param clock_hz: cycles per second of a tile; 0 if unknown.
    """

    stages: tuple[StageTime, ...]
    work: tuple[Work, ...]
    liveness: tuple[LivenessPoint, ...]
    update_parts_s: Mapping[str, float]
    overflows: tuple[Overflow, ...]
    bounds: tuple[Bound, ...]
    assumptions: tuple[Assumption, ...]
    expected_time_error: float | None = None
    kind: str = ""
    lacking_ipus: int = 0
    input_s: float = 0.0
    largest_buffers: tuple[tuple[int, Buffer], ...] = ()
    peak_moments: Mapping[int, str] = field(default_factory=dict)
    clock_hz: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """All fields are set whether the program fits or not; see `to_dict` for the JSON form."""

    config: str
    device: str
    target: str
    fits: bool
    parameters: int
    ipus: tuple[IpuMemory, ...]
    pipeline: Pipeline
    step_s: float
    update_s: float
    host_s: float
    samples_per_s: float
    packs_per_s: float
    tokens_per_s: float
    flops_per_sample: float
    utilisation: float
    training_steps: int
    time_to_train_s: float
    remedies: tuple[Remedy, ...]
    details: Details

    @property
    def latency_s(self) -> float:
        """From a micro batch's input on the host to its outputs there: its way through the pipeline's stages,
        and the host's part of a call. In training a stage's cycle has its backward pass too.
        """
        cycles = self.pipeline.forward_stages if self.pipeline.pipelined else 1
        return cycles * self.pipeline.cycle_s + self.host_s

    @property
    def near_edge(self) -> bool:
        """Whether CODE_BAND less or more of the assumed code would change the answer about memory."""
        if any(overflow.m2000 is not None for overflow in self.details.overflows):
            return False
        low, high = (max(memory.filled_band[end] for memory in self.ipus) for end in (0, 1))
        return low <= 1 < high

    def to_dict(self) -> dict[str, Any]:
        """The content of verdict.json; of `details` only overflows, bounds and assumptions."""
        return {
            "config": self.config,
            "device": self.device,
            "target": self.target,
            "fits": self.fits,
            "parameters": self.parameters,
            "ipus": [
                {
                    "ipu": memory.ipu,
                    "capacity_bytes": memory.capacity_bytes,
                    "always_live_bytes": memory.always_live_bytes,
                    "peak_bytes": memory.peak_bytes,
                    "components": dict(memory.components),
                    "always_live_components": dict(memory.always_live_components),
                    "fullest_tile_bytes": memory.fullest_tile_bytes,
                    "fullest_tile_components": dict(memory.fullest_tile_components),
                    "tile_capacity_bytes": memory.tile_capacity_bytes,
                }
                for memory in self.ipus
            ],
            "pipeline": {
                "forward_stages": self.pipeline.forward_stages,
                "pipeline_cycles_per_update": self.pipeline.pipeline_cycles_per_update,
                "cycle_s": self.pipeline.cycle_s,
                "bubble_fraction": self.pipeline.bubble_fraction,
            },
            "step_s": self.step_s,
            "update_s": self.update_s,
            "host_s": self.host_s,
            "samples_per_s": self.samples_per_s,
            "packs_per_s": self.packs_per_s,
            "tokens_per_s": self.tokens_per_s,
            "flops_per_sample": self.flops_per_sample,
            "utilisation": self.utilisation,
            "training_steps": self.training_steps,
            "time_to_train_s": self.time_to_train_s,
            "remedies": [
                {
                    "change": remedy.change,
                    "saves_bytes": remedy.saves_bytes,
                    "costs_s": remedy.costs_s,
                    "fits": remedy.fits,
                }
                for remedy in self.remedies
            ],
            "overflows": [
                {
                    "ipu": overflow.ipu,
                    "moment": overflow.moment,
                    "over_bytes": overflow.over_bytes,
                    "buffers": [vars(buffer) for buffer in overflow.buffers],
                    **({} if overflow.m2000 is None else {"m2000": overflow.m2000}),
                }
                for overflow in self.details.overflows
            ],
            **({"lacking_ipus": self.details.lacking_ipus} if self.details.lacking_ipus else {}),
            "bounds": [vars(bound) for bound in self.details.bounds],
            "assumptions": [vars(assumption) for assumption in self.details.assumptions],
        }
