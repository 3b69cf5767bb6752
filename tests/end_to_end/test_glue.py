"""Fine-tuning on labelled texts: what a run leaves, how it goes on, what it predicts and what it refuses."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
import transformers

import model as models
import run_glue
import run_squad
from config import ConfigError
from data import DataError
from data.glue.demo.make import FOLDER as DEMO
from data.tokenizer import SPECIAL_TOKENS, Tokenizer
from model import ConversionError, ModelConfig, PretrainingModel
from training.metrics_file import read_metrics

from .test_resume import assert_same_run, signalled_at

pytestmark = pytest.mark.slow

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789_.?,"
TOKENIZER = Tokenizer(
    [*SPECIAL_TOKENS, *LETTERS, *("##" + letter for letter in LETTERS), "good", "bad", "is"]
)
STEPS = ("--training-steps", 4, "--eval-steps", 2, "--checkpoint-steps", 2)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folders = {}
    for family, shape in (
        ("groupbert", {"norm": "pre", "convolution": True, "feed_forward": "grouped_projected"}),
        ("bert", {}),
    ):
        config = ModelConfig(
            vocab_size=100, hidden_size=32, num_layers=2, num_heads=2, max_position_embeddings=128, **shape
        )
        folders[family] = tmp_path_factory.mktemp(family)
        models.save_pretrained(PretrainingModel(config, seed=1), folders[family])
        TOKENIZER.save(folders[family])
    return folders


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A few of the demo's pairs; and own texts whose class is a word in them."""
    folder = tmp_path_factory.mktemp("glue")
    for split, count in (("train", 40), ("dev", 25), ("test", 9)):
        lines = (DEMO / f"{split}.tsv").read_text().splitlines()
        (folder / f"{split}.tsv").write_text("\n".join(lines[: count + 1]) + "\n")
    for name, count in (("own-train", 60), ("own-dev", 20)):
        rows = [
            f"it is {'good' if n % 3 else 'bad'} {n},{'up' if n % 3 else 'down'},{n % 3}.5"
            for n in range(count)
        ]
        (folder / f"{name}.csv").write_text("\n".join(["text,label,score", *rows]) + "\n")
    return folder


@pytest.fixture
def flags(files, pretrained, cache):
    """Flags of a run of a few seconds; `flags(output, extra...)` gives the whole command line."""

    def command_line(output, *extra, family="groupbert", start=True, own=False):
        data = ("own-train.csv", "own-dev.csv") if own else ("train.tsv", "dev.tsv")
        return [
            *("--config", "test_glue", "--output", str(output), "--device", "simulator"),
            *("--train-data", str(files / data[0]), "--validation-data", str(files / data[1])),
            *("--cache-folder", str(cache), "--model", family, "--eval-batches", "none"),
            *("--ipus-per-replica", "1", "--layers-per-ipu", "2", "--micro-batch-size", "12"),
            *("--gradient-accumulation", "1", "--validation-micro-batch-size", "4"),
            *(("--glue-task", "csv", "--sequence-length", "16") if own else ("--sequence-length", "64")),
            *(("--checkpoint", str(pretrained[family])) if start else ()),
            *(str(word) for word in extra),
        ]

    return command_line


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def trained(trained_folder, flags):
    if not trained_folder.exists():
        run_glue.main(flags(trained_folder, *STEPS))
    return trained_folder


def rows_of(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def test_a_run_on_ones_own_texts_learns_and_leaves_what_it_promises(tmp_path, flags, capsys):
    output = tmp_path / "run"
    learn = ("--training-steps", 30, "--eval-steps", 15, "--learning-rate", 1e-2)
    result = run_glue.main(flags(output, *learn, own=True))
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith("device: simulator")
    assert "vocab_size 100, the checkpoint's (recipe: 1000)" in said
    assert "not in the checkpoint, so new from seed 42: classes" in said
    assert json.loads((output / "verdict.json").read_text())["training_steps"] == 30
    records = read_metrics(output / "metrics.jsonl")
    assert [record["step"] for record in records if "eval_accuracy" in record] == [0, 15, 30]
    assert result.scores["eval_accuracy"] == result.scores["eval_f1"] == 1.0
    assert [row["prediction"] for row in rows_of(output / "predictions.jsonl")] == result.predictions
    assert result.predictions == ["up" if n % 3 else "down" for n in range(20)]
    summary = json.loads((output / "summary.json").read_text())
    assert summary["eval_accuracy"] == 1.0 and summary["checkpoint"] == str(result.checkpoint)
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    settings = json.loads((result.checkpoint / "config.json").read_text())
    assert settings["id2label"] == {"0": "down", "1": "up"}

    # Evaluated again in another batch, from the output folder: the same.
    batch = ("--validation-micro-batch-size", 3, "--validation-replication-factor", 2)
    again = run_glue.main(
        flags(tmp_path / "again", "--evaluate-only", "--checkpoint", output, *batch, own=True, start=False)
    )
    assert again.predictions == result.predictions
    assert again.scores["eval_loss"] == pytest.approx(result.scores["eval_loss"], rel=1e-5)


def test_a_regression(tmp_path, flags):
    own = ("--glue-task", "csv_regression", "--text-columns", "text", "--label-column", "score")
    learn = ("--training-steps", 30, "--learning-rate", 1e-2)
    result = run_glue.main(flags(tmp_path / "run", *learn, *own, own=True))
    assert {"eval_loss", "eval_pearson", "eval_spearmanr"} == set(result.scores)
    assert result.scores["eval_pearson"] > 0.5
    errors = [(value - n % 3 - 0.5) ** 2 for n, value in enumerate(result.predictions)]
    assert result.scores["eval_loss"] == pytest.approx(sum(errors) / 20, rel=1e-4)
    model = models.from_pretrained(tmp_path / "run", head="glue", fresh_head=False)
    assert model.is_regression and model.labels == ("score",)
    with pytest.raises(ConversionError, match="has a regression, but glue_task csv is a classification"):
        evaluate = ("--evaluate-only", "--checkpoint", tmp_path / "run")
        run_glue.main(flags(tmp_path / "other", *evaluate, own=True, start=False))


def test_a_test_set_is_predicted_in_the_leaderboards_format(tmp_path, flags, trained, files):
    predict = ("--predict", files, "--checkpoint", trained)
    result = run_glue.main(flags(tmp_path / "out", *predict, start=False))
    lines = (tmp_path / "out" / "QNLI.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 1 + 9
    assert lines[1:] == [f"{n}\t{given}" for n, given in enumerate(result.predictions)]
    assert set(result.predictions) <= {"entailment", "not_entailment"}
    rows = rows_of(tmp_path / "out" / "predictions.jsonl")
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5) for row in rows)
    with pytest.raises(DataError, match="cannot read 'nowhere'"):
        run_glue.main(flags(tmp_path / "no", "--predict", "nowhere", "--checkpoint", trained, start=False))


