"""What the configuration accepts, and what it refuses and in which words."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List

import pytest
import torch

import config
from config import Config, ConfigError
from ipu.placement import (
    balanced_layers,
    divisors,
    minimum_gradient_accumulation,
    nearest_divisors,
    nearest_multiples,
    pipeline_stages,
)
from model import TASKS

VALUES: Dict[str, Any] = {
    "training_steps": 8,
    "hidden_size": 64,
    "num_layers": 4,
    "num_heads": 4,
    "sequence_length": 32,
    "mask_tokens": 5,
    "micro_batch_size": 2,
    "gradient_accumulation": 8,
    "learning_rate": 1e-3,
    "ipus_per_replica": 2,
    "layers_per_ipu": (2, 2),
}
SQUAD = {"task": "squad", "sequence_length": 128, "doc_stride": 32}


def refusal(**changes: object) -> List[str]:
    """The complaints about VALUES with `changes`."""
    with pytest.raises(ConfigError) as raised:
        Config(**{**VALUES, **changes})
    return [str(problem) for problem in raised.value.problems]


# (changes, the key that the message must start with, what else it must say)
RULES = [
    ({"layers_per_ipu": (2, 3)}, "layers_per_ipu", "5 layers, but num_layers is 4: 1 too many; try 0 4"),
    ({"layers_per_ipu": (1, 1)}, "layers_per_ipu", "2 too few"),
    (
        {"layers_per_ipu": (1, 1, 2)},
        "layers_per_ipu",
        "ipus_per_replica is 2; try 0 4, or ipus_per_replica 3",
    ),
    ({"matmul_proportion": (0.2, 0.2, 0.2)}, "matmul_proportion", "3 values for ipus_per_replica 2"),
    ({"gradient_accumulation": 4}, "gradient_accumulation", "n = 3 stages and needs 2n - 1 = 5"),
    ({"num_heads": 5}, "num_heads", "use num_heads 4 or 8, or hidden_size 60 or 65"),
    ({"conv_group_size": 24}, "conv_group_size", "use conv_group_size 16 or 32, or hidden_size 48 or 72"),
    ({"ffn_groups": 3}, "ffn_groups", "use ffn_groups 2 or 4, or hidden_size 63 or 66"),
    ({"conv_kernel_size": 6}, "conv_kernel_size", "use 5 or 7"),
    ({"sequence_length": 520}, "sequence_length", "8 above max_position_embeddings 512"),
    ({"mask_tokens": 33}, "mask_tokens", "more than sequence_length 32"),
    (
        {"embedding_serialization_factor": 5},
        "embedding_serialization_factor",
        "use 3 or 6, or vocab_size 30520",
    ),
    ({"replication_factor": 9, "target": "pod16"}, "target", "need 18; use a target of pod64 (64)"),
    ({"replication_factor": 9, "target": "pod16"}, "target", "or replication_factor 8"),
    ({"target": "pod17"}, "target", "did you mean 'pod16'?"),
    ({"replicated_tensor_sharding": True}, "replicated_tensor_sharding", "--no-replicated-tensor-sharding"),
    ({"optimizer": "lamb", "max_grad_norm": 1.0}, "max_grad_norm", "PopTorch has no clipping for lamb"),
    ({"optimizer": "sgd", "max_grad_norm": 1.0}, "max_grad_norm", "PopART clips SGD's velocity"),
    ({"optimizer": "sgd", "max_grad_norm": 1.0, "device": "ipu"}, "max_grad_norm", "use adam or adamw"),
    (
        {"optimizer": "lamb_no_bias_correction", "max_grad_norm": 1.0, "device": "ipu"},
        "max_grad_norm",
        "or none for max_grad_norm",
    ),
    ({"device": "ipu-model", "replication_factor": 2}, "replication_factor", "use 1"),
    ({"compile_only": True}, "compile_only", "set executable_cache"),
    ({**SQUAD, "compile_only": True, "executable_cache": "x"}, "compile_only", "pretraining only"),
    (
        {"compile_only": True, "executable_cache": "x", "device": "ipu-model"},
        "compile_only",
        "needs device ipu",
    ),
    ({"lr_warmup": 9}, "lr_warmup", "exceed training_steps by 1: training_steps is 8"),
    ({"lr_warmup": 1.5}, "lr_warmup", "use 2"),
    ({"lr_end": 1e-7}, "lr_end", "polynomial only"),
    ({"lr_warmup_power": 0.5}, "lr_warmup_power", "polynomial only; linear warms up linearly: use 1"),
    ({"lr_warmup_power": 0.5, "lr_schedule": "constant"}, "lr_warmup_power", "constant warms up"),
    ({"lr_end": 1.0, "lr_schedule": "polynomial"}, "lr_end", "above learning_rate 0.001"),
    ({"auto_loss_scaling": True, "reduction": "sum"}, "auto_loss_scaling", "reduction mean"),
    ({"auto_loss_scaling": True, "precision": "float32"}, "auto_loss_scaling", "precision float16"),
    ({"device_iterations": 3}, "training_steps", "use 6 or 9"),
    ({"device_iterations": 4, "eval_steps": 6}, "eval_steps", "use 4 or 8"),
    ({"device_iterations": 4, "checkpoint_steps": 2}, "checkpoint_steps", "use 4"),
    ({"training_steps": 0}, "training_steps", "set the number of weight updates"),
    ({"epochs": 3.0}, "epochs", "not read in pretraining"),
    ({"squad_version": "2.0"}, "squad_version", "2.0 is not read by task pretraining; leave it at 1.1"),
    ({**SQUAD, "glue_task": "rte"}, "glue_task", "rte is not read by task squad; leave it at mnli"),
    ({**SQUAD, "task": "glue", "squad_version": "2.0"}, "squad_version", "2.0 is not read by task glue"),
    ({"doc_stride": 64}, "doc_stride", "64 is not read by task pretraining; leave it at 128"),
    ({"max_query_length": 16}, "max_query_length", "not read by task pretraining; leave it at 64"),
    ({"validation_micro_batch_size": 2}, "validation_micro_batch_size", "task pretraining; leave it at 20"),
    ({"validation_device_iterations": 8}, "validation_device_iterations", "leave it at 4"),
    (
        {"validation_layers_per_ipu": (1, 3)},
        "validation_layers_per_ipu",
        "1 3 is not read by task pretraining; leave it at none",
    ),
    ({**SQUAD, "epochs": 3.0}, "epochs", "use one of them (--epochs none or --training-steps 0)"),
    ({**SQUAD, "training_steps": 0}, "training_steps", "or epochs"),
    ({**SQUAD, "max_query_length": 126}, "max_query_length", "use at most 124"),
    ({**SQUAD, "doc_stride": 62}, "doc_stride", "use at most 61"),
    (
        {**SQUAD, "validation_layers_per_ipu": (1, 2)},
        "validation_layers_per_ipu",
        "1 too few",
    ),
    (
        {**SQUAD, "validation_device_iterations": 1},
        "validation_device_iterations",
        "2 stages (2 2); use at least 2",
    ),
    ({**SQUAD, "embedding_serialization_factor": 2}, "embedding_serialization_factor", "use 1"),
    ({"validation_replication_factor": 2}, "validation_replication_factor", "leave it at none"),
    (
        {**SQUAD, "validation_replication_factor": 9, "target": "pod16"},
        "validation_replication_factor",
        "9 replicas of 2 IPUs need 18, but pod16 has 16; use at most 8",
    ),
    (
        {**SQUAD, "validation_replication_factor": 2, "device": "ipu-model"},
        "validation_replication_factor",
        "no replication; use 1",
    ),
    # types and ranges
    ({"num_layers": 4.0}, "num_layers", "expected a whole number, found 4.0 (a number): write 4"),
    ({"num_layers": True}, "num_layers", "found True (true/false)"),
    ({"num_layers": "4"}, "num_layers", "without quotes"),
    ({"num_layers": 0}, "num_layers", "0 is outside [1, 1000]"),
    ({"num_layers": None}, "num_layers", "expected a whole number"),
    ({"seed": 2**63}, "seed", "9223372036854775808 is outside [0, 9223372036854775808)"),
    ({"seed": 99999999999999999999999}, "seed", "outside"),
    ({"hidden_size": 90000000001}, "hidden_size", "90000000001 is outside [1, 65536]"),
    ({"num_layers": 10**9}, "num_layers", "outside [1, 1000]"),
    ({"vocab_size": 2_000_001}, "vocab_size", "outside [8, 2000000]"),
    ({"dataloader_workers": 2000}, "dataloader_workers", "outside [0, 1024]"),
    ({"preprocessing_workers": 2000}, "preprocessing_workers", "outside [0, 1024]"),
    ({"max_position_embeddings": 65536}, "max_position_embeddings", "65536 is outside [8, 65535]"),
    ({"sequence_length": 65536}, "sequence_length", "65536 is outside [8, 65535]"),
    ({"micro_batch_size": 10**30}, "micro_batch_size", "is outside [1, 65536]"),
    ({"gradient_accumulation": 10**30}, "gradient_accumulation", "is outside [1, 2147483648)"),
    ({"conv_kernel_size": 10**20 + 1}, "conv_kernel_size", "outside [1, 65535]"),
    ({"ipus_per_replica": 10**12}, "ipus_per_replica", "outside [1, 256]"),
    ({"learning_rate": "1e-3"}, "learning_rate", "without quotes"),
    ({"learning_rate": float("nan")}, "learning_rate", "nan"),
    ({"learning_rate": -1e-3}, "learning_rate", "outside (0, inf)"),
    ({"hidden_dropout": 1.0}, "hidden_dropout", "outside [0, 1)"),
    ({"masked_lm_probability": 1.5}, "masked_lm_probability", "outside (0, 1)"),
    ({"matmul_proportion": (0.2, 1.2)}, "matmul_proportion", "1.2 is outside [0, 1]"),
    ({"layers_per_ipu": (5, -1)}, "layers_per_ipu", "-1 is outside [0, inf)"),
    ({"layers_per_ipu": (2.0, 2)}, "layers_per_ipu", "write 2"),
    ({"layers_per_ipu": ()}, "layers_per_ipu", "the list is empty"),
    ({"layers_per_ipu": {"a": 1}}, "layers_per_ipu", "expected a whole number"),
    ({"wandb": "off"}, "wandb", "without quotes"),
    ({"wandb": 1}, "wandb", "expected true or false"),
    ({"corpus": 3}, "corpus", "put it in quotes"),
    ({"optimizer": "adamv"}, "optimizer", "did you mean 'adam"),
    ({"norm": True}, "norm", "pre | post"),
]


@pytest.mark.parametrize("changes, key, text", RULES, ids=lambda part: str(part)[:60])
def test_refusals_name_the_key_and_what_is_legal(changes: Dict[str, Any], key: str, text: str) -> None:
    (complaint,) = refusal(**changes)
    assert complaint.startswith(key + ": ")
    assert text in complaint


def test_values_are_accepted_without_the_changes() -> None:
    assert Config(**VALUES).max_grad_norm is None
    assert Config(**{**VALUES, "optimizer": "adamw", "max_grad_norm": 1}).max_grad_norm == 1.0
    assert Config(**{**VALUES, **SQUAD, "doc_stride": 61}).task == "squad"
    assert Config(**VALUES, doc_stride=128).doc_stride == 128  # a default may be written down
    assert Config(**VALUES, lr_warmup_power=0.5, lr_schedule="polynomial").lr_warmup_power == 0.5


def test_the_largest_seed_is_one_that_torch_takes() -> None:
    seed = Config(**{**VALUES, "seed": 2**63 - 1}).seed
    assert torch.Generator().manual_seed(seed).initial_seed() == seed == 2**63 - 1


def test_all_problems_are_reported_at_once() -> None:
    complaints = refusal(layers_per_ipu=(2, 3), num_heads=5, conv_kernel_size=2, target="pod17")
    assert [line.split(":")[0] for line in complaints] == [
        "num_heads",
        "conv_kernel_size",
        "layers_per_ipu",
        "target",
    ]


def test_every_required_key_is_named_when_missing() -> None:
    with pytest.raises(ConfigError, match="num_heads: is missing; expected a whole number"):
        Config(**{key: value for key, value in VALUES.items() if key != "num_heads"})


def test_legal_conversions() -> None:
    squad = {**VALUES, **SQUAD, "squad_version": 2.0}
    made = Config(**{**squad, "learning_rate": 1, "matmul_proportion": 0.3})
    assert made.learning_rate == 1.0 and type(made.learning_rate) is float
    assert made.matmul_proportion == (0.3, 0.3)
    assert made.squad_version == "2.0"
    assert Config(**{**VALUES, "layers_per_ipu": [2, 2]}) == Config(**VALUES)
    assert hash(Config(**VALUES)) == hash(Config(**VALUES))


def test_family_gives_defaults_that_single_keys_replace() -> None:
    bert = Config(**VALUES, model="bert")
    assert (bert.resolved_norm, bert.resolved_convolution, bert.resolved_feed_forward) == (
        "post",
        False,
        "dense",
    )
    hybrid = Config(**VALUES, model="bert", norm="pre", convolution=True, feed_forward="grouped")
    model = hybrid.model_config()
    assert (model.norm, model.convolution, model.feed_forward) == ("pre", True, "grouped")
    dense = Config(**{**VALUES, "model": "groupbert", "feed_forward": "dense", "ffn_groups": 3})
    assert dense.resolved_norm == "pre"  # and 3 groups of a feed-forward that has none disturb nobody


@pytest.mark.parametrize(
    "layers, task, stages",
    [
        ((12,), "pretraining", 1),
        ((0, 4, 4, 4), "pretraining", 5),
        ((3, 7, 7, 7), "pretraining", 5),
        ((0, 4, 4, 4), "squad", 4),
        ((6, 6), "squad", 2),
        ((2, 0, 2), "pretraining", 3),
        ((0, 2), "pretraining", 3),
    ],
)
def test_pipeline_depth_counts_changes_of_ipu(layers: tuple, task: str, stages: int) -> None:
    head = TASKS[task].place
    assert pipeline_stages(layers, head) == stages
    assert minimum_gradient_accumulation(layers, head) == 2 * stages - 1


def test_absurd_placements_are_refused_at_once() -> None:
    (complaint,) = refusal(layers_per_ipu=(10**12, 0))
    assert "places 1000000000000 layers, but num_layers is 4: 999999999996 too many" in complaint


def test_suggested_placements_are_legal_and_as_published() -> None:
    assert balanced_layers(12, 4) == [0, 4, 4, 4]
    assert balanced_layers(24, 4) == [3, 7, 7, 7]
    for layers in range(1, 30):
        for ipus in range(1, 17):
            placement = balanced_layers(layers, ipus)
            assert len(placement) == ipus and sum(placement) == layers and min(placement) >= 0


def test_validation_uses_the_ipus_of_training() -> None:
    """As published: ipus_per_replica * replication_factor / 2 copies on two IPUs each."""

    def copies(**changes: object) -> int:
        return Config(**{**VALUES, **SQUAD, **changes}).resolved_validation_replication_factor

    assert copies() == 1
    assert copies(replication_factor=8) == 8
    assert copies(replication_factor=8, validation_layers_per_ipu=(1, 1, 1, 1)) == 4
    assert copies(replication_factor=8, validation_replication_factor=3) == 3
    assert copies(ipus_per_replica=1, layers_per_ipu=(4,)) == 1
    assert copies(device="ipu-model", ipus_per_replica=4, layers_per_ipu=(1, 1, 1, 1)) == 1


def test_derived_quantities() -> None:
    made = Config(**{**VALUES, "replication_factor": 4, "device_iterations": 2, "lr_warmup": 0.25})
    embeddings = 64 * (30522 + 512 + 2 + 2)
    layer = 64**2 * (3 + 4 + 2 * 6) + 64 * (7 * 16 + 30)  # convolution, attention, two feed-forwards
    heads = (64 + 1) * 64 + 2 * 64 + 30522 + (64 + 1) * 64 + (64 + 1) * 2
    layer_flops = 38 * 64**2 * 32 + 2 * 7 * 16 * 64 * 32 + 4 * 32**2 * 64
    assert config.derived(made) == {
        "norm": "pre",
        "convolution": True,
        "feed_forward": "grouped_projected",
        "head_size": 16,
        "intermediate_size": 256,
        "ipus": 8,
        "pipeline_stages": 3,
        "minimum_gradient_accumulation": 5,
        "global_batch_size": 2 * 8 * 4,
        "samples_per_device_call": 2 * 8 * 4 * 2,
        "tokens_per_step": 2 * 8 * 4 * 32,
        "device_calls": 4,
        "samples_total": 2 * 8 * 4 * 8,
        "warmup_steps": 2,
        "parameters": embeddings + 4 * layer + 2 * 64 + heads,
        "flops_per_sequence": 3 * (4 * layer_flops + 2 * 5 * (64**2 + 64 * 30522) + 2 * 64**2 + 4 * 64),
    }
    epochs = Config(**{**VALUES, **SQUAD, "training_steps": 0, "epochs": 2.0})
    assert config.derived(epochs)["samples_total"] is None
    assert epochs.resolved_validation_layers_per_ipu == (2, 2)


def test_section_takes_fields_by_name() -> None:
    @dataclasses.dataclass
    class Plan:
        learning_rate: float
        warmup_steps: int
        elsewhere: str = "default"

    made = Config(**VALUES, lr_warmup=2)
    assert made.section(Plan, elsewhere="given") == Plan(1e-3, 2, "given")
    with pytest.raises(AttributeError, match="elsewhere"):  # a default would hide a misspelt field
        made.section(Plan)


def test_nearest_divisors_of_large_numbers_are_found_at_once() -> None:
    (complaint,) = refusal(vocab_size=1_999_993, embedding_serialization_factor=2)
    assert "use 1 or 1999993, or vocab_size 1999992" in complaint
    for number in range(1, 200):
        expected = [candidate for candidate in range(1, number + 1) if number % candidate == 0]
        assert divisors(number) == expected
        for wanted in range(1, number + 3):
            near = [d for d in expected if d < wanted][-1:] + [d for d in expected if d > wanted][:1]
            assert nearest_divisors(number, wanted) == near
            assert all(multiple % wanted == 0 for multiple in nearest_multiples(number, wanted))
