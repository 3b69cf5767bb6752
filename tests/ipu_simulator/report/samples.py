"""Hand-made verdicts: BERT Large on a bow-pod16 that fits, and one that doesn't."""

from __future__ import annotations

import math
from dataclasses import replace

from ipu_simulator.cost.pipeline import cycle_s, cycles_s, full_cycle
from ipu_simulator.cost.verdict import (
    Assumption,
    Bound,
    Buffer,
    Details,
    IpuMemory,
    LivenessPoint,
    Overflow,
    Pipeline,
    Remedy,
    StageTime,
    Verdict,
    Work,
)
from ipu_simulator.report.schedule import work_of

MIB = 2**20
TILE_CAPACITY_BYTES = 638_976
CAPACITY_BYTES = 1472 * TILE_CAPACITY_BYTES
CLOCK_HZ = 1.85e9
LAYERS = (3, 7, 7, 7)
FORWARD_STAGES = 5
SYNC_S = 0.0
GRADIENT_ACCUMULATION = 2048

LAYER_WORK = (
    # module, op, kind, forward cycles, count
    ("attention.query_key_value", "addmm", "matmul", 130_000, 3),
    ("attention.scores", "bmm", "matmul", 38_000, 2),
    ("attention.softmax", "_softmax", "softmax", 16_000, 1),
    ("attention.output", "addmm", "matmul", 44_000, 1),
    ("attention.norm", "native_layer_norm", "norm", 11_000, 1),
    ("feed_forward.intermediate", "addmm", "matmul", 168_000, 1),
    ("feed_forward.gelu", "gelu", "elementwise", 9_000, 1),
    ("feed_forward.output", "addmm", "matmul", 170_000, 1),
    ("feed_forward.norm", "native_layer_norm", "norm", 11_000, 1),
)


def _work() -> tuple[Work, ...]:
    work = [
        Work(0, 0, "forward", "embeddings.word", "embedding", "gather", 52_000, 1, 0),
        Work(0, 0, "backward", "embeddings.word", "embedding_dense_backward", "gather", 90_000, 1, 0),
        Work(0, 4, "forward", "heads.mlm.decoder", "mm", "matmul", 410_000, 5, 10_000_000_000),
        Work(0, 4, "backward", "heads.mlm.decoder", "mm", "matmul", 830_000, 10, 20_000_000_000),
        Work(0, 0, "update", "embeddings.word", "lamb", "optimizer", 700_000, 1, 0),
    ]
    layer = 0
    for ipu, layers in enumerate(LAYERS):
        for _ in range(layers):
            for module, op, kind, cycles, count in LAYER_WORK:
                path = f"encoder.layers.{layer}.{module}"
                flops = cycles * 60_000 if kind == "matmul" else 0
                for phase, factor in (("forward", 1), ("recompute", 1), ("backward", 2)):
                    work.append(
                        Work(ipu, ipu, phase, path, op, kind, cycles * factor, count * factor, flops * factor)
                    )
            layer += 1
    return tuple(work)


def _stages() -> tuple[StageTime, ...]:
    layer_s = sum(cycles for *_, cycles, _ in LAYER_WORK) / CLOCK_HZ
    stages = [
        StageTime(
            ipu,
            ipu,
            forward_s=layers * layer_s + (28e-6 if ipu == 0 else 0),
            recompute_s=layers * layer_s,
            backward_s=layers * 2 * layer_s + (49e-6 if ipu == 0 else 0),
            stash_s=31e-6,
            copies_s=77e-6,
        )
        for ipu, layers in enumerate(LAYERS)
    ]
    head = StageTime(4, 0, forward_s=222e-6, recompute_s=0.0, backward_s=449e-6, stash_s=0.0, copies_s=0.0)
    return (*stages, head)


def _memory(ipu: int, scale: float) -> IpuMemory:
    always = {
        "weights": int((96 if ipu else 138) * MIB * scale),
        "gradient_accumulators": int((96 if ipu else 138) * MIB * scale),
        "stashes": int((14 - 3 * ipu) * 12 * MIB * scale),
        "code": int(88 * MIB * scale),
        "exchange_code": int(70 * MIB * scale),
        "stream_buffers": int(4 * MIB * scale),
    }
    peak = {
        **always,
        "optimizer_state": 0,
        "recompute": int(60 * MIB * scale),
        "temporary": int(48 * MIB * scale),
        "matmul_working_set": int(165 * MIB * scale),
    }
    peak_bytes = sum(peak.values())
    tile = {component: math.ceil(size / 1472 * 1.06) for component, size in peak.items()}
    return IpuMemory(
        ipu,
        CAPACITY_BYTES,
        sum(always.values()),
        peak_bytes,
        peak,
        always,
        sum(tile.values()),
        TILE_CAPACITY_BYTES,
        tile,
    )


