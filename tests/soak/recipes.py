"""Mutated recipes and command lines of all runners: refused by name, or a first step or a dry run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import command_line
import config
import model as models
import run_benchmark
import run_glue
import run_inference
import run_pretraining
import run_squad
from config import ConfigError
from data.tokenizer import SPECIAL_TOKENS, Tokenizer
from tests.soak.fuzz import MOST_CHARACTERS, Trial
from tests.soak.targets import change_recipes

ROOT = Path(__file__).resolve().parents[2]
_WORDS = (
    *("0", "1", "2", "3", "-1", "1e9", "0.5", "nan", "inf", "", "none", "auto", "true", "x" * 300, "4096"),
    *(
        "99999999999999999999",
        "train",
        "/proc/nonexistent",
        "README.md",
        "float16",
        "lamb",
        "off_chip",
        "linear",
    ),
    *(
        "9" * 5000,
        "\udcff",
        "é日本",
        "a=b",
        "[MASK]",
        "/dev/null",
        "/proc/self/mem",
        ".",
        "1,2",
        "0x10",
        "1_0",
    ),
)
_OUTPUTS = ("/proc/nonexistent", "", ".", "x" * 300)
_FLAGS = ("--no-such-flag", "--", "-h", "--list", "--version", "--print-config", "--completion", "--wand")
# Values that only make a legal run longer than a first step, or reach for a network or a device.
_KEPT = frozenset(
    "training_steps device cache_folder corpus validation_corpus wandb config configs vocab_size epochs task "
    "preprocessing_workers dataloader_workers data_timeout_s eval_batches corpus_subset corpus_split target "
    "executable_cache compile_only profile_folder tokenizer train_data validation_data report_to push_to_hub "
    "host_threads".split()
)
# A larger model is legal, but takes longer than a trial may.
_SIZES = {
    **{"hidden_size": 64, "num_layers": 4, "sequence_length": 256, "gradient_accumulation": 8},
    **{"micro_batch_size": 8, "replication_factor": 4, "device_iterations": 4, "intermediate_size": 512},
    **{"validation_micro_batch_size": 8, "validation_replication_factor": 4, "vocab_size": 2000},
    **{"validation_device_iterations": 8, "max_position_embeddings": 2000, "dataloader_workers": 1},
}
_MOST_SAMPLES = 64


@dataclass(frozen=True)
class Program:
    """`lines` are legal command lines; `nasty` are flags of the program alone, each with other values."""

    main: Callable[..., object]
    task: str | None
    lines: tuple[list[str], ...]
    nasty: dict[str, tuple[str, ...]]
    recipe: str = ""


def _programs(folder: Path) -> tuple[Program, ...]:
    files = _inputs(folder)
    places = ("/proc/nonexistent", "README.md", str(folder), "", *(files[name] for name in sorted(files)))
    common = ["--device", "simulator", "--no-progress-bar", "--training-steps", "1", "--cache-folder"]
    common += [str(folder / "cache"), "--eval-batches", "1"]
    pretraining = [
        "--config",
        "test_groupbert",
        *common,
        "--preprocessing-workers",
        "0",
        "--vocab-size",
        "500",
    ]
    pretraining += ["--corpus", str(ROOT / "README.md"), "--validation-corpus", str(ROOT / "CONTRIBUTING.md")]
    squad = ["--config", "test_squad", *common, "--train-data", files["squad"]]
    squad += ["--validation-data", files["squad"]]
    glue = ["--config", "test_glue", *common, "--train-data", files["tsv"], "--validation-data", files["tsv"]]
    start = {
        "--checkpoint": places,
        "--resume": (),
        "--dry-run": (),
        "--instances": _WORDS,
        "--inference": (),
    }
    tuned = {**start, "--evaluate-only": (), "--predict": places}
    return (
        Program(run_pretraining.main, "pretraining", (pretraining,), start, "test_groupbert"),
        Program(
            run_squad.main,
            "squad",
            (
                [*squad, "--checkpoint", files["pretrained"]],
                [*squad, "--checkpoint", files["squad model"], "--evaluate-only"],
                [*squad, "--checkpoint", files["squad model"], "--predict", files["squad"]],
                ["--score", files["predictions"], "--data", files["squad"]],
            ),
            {**tuned, "--score": places, "--data": places, "--train-data": places, "--tokenizer": places},
            "test_squad",
        ),
        Program(
            run_glue.main,
            "glue",
            (
                [*glue, "--checkpoint", files["pretrained"]],
                [*glue, "--checkpoint", files["glue model"], "--evaluate-only"],
                [*glue, "--checkpoint", files["glue model"], "--predict", files["tsv"]],
                [
                    *glue,
                    "--glue-task",
                    "csv",
                    "--checkpoint",
                    files["pretrained"],
                    "--text-columns",
                    "sentence",
                ],
            ),
            {**tuned, "--train-data": places, "--glue-task": ("csv", "mnli", "stsb", "ax", *_WORDS)},
            "test_glue",
        ),
        Program(
            run_inference.main,
            None,
            tuple(
                [kind, "--checkpoint", files[model], "--device", "simulator", *words, "--cache-folder"]
                + [str(folder / "cache")]
                for kind, model, words in (
                    ("fill-mask", "pretrained", ["a [MASK] text"]),
                    ("classes", "glue model", ["one\ttwo", '{"text": "x", "text_pair": "y"}']),
                    ("embeddings", "squad model", ["--file", files["texts"]]),
                    ("answers", "squad model", ["what is x?", "--context", "x is a number."]),
                )
            ),
            {
                **{"--checkpoint": places, "--tokenizer": places, "--file": places, "--top-k": _WORDS},
                **{"--context": ("", "a b", *_WORDS), "--dry-run": (), "--sequence-length": _WORDS},
                **{"--micro-batch-size": ("1", "3", "x", "0"), "--doc-stride": _WORDS, "--seed": _WORDS},
                **{"--max-query-length": _WORDS, "--n-best-size": _WORDS, "--squad-version": ("2.0", "3")},
            },
        ),
        Program(
            run_benchmark.main,
            None,
            (
                *(
                    ["verdicts", "--configs", "test_groupbert", "test_bert"],
                    ["verdicts", "--budget-minutes", "1e-9"],
                ),
                ["time-to-train", "--configs", "test_groupbert", "test_bert", "--device", "simulator"],
                ["attention", "--checkpoints", f"a={folder / 'first0-0'}", "--sequences", "2"],
                ["throughput", *pretraining, "--data", "generated", "--calls", "1", "--warm-up", "0"],
                ["ablation", "--budget-minutes", "1e-9", "--device", "simulator", "--seeds", "1"],
                ["learning-rate", "--budget-minutes", "1e-9", "--device", "simulator"],
                ["downstream", "--budget-minutes", "1e-9"],
            ),
            {
                **{"--budget-minutes": ("1e-9", "0", "-1", "nan", "x"), "--configs": ("test_bert", *places)},
                **{"--output": _OUTPUTS, "--sequences": ("0", "1", "x"), "--reach": ("0", "2", "x" * 99)},
                **{"--data": ("generated", "x"), "--calls": ("0", "-1", "1", "x"), "--markdown": _OUTPUTS},
                **{"--checkpoints": places, "--recipes": places, "--scales": places, "--scale": _WORDS},
            },
        ),
    )


def _inputs(folder: Path) -> dict[str, str]:
    """Small models of every task, and texts for them."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789_.?,"
    tokenizer = Tokenizer([*SPECIAL_TOKENS, *letters, *("##" + letter for letter in letters)])
    shape = config.load("test_groupbert", overrides={"vocab_size": tokenizer.vocab_size}).model_config()
    found = {}
    for head, name in (("pretraining", "pretrained"), ("squad", "squad model"), ("glue", "glue model")):
        into = folder / name.replace(" ", "_")
        into.mkdir(parents=True)
        labels = ("entailment", "not_entailment") if head == "glue" else ()
        models.save_pretrained(models.TASKS[head].build(shape, seed=1, labels=labels), into)
        tokenizer.save(into)
        found[name] = str(into)
    questions = json.loads((ROOT / "data" / "squad" / "demo" / "validation.json").read_text())
    questions["data"] = questions["data"][:1]
    questions["data"][0]["paragraphs"] = questions["data"][0]["paragraphs"][:2]
    pairs = (ROOT / "data" / "glue" / "demo" / "dev.tsv").read_text().splitlines()[:20]
    contents = {
        **{"squad": json.dumps(questions), "predictions": "{}", "tsv": "\n".join(pairs) + "\n"},
        **{"texts": "a text\tits pair\nanother\n", "bad": "\0\xff{["},
    }
    for name, content in contents.items():
        file = folder / f"{name}.{'json' if name in ('squad', 'predictions') else 'tsv'}"
        file.write_text(content)
        found[name] = str(file)
    return found