def test_transformers_reads_a_fine_tuned_bert_and_agrees(tmp_path, flags, files):
    result = run_glue.main(flags(tmp_path / "run", *STEPS, family="bert"))
    theirs = transformers.BertForSequenceClassification.from_pretrained(result.checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.checkpoint)
    rows = rows_of(tmp_path / "run" / "predictions.jsonl")[:5]
    batch = tokenizer(*map(list, zip(*(row["texts"] for row in rows))), padding=True, return_tensors="pt")
    with torch.no_grad():
        probabilities = theirs(**batch).logits.softmax(-1)
    for row, expected in zip(rows, probabilities):
        assert list(row["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-4)
    assert list(theirs.config.id2label.values()) == ["entailment", "not_entailment"]


def test_kill_9_and_resume(tmp_path, flags, trained):
    output = tmp_path / "killed"
    arguments = flags(output, *STEPS)
    killed = signalled_at(arguments, "MetricsFile", "write", 4, signal.SIGKILL, "run_glue")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert run_glue.main([*flags(output, *STEPS, start=False), "--resume"]).step == 4
    assert_same_run(trained, output, 4)
    assert (output / "predictions.jsonl").read_text() == (trained / "predictions.jsonl").read_text()


def test_changed_examples_are_refused_on_resuming(tmp_path, flags, trained, files):
    output, train = tmp_path / "run", files / "train.tsv"
    shutil.copytree(trained, output)
    text = train.read_text()
    try:
        for changed in (text.replace("Which", "What"), text.replace("\tentailment", "\tnot_entailment")):
            train.write_text(changed)
            with pytest.raises(DataError, match="have changed"):
                run_glue.main([*flags(output, *STEPS, start=False), "--resume"])
    finally:
        train.write_text(text)


def test_from_one_task_to_another(tmp_path, flags, trained):
    """A classifier's encoder and pooler go on with other classes, and as a question-answering model."""
    result = run_glue.main(flags(tmp_path / "run", *STEPS, "--checkpoint", trained, own=True, start=False))
    assert result.step == 4
    squad = models.from_pretrained(result.checkpoint, head="squad", seed=1)
    assert squad.fresh_modules == ("span",)
    with pytest.raises(ConfigError, match="needs a squad recipe"):
        run_squad.main(["--config", "test_glue"])


@pytest.mark.parametrize(
    ("extra", "kind", "words"),
    [
        (("--resume",), ConfigError, "remove --checkpoint"),
        (("--glue-task", "ax"), ConfigError, "ax has no training set"),
        (("--text-columns", "a", "b"), ConfigError, "is read with glue_task csv and csv_regression only"),
        (("--glue-task", "csv", "--text-columns", "a", "b", "c"), ConfigError, "reads one text or two"),
        (("--vocab-size", 90), models.ConversionError, "90"),
        (("--squad-version", "2.0"), ConfigError, "not read by task glue"),
        (("--glue-task", "cola"), DataError, "'perhaps'|not one of|columns"),
    ],
)
def test_mistakes_are_found_before_training(tmp_path, flags, extra, kind, words):
    with pytest.raises(ValueError, match=words):
        run_glue.main(flags(tmp_path / "run", *STEPS, *extra))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_predicting_needs_a_fine_tuned_model(tmp_path, flags):
    with pytest.raises(ConfigError, match="--evaluate-only needs a fine-tuned model"):
        run_glue.main(flags(tmp_path / "run", "--evaluate-only", start=False))
    with pytest.raises(ConversionError, match="weights of a glue head are missing"):
        run_glue.main(flags(tmp_path / "run", "--evaluate-only"))


def test_dry_run(tmp_path, flags, capsys):
    verdict = run_glue.main(flags(tmp_path / "run", "--dry-run", "--training-steps", 8))
    assert verdict.fits and "test_glue on pod4: FITS" in capsys.readouterr().out
