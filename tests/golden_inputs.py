"""What golden.py gives to a checkout: texts, questions, command lines, and mistakes."""

from __future__ import annotations

import json
import pydoc
from pathlib import Path

_CORPUS = "argparse difflib json logging optparse pathlib pickle random statistics tarfile threading"


def write_corpus(folder: Path) -> None:
    """corpus.txt: documentation of the standard library, a document for each module."""
    documents = []
    for name in _CORPUS.split():
        lines = pydoc.plain(pydoc.render_doc(name)).splitlines()
        kept = (line.strip(" |") for line in lines if len(line.split()) > 4 and " at 0x" not in line)
        documents.append("\n".join(kept))
    (folder / "corpus.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")


def write_questions(path: Path, count: int) -> None:
    """A SQuAD file of so many paragraphs with two questions each."""
    paragraphs = []
    for number in range(count):
        name, value, other = f"module{number}", f"{3 * number + 1} functions", f"{number + 2} classes"
        context = f"The module called {name} has {value}. It also has {other} and is {number} years old."
        asked = ((f"What does {name} have first?", value), (f"What else does {name} have?", other))
        questions = [
            {
                "id": f"{name}-{place}",
                "question": question,
                "answers": [{"text": answer, "answer_start": context.index(answer)}],
            }
            for place, (question, answer) in enumerate(asked)
        ]
        paragraphs.append({"context": context, "qas": questions})
    data = {"version": "1.1", "data": [{"title": "modules", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(data), encoding="utf-8")


TRAINING = (
    "run_pretraining.py --corpus corpus.txt --cache-folder cache --device simulator --no-progress-bar "
    "--validation-fraction 0.2 --preprocessing-workers 0 --training-steps 8 --checkpoint-steps 4 "
    "--eval-steps 4 --eval-batches 4 --hidden-dropout 0.1 --max-grad-norm 0.5 --output run "
)
FINE_TUNING = (
    "run_squad.py --config test_squad --train-data train.json --validation-data validation.json "
    "--cache-folder cache --device simulator --training-steps 8 --checkpoint-steps 4 --eval-steps 4 "
    "--eval-batches none --hidden-dropout 0.1 --attention-dropout 0.1 --checkpoint run --output squad "
)
AS_IPU = {"float32": "", "float16": " --simulator-precision ipu-float16 --loss-scaling 512"}
MODELS = {
    "bert": "--config test_bert --optimizer lamb --max-grad-norm none",
    "groupbert": "--config test_groupbert",
    "two-processes": "--config test_groupbert --replication-factor 2 --device-iterations 2",
}

# ---- verdicts

DO_NOT_FIT = {
    "large-8-ipus": "run_squad.py --config squad_bert_large_384 --replication-factor 1 "
    "--no-replicated-tensor-sharding",
    "large-pod4": "run_pretraining.py --config bert_large_128_pod4 --optimizer-state on_chip",
    "base-micro-128": "run_pretraining.py --config bert_base_128_pod16 --micro-batch-size 128",
    "large-micro-16": "run_pretraining.py --config bert_large_512_pod16 --micro-batch-size 16",
}
SEARCHED = "run_pretraining.py --config test_groupbert --num-layers 4 --ipus-per-replica 3 "
SEARCHES = {
    "layers": "--gradient-accumulation 24 --layers-per-ipu auto",
    "wildcard-and-memory": "--gradient-accumulation 24 --layers-per-ipu 1 -1 -1 --matmul-proportion auto",
    "micro-batch": "--gradient-accumulation 24 --layers-per-ipu 0 2 2 --micro-batch-size auto",
}

# ---- mistakes

_PRETRAIN = "run_pretraining.py --config test_groupbert --device simulator --output run --corpus corpus.txt "
_SQUAD = "run_squad.py --config test_squad --device simulator --output run "
MISTAKES = (
    *("run_pretraining.py", "run_pretraining.py --config groupbert_bse_128_pod16", "run_squad.py"),
    "run_pretraining.py --config xyz --configs nowhere.yml",
    "run_pretraining.py --config bad --configs bad.yml",
    "run_pretraining.py --config unknown --configs bad_keys.yml",
    "run_pretraining.py --config _test",
    "run_pretraining.py --config squad_demo",
    "run_pretraining.py --config glue_groupbert_base_384",
    "run_squad.py --config test_bert",
    *(
        _PRETRAIN + words
        for words in (
            *("--learning-rat 1", "--hidden-size wide", "--micro-batch-size 0", "--target pod17"),
            *("--optimizer adm", "--layers-per-ipu 1 2", "--layers-per-ipu 2", "--layers-per-ipu 0 -2"),
            *("--gradient-accumulation 2", "--matmul-proportion 0.1 0.2 0.3", "--num-heads 5"),
            *("--conv-kernel-size 6", "--ffn-groups 3", "--sequence-length 520", "--mask-tokens 33"),
            "--embedding-serialization-factor 7 --training-steps 0",
            "--replication-factor 9 --replicated-tensor-sharding",
            *("--replicated-tensor-sharding", "--optimizer lamb --max-grad-norm 1", "--compile-only"),
            *("--device ipu-model --replication-factor 2", "--lr-warmup 9 --lr-end 1e-7", "--epochs 3"),
            *("--auto-loss-scaling --reduction sum", "--device-iterations 3", "--doc-stride 64"),
            *("--corpus nowhere.txt", "--corpus empty", "--corpus latin.txt", "--corpus pythn-docs"),
            *("--corpus cut.txt.gz", "--tokenizer nowhere", "--resume", "--checkpoint nowhere"),
            *("--checkpoint empty", "--checkpoint damaged", "--resume --output damaged"),
            *("--resume --checkpoint empty", "--device ipu", "--gradient-accumulation 100000"),
            *("--output corpus.txt", "--validation-fraction 0", "--simulator-precision half"),
            "--layers-per-ipu 5 -1 --dry-run",
        )
    ),
    *(
        _SQUAD + words
        for words in (
            *(
                "--train-data nowhere.json",
                "--train-data broken.json --checkpoint empty",
                "--checkpoint empty",
            ),
            *("--doc-stride 62", "--max-query-length 63", "--validation-layers-per-ipu 1 2", "--data x.json"),
            *("--evaluate-only", "--predict broken.json", "--predict broken.json --checkpoint damaged"),
            *("--epochs 3", "--resume --checkpoint empty", "--train-data offset.json"),
            "--train-data keyless.json",
        )
    ),
    "run_pretraining.py --config bert_large_512_pod16 --layers-per-ipu 0 8 8 -1 --micro-batch-size 64 "
    "--gradient-accumulation 64 --device simulator --dry-run --output run",
    *("run_squad.py --score broken.json", "run_squad.py --score broken.json --data offset.json"),
    *("run_squad.py --score keyless.json --data broken.json", "run_benchmark.py", "run_benchmark.py verdcts"),
    "run_benchmark.py verdicts --configs nobody --output out",
    *("run_benchmark.py speed --budget-minutes 0", "run_benchmark.py speed --output corpus.txt"),
)
SIMULATOR_MISTAKES = (
    *("", "train", "absent.py", "--paht", "-m", "--profile", "--profile corpus.txt good.py"),
    *("--custom-ops nowhere.py good.py", "--custom-ops", "validate", "validate nowhere.csv"),
    *("validate corpus.txt", "validate rows.csv --jsn x", "fit nowhere.csv"),
)


def write_faulty_files(folder: Path) -> None:
    """Files that the mistakes name."""
    write_corpus(folder)
    write_questions(folder / "train.json", 2)
    questions = (folder / "train.json").read_text()
    texts = {
        "bad.yml": "bad: {model: [bert\n",
        "bad_keys.yml": "unknown:\n  model: groupbrt\n  hidden_sise: 32\n  num_layers: two\n",
        "broken.json": '{"data": [\n  {"title": }\n]}',
        "offset.json": questions.replace('"answer_start": 3', '"answer_start": 4'),
        "keyless.json": questions.replace('"id"', '"name"'),
        "rows.csv": "id,model\n1,bert-huge\n",
        "good.py": "import poptorch\nprint(poptorch.__version__)\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "latin.txt").write_bytes("Rhône and Saône\n".encode("latin-1"))
    (folder / "cut.txt.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00")
    (folder / "empty").mkdir()
    checkpoint = folder / "damaged" / "checkpoints" / "step_00000004"
    checkpoint.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.safetensors", "config.json", "state.json"):
        (checkpoint / name).write_text("{}")