def trial(folder: Path) -> Trial:
    """The trial of a mutated command line; what the programs need is made in `folder`."""
    programs = _programs(folder)
    plain = config.load("test_groupbert").to_dict()
    pools = {task: _pool(task) for task in ("pretraining", "squad", "glue")}
    for number, program in enumerate(programs):  # as they are, they run, and what they prepare is kept
        for place, words in enumerate(program.lines):
            status, said = _run(program, [*words, "--output", str(folder / f"first{number}-{place}")])
            assert status in (0, 3), f"{words}: {said}"

    def run(number: int, folder: Path) -> bool:
        rng = random.Random(f"recipe {number}")
        program = rng.choices(programs, weights=(4, 2, 2, 2, 2))[0]
        words = list(rng.choice(program.lines))
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            pool = {} if program.task is None else pools[program.task]
            words += _flag(rng, program, pool, plain)
        if rng.random() < 0.1:
            words.insert(rng.randrange(len(words)), rng.choice((*_WORDS, *_FLAGS)))
        if rng.random() < 0.05:
            del words[rng.randrange(len(words))]
        if program.recipe and rng.random() < 0.2:
            words += ["--configs", str(folder / "configs.yml"), "--config", "resolved"]
            recipe = config.load(program.recipe).to_yaml("resolved").encode()
            files = {"configs.yml": b"", "resolved.yml": recipe}
            change_recipes(rng, files)
            (folder / "configs.yml").write_bytes(files.get("resolved.yml", b""))
        if "--output" not in words:
            words += ["--output", str(folder / "out")]
        os.chdir(folder)
        if program.task is not None and _is_too_large(program.task, words):
            words.append("--dry-run")
        status, said = _run(program, words)
        assert "Traceback" not in said, said
        assert status in (0, 2, 3), f"status {status}: {said}"
        assert status != 2 or 0 < len(said.strip().splitlines()[-1]) < MOST_CHARACTERS, said[-500:]
        return status == 2

    return run


