"""How files of recipes and command-line flags become configurations, and their mistakes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import yaml

import config
from config import Config, ConfigError

# ------------------------------------------------------------------------------------------------ files


def recipe_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "some.yml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


BODY = (
    "{hidden_size: 64, num_layers: 4, num_heads: 4, sequence_length: 32, training_steps: 8, "
    "learning_rate: 1e-3, micro_batch_size: 2, gradient_accumulation: 8, ipus_per_replica: 2, "
    "layers_per_ipu: [2, 2]}"
)
SHORT_SQUAD = "task: squad\n  max_query_length: 8\n  doc_stride: 8\n  "


@pytest.mark.parametrize(
    "written, key, value",
    [
        ("learning_rate: 1e-3", "learning_rate", 1e-3),  # text in YAML 1.1
        ("learning_rate: 1", "learning_rate", 1.0),
        ("learning_rate: 5.E-4", "learning_rate", 5e-4),
        ("training_steps: 1_000", "training_steps", 1000),
        ("wandb: on", "wandb", True),
        ("wandb: No", "wandb", False),
        ("convolution: off", "convolution", False),
        ("corpus_subset: 20231101.en", "corpus_subset", "20231101.en"),
        ("corpus_subset: 2023-11-01", "corpus_subset", "2023-11-01"),  # a date in YAML 1.1
        ("corpus_subset: 1:30", "corpus_subset", "1:30"),  # ninety in YAML 1.1
        (f"{SHORT_SQUAD}squad_version: 2.0", "squad_version", "2.0"),
        (f"{SHORT_SQUAD}squad_version: '2.0'", "squad_version", "2.0"),
        ("eval_steps: null", "eval_steps", None),
        ("eval_steps: ~", "eval_steps", None),
        ("matmul_proportion: 0.3", "matmul_proportion", (0.3, 0.3)),
    ],
)
def test_yaml_values(tmp_path: Path, written: str, key: str, value: object) -> None:
    path = recipe_file(tmp_path, f"_all: &all {BODY}\nrun:\n  <<: *all\n  {written}\n")
    assert getattr(config.load("run", path=path), key) == value


@pytest.mark.parametrize(
    "written, text",
    [
        (
            'num_heads: "4"',
            "some.yml:4: num_heads: expected a whole number, found '4' (text): write it without quotes",
        ),
        ("num_heads: 04", "without leading zeros"),
        ("num_heads: 4.0", "some.yml:4: num_heads: expected a whole number, found 4.0"),
        ("num_heads: yes", "some.yml:4: num_heads: expected a whole number, found True"),
        ("num_heads:", "found None (nothing)"),
        ("corpus_split: on", "put it in quotes"),
        ("num_heads: {a: 1}", "(a mapping)"),
        ("num_heds: 4", "some.yml:4: num_heds: is not a key; did you mean 'num_heads'?"),
        ("lr_warmup: .inf", "expected a number, found inf"),
        ("gradient_accumulation: 3", "some.yml:4: gradient_accumulation: 3 cannot fill the pipeline"),
    ],
)
def test_yaml_mistakes_name_file_line_and_key(tmp_path: Path, written: str, text: str) -> None:
    path = recipe_file(tmp_path, f"_all: &all {BODY}\nrun:\n  <<: *all\n  {written}\n")
    with pytest.raises(ConfigError) as raised:
        config.load("run", path=path)
    assert text in str(raised.value)


def test_an_override_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, f"run: {BODY}\n")
    with pytest.raises(ConfigError) as raised:
        config.load("run", path=path, overrides={"num_heads": 5, "num_hedas": 2})
    assert [str(problem) for problem in raised.value.problems] == [
        "num_hedas: is not a key; did you mean 'num_heads'?",
        "num_heads: 5 does not divide hidden_size 64; use num_heads 4 or 8, or hidden_size 60 or 65",
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "run:\n  seed: 1\n  wandb: on\n  seed: 2\n",
            r"some.yml:4: the key 'seed' appears twice, on lines 2 and 4",
        ),
        ("run: {seed: 1}\nrun: {seed: 2}\n", r"some.yml:2: the key 'run' appears twice"),
        ("run:\n  seed: [1\n", r"some.yml:\d: "),
        ("run:\n  <<: *nowhere\n", r"some.yml:2: found undefined alias 'nowhere'"),
        ("run: &run\n  seed: *run\n", r"some.yml:\d: .*recursive"),
        ("run: &run\n  <<: *run\n", r"some.yml:1: << merges a mapping into itself"),
        ("run: &run\n  <<: {<<: *run}\n", r"some.yml:1: << merges a mapping into itself"),
        (
            "run:\n  <<: [{seed: 1}, 3]\n",
            r"some.yml:2: << merges a mapping or a list of mappings, found a scalar",
        ),
        ("run: !!python/object/apply:os.getcwd []\n", r"some.yml:1: could not determine a constructor"),
        ("run:\n  [1, 2]: 3\n", r"some.yml:2: a key must be a word"),
        ("run: 3\n", r"some.yml:1: run must hold 'key: value' lines, found 3"),
        ("run:\n", r"some.yml:1: run must hold 'key: value' lines, found nothing"),
        ("", r"some.yml: expected 'name:'"),
        ("- a\n", r"some.yml: expected 'name:'"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.load("run", path=recipe_file(tmp_path, text))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.yml: no such recipe file"):
        config.names(tmp_path / "gone.yml")
    (tmp_path / "latin.yml").write_bytes(b"run: {corpus: caf\xe9}")
    with pytest.raises(ConfigError, match=r"latin.yml: cannot be read as UTF-8"):
        config.names(tmp_path / "latin.yml")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.names(tmp_path)


def test_merged_keys_give_way_to_own_ones_and_earlier_to_later(tmp_path: Path) -> None:
    path = recipe_file(
        tmp_path,
        f"""
        _all: &all {BODY}
        _seed: &seed {{seed: 1, num_heads: 8}}
        run: {{seed: 3, <<: [*seed, *all]}}
        """,
    )
    made = config.load("run", path=path)
    assert (made.seed, made.num_heads, made.hidden_size) == (3, 8, 64)


def _first_mapping_wins(_: yaml.SafeLoader, node: yaml.MappingNode) -> None:
    _flatten(node, reverse=True)


def _last_mapping_wins(_: yaml.SafeLoader, node: yaml.MappingNode) -> None:
    _flatten(node, reverse=False)


def _flatten(node: yaml.MappingNode, *, reverse: bool) -> None:
    merged: List[Any] = []
    for key_node, value_node in node.value:
        if key_node.value == "<<":
            parts = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            for part in reversed(parts) if reverse else parts:
                _flatten(part, reverse=reverse)
                merged += part.value
    node.value = merged + [pair for pair in node.value if pair[0].value != "<<"]


@pytest.mark.parametrize("flatten_mapping", [_first_mapping_wins, _last_mapping_wins])
def test_merging_does_not_depend_on_the_version_of_pyyaml(
    flatten_mapping: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyYAML up to 6.0.3 lets the first of the mappings of `<<` win, 6.0.4 the last."""
    monkeypatch.setattr(yaml.constructor.SafeConstructor, "flatten_mapping", flatten_mapping)
    corrected = config.load("bert_base_128_pod4")
    assert (corrected.replication_factor, corrected.replicated_tensor_sharding) == (1, False)
    scaled_out = config.load("bert_large_128_pod64_als")
    assert (scaled_out.target, scaled_out.replication_factor) == ("pod64", 16)


