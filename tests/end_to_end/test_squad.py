"""Fine-tuning on questions: what a run leaves, how it goes on, what it answers and what it refuses."""

import json
import shutil
import signal

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import command_line
import model as models
import run_squad
from config import ConfigError
from data import DataError
from data.squad.demo.make import FOLDER as DEMO
from data.tokenizer import SPECIAL_TOKENS, Tokenizer
from model import ConversionError, ModelConfig, PretrainingModel
from training import CheckpointError, TrainingError
from training.metrics_file import read_metrics

from .test_resume import assert_same_run, signalled_at

pytestmark = pytest.mark.slow

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789_.?,"
TOKENIZER = Tokenizer(
    [*SPECIAL_TOKENS, *LETTERS, *("##" + letter for letter in LETTERS), "the", "is", "##on"]
)


def shortened(file, target, paragraphs, version="1.1"):
    """The first paragraphs of a demo file, with two facts each; every third question impossible in 2.0."""
    content = json.loads(file.read_text())
    article = content["data"][0]
    article["paragraphs"] = article["paragraphs"][:paragraphs]
    for paragraph in article["paragraphs"]:
        paragraph["context"] = ". ".join(paragraph["context"].split(". ")[:2])
        paragraph["qas"] = [
            question
            for question in paragraph["qas"]
            if question["answers"][0]["answer_start"] + 10 < len(paragraph["context"])
        ]
        if version == "2.0":
            for number, question in enumerate(paragraph["qas"]):
                question["is_impossible"] = number % 3 == 1
                if question["is_impossible"]:
                    question["answers"] = []
    content["version"] = version
    target.write_text(json.dumps(content))
    return target


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    made = {}
    for version in ("1.1", "2.0"):
        made[version] = [
            shortened(DEMO / f"{split}.json", folder / f"{split}-{version}.json", count, version)
            for split, count in (("train", 16), ("validation", 14))
        ]
    return made


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Folders of pretrained models, by recipe."""
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


@pytest.fixture
def flags(files, pretrained, tmp_path_factory, cache):
    """Flags of a run of a few seconds; `flags(output, extra...)` gives the whole command line."""

    def command_line(output, *extra, family="groupbert", version="1.1", start=True):
        train, validation = files[version]
        return [
            *("--config", "test_squad", "--output", str(output), "--device", "simulator"),
            *("--train-data", str(train), "--validation-data", str(validation), "--squad-version", version),
            *("--cache-folder", str(cache), "--model", family, "--vocab-size", "100"),
            *("--max-position-embeddings", "128", "--sequence-length", "96", "--eval-batches", "none"),
            *("--hidden-dropout", "0.1", "--attention-dropout", "0.1"),
            *(("--checkpoint", str(pretrained[family])) if start else ()),
            *(str(word) for word in extra),
        ]

    return command_line


STEPS = ("--training-steps", 4, "--eval-steps", 2, "--checkpoint-steps", 2)


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def trained(trained_folder, flags):
    if not trained_folder.exists():
        run_squad.main(flags(trained_folder, *STEPS))
    return trained_folder


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_a_run_leaves_what_it_promises(tmp_path, flags, files, capsys):
    output = tmp_path / "run"
    result = run_squad.main(
        flags(output, "--training-steps", 60, "--eval-steps", 30, "--learning-rate", 3e-3)
    )
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith("device: simulator")
    assert read(output, "verdict.json")["training_steps"] == 60
    assert "weight update on host" in said
    records = read_metrics(output / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(61))
    assert [record["step"] for record in records if "eval_f1" in record] == [0, 30, 60]
    assert records[-1]["loss"] < 0.9 * records[1]["loss"]
    assert records[-1]["eval_f1"] > records[0]["eval_f1"]
    contexts = {
        question["id"]: paragraph["context"]
        for paragraph in json.loads(files["1.1"][1].read_text())["data"][0]["paragraphs"]
        for question in paragraph["qas"]
    }
    predictions = read(output, "predictions.json")
    assert list(predictions) == list(contexts)
    assert all(predictions[id_] and predictions[id_] in contexts[id_] for id_ in contexts)
    assert list(read(output, "nbest_predictions.json")) == list(contexts)
    assert not (output / "null_odds.json").exists()
    scored = run_squad.main(["--score", str(output / "predictions.json"), "--data", str(files["1.1"][1])])
    summary = read(output, "summary.json")
    assert (summary["eval_exact"], summary["eval_f1"]) == (scored["exact"], scored["f1"])
    assert summary["checkpoint"] == str(result.checkpoint)
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (result.checkpoint / "vocab.txt").is_file()


def test_transformers_reads_a_fine_tuned_bert_and_agrees(tmp_path, flags):
    result = run_squad.main(flags(tmp_path / "run", *STEPS, family="bert"))
    theirs, report = transformers.BertForQuestionAnswering.from_pretrained(
        result.checkpoint, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.checkpoint)
    own = {"data": [{"paragraphs": [{"context": "The module is old.", "qas": [{"question": "How is it?"}]}]}]}
    (tmp_path / "own.json").write_text(json.dumps(own))
    predict = ("--predict", tmp_path / "own.json", "--checkpoint", result.checkpoint)
    (one,) = run_squad.main(flags(tmp_path / "answers", *predict, family="bert", start=False)).answered
    batch = tokenizer("How is it?", "The module is old.", return_tensors="pt", return_offsets_mapping=True)
    offsets = batch.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        outputs = theirs.eval()(**batch)
    starts, ends = outputs.start_logits[0], outputs.end_logits[0]
    context = [place for place, kind in enumerate(batch["token_type_ids"][0][:-1].tolist()) if kind]
    score, first, last = max(
        (float(starts[first] + ends[last]), first, last)
        for first in context
        for last in context
        if first <= last < first + 30
    )
    assert one.candidates[0].score == pytest.approx(score, abs=1e-4)
    assert one.text == "The module is old."[offsets[first][0] : offsets[last][1]]


def test_float16_learns_as_float32_does(tmp_path, flags):
    """With an IPU's numerics: the same losses but for rounding, float16 weights, and answers from them."""
    as_ipu = ("--simulator-precision", "ipu-float16", "--loss-scaling", 64)
    steps = ("--training-steps", 6, "--hidden-dropout", 0, "--attention-dropout", 0)
    results = [
        run_squad.main(flags(tmp_path / name, *steps, *extra))
        for name, extra in (("float32", ()), ("float16", as_ipu))
    ]
    wide, narrow = (
        [record["loss"] for record in read_metrics(result.output / "metrics.jsonl") if "loss" in record]
        for result in results
    )
    assert len(narrow) == 6 and narrow != wide
    assert narrow == pytest.approx(wide, rel=0.002)  # measured: 0.02% at most
    assert results[1].scores["eval_loss"] == pytest.approx(results[0].scores["eval_loss"], rel=0.002)
    weights = load_file(str(results[1].checkpoint / "model.safetensors"))
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    assert len(results[1].answered) == len(results[0].answered)


