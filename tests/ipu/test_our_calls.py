"""What our own program calls of PopTorch is in PopTorch 3.4, so on an IPU the real one can answer."""

import json
import pydoc
import sys
from pathlib import Path

import pytest
import torch

import ipu
import run_pretraining
import run_squad
from tests.old_hosts import needs_qualified_names

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DROPIN = str(ROOT / "ipu" / "simulator")
OURS = tuple(str(ROOT / name) for name in ("run_", "model/", "data/", "training/", "ipu/options.py"))


def public_names():
    """ "Options.deviceIterations", "trainingModel", ...: everything that PopTorch's signatures name."""
    api = json.loads((ROOT / "tests" / "poptorch" / "poptorch_api.json").read_text())
    names = set()
    for module in ("poptorch", "poptorch.optim", "options_namespaces"):
        for name, entry in api[module].items():
            names |= {name, f"{name}.__init__"}
            names |= {f"{name}.{method}" for method in entry.get("methods", {})}
    return names | {f"Options.{namespace}" for namespace in api["options_namespaces"]}


def public_name(qualified):
    """The name that PopTorch's users know: the namespaces of Options have other class names here."""
    owner, _, method = qualified.partition(".")
    namespaces = {
        "PopartOptions": "_Popart",
        "PrecisionOptions": "Precision",
        "TensorLocationOptions": "TensorLocations",
        "TrainingOptions": "Training",
    }
    return f"{namespaces.get(owner, owner)}.{method}" if method else owner


@needs_qualified_names
def test_every_call_is_one_of_poptorchs(tmp_path):
    ipu.select_device("simulator")
    text = tmp_path / "text.txt"
    documents = (
        pydoc.plain(pydoc.render_doc(name)).replace("\n\n", "\n") for name in ("json", "pickle", "re")
    )
    text.write_text("\n\n".join(documents) * 3)
    context = "json reads and writes text."
    answers = [{"text": "text", "answer_start": context.index("text")}]
    asked = [{"id": str(n), "question": "What does json read?", "answers": answers} for n in range(9)]
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": asked}]}]}))
    called = {}

    def record(frame, _event, _argument):
        # A tracer of calls alone, as it returns none of lines.
        if not frame.f_code.co_filename.startswith(DROPIN) or frame.f_back is None:
            return
        if frame.f_back.f_code.co_filename.startswith(OURS):
            called.setdefault(frame.f_code.co_qualname, frame.f_back.f_code.co_name)

    arguments = [
        *("--config", "test_groupbert", "--corpus", str(text), "--device", "simulator", "--no-progress-bar"),
        *("--validation-fraction", "0.3", "--embedding-serialization-factor", "2", "--eval-batches", "1"),
        *(
            "--cache-folder",
            str(tmp_path / "cache"),
            "--output",
            str(tmp_path / "run"),
            "--training-steps",
            "2",
        ),
    ]
    sys.settrace(record)
    try:
        run_pretraining.main(arguments)
        run_pretraining.main([*arguments[:-1], "3", "--resume"])
        run_squad.main(
            [
                *("--config", "test_squad", "--device", "simulator", "--output", str(tmp_path / "squad")),
                *("--checkpoint", str(tmp_path / "run"), "--training-steps", "2", "--eval-batches", "1"),
                *("--train-data", str(questions), "--validation-data", str(questions)),
                *("--cache-folder", str(tmp_path / "cache")),
            ]
        )
        ahead = ["--compile-only", "--executable-cache", str(tmp_path / "executables")]
        ahead += ["--synthetic-data", "--profile-folder", str(tmp_path / "profile")]
        run_pretraining.main([*arguments, *ahead])
    finally:
        sys.settrace(None)
    made = {"trainingModel", "inferenceModel", "Options.deviceIterations", "PoplarExecutor.__call__"}
    made |= {"PoplarExecutor.compileAndExport", "Options.useOfflineIpuTarget", "PopartOptions.setPatterns"}
    assert made <= set(called)
    known = public_names()
    # What Python itself calls where we write an attribute, a loop or a tensor operation isn't PopTorch's; nor
    # is what stands in for a constructor of torch's.
    torchs = {torch.nn.Parameter.__new__.__code__.co_qualname}
    unknown = {
        name: caller
        for name, caller in called.items()
        if public_name(name) not in known | torchs and "__" not in name and "<locals>" not in name
    }
    assert unknown == {}
