"""Mutated recipes and command lines: each is refused by name, or runs a first step."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import command_line
import config
import ipu
import run_pretraining
from config import ConfigError
from data import DataError
from model import ConversionError, ModelConfigError, StagesError
from tests.soak.fuzz import Trial
from training import TrainingError

ROOT = Path(__file__).resolve().parents[2]
_OURS = (
    ConfigError,
    DataError,
    ConversionError,
    ModelConfigError,
    StagesError,
    TrainingError,
    ipu.DeviceError,
)
_WORDS = (
    *("0", "1", "2", "3", "-1", "1e9", "0.5", "nan", "inf", "", "none", "auto", "true", "x" * 300, "4096"),
    *("99999999999999999999", "train", "/nonexistent", "README.md", "float16", "lamb", "off_chip", "linear"),
)
# Values that only make a legal run longer than a first step, or reach for a network or a device.
_KEPT = {
    *(
        "training_steps",
        "device",
        "cache_folder",
        "corpus",
        "validation_corpus",
        "wandb",
        "config",
        "configs",
    ),
    *("vocab_size", "preprocessing_workers", "dataloader_workers", "data_timeout_s", "eval_batches", "task"),
    *(
        "corpus_subset",
        "corpus_split",
        "target",
        "executable_cache",
        "compile_only",
        "profile_folder",
        "tokenizer",
    ),
}
# A larger model is legal, but its first step takes longer than a trial may.
_SIZES = {"hidden_size": 64, "num_layers": 4, "sequence_length": 256, "gradient_accumulation": 8}
_SIZES |= {"micro_batch_size": 8, "replication_factor": 4, "device_iterations": 4, "intermediate_size": 512}
_MOST_SAMPLES = 64


def trial(cache: Path) -> Trial:
    """The trial of a mutated command line of a small pretraining, whose data is prepared in `cache`."""
    base = ["--config", "test_groupbert", "--device", "simulator", "--preprocessing-workers", "0"]
    base += ["--corpus", str(ROOT / "README.md"), "--validation-corpus", str(ROOT / "CONTRIBUTING.md")]
    base += ["--vocab-size", "500", "--eval-batches", "1", "--no-progress-bar", "--training-steps", "1"]
    base += ["--cache-folder", str(cache)]
    plain = config.load("test_groupbert").to_dict()
    keys = sorted(set(plain) - _KEPT)
    pool: dict[str, list[object]] = {key: [] for key in keys}  # of values that recipes have
    for name in config.names():
        with contextlib.suppress(ConfigError):  # its values are searched for
            values = config.load(name).to_dict()
            for key in keys:
                pool[key].append(values[key])
    run_pretraining.main([*base, "--output", str(cache / "first")])

    def changed(number: int) -> list[str]:
        rng = random.Random(f"recipe {number}")
        words = list(base)
        for key in rng.sample(keys, rng.choice((1, 1, 2, 4))):
            flag = f"--{key.replace('_', '-')}"
            if isinstance(plain[key], bool):
                words.append(flag if rng.random() < 0.5 else flag.replace("--", "--no-", 1))
            elif rng.random() < 0.6:
                value = rng.choice(pool[key])
                listed = value if isinstance(value, list) else [value]
                words += [flag, *("none" if each is None else str(each) for each in listed)]
            elif rng.random() < 0.6 and isinstance(plain[key], (int, float)):
                words += [flag, str(rng.choice((plain[key] * 2, plain[key] // 2, plain[key] + 1)))]
            else:
                words += [flag, rng.choice(_WORDS)]
        if rng.random() < 0.1:
            words.insert(rng.randrange(len(words)), rng.choice((*_WORDS, "--no-such-flag", "--", "-h")))
        if rng.random() < 0.05:
            del words[rng.randrange(len(words))]
        return words

    def run(number: int, folder: Path) -> bool:
        words = [*changed(number), "--output", str(folder / "out")]
        os.chdir(folder)
        try:
            parser = command_line.parser("", required=True)
            config.add_flags(parser)
            flags = parser.parse_args(words)
            made = command_line.load_config(flags, "pretraining")
            too_long = any(getattr(made, key) > most for key, most in _SIZES.items() if getattr(made, key))
            if not too_long and made.global_batch_size <= _MOST_SAMPLES and made.training_steps == 1:
                run_pretraining.main(words)
        except SystemExit as ended:  # argparse
            assert ended.code in (0, 2), ended.code
            return ended.code == 2
        except _OURS as error:
            assert 0 < len(str(error)) < 20_000
            return True
        return False

    return run