def test_version_2(tmp_path, flags, files):
    result = run_squad.main(flags(tmp_path / "run", *STEPS, version="2.0"))
    odds, predictions = (read(tmp_path / "run", name) for name in ("null_odds.json", "predictions.json"))
    assert list(odds) == list(predictions)
    assert all((odds[id_] > 0) == (predictions[id_] == "") for id_ in odds)
    assert {"eval_HasAns_f1", "eval_NoAns_f1", "eval_best_f1", "eval_best_f1_thresh"} <= set(result.scores)
    again = flags(tmp_path / "other", "--null-score-diff-threshold", 1e9, version="2.0", start=False)
    other = run_squad.main([*again, "--evaluate-only", "--checkpoint", str(tmp_path / "run")])
    assert all(one.text for one in other.answered)
    assert other.scores["eval_NoAns_exact"] == 0
    assert other.scores["eval_best_f1"] == result.scores["eval_best_f1"]


@pytest.mark.parametrize("sizes", [(1, 2, 1), (5, 3, 2), (64, 2, 1)])
def test_padding_and_replicas_of_an_evaluation_change_nothing(tmp_path, flags, trained, sizes):
    """Whatever is left over in the last batch: the same answers, scores and loss."""
    evaluate = ("--evaluate-only", "--checkpoint", trained)
    batch = ("--validation-micro-batch-size", sizes[0], "--validation-device-iterations", sizes[1])
    batch += ("--validation-replication-factor", sizes[2])
    result = run_squad.main(flags(tmp_path / "run", *evaluate, *batch, start=False))
    summary = read(trained, "summary.json")
    assert result.scores["eval_loss"] == pytest.approx(summary["eval_loss"], rel=1e-5)
    assert result.scores["eval_f1"] == pytest.approx(summary["eval_f1"])
    assert read(tmp_path / "run", "predictions.json") == read(trained, "predictions.json")