def _liveness(memory: IpuMemory) -> list[LivenessPoint]:
    points = []
    above = memory.peak_bytes - memory.always_live_bytes
    for step in range(900):
        ends = {"forward": 250, "recompute": 480, "backward": 860, "update": 900}
        phase = next(name for name, end in ends.items() if step < end)
        wave = abs(math.sin(step / 9)) * (0.4 + 0.6 * abs(math.sin(step / 200)))
        points.append(
            LivenessPoint(
                memory.ipu,
                phase,
                f"addmm {step}",
                memory.always_live_bytes + int(above * min(wave, 0.98)),
            )
        )
    points[600] = replace(points[600], live_bytes=memory.peak_bytes, label="addmm of feed_forward.output")
    return points


def fitting(*, name: str = "bert_large_128_bow_pod16") -> Verdict:
    """BERT Large, sequence length 128, on a bow-pod16, with plausible numbers."""
    ipus = tuple(_memory(ipu, 0.955) for ipu in range(4))
    stages = _stages()
    work = work_of(stages)
    full_s = cycle_s(work, full_cycle(FORWARD_STAGES), SYNC_S)
    all_s = cycles_s(work, GRADIENT_ACCUMULATION, True, SYNC_S)
    cycles = GRADIENT_ACCUMULATION + 2 * FORWARD_STAGES - 2
    update_parts_s = {"all-reduce": 0.206, "remote buffers": 0.071, "optimizer": 0.0213}
    update_s, host_s = sum(update_parts_s.values()), 0.012
    step_s = all_s + update_s + host_s
    samples = 8 * GRADIENT_ACCUMULATION * 4
    flops_per_sample = 2.37e11
    return Verdict(
        config=name,
        device="simulator",
        target="bow-pod16",
        fits=True,
        parameters=336_226_108,
        ipus=ipus,
        pipeline=Pipeline(FORWARD_STAGES, cycles, full_s, 1 - GRADIENT_ACCUMULATION / cycles, all_s),
        step_s=step_s,
        update_s=update_s,
        host_s=host_s,
        samples_per_s=samples / step_s,
        packs_per_s=samples / step_s,
        tokens_per_s=samples * 128 / step_s,
        flops_per_sample=flops_per_sample,
        utilisation=samples * flops_per_sample / step_s / (16 * 348.6e12),
        training_steps=7038,
        time_to_train_s=7038 * step_s,
        remedies=(),
        details=Details(
            stages=stages,
            work=_work(),
            liveness=tuple(point for memory in ipus for point in _liveness(memory)),
            update_parts_s=update_parts_s,
            overflows=(),
            bounds=(Bound("cumsum", "embeddings.positions", 1, 5120.0),),
            assumptions=(
                Assumption("clock", 1.85e9, "Hz", "published", "MLPerf v2.0 systems"),
                Assumption("k_mm", 1.088, "", "fitted", "calibration rows, prior 1.0 +- 10%"),
                Assumption("tile imbalance", 1.06, "fullest / mean", "assumed", "no source: a guess"),
            ),
            expected_time_error=0.014,
        ),
    )


def overflowing(*, name: str = "bert_large_128_pod4") -> Verdict:
    """The same, but it doesn't fit: an overflow with its proof, and remedies."""
    verdict = fitting(name=name)
    ipus = tuple(_memory(ipu, scale) for ipu, scale in enumerate((1.35, 1.15, 1.08, 1.08)))
    buffers = (
        Buffer("Adam's second moment of word embeddings", "optimizer_state", "embeddings.word", 520 * MIB),
        Buffer("word embeddings", "weights", "embeddings.word", 300 * MIB),
        Buffer("stash of stage 0's input", "stashes", "encoder.layers.0", 150 * MIB),
    )
    overflows = tuple(
        Overflow(ipu, f"backward: {moment}", ipus[ipu].peak_bytes - ipus[ipu].usable_bytes, buffers)
        for ipu, moment in ((1, "mm of feed_forward"), (0, "addmm of feed_forward.output"))
    )
    remedies = (
        Remedy("--optimizer-state off_chip", 610 * MIB, 0.412, True),
        Remedy("--micro-batch-size 4 --gradient-accumulation 4096", 290 * MIB, 1.03, False),
    )
    liveness = tuple(point for memory in ipus for point in _liveness(memory))
    details = replace(verdict.details, overflows=overflows, liveness=liveness)
    return replace(verdict, fits=False, ipus=ipus, remedies=remedies, details=details)
