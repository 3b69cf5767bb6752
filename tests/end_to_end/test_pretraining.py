"""The runner on real text: what it leaves, phases, other corpora, and what it refuses."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import ipu
import model as models
import run_pretraining
from config import ConfigError
from data import DataError
from training import CheckpointError, DivergenceError, TrainingError
from training.metrics_file import read_metrics
from training.showcase import masked_tokens, table

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
FEW = ("--training-steps", 2)
HUGE = (
    *("--hidden-size", 16384, "--num-layers", 64, "--num-heads", 64, "--layers-per-ipu", 32, 32),
    *("--training-steps", 2, "--preprocessing-workers", 0),
)


def test_a_run_leaves_what_it_promises(tmp_path, flags, capsys):
    output = tmp_path / "run"
    result = run_pretraining.main(
        flags(
            output, "--training-steps", 30, "--eval-steps", 10, "--eval-batches", 40, "--learning-rate", 1e-2
        )
    )
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith("device: simulator")
    assert "global_batch_size" in said
    # It ends with the verdict, beside the time that was measured here.
    assert json.loads((output / "verdict.json").read_text())["training_steps"] == 30
    assert "(predicted" in said and "weight update on host" in said
    records = read_metrics(output / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(31))
    assert [record["step"] for record in records if "eval_mlm_loss" in record] == [0, 10, 20, 30]
    for record in records[1:]:
        assert record["loss"] == pytest.approx(record["mlm_loss"] + record["nsp_loss"])
        assert 0 <= record["mlm_accuracy"] <= 1 and record["samples_per_s"] > 0
    # It starts at the uniform distribution's loss and learns.
    vocabulary = json.loads((result.checkpoint / "config.json").read_text())["vocab_size"]
    assert records[0]["eval_mlm_loss"] == pytest.approx(math.log(vocabulary), rel=0.05)
    assert records[-1]["eval_mlm_loss"] < 0.95 * records[0]["eval_mlm_loss"]
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((output / "summary.json").read_text())
    assert summary["eval_mlm_loss"] == records[-1]["eval_mlm_loss"]
    # In words: masked tokens of held-out text, with the answers before and after.
    rows = masked_tokens(output, 5)
    lines = table(rows).splitlines()
    assert len(rows) == 5 and len(lines) == 6 and lines[0].split()[-1] == "now"
    for row, line in zip(rows, lines[1:]):
        assert row.truth in line and len(row.trained) == 3 == len(set(row.trained))
        assert line.endswith("right") == (row.truth == row.trained[0])
    assert any(row.trained != row.untrained for row in rows)
    # The mean speed leaves out the first call, the warm-up.
    seconds = sum(1 / record["samples_per_s"] for record in records[2:])
    assert summary["samples_per_s"] == pytest.approx(29 / seconds)
    assert 0 < summary["data_wait_fraction"] < 1
    assert f"speed: {summary['samples_per_s']:.1f} samples/s on average" in said
    assert models.from_pretrained(result.checkpoint).config.convolution
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.checkpoint)
    assert tokenizer("documentation")["input_ids"][0] == tokenizer.cls_token_id


@pytest.mark.slow
def test_transformers_reads_a_bert_checkpoint_and_agrees(tmp_path, flags):
    result = run_pretraining.main(flags(tmp_path / "run", *FEW, config="test_bert"))
    theirs = transformers.BertForPreTraining.from_pretrained(result.checkpoint).eval()
    ours = models.from_pretrained(result.checkpoint).eval()
    ids = torch.randint(5, 100, (2, 16))
    positions = torch.arange(16).repeat(2, 1)
    with torch.no_grad():
        logits = theirs(ids).prediction_logits.gather(
            1, positions[..., None].expand(-1, -1, theirs.config.vocab_size)
        )
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
        outputs = ours(
            ids, torch.ones_like(ids), torch.zeros_like(ids), positions, ids, torch.tensor([-100, -100])
        )
    assert outputs[1].item() == pytest.approx(loss.item(), abs=1e-5)


@pytest.mark.slow
def test_phase_two_starts_from_the_weights_of_phase_one(tmp_path, flags):
    run_pretraining.main(flags(tmp_path / "one", *FEW))
    longer = ("--sequence-length", 64, "--mask-tokens", 10, *FEW)
    result = run_pretraining.main(flags(tmp_path / "two", *longer, "--checkpoint", tmp_path / "one"))
    first = read_metrics(tmp_path / "one" / "metrics.jsonl")
    second = read_metrics(tmp_path / "two" / "metrics.jsonl")
    assert second[0]["eval_mlm_loss"] < first[0]["eval_mlm_loss"]
    assert result.step == 2


@pytest.mark.slow
def test_losses_are_the_same_whatever_the_split(tmp_path, flags):
    """Sixteen sequences an update: as accumulation, as replicas, in larger micro batches."""
    splits = {"accumulated": (1, 16, 1), "replicated": (1, 8, 2), "merged": (2, 8, 1)}
    losses = {}
    for name, (micro_batch, accumulation, replicas) in splits.items():
        sizes = ("--micro-batch-size", micro_batch, "--gradient-accumulation", accumulation)
        output = tmp_path / name
        run_pretraining.main(flags(output, *sizes, "--replication-factor", replicas, "--training-steps", 3))
        losses[name] = [record["loss"] for record in read_metrics(output / "metrics.jsonl")[1:]]
    assert losses["replicated"] == pytest.approx(losses["accumulated"], rel=1e-5)
    # Means over micro batches weigh labels a little differently when two sequences share one.
    assert losses["merged"] == pytest.approx(losses["accumulated"], rel=1e-2)


@pytest.mark.slow
def test_a_nan_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path, flags):
    output = tmp_path / "run"
    run_pretraining.main(flags(output, *FEW, "--checkpoint-steps", 1))
    steps = ("--training-steps", 6, "--checkpoint-steps", 1, "--optimizer", "sgd")
    with pytest.raises(DivergenceError, match="learning_rate"):
        run_pretraining.main(
            flags(
                tmp_path / "nan",
                *steps,
                "--learning-rate",
                "1e30",
                "--lr-schedule",
                "constant",
                "--lr-warmup",
                0,
            )
        )
    kept = sorted(path.name for path in (tmp_path / "nan" / "checkpoints").glob("step_*"))
    for name in kept:
        weights = load_file(str(tmp_path / "nan" / "checkpoints" / name / "model.safetensors"))
        assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())


DIVERGING = ("--learning-rate", "1e30", "--lr-schedule", "constant", "--lr-warmup", 0, "--training-steps", 4)


@pytest.mark.slow
def test_a_floating_point_exception_names_the_update_the_operation_and_the_layer(tmp_path, flags):
    with pytest.raises(
        DivergenceError, match=r"stopped in update 2, .* in \w+ of layer '[\w.]+', at encoder\.py:\d+"
    ):
        run_pretraining.main(flags(tmp_path / "run", *DIVERGING, "--floating-point-exceptions"))


@pytest.mark.slow
def test_a_nan_loss_is_explained(tmp_path, flags, capfd):
    with pytest.raises(DivergenceError, match="the loss of update 2 is nan"):
        run_pretraining.main(flags(tmp_path / "run", *DIVERGING))
    assert re.search(r"The loss of micro batch \d .* is nan: .*(layer|the weight)", capfd.readouterr().err)


@pytest.mark.slow
def test_nan_in_the_weights_to_start_from_is_blamed_on_them(tmp_path, flags):
    run_pretraining.main(flags(tmp_path / "run", *FEW))
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    weights = load_file(str(folder / "model.safetensors"))
    name = next(iter(weights))
    weights[name].view(-1)[3] = torch.nan
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "state.json").unlink()  # a folder of weights, as from elsewhere
    with pytest.raises(CheckpointError, match=r"its weight .* holds NaN or infinity"):
        run_pretraining.main(flags(tmp_path / "again", *FEW, "--checkpoint", folder))


@pytest.mark.slow
def test_synthetic_data_has_no_loss_to_judge(tmp_path, flags):
    """On an IPU nothing comes back then; here the weights, which are real, still tell."""
    arguments = flags(tmp_path / "run", "--synthetic-data", "--learning-rate", 1e30, "--training-steps", 3)
    with pytest.raises(DivergenceError, match="after update 2 the weight"):
        run_pretraining.main(arguments)


@pytest.mark.slow
def test_wandb_offline(tmp_path, flags):
    run_pretraining.main(flags(tmp_path / "run", *FEW, "--wandb"))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.slow
def test_graphcores_tfrecord_as_it_is(tmp_path, flags):
    sample = SHARED / "data" / "graphcore_samples" / "sample_text.tfrecord"
    if not sample.exists():
        pytest.skip("Graphcore's sample TFRecord is not beside the checkout")
    own = ("--corpus", sample, "--vocab-size", 30522, "--sequence-length", 128, "--mask-tokens", 20)
    sizes = ("--max-position-embeddings", 128, "--micro-batch-size", 1)
    result = run_pretraining.main(flags(tmp_path / "run", *FEW, *own, *sizes))
    assert math.isfinite(result.record["eval_mlm_loss"])


@pytest.mark.parametrize(
    ("extra", "kind", "words"),
    [
        (("--gradient-accumulation", 100000), DataError, "one training step"),
        (("--corpus", "nowhere.txt"), DataError, "nowhere"),
        (("--layers-per-ipu", 1), ConfigError, "layers_per_ipu"),
        (("--checkpoint", "nowhere"), CheckpointError, "nowhere"),
        (("--resume",), CheckpointError, "omit --resume"),
    ],
)
def test_mistakes_are_found_before_training(tmp_path, flags, extra, kind, words):
    with pytest.raises(kind, match=words):
        run_pretraining.main(flags(tmp_path / "run", *FEW, *extra))


@pytest.mark.slow
def test_another_vocabulary_than_the_checkpoints_is_refused(tmp_path, flags, corpus):
    result = run_pretraining.main(flags(tmp_path / "one", *FEW))
    other = tmp_path / "other.txt"
    other.write_text(corpus.read_text()[: corpus.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="vocabulary"):
        run_pretraining.main(
            flags(tmp_path / "two", *FEW, "--corpus", other, "--checkpoint", result.checkpoint)
        )
    run_pretraining.main(
        flags(
            tmp_path / "three",
            *FEW,
            "--corpus",
            other,
            "--checkpoint",
            result.checkpoint,
            "--tokenizer",
            result.checkpoint,
        )
    )


@pytest.mark.slow
def test_another_model_than_the_checkpoints_is_refused(tmp_path, flags):
    result = run_pretraining.main(flags(tmp_path / "one", *FEW))
    with pytest.raises(CheckpointError, match="conv_kernel_size is 7 there and 5 here"):
        run_pretraining.main(
            flags(tmp_path / "two", *FEW, "--conv-kernel-size", 5, "--checkpoint", result.checkpoint)
        )


@pytest.mark.slow
def test_a_folder_of_another_run_is_refused(tmp_path, flags):
    run_pretraining.main(flags(tmp_path / "run", *FEW))
    with pytest.raises(TrainingError, match="--resume"):
        run_pretraining.main(flags(tmp_path / "run", *FEW))


def test_a_users_mistake_has_no_traceback_and_status_2(tmp_path, flags, program):
    process = program(flags(tmp_path / "run", *FEW, "--learning-rat", "1"))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "learning-rate" in said and "Traceback" not in said


@pytest.mark.slow
def test_a_corrupt_checkpoint_is_refused_by_name(tmp_path, flags):
    result = run_pretraining.main(flags(tmp_path / "one", *FEW))
    weights = load_file(str(result.checkpoint / "model.safetensors"))
    save_file(
        {name: tensor + 1 for name, tensor in weights.items()}, str(result.checkpoint / "model.safetensors")
    )
    with pytest.raises(CheckpointError, match=r"model\.safetensors is corrupt"):
        run_pretraining.main(flags(tmp_path / "two", *FEW, "--checkpoint", result.checkpoint))


@pytest.mark.slow
def test_a_model_too_large_for_the_host_is_told(tmp_path, flags):
    script = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
import run_pretraining, torch
sys.argv[1:] = {flags(tmp_path / "run", *HUGE)!r}
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (2 << 30)  # address space, bytes: two of its weights, of hundreds
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(run_pretraining.run_as_program())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "error: out of host memory, allocating" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_ipu_without_the_sdk_is_a_clear_error(tmp_path, flags, program):
    arguments = [word if word != "simulator" else "ipu" for word in flags(tmp_path / "run", *FEW)]
    said, _ = (process := program(arguments)).communicate(timeout=120)
    assert process.returncode == 2
    assert "simulator" in said and "Traceback" not in said
    assert isinstance(ipu.DeviceError("x"), ValueError)