def test_kill_9_and_resume(tmp_path, flags, trained):
    """In one process; `test_resume.py` has a loader with workers."""
    output = tmp_path / "killed"
    arguments = flags(output, *STEPS)
    # The fourth line of metrics is that of step 3, after the checkpoint of step 2.
    killed = signalled_at(arguments, "MetricsFile", "write", 4, signal.SIGKILL, "run_squad")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    result = run_squad.main([*flags(output, *STEPS, start=False), "--resume"])
    assert result.step == 4
    assert_same_run(trained, output, 4)
    for name in ("predictions.json", "nbest_predictions.json"):
        assert read(output, name) == read(trained, name)


def test_a_stopped_run_says_how_to_go_on(tmp_path, flags, trained):
    output = tmp_path / "stopped"
    stopped = signalled_at(flags(output, *STEPS), "MetricsFile", "write", 2, signal.SIGTERM, "run_squad")
    assert stopped.returncode == 0, stopped.stderr
    (line,) = (line for line in stopped.stdout.splitlines() if line.startswith("to resume: "))
    assert "run_squad.py" in line and line.endswith("--resume") and "--checkpoint" not in line.split()
    run_squad.main([*flags(output, *STEPS, start=False), "--resume"])
    assert_same_run(trained, output, 4)


def test_resuming_a_finished_run_changes_nothing(tmp_path, flags, trained):
    output = tmp_path / "again"
    shutil.copytree(trained, output)
    (output / "predictions.json").unlink()
    result = run_squad.main([*flags(output, *STEPS, start=False), "--resume"])
    assert result.step == 4
    assert_same_run(trained, output, 4)
    assert read(output, "predictions.json") == read(trained, "predictions.json")
    before, after = read(trained, "summary.json"), read(output, "summary.json")
    assert {**before, "checkpoint": after["checkpoint"]} == after


def test_changed_questions_are_refused_on_resuming(tmp_path, flags, trained, files):
    output, questions = tmp_path / "run", tmp_path / "train.json"
    shutil.copyfile(files["1.1"][0], questions)
    own = ("--train-data", questions)
    run_squad.main(flags(output, *STEPS, *own))
    questions.write_text(questions.read_text().replace("Which", "What"))
    with pytest.raises(DataError, match="have changed since the checkpoint"):
        run_squad.main([*flags(output, *STEPS, *own, start=False), "--resume"])


def test_evaluating_few_batches_while_training_and_all_at_the_end(tmp_path, flags, trained):
    output = tmp_path / "run"
    result = run_squad.main(flags(output, *STEPS, "--eval-batches", 4))
    records = read_metrics(output / "metrics.jsonl")
    total = read(trained, "summary.json")["eval_total"]
    assert 0 < records[-1]["eval_total"] < total
    assert result.scores["eval_total"] == len(read(output, "predictions.json")) == total
    assert read(output, "predictions.json") == read(trained, "predictions.json")


