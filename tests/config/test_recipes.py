"""The shipped recipes: all of them load, and the published ones carry the published numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import config
from config.recipes import read_recipes

# name: micro batch, accumulation, replicas, global batch, rate, updates (0: epochs), length, masks, placement
PUBLISHED = """
bert_base_128_pod16          32  512  4 65536 0.006    7038 128 20 0,4,4,4
bert_base_128_pod4           32 2048  1 65536 0.006    7038 128 20 0,4,4,4
bert_base_512_pod16           8  512  4 16384 0.002828 2137 512 76 0,4,4,4
bert_base_512_pod4            8 2048  1 16384 0.002828 2137 512 76 0,4,4,4
bert_large_128_pod16          8 2048  4 65536 0.006    7038 128 20 3,7,7,7
bert_large_128_pod4           8 8192  1 65536 0.006    7038 128 20 3,7,7,7
bert_large_128_pod16_als      8 2048  4 65536 0.006    7038 128 20 3,7,7,7
bert_large_128_pod64          8  512 16 65536 0.006    7038 128 20 3,7,7,7
bert_large_128_pod64_als      8  512 16 65536 0.006    7038 128 20 3,7,7,7
bert_large_512_pod16          2 2048  4 16384 0.002828 2137 512 76 3,7,7,7
bert_large_512_pod4           2 8192  1 16384 0.002828 2137 512 76 3,7,7,7
bert_large_512_pod64          2  512 16 16384 0.002828 2137 512 76 3,7,7,7
bert_large_128_packed_bow-pod16 8 1751  4 56032 0.006  7038 128 20 3,7,7,7
bert_large_128_packed_bow-pod64 8  438 16 56064 0.006  7038 128 20 3,7,7,7
bert_large_512_packed_bow-pod16 2 1024  4 8192 0.002828 2137 512 76 3,7,7,7
bert_large_512_packed_bow-pod64 2  256 16 8192 0.002828 2137 512 76 3,7,7,7
bert_demo_tiny_128            1   16  1    16 0.001     150 128 20 0,1,1,1
bert_base_3l_128              8  128  1  1024 0.0001   9600 128 20 0,1,1,1
bert_base_128_pod16_optimum  32  512  4 65536 0.006   10500 128 20 0,4,4,4
bert_base_512_pod16_optimum   8  512  4 16384 0.002828 2038 512 76 0,4,4,4
bert_large_128_pod16_optimum  8 2048  4 65536 0.006   10500 128 20 3,7,7,7
bert_large_128_pod64_optimum  8  512 16 65536 0.006   10550 128 20 3,7,7,7
bert_large_512_pod16_optimum  2 2048  4 16384 0.002828 2038 512 76 3,7,7,7
bert_large_512_pod64_optimum  2  512 16 16384 0.002828 2038 512 76 3,7,7,7
groupbert_base_128_pod16     10 1640  4 65600 0.012   10500 128 20 1,3,4,4
groupbert_base_128_pod16_fast 10 1640 4 65600 0.012  10500 128 20 3,3,3,3
groupbert_base_512_pod16      2 2048  4 16384 0.01     2038 512 96 1,3,4,4
groupbert_base_128_packed_pod16 10 1402 4 56080 0.012 10500 128 20 1,3,4,4
groupbert_base_512_packed_pod16 2 1032  4  8256 0.01   2038 512 96 1,3,4,4
groupbert_base_128_pod16_tf1 18  910  4 65520 0.012    7032 128 20 1,4,4,3
groupbert_base_128_pod64_tf1 15  270 16 64800 0.012    7111 128 20 1,4,4,3
groupbert_base_384_pod16_tf1  5 1640  4 32800 0.01     1355 384 56 1,4,4,3
groupbert_base_384_pod64_tf1  4  510 16 32640 0.01     1362 384 56 1,4,4,3
groupbert_base_128_pod16_adam_tf1   6  40 2 480 0.0008 833334 128 20 1,4,4,3
groupbert_base_384_pod16_adam_tf1   2 120 2 480 0.0008 207506 384 60 1,4,4,3
groupbert_medium_128_pod16_adam_tf1 24 20 2 960 0.0015 416667 128 20 0,3,3,2
groupbert_medium_384_pod16_adam_tf1  8 60 2 960 0.0015 103753 384 60 0,3,3,2
groupbert_large_128_pod16_adam_tf1   4 120 2 960 0.0004 416667 128 20 3,7,7,7
groupbert_large_128_pod16_adam_8ipu_tf1 8 126 1 1008 0.0008 446429 128 20 0,3,3,3,4,4,4,3
groupbert_large_384_pod16_adam_8ipu_tf1 4 252 1 1008 0.0008 446429 384 60 0,3,3,3,4,4,4,3
groupbert_mini_128_pod4_adam_tf1  1   512 1   512 0.0001 1000 128 20 0,2,2
groupbert_tiny_128_pod4_tf1       1 65600 1 65600 0.02   7032 128 20 2
squad_bert_base_384           1   8 4  32 0.00006  0 384 20 0,4,4,4
squad_bert_base_384_optimum   2  16 4 128 0.00007  0 384 20 0,4,4,4
squad_bert_large_384          4  32 2 256 0.00005  0 384 20 2,3,3,3,3,3,3,4
squad_bert_large_384_4x4      2  64 4 512 0.00005  0 384 20 3,7,7,7
squad_groupbert_base_384      1  40 1  40 0.0004   0 384 20 0,4,4,4
squad_groupbert_base_384_v2   1  40 1  40 0.00015  0 384 20 0,4,4,4
squad_groupbert_large_384     1 260 1 260 0.00009  0 384 20 3,7,7,7
squad_groupbert_large_384_v2  1  40 1  40 0.00015  0 384 20 3,7,7,7
squad_groupbert_large_384_v2_8ipu 1 36 1 36 0.00015 0 384 20 0,3,3,4,4,4,3,3
glue_groupbert_base_384             1 30 1 30 0.00001 0 384 20 0,4,4,4
glue_groupbert_base_384_regression  1 30 1 30 0.00001 0 384 20 0,4,4,4
glue_groupbert_large_384_8ipu            1 36 1 36 0.00001 0 384 20 0,3,3,4,4,4,3,3
glue_groupbert_large_384_8ipu_regression 1 36 1 36 0.00002 0 384 20 0,3,3,4,4,4,3,3
"""
ROWS = [tuple(line.split()) for line in PUBLISHED.strip().splitlines()]

# name: optimizer, warm-up, loss scaling, serialization, memory proportions, epochs
OPTIMIZATION = """
bert_base_128_pod16      lamb_no_bias_correction 0.28  16384 1 .25,.25,.25,.25 -
bert_base_512_pod16      lamb_no_bias_correction 0.128   128 2 .25,.25,.25,.25 -
bert_large_128_pod16     lamb 0.28   4096 2 .15,.25,.25,.25 -
bert_large_128_pod16_als lamb 0.28      1 2 .13,.20,.20,.20 -
bert_large_128_pod64     lamb 0.28  32768 2 .14,.19,.19,.19 -
bert_large_128_pod64_als lamb 0.28      1 6 .05,.13,.13,.13 -
bert_large_512_pod16     lamb 0.128  8192 2 .10,.15,.15,.15 -
bert_large_512_pod64     lamb 0.128 16384 2 .13,.19,.19,.19 -
bert_demo_tiny_128       adamw 0       16 1 .6,.6,.6,.6     -
bert_base_3l_128         adamw 0.01    16 1 .28,.28,.28,.28 -
groupbert_base_128_pod16 lamb 0.14  16384 2 .22,.22,.22,.22 -
groupbert_base_512_pod16 lamb 0.13    128 2 .22,.22,.22,.22 -
groupbert_base_128_pod16_tf1 lamb 1000 512 5 .2,.14,.18,.2  -
groupbert_base_128_pod64_tf1 lamb 1012 512 5 .4,.24,.19,.19 -
groupbert_base_384_pod16_tf1 lamb 177  512 5 .2,.18,.18,.2  -
groupbert_base_384_pod64_tf1 lamb 178  512 5 .4,.8,.8,.8    -
groupbert_base_128_pod16_adam_tf1   adamw 10000 512 1 .15,.15,.2,.2    -
groupbert_base_384_pod16_adam_tf1   adamw 10000 512 4 .15,.18,.18,.2   -
groupbert_medium_384_pod16_adam_tf1 adamw 10000 512 1 .4,.4,.4,.4      -
groupbert_large_128_pod16_adam_tf1  adamw 10000 512 4 .15,.24,.24,.24  -
groupbert_mini_128_pod4_adam_tf1    adamw 10      1 5 .6,.6,.6         -
groupbert_tiny_128_pod4_tf1         lamb  2000    1 5 .2               -
squad_bert_base_384         adamw .25 64 1 .25,.25,.25,.25 3
squad_bert_base_384_optimum adamw .1  64 1 .22,.22,.22,.22 3
squad_bert_large_384        adamw .1  64 1 .08,.25,.32,.32,.36,.38,.40,.32 3
squad_bert_large_384_4x4    adamw .1  64 1 .15,.25,.25,.25 3
squad_groupbert_base_384          lamb  .1  512 1 .16,.2,.2,.2 2
squad_groupbert_base_384_v2       adamw .1  512 1 .16,.2,.2,.2 3
squad_groupbert_large_384         adamw .1 1024 1 .15,.2,.2,.2 2
squad_groupbert_large_384_v2      adamw .1  512 1 .12,.14,.14,.14 3
squad_groupbert_large_384_v2_8ipu adamw .1  512 1 .2,.14,.14,.14,.14,.14,.14,.14 2
glue_groupbert_base_384           adamw .1    1 1 .15,.15,.15,.15 3
glue_groupbert_large_384_8ipu     adamw .25 512 1 .15,.15,.15,.15,.15,.15,.15,.15 3
glue_groupbert_large_384_8ipu_regression adamw .1 512 1 .15,.15,.15,.15,.15,.15,.15,.15 3
"""

SIZES = {
    "tiny": (128, 2, 2),
    "mini": (256, 4, 4),
    "medium": (512, 8, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_published_batch_rate_length_and_placement(row: tuple) -> None:
    name, micro, accumulation, replicas, batch, rate, steps, length, masks, layers = row
    recipe = config.load(name)
    found = (recipe.micro_batch_size, recipe.gradient_accumulation, recipe.replication_factor)
    assert found == (int(micro), int(accumulation), int(replicas))
    assert config.derived(recipe)["global_batch_size"] == int(batch)
    assert (recipe.learning_rate, recipe.training_steps) == (float(rate), int(steps))
    assert (recipe.sequence_length, recipe.mask_tokens) == (int(length), int(masks))
    assert ",".join(str(count) for count in recipe.layers_per_ipu) == layers


@pytest.mark.parametrize(
    "row", [line.split() for line in OPTIMIZATION.strip().splitlines()], ids=lambda r: r[0]
)
def test_published_optimization(row: list) -> None:
    name, optimizer, warmup, scaling, factor, proportions, epochs = row
    recipe = config.load(name)
    assert (recipe.optimizer, recipe.lr_warmup) == (optimizer, float(warmup))
    assert (recipe.loss_scaling, recipe.embedding_serialization_factor) == (float(scaling), int(factor))
    assert recipe.matmul_proportion == tuple(float(part) for part in proportions.split(","))
    assert recipe.epochs == (None if epochs == "-" else float(epochs))


def test_the_table_is_complete() -> None:
    ours = {
        "demo",
        "demo_packed",
        "squad_demo",
        "glue_demo",
        "test_packed",
        "test_bert",
        "test_groupbert",
        "test_squad",
        "test_glue",
    }
    assert {row[0] for row in ROWS} == set(config.names()) - ours


@pytest.mark.parametrize("name", config.names())
def test_recipe_agrees_with_its_name(name: str) -> None:
    recipe = config.load(name)
    words = name.split("_")
    for size, shape in SIZES.items():
        if size in words and name not in ("bert_demo_tiny_128", "bert_base_3l_128"):
            assert (recipe.hidden_size, recipe.num_layers, recipe.num_heads) == shape
    if "groupbert" in words or "bert" in words:
        assert recipe.model == ("groupbert" if "groupbert" in words else "bert")
    for word in words:
        if word.startswith(("pod", "bow-pod")):
            assert recipe.target == word
    assert recipe.packed_data == ("packed" in words)
    assert recipe.task == next((word for word in words if word in ("squad", "glue")), "pretraining")
    assert recipe.squad_version == ("2.0" if "v2" in words else "1.1")
    is_own = name in ("glue_demo", "test_glue")
    assert recipe.glue_task == ("qnli" if is_own else "stsb" if "regression" in words else "mnli")


@pytest.mark.parametrize("name", [name for name in config.names() if name.startswith(("bert", "groupbert"))])
def test_packed_recipes_have_the_published_accumulation(name: str) -> None:
    """That of the unpacked recipe over the packing factor, rounded up; and rows of up to three sequences."""
    recipe = config.load(name)
    if not recipe.packed_data:
        assert (recipe.pack_depth, recipe.row_mask_tokens) == (1, recipe.mask_tokens)
        return
    plain = config.load(name.replace("_packed", "").replace("bow-", ""))
    factor = {128: 1.17, 512: 1.985 if recipe.model == "groupbert" else 2.0}[recipe.sequence_length]
    assert recipe.packing_factor == factor
    assert recipe.gradient_accumulation == math.ceil(plain.gradient_accumulation / factor)
    assert (recipe.pack_depth, recipe.row_mask_tokens) == (3, plain.mask_tokens + 2)
    assert recipe.separator_tokens == (3 if recipe.model == "groupbert" else 0)


@pytest.mark.parametrize("name", config.names())
def test_model_accepts_recipe(name: str) -> None:
    recipe = config.load(name)
    model = recipe.model_config()
    assert (model.hidden_size, model.num_layers, model.vocab_size) == (
        recipe.hidden_size,
        recipe.num_layers,
        recipe.vocab_size,
    )
    assert model.convolution == (recipe.model == "groupbert")
    assert model.norm == ("pre" if recipe.model == "groupbert" else "post")


@pytest.mark.parametrize("name", config.names())
def test_resolved_recipe_reloads_equal(name: str, tmp_path: Path) -> None:
    recipe = config.load(name)
    (tmp_path / "resolved.yml").write_text(recipe.to_yaml(name), encoding="utf-8")
    assert config.names(tmp_path / "resolved.yml") == [name]
    assert config.load(name, path=tmp_path / "resolved.yml") == recipe


@pytest.mark.parametrize("name", [name for name in config.names() if name.startswith("groupbert")])
def test_groupbert_pretrains_without_dropout_and_with_its_own_schedule(name: str) -> None:
    recipe = config.load(name)
    assert (recipe.hidden_dropout, recipe.attention_dropout) == (0, 0)
    assert (recipe.lr_schedule, recipe.lr_warmup_power, recipe.lr_end) == ("polynomial", 0.5, 1e-7)
    assert recipe.layer_norm_eps == 1e-3


def test_clipping_and_reduction() -> None:
    """mpAdamW clips, plain AdamW does not; TF1 sums in pretraining and in the SQuAD recipe with LAMB."""
    recipes = {name: config.load(name) for name in config.names()}
    clipped = {name for name, recipe in recipes.items() if recipe.max_grad_norm is not None}
    mp_adamw = {name for name in recipes if name.endswith("_adam_tf1") or name.endswith("_adam_8ipu_tf1")}
    mp_adamw -= {"groupbert_mini_128_pod4_adam_tf1"}
    mp_adamw |= {name for name in recipes if name.startswith(("squad_groupbert", "glue_groupbert"))}
    assert clipped - {"demo", "demo_packed", "squad_demo", "glue_demo"} == mp_adamw - {
        "squad_groupbert_base_384"
    }
    assert {recipes[name].max_grad_norm for name in mp_adamw & clipped} == {1.0}
    summed = {name for name, recipe in recipes.items() if recipe.reduction == "sum"}
    tf1 = {name for name in recipes if name.endswith("_tf1")} - {"groupbert_mini_128_pod4_adam_tf1"}
    assert summed == tf1 | {"squad_groupbert_base_384"}


# recipe, family: parameters with a vocabulary of 30522 and 512 positions
PARAMETERS = """
groupbert_tiny_128_pod4_tf1         bert        4433468
groupbert_mini_128_pod4_adam_tf1    bert       11267900
groupbert_medium_128_pod16_adam_tf1 bert       41668412
bert_base_128_pod16                 bert      110106428
bert_large_128_pod16                bert      336226108
groupbert_tiny_128_pod4_tf1         groupbert   4696124
groupbert_mini_128_pod4_adam_tf1    groupbert  13235516
groupbert_medium_128_pod16_adam_tf1 groupbert  56877884
groupbert_base_128_pod16            groupbert 160842044
groupbert_large_128_pod16_adam_tf1  groupbert 515559228
"""


@pytest.mark.parametrize("line", PARAMETERS.strip().splitlines())
def test_derived_parameters_are_the_published_counts(line: str) -> None:
    name, family, parameters = line.split()
    changes = {"model": family, "vocab_size": 30522, "embedding_serialization_factor": 1}
    before = torch.get_rng_state()
    found = config.derived(config.load(name, overrides=changes))
    assert found["parameters"] == int(parameters)
    assert list(found)[-2:] == ["parameters", "flops_per_sequence"]
    assert torch.equal(torch.get_rng_state(), before)


def test_derived_quantities_follow_the_task() -> None:
    squad = config.derived(config.load("squad_bert_base_384"))
    # transformers' BertForQuestionAnswering of bert-base-uncased
    assert squad["parameters"] == 108_893_186
    layers = 12 * (24 * 768**2 * 384 + 4 * 384**2 * 768)
    assert squad["flops_per_sequence"] == 3 * (layers + 2 * 384 * 768 * 2)
    glue = config.derived(config.load("glue_groupbert_base_384"))
    # GroupBERT Base with its heads of pretraining, less those, plus those of MNLI's three classes
    heads = 768 * 768 + 3 * 768 + 30522 + 2 * 768 + 2
    assert glue["parameters"] == 160_842_044 - heads + 3 * 768 + 3


def test_sequence_budgets_of_the_tensorflow_recipes() -> None:
    def millions(name: str) -> float:
        return round(config.derived(config.load(name))["samples_total"] / 1e6, 1)

    assert millions("groupbert_base_128_pod16_tf1") == 460.7
    assert millions("groupbert_base_384_pod16_tf1") == 44.4
    assert millions("groupbert_base_128_pod16_adam_tf1") == 400.0
    assert millions("groupbert_base_384_pod16_adam_tf1") == 99.6
    assert millions("groupbert_medium_384_pod16_adam_tf1") == 99.6


def test_every_shared_mapping_is_used() -> None:
    text = config.CONFIGS.read_text(encoding="utf-8")
    for name in read_recipes(config.CONFIGS):
        if name.startswith("_"):
            anchor = (
                next(line for line in text.splitlines() if line.startswith(name + ":"))
                .split("&")[1]
                .split()[0]
            )
            assert text.count("*" + anchor) > 0, name