def _pool(task: str) -> dict[str, list[object]]:
    """The values that keys have in the task's recipes."""
    pool: dict[str, list[object]] = {}
    for name in config.names():
        with contextlib.suppress(ConfigError):  # its values are searched for
            loaded = config.load(name)
            if loaded.task == task:
                for key, value in loaded.to_dict().items():
                    if key not in _KEPT:
                        pool.setdefault(key, []).append(value)
    return pool


def _flag(
    rng: random.Random, program: Program, pool: dict[str, list[object]], plain: dict[str, Any]
) -> list[str]:
    """A flag, with a value that recipes have, one near it, or any other."""
    if not pool or rng.random() < 0.12:
        flag = rng.choice(sorted(program.nasty))
        values = program.nasty[flag]
        return [flag, rng.choice(values)] if values else [flag]
    key = rng.choice(sorted(pool))
    flag = f"--{key.replace('_', '-')}"
    if isinstance(plain[key], bool):
        return [flag if rng.random() < 0.5 else flag.replace("--", "--no-", 1)]
    if rng.random() < 0.6:
        value = rng.choice(pool[key])
        listed = value if isinstance(value, (list, tuple)) else [value]
        return [flag, *("none" if each is None else str(each) for each in listed)]
    if rng.random() < 0.6 and isinstance(plain[key], (int, float)):
        return [flag, str(rng.choice((plain[key] * 2, plain[key] // 2, plain[key] + 1)))]
    return [flag, rng.choice(_WORDS)]


def _is_too_large(task: str, words: list[str]) -> bool:
    """Whether a first step of a legal run would take longer than a trial may."""
    parser = command_line.parser("", required=False)
    config.add_flags(parser, task)
    parser.add_argument("--checkpoint", "--predict", "--score", "--data", dest="nothing")
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
    ):
        try:
            flags, _ = parser.parse_known_args(words)
            if flags.config is None:
                return False
            made = config.load(flags.config, path=flags.configs, overrides=config.overrides_from(flags))
        except (SystemExit, ConfigError, TypeError, OSError):
            return False  # the program refuses it, or searches
    sizes = made.to_dict()
    largest = any((sizes.get(key) or 0) > most for key, most in _SIZES.items() if key != "vocab_size")
    steps = sizes["training_steps"] != 1
    return largest or made.global_batch_size > _MOST_SAMPLES or (steps and "--score" not in words)


def _run(program: Program, words: list[str]) -> tuple[int, str]:
    """The exit status, and what was written to both streams."""
    said, before, choices = io.StringIO(), list(sys.argv), dict(os.environ)
    sys.argv[1:] = words
    stdin, sys.stdin = sys.stdin, io.StringIO("")
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                status = command_line.run_as_program(program.main)
            except SystemExit as ended:  # argparse
                status = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.argv, sys.stdin = before, stdin
        os.environ.clear()
        os.environ.update(choices)
    return status, said.getvalue()
