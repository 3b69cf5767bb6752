"""Inference: each kind against transformers, from arguments, files and standard input, and its mistakes."""

import io
import json
import sys

import pytest
import torch
import transformers

import model as models
import run_inference
from config import ConfigError
from data import DataError
from data.tokenizer import SPECIAL_TOKENS, Tokenizer
from model import ClassificationModel, ConversionError, ModelConfig, PretrainingModel, SquadModel
from tests.old_hosts import needs_verdict

pytestmark = pytest.mark.slow

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789_.?,"
TOKENIZER = Tokenizer(
    [*SPECIAL_TOKENS, *LETTERS, *("##" + letter for letter in LETTERS), "good", "bad", "is"]
)
SIZES = {
    "vocab_size": TOKENIZER.vocab_size,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "max_position_embeddings": 64,
}
GROUPBERT = {"norm": "pre", "convolution": True, "feed_forward": "grouped_projected"}
TEXTS = ["it is [MASK]", "a good [MASK] is [MASK] bad", "[MASK]", "is it b [MASK] c"]
PAIRS = ["what is it?\tit is good. a b c", "is it?\tbad x"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made = {
        "fill-mask": PretrainingModel(ModelConfig(**SIZES, layer_norm_eps=1e-12), seed=1),
        "answers": SquadModel(ModelConfig(**SIZES), seed=2),
        "classes": ClassificationModel(ModelConfig(**SIZES), seed=3, labels=("no", "yes", "maybe")),
        "score": ClassificationModel(ModelConfig(**SIZES), seed=4, labels=("score",)),
        "groupbert": PretrainingModel(ModelConfig(**SIZES, **GROUPBERT), seed=5),
    }
    with torch.no_grad():
        for name, model in made.items():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
            models.save_pretrained(model, folder / name)
            TOKENIZER.save(folder / name)
    return folder


@pytest.fixture
def infer(folders, cache):
    def run(kind, *words, model=None, **environment):
        flags = ["--checkpoint", str(folders / (model or kind)), "--device", "simulator"]
        return run_inference.main([kind, *flags, "--cache-folder", str(cache), *map(str, words)])

    return run


def theirs(kind, folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return getattr(transformers, kind).from_pretrained(folder).eval(), tokenizer


@needs_verdict
def test_fill_mask_is_transformers_and_is_printed_as_json_lines(infer, folders, capsys):
    result = infer("fill-mask", *TEXTS, "--micro-batch-size", 3, "--top-k", 4)
    printed = capsys.readouterr()
    assert [json.loads(line) for line in printed.out.splitlines()] == result.rows
    assert "device: simulator" in printed.err and "measured on this host: 2 calls of 3" in printed.err
    assert "on pod16 (predicted): fits" in printed.err
    assert result.measured.samples_per_s > 0 and result.predicted["samples_per_s"] > 0
    fill = transformers.pipeline("fill-mask", model=str(folders / "fill-mask"), top_k=4)
    for text, row in zip(TEXTS, result.rows):
        expected = fill(text)
        expected = expected if isinstance(expected[0], list) else [expected]
        assert row["text"] == text and len(row["masks"]) == text.count("[MASK]") == len(expected)
        for mask, reference in zip(row["masks"], expected):
            assert [one["token"] for one in mask] == [TOKENIZER.vocabulary[one["token"]] for one in reference]
            assert [one["probability"] for one in mask] == pytest.approx(
                [one["score"] for one in reference], abs=1e-5
            )
    assert "[MASK]" not in result.rows[1]["filled"]


def test_embeddings_are_transformers_states(infer, folders):
    model, tokenizer = theirs("BertModel", folders / "fill-mask")
    texts = ["it is good", "bad"]
    rows = infer("embeddings", *texts, model="fill-mask").rows
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    means = (states * mask).sum(1) / mask.sum(1)
    for row, first, mean in zip(rows, states[:, 0], means):
        assert row["cls"] == pytest.approx(first.tolist(), abs=1e-5)
        assert row["mean"] == pytest.approx(mean.tolist(), abs=1e-5)


def test_classes_are_transformers(infer, folders):
    model, tokenizer = theirs("BertForSequenceClassification", folders / "classes")
    rows = infer("classes", *PAIRS).rows
    batch = tokenizer(
        *map(list, zip(*(pair.split("\t") for pair in PAIRS))), padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**batch).logits.softmax(-1)
    for row, probabilities in zip(rows, expected):
        named = dict(zip(("no", "yes", "maybe"), probabilities.tolist()))
        assert row["probabilities"] == pytest.approx(named, abs=1e-5)
        assert row["class"] == max(named, key=named.get)
    (row,) = infer("classes", "it is", model="score").rows
    assert isinstance(row["score"], float) and "class" not in row


def test_answers_come_from_their_context(infer):
    rows = infer("answers", *PAIRS, "what?", "--context", "good. bad").rows
    for row, context in zip(rows, ("it is good. a b c", "bad x", "good. bad")):
        assert row["answer"] and all(one["answer"] in context for one in row["answers"])
        assert row["answers"][0]["answer"] == row["answer"]
    long = "is it?\t" + "good bad a b c. " * 40  # several windows
    (row,) = infer("answers", long, "--sequence-length", 48).rows
    assert row["answer"] in long


@pytest.mark.parametrize(
    "batch", [("--micro-batch-size", 1), ("--micro-batch-size", 2, "--layers-per-ipu", 1, 1)]
)
def test_batches_and_placements_change_nothing(infer, batch):
    one, other = (
        infer("fill-mask", *TEXTS, model="groupbert"),
        infer("fill-mask", *TEXTS, *batch, model="groupbert"),
    )
    for left, right in zip(one.rows, other.rows, strict=True):
        for a, b in zip(left["masks"], right["masks"], strict=True):
            assert [x["probability"] for x in a] == pytest.approx([x["probability"] for x in b], abs=1e-5)


def test_files_json_lines_and_standard_input(infer, tmp_path, monkeypatch, capsys):
    (tmp_path / "texts.txt").write_text("it is\n\nis it {good}\n")
    lines = [{"id": 7, "text": "it is"}, {"sentence1": "a", "sentence2": "b"}]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = ("--file", tmp_path / "texts.txt", "--file", tmp_path / "texts.jsonl")
    rows = infer("embeddings", *files, "--output", tmp_path / "new" / "out.jsonl", model="groupbert").rows
    assert [row["text"] for row in rows] == ["it is", "is it {good}", "it is", "a"]
    assert rows[2]["id"] == "7" and rows[3]["text_pair"] == "b"
    assert rows[0]["cls"] == pytest.approx(rows[2]["cls"], abs=1e-6)
    written = (tmp_path / "new" / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == rows and capsys.readouterr().out == ""
    monkeypatch.setattr(sys, "stdin", io.StringIO("good\nbad\n"))
    assert [row["text"] for row in infer("embeddings", model="groupbert").rows] == ["good", "bad"]


@needs_verdict
def test_dry_run_predicts_without_texts(infer, capsys):
    result = infer("answers", "--dry-run", "--target", "bow-pod16", "--sequence-length", 64)
    assert result.rows == [] and result.measured is None
    assert result.predicted["target"] == "bow-pod16" and result.predicted["latency_s"] > 0
    assert "sequences of 64 tokens, on bow-pod16 (predicted)" in capsys.readouterr().err


def test_longer_texts_are_cut_and_say_so(infer):
    (row,) = infer("embeddings", "good " * 100, model="groupbert").rows
    assert row["truncated"] is True


@pytest.mark.parametrize(
    ("words", "kind", "text"),
    [
        (("fill-mask", "no mask"), DataError, r"has no \[MASK\]"),
        (("fill-mask", "a " * 70 + "[MASK]"), DataError, r"loses a \[MASK\] when cut to 64"),
        (("answers", "what?"), DataError, "has no context"),
        (("classes", "a\tb\tc"), DataError, "3 parts"),
        (("classes", '{"body": "a"}'), DataError, "it needs 'text'"),
        (("classes", "  "), DataError, "empty text"),
        (("embeddings", "--file", "nowhere.txt"), DataError, "cannot read 'nowhere.txt'"),
        (("embeddings", "a", "--sequence-length", "100"), ConfigError, "has 64 positions"),
        (("embeddings", "a b", "--sequence-length", "2"), DataError, "2 tokens .* use at least 3"),
        (("embeddings", "a", "--top-k", "0"), ConfigError, "use 1 or more"),
        (("embeddings", "a", "--context", "b"), ConfigError, "belongs to answers"),
    ],
)
def test_mistakes(infer, words, kind, text):
    with pytest.raises(kind, match=text):
        infer(*words, model={"embeddings": "groupbert"}.get(words[0], words[0]))


@pytest.mark.parametrize(
    ("kind", "model"), [("fill-mask", "answers"), ("answers", "classes"), ("classes", "answers")]
)
def test_a_model_of_another_task_is_refused(infer, kind, model):
    with pytest.raises(ConversionError, match=r"has no (masked language|fine-tuned) model"):
        infer(kind, "a [MASK]\tb", model=model)
