"""The first screen of a run, the list of recipes, --help and --version, and who takes which recipe."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import command_line
import config
import run_glue
import run_pretraining
import run_squad
from config import ConfigError

RUNNERS = {"pretraining": run_pretraining, "squad": run_squad, "glue": run_glue}


@pytest.mark.parametrize("name", ["demo", "squad_demo", "groupbert_base_128_pod16", "squad_bert_base_384"])
def test_the_screen_has_what_matters(name: str) -> None:
    made = config.load(name)
    lines = list(config.summary(made, name, {"seed": 3}))
    assert len(lines) <= 12 and all(len(line) <= 160 for line in lines)
    text = "\n".join(lines)
    facts = config.derived(made)
    for word in (
        made.task,
        made.model,
        made.target,
        made.optimizer,
        f"global_batch_size {facts['global_batch_size']:,}",
        f"{facts['parameters']:,} parameters",
        f"sequences of {made.sequence_length} tokens",
        "seed 3",
    ):
        assert word in text


def test_a_changed_global_batch_is_warned_of_and_no_other_change_is() -> None:
    recipe = config.read_recipe("demo")
    for overrides, size in (
        ({}, None),
        ({"micro_batch_size": 2, "gradient_accumulation": 4}, None),
        ({"micro_batch_size": 8}, 16),
        ({"replication_factor": 2}, 16),
    ):
        warning = config.changed_batch(config.load("demo", overrides=overrides), recipe, "demo")
        assert (warning is None) == (size is None)
        assert size is None or f"is {size} sequences, not 8 as in demo" in str(warning)
    searched = {**recipe, "micro_batch_size": "auto"}
    assert config.changed_batch(config.load("demo"), searched, "demo") is None


@pytest.mark.parametrize("task", [*RUNNERS, None])
def test_the_list_has_the_recipes_of_a_task(task: str | None) -> None:
    lines = config.recipe_lines(task)
    names = [line.split()[0] for line in lines[1:]]
    assert names == [name for name in config.names() if task in (None, config.load(name).task)]
    assert {len(line) for line in lines} != {0} and max(map(len, lines)) < 110


@pytest.mark.parametrize("task", RUNNERS)
def test_list_and_version_exit_with_status_0(
    task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", [f"run_{task}.py"])
    for word, expected in (
        ("--list", config.recipe_lines(task)[1]),
        ("--version", r"groupbert-ipu \d+\.\d+"),
    ):
        with pytest.raises(SystemExit) as ended:
            RUNNERS[task].main([word])
        assert ended.value.code == 0
        assert re.search(expected, capsys.readouterr().out)


@pytest.mark.parametrize("task", RUNNERS)
def test_help_shows_defaults_and_one_tasks_keys(
    task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        RUNNERS[task].main(["--help"])
    text = capsys.readouterr().out
    shown = {line.split()[0].rstrip(",") for line in text.splitlines() if line.startswith("  --")}
    for key, entry in config.Config.__dataclass_fields__.items():
        flag = "--" + key.replace("_", "-")
        assert (flag in shown) == (key not in config.unread_keys(task)), key
        # A hidden flag is still one: the error for a key that a task doesn't read says more.
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {flag} ")] or [None]
        if line is not None and key == "log_steps":
            assert line.endswith("[a whole number, in [1, inf)] (default: 1)")
        if line is not None and key == "max_grad_norm":
            assert "default: none" in line
        if line is not None and key == "learning_rate":
            assert "default" not in line  # every recipe gives one
        assert entry.metadata["doc"].split()[0] in text or flag not in shown


def test_hidden_keys_are_keys() -> None:
    every = set(config.load("demo").to_dict())
    hidden = {task: config.unread_keys(task) for task in ("pretraining", "squad", "glue")}
    assert all(keys <= every for keys in hidden.values())
    assert "mask_tokens" in hidden["squad"] and "doc_stride" in hidden["pretraining"] & hidden["glue"]
    assert not {"train_data", "validation_data", "epochs", "tokenizer", "corpus_subset"} & hidden["squad"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "squad_demo"], r"run_squad\.py --config squad_demo"),
        (["--config", "nope"], "53 are known|are known, such as demo"),
        (["--config", "demo", "--target", "pod32"], "known machine; There are pod4, pod16, pod64"),
    ],
)
def test_what_there_is_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_pretraining.main(words)


def test_the_other_runner_is_named_too() -> None:
    with pytest.raises(ConfigError, match=r"demo is a pretraining recipe.*run_pretraining\.py --config demo"):
        run_squad.main(["--config", "demo"])
    assert command_line.runner_of("squad") == "run_squad.py" and command_line.runner_of("ner") is None


@pytest.mark.parametrize(
    ("words", "message"), [([], "--list names the recipes"), (["--device", "gpu"], "simulator")]
)
def test_mistakes_of_flags_name_what_there_is(
    words: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_pretraining.main(words)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_list_of_another_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "mine.yml"
    file.write_text(config.load("demo").to_yaml("mine"))
    with pytest.raises(SystemExit):
        run_pretraining.main(["--configs", str(file), "--list"])
    assert "mine" in (listed := capsys.readouterr().out) and "squad" not in listed
    with pytest.raises(SystemExit) as ended:
        run_pretraining.main(["--configs", str(tmp_path / "none.yml"), "--list"])
    assert ended.value.code == 2


@pytest.mark.slow
def test_a_remedy_is_a_command_to_paste(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It parses to the flags of the dry run with the remedy's; this program is too large in any case."""
    words = "--config demo --micro-batch-size 256 --gradient-accumulation 4 --max-grad-norm none".split()
    words += ["--layers-per-ipu", "3", "--corpus", "my texts/*.txt", "--no-dynamic-masking"]
    words += ["--output", str(tmp_path)]
    made = run_pretraining.main([*words, "--dry-run"])
    assert not made.fits
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("the first of the remedies")
    ]
    command = shlex.split(line.partition(": ")[2])
    assert command[:2] == ["python", "run_pretraining.py"] and command[-1] == "--dry-run"
    parser = command_line.parser("", required=True)
    config.add_flags(parser)
    given, pasted = (config.overrides_from(parser.parse_args(each)) for each in ([*words], command[2:]))
    remedy = next(remedy.change for remedy in made.verdict.remedies if remedy.fits)
    changed = config.overrides_from(parser.parse_args(["--config", "demo", *remedy.split()]))
    assert changed and pasted == {**given, **changed}


TABLE = [("word", "where", "n"), ("[MASK]", "日本 here", "1"), ("a", "", "22")]


def test_a_table_in_a_pipe_is_plain() -> None:
    expected = ["word    where       n", "------  ---------  --", "[MASK]  日本 here   1"]
    lines = config.text_table(TABLE, right=(2,), rule=True).splitlines()
    assert lines[:3] == expected and lines[3].split() == ["a", "22"]
    long = config.text_table([("word",), ("x" * 3000,)])
    assert long.splitlines() == ["word", "x" * 3000]


def test_a_table_in_a_terminal_fits_it_and_has_bold_headings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "30", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    lines = config.text_table([("word", "n"), ("x" * 50, "1"), ("short", "2")], right=(1,)).splitlines()
    bare = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert "\x1b[1m" in lines[0] and bare[0].split() == ["word", "n"]
    assert max(map(len, bare)) <= 30 and "".join(line.split()[0] for line in bare[1:3]) == "x" * 50
    assert not any("\x1b" in line for line in lines[1:])