def test_ones_own_questions_are_answered_in_a_table(tmp_path, flags, trained, capsys):
    own = {
        "data": [{"paragraphs": [{"context": "The  module is\nold.", "qas": [{"question": "How is it?"}]}]}]
    }
    (tmp_path / "own.json").write_text(json.dumps(own))
    predict = ("--predict", tmp_path / "own.json", "--checkpoint", trained)
    result = run_squad.main(flags(tmp_path / "answers", *predict, start=False))
    (one,) = result.answered
    assert one.text in "The  module is\nold."
    heading, rule, row = capsys.readouterr().out.splitlines()[-3:]
    assert heading.split() == ["question", "answer", "probability"] and set(rule) == {"-", " "}
    assert row.startswith("How is it?  " + " ".join(one.text.split())) and row.endswith("%")
    assert list(read(tmp_path / "answers", "predictions.json").values()) == [one.text]


def test_epochs_are_whole_updates(tmp_path, flags, capsys):
    iterations = ("--device-iterations", 2, "--checkpoint-steps", "none")
    epochs = ("--training-steps", 0, "--epochs", 1.5, "--validation-micro-batch-size", 20)
    result = run_squad.main(flags(tmp_path / "run", *epochs, *iterations))
    said = capsys.readouterr().out
    windows = int(said.split("data: train-1.1.json: ")[1].split(" questions, ")[1].split()[0])
    assert result.step % 2 == 0
    assert (result.step - 2) * 12 < 1.5 * windows <= result.step * 12
    assert f"1.5 epochs: {result.step} weight updates" in said


def test_wandb_offline(tmp_path, flags):
    run_squad.main(flags(tmp_path / "run", "--training-steps", 1, "--checkpoint-steps", 1, "--wandb"))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize(
    ("extra", "kind", "words"),
    [
        (("--train-data", "nowhere.json"), DataError, "nowhere"),
        (("--checkpoint", "nowhere"), CheckpointError, "nowhere"),
        (("--sequence-length", 200), ConfigError, "above max_position_embeddings 128"),
        (
            ("--max-position-embeddings", 64, "--sequence-length", 64),
            CheckpointError,
            "128 there and 64 here",
        ),
        (("--resume",), ConfigError, "remove --checkpoint"),
        (("--data", "x.json"), ConfigError, "--data belongs to --score"),
    ],
)
def test_mistakes_are_found_before_training(tmp_path, flags, extra, kind, words):
    with pytest.raises(kind, match=words):
        run_squad.main(flags(tmp_path / "run", *STEPS, *extra))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_recipe_of_another_task_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="needs a squad recipe"):
        run_squad.main(["--config", "test_groupbert", "--output", str(tmp_path / "run")])


@pytest.mark.parametrize("what", [("--evaluate-only",), ("--predict", "own.json")])
def test_answering_needs_a_fine_tuned_model(tmp_path, flags, pretrained, what):
    with pytest.raises(ConfigError, match=f"{what[0]} needs a fine-tuned model"):
        run_squad.main(flags(tmp_path / "run", *what, start=False))
    with pytest.raises(ConversionError, match="weights of a squad head are missing"):
        run_squad.main(flags(tmp_path / "run", *what))


def test_answers_never_replace_a_runs(tmp_path, flags, trained):
    before = (trained / "predictions.json").read_text()
    with pytest.raises(TrainingError, match="another --output"):
        run_squad.main(flags(trained, "--evaluate-only", "--checkpoint", trained, start=False))
    assert (trained / "predictions.json").read_text() == before


def test_a_checkpoint_without_an_encoder_is_refused(tmp_path, flags, pretrained):
    folder = tmp_path / "headless"
    shutil.copytree(pretrained["groupbert"], folder)
    weights = load_file(str(folder / "model.safetensors"))
    kept = {name: tensor for name, tensor in weights.items() if name.startswith("cls.")}
    save_file(kept, str(folder / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(ConversionError, match="has no encoder"):
        run_squad.main(flags(tmp_path / "run", *STEPS, "--checkpoint", folder))


def test_a_users_mistake_has_no_traceback_and_status_2(tmp_path, flags, capsys):
    bad = tmp_path / "bad.json"
    bad.write_text('{"data": [}')
    arguments = flags(tmp_path / "run", "--train-data", bad)
    assert command_line.run_as_program(lambda _: run_squad.main(arguments)) == 2
    said = capsys.readouterr().err
    assert "bad.json" in said and "line 1, column 11" in said
    assert "Traceback" not in said