def test_names_and_unknown_names(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, f"_all: &all {BODY}\nsecond: *all\nfirst: *all\n")
    assert config.names(path) == ["second", "first"]
    with pytest.raises(ConfigError, match="no configuration 'secnd'; did you mean 'second'"):
        config.load("secnd", path=path)
    with pytest.raises(ConfigError, match="no configuration 'xyz'; known are second, first"):
        config.load("xyz", path=path)
    with pytest.raises(ConfigError, match="'_all' only holds keys that recipes share"):
        config.load("_all", path=path)


@pytest.mark.parametrize("name", ["xyz", "", "resolved"])
def test_an_unknown_name_is_answered_with_a_few_of_many(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config.load(name)
    message = str(raised.value)
    examples = message.split("such as ")[1].split(", ")
    assert f"configs.yml has no configuration {name!r}; {len(config.names())} are known" in message
    assert len(examples) == 3 and set(examples) <= set(config.names())


def test_a_run_can_be_repeated_from_the_file_it_left(tmp_path: Path) -> None:
    """What `--configs output/demo/resolved.yml --config resolved` does."""
    made = config.load("test_groupbert", overrides={"seed": 7, "layers_per_ipu": (0, 2)})
    path = tmp_path / "resolved.yml"
    path.write_text(made.to_yaml(), encoding="utf-8")
    assert config.names(path) == ["resolved"]
    assert config.load("resolved", path=path) == made
    assert config.load("resolved", path=path, overrides={"seed": 8}).seed == 8
    with pytest.raises(ConfigError, match=r"resolved.yml has no configuration 'demo'; known are resolved"):
        config.load("demo", path=path)


# ------------------------------------------------------------------------------------------------ flags


def parse(*words: str) -> Dict[str, object]:
    parser = config.FlagParser(prog="run")
    parser.add_argument("--config")
    config.add_flags(parser)
    return config.overrides_from(parser.parse_args(list(words)))


def flags() -> Dict[str, List[argparse.Action]]:
    parser = config.FlagParser(add_help=False)
    config.add_flags(parser)
    found: Dict[str, List[argparse.Action]] = {}
    for action in parser._actions:
        found.setdefault(action.dest, []).append(action)
    return found


def test_one_key_is_one_documented_flag() -> None:
    keys = [entry.name for entry in dataclasses.fields(Config)]
    assert list(flags()) == keys
    for key, actions in flags().items():
        kebab = key.replace("_", "-")
        both = isinstance(actions[0].const, bool)
        assert [action.option_strings for action in actions] == [[f"--{kebab}"], [f"--no-{kebab}"]][
            : 1 + both
        ]
        assert actions[0].help and "%(" not in actions[0].help


def test_the_surface_changes_on_purpose_only() -> None:
    """Scripts and recipes out there use these names: adding one is fine, losing one is a break."""
    surface = """
        task seed training_steps eval_steps eval_batches checkpoint_steps checkpoints_to_keep
        log_steps report_to wandb wandb_project push_to_hub data_timeout_s progress_bar
        model hidden_size num_layers num_heads intermediate_size vocab_size
        max_position_embeddings norm convolution feed_forward ffn_groups conv_group_size
        conv_kernel_size hidden_dropout attention_dropout layer_norm_eps corpus corpus_subset
        corpus_split text_column validation_corpus validation_fraction tokenizer lowercase
        sequence_length mask_tokens masked_lm_probability dynamic_masking whole_word_masking
        short_sequence_probability cache_folder dataloader_workers preprocessing_workers
        async_dataloader packed_data max_sequences_per_pack packing_factor
        squad_version glue_task train_data validation_data text_columns label_column epochs
        doc_stride max_query_length
        n_best_size max_answer_length null_score_diff_threshold validation_micro_batch_size
        validation_device_iterations validation_matmul_proportion validation_layers_per_ipu
        validation_replication_factor micro_batch_size gradient_accumulation replication_factor
        device_iterations reduction
        optimizer learning_rate lr_schedule lr_warmup lr_warmup_power lr_end momentum adam_beta1
        adam_beta2 optimizer_eps weight_decay max_grad_norm loss_scaling auto_loss_scaling device
        target precision simulator_precision host_threads ipus_per_replica layers_per_ipu matmul_proportion
        embedding_serialization_factor one_hot_masked_positions replicated_tensor_sharding
        optimizer_state recompute_checkpoint_every_layer enable_half_partials enable_half_first_order_momentum
        stochastic_rounding floating_point_exceptions executable_cache compile_only synthetic_data
        profile_folder
    """
    assert [entry.name for entry in dataclasses.fields(Config)] == surface.split()


@pytest.mark.parametrize(
    "words, expected",
    [
        ("", {}),
        ("--micro-batch-size 4", {"micro_batch_size": 4}),
        ("--micro-batch-size=4", {"micro_batch_size": 4}),
        ("--learning-rate 1e-3", {"learning_rate": 1e-3}),
        ("--whole-word-masking", {"whole_word_masking": True}),
        ("--no-whole-word-masking", {"whole_word_masking": False}),
        ("--no-convolution", {"convolution": False}),
        ("--layers-per-ipu 0 4 4 4", {"layers_per_ipu": (0, 4, 4, 4)}),
        ("--layers-per-ipu 0,4,4,4", {"layers_per_ipu": (0, 4, 4, 4)}),
        ("--layers-per-ipu 0, 4, 4 4 --seed 1", {"layers_per_ipu": (0, 4, 4, 4), "seed": 1}),
        ("--matmul-proportion .25", {"matmul_proportion": (0.25,)}),
        ("--max-grad-norm none", {"max_grad_norm": None}),
        ("--null-score-diff-threshold -1e-3", {"null_score_diff_threshold": -1e-3}),
        ("--null-score-diff-threshold -1.5E+2 --seed 1", {"null_score_diff_threshold": -150.0, "seed": 1}),
        ("--null-score-diff-threshold -.5e1", {"null_score_diff_threshold": -5.0}),
        ("--null-score-diff-threshold -3.", {"null_score_diff_threshold": -3.0}),
        ("--norm None", {"norm": None}),
        ("--validation-layers-per-ipu none", {"validation_layers_per_ipu": None}),
        ("--corpus none", {"corpus": "none"}),  # a folder may have this name
        ("--config demo --target bow-pod16", {"target": "bow-pod16"}),
    ],
)
def test_flags(words: str, expected: Dict[str, object]) -> None:
    assert parse(*words.split()) == expected


@pytest.mark.parametrize(
    "words, text",
    [
        ("--micro-batch-size 4.0", "argument --micro-batch-size: expected a whole number, found '4.0'"),
        ("--micro-batch-size none", "expected a whole number, found 'none'"),
        ("--learning-rate fast", "expected a number, found 'fast'"),
        ("--learning-rate nan", "expected a number, found 'nan'"),
        ("--layers-per-ipu 0 four", "argument --layers-per-ipu: expected a whole number, found 'four'"),
        ("--optimizer lam", "did you mean 'lamb'?"),
        ("--micro-batchsize 4", "--micro-batchsize: did you mean '--micro-batch-size'?"),
        ("--micro-batch 4", "--micro-batch: did you mean '--micro-batch-size'?"),  # no abbreviations
        ("--wandb true", "unrecognized arguments: true"),
    ],
)
def test_flag_mistakes_exit_with_status_2(words: str, text: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(*words.split())
    message = capsys.readouterr().err
    assert raised.value.code == 2
    assert text in message and len(message.splitlines()) <= 3


def test_none_in_a_recipe_is_none_as_on_the_command_line(tmp_path: Path) -> None:
    """For every key that may be none, written as YAML, a flag and a flag of several words do."""
    free = {entry.name for entry in dataclasses.fields(Config) if entry.default is None}
    assert {"max_grad_norm", "eval_steps", "validation_layers_per_ipu", "corpus_subset", "norm"} <= free
    same = config.load("test_groupbert", overrides=dict.fromkeys(free, None)).to_dict()
    recipe = {**config.load("test_groupbert").to_dict(), **dict.fromkeys(free, "none")}
    for word in ("none", "None", "'none'", "NONE", "null"):
        text = "\n".join(
            f"  {key}: {word if value == 'none' else json.dumps(value)}" for key, value in recipe.items()
        )
        (tmp_path / "recipes.yml").write_text(f"mine:\n{text}\n")
        assert config.load("mine", path=tmp_path / "recipes.yml").to_dict() == same
    (tmp_path / "recipes.yml").write_text(
        f"mine:\n{text}\n  \n".replace('corpus: "python-docs"', "corpus: none")
    )
    assert config.load("mine", path=tmp_path / "recipes.yml").corpus == "none"  # a folder may have this name


def test_every_value_of_a_recipe_can_be_given_as_flags() -> None:
    """The flags of one recipe, written out, turn another one into it."""
    wanted = config.load("bert_large_128_pod64_als")
    words: List[str] = []
    for key, value in wanted.to_dict().items():
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            words += [flag if value else flag.replace("--", "--no-", 1)]
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        elif value is not None or key != "convolution":
            words += [flag, str(value)]
    assert config.load("demo", overrides=parse(*words)) == wanted


def test_help_lists_every_flag_with_its_type(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--layer-norm-eps N added to the variance; 1e-3 is safe in float16 [a number, in (0, 1)]" in text
    assert "[one of mean | sum]" in text
