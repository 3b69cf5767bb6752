"""The parsers that are fuzzed: for each, files to begin with, how they are changed, and what reads them."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import config
import ipu
import model as models
from config import ConfigError
from data import DataError
from data.corpora import open_corpus
from data.dataset import TfRecordPretrainingDataset
from data.shards import RECORD, open_shards, read_header, shard_name, write_manifest, write_shard
from data.squad import read_questions
from data.tfrecord import TfRecordFile, masked_crc32c
from data.tokenizer import SPECIAL_TOKENS, Tokenizer, load_tokenizer
from planning.published_rows import RowsError, read_rows
from tests.soak import mutations
from training import TrainingError, save_checkpoint
from training.checkpoints import read_checkpoint
from training.metrics_file import read_metrics
from training.start import progress_of

ROOT = Path(__file__).resolve().parents[2]
Files = dict[str, bytes]


@dataclass(frozen=True)
class Target:
    """`make` writes files into a folder, `change` alters them, `read` parses them or raises one of `ours`."""

    make: Callable[[Path], None]
    change: Callable[[random.Random, Files], None]
    read: Callable[[Path], None]
    ours: tuple[type[Exception], ...]


def files_of(folder: Path) -> Files:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def change_one(rng: random.Random, files: Files) -> None:
    """Changes one file, by its tree if it is JSON."""
    name = rng.choice(sorted(files))
    change = mutations.of_json if name.endswith(".json") else mutations.of_bytes
    files[name] = change(rng, files[name])


# TFRecord files, with right checksums half of the time.


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def tfrecord(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return length + checksums[0] + data + checksums[1]


def tfrecord_example(rng: random.Random, length: int = 16, predictions: int = 3) -> bytes:
    lengths = dict.fromkeys(("input_ids", "input_mask", "segment_ids"), length)
    lengths.update(masked_lm_positions=predictions, masked_lm_ids=predictions, next_sentence_labels=1)
    entries = b""
    for name, count in lengths.items():
        values = b"".join(_varint(rng.randrange(2)) for _ in range(count))
        entries += _field(1, _field(1, name.encode()) + _field(2, _field(3, _field(1, values))))
    return _field(1, entries)


def _make_tfrecords(folder: Path) -> None:
    rng = random.Random(1)
    (folder / "a.tfrecord").write_bytes(b"".join(tfrecord(tfrecord_example(rng)) for _ in range(4)))


def _change_tfrecords(rng: random.Random, files: Files) -> None:
    if rng.random() < 0.5:
        return change_one(rng, files)
    messages = [tfrecord_example(rng) for _ in range(3)]
    messages[1] = mutations.of_bytes(rng, messages[1])
    files["a.tfrecord"] = b"".join(map(tfrecord, messages))
    return None


def _read_tfrecords(folder: Path) -> None:
    records = TfRecordFile(str(folder), index_folder=folder / "index")
    for number in range(len(records)):
        records.read(number)
    options = {"sequence_length": 16, "mask_tokens": 3, "vocab_size": 100, "seed": 1}
    dataset = TfRecordPretrainingDataset(records, **options)
    dataset.token_counts()
    dataset.__getitems__(range(len(records)))


# Recipes.


def _make_recipes(folder: Path) -> None:
    (folder / "configs.yml").write_bytes((ROOT / "configs.yml").read_bytes())
    config.load("test_groupbert").to_yaml("resolved")
    (folder / "resolved.yml").write_text(config.load("test_groupbert").to_yaml("resolved"))


_YAML = (
    b"&a",
    b"*a",
    b"<<: *a",
    b"<<: [*a, *a]",
    b"!!int",
    b"!!float",
    b"!!python/object:os.system",
    b"- ",
    b"? ",
)
_SCALARS = (
    b".inf",
    b"-.nan",
    b"1e999",
    b"0x1F",
    b"1_000",
    b"~",
    b"2001-99-99",
    b"[",
    b"{a: 1}",
    b"'",
    b"auto",
    b"none",
)


def change_recipes(rng: random.Random, files: Files) -> None:
    files.pop("configs.yml" if rng.random() < 0.8 else "resolved.yml", None)
    name = next(iter(files))
    lines = files[name].split(b"\n")
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(lines))
        key, colon, _ = lines[place].partition(b": ")
        kind = rng.randrange(5)
        if kind <= 1 and colon:
            lines[place] = key + colon + rng.choice((*_SCALARS, *_YAML))
        elif kind == 2:
            lines.insert(place, rng.choice(lines))
        elif kind == 3:
            lines[place] = mutations.of_bytes(rng, lines[place])
        else:
            lines.insert(place, rng.choice(_YAML) + b" " + rng.choice(_SCALARS))
    files[name] = b"\n".join(lines)


def _read_recipes(folder: Path) -> None:
    for path in folder.glob("*.yml"):
        for name in config.names(path)[:3]:
            config.load(name, path=path)


# SQuAD files and predictions.


def _make_questions(folder: Path) -> None:
    source = ROOT / "data" / "squad" / "demo" / "train.json"
    content = json.loads(source.read_text())
    content["data"] = content["data"][:1]
    content["data"][0]["paragraphs"] = content["data"][0]["paragraphs"][:2]
    (folder / "train.json").write_text(json.dumps(content))


def _read_questions(folder: Path) -> None:
    for file in folder.glob("*.json"):
        for answers in ("located", "found", "texts", "none"):
            read_questions(file, answers=answers)


# Checkpoints, with right checksums half of the time.


def _make_checkpoint(folder: Path) -> None:
    def save_model(into: Path) -> None:
        (into / "config.json").write_text("{}")
        (into / "model.safetensors").write_bytes(bytes(100))

    state = {"ipu_state": {"Accl1___w": torch.arange(3.0)}, "ipu_param": {"learningRate": torch.tensor(0.5)}}
    record = {"step": 4, "loss": 1.5}
    more = {
        "config": config.load("test_groupbert").to_dict(),
        "rng_state": [1, 2, 3],
        "other_rng_states": [[1], [2]],
        "progress": {"record": record, "evaluation_due": False, "speed": {"calls": 1, "device_s": 1.0}},
        "samples": 64,
        "data": "text-0",
        "host_threads": 1,
        "metrics": {"bytes": 10, "sha256": "0"},
    }
    save_checkpoint(folder, 4, save_model=save_model, optimizer_state=state, state=more)
    lines = [json.dumps({"step": step, "loss": 1.0 / (step + 1)}) for step in range(5)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


_STATE = "checkpoints/step_00000004/state.json"


def _change_checkpoint(rng: random.Random, files: Files) -> None:
    if rng.random() < 0.4:
        return change_one(rng, files)
    state = mutations.of_tree(rng, json.loads(files[_STATE]))
    if isinstance(state, dict):
        optimizer = "checkpoints/step_00000004/optimizer.safetensors"
        if rng.random() < 0.5:
            files[optimizer] = mutations.of_bytes(rng, files[optimizer])
            if isinstance(state.get("sha256"), dict):
                state["sha256"]["optimizer.safetensors"] = hashlib.sha256(files[optimizer]).hexdigest()
        rest = {key: value for key, value in state.items() if key != "state_sha256"}
        text = json.dumps(rest, sort_keys=True)
        state["state_sha256"] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    files[_STATE] = json.dumps(state).encode()
    return None


def _read_checkpoint(folder: Path) -> None:
    read_metrics(folder / "metrics.jsonl")
    checkpoint = read_checkpoint(folder / "checkpoints" / "step_00000004")
    progress_of(checkpoint, 16)
    checkpoint.optimizer_state()


# A model's folder.


def _make_model(folder: Path) -> None:
    small = models.ModelConfig(vocab_size=20, hidden_size=8, num_layers=1, num_heads=2)
    models.save_pretrained(models.PretrainingModel(small, seed=1), folder)


def _read_model(folder: Path) -> None:
    read = models.read_model_config(folder)
    if max(read.vocab_size, read.hidden_size, read.num_layers, read.max_position_embeddings) < 1000:
        models.from_pretrained(folder, head="pretraining", hidden_dropout=0.0, attention_dropout=0.0, seed=1)


# Tokenisers.


def _make_tokenizer(folder: Path) -> None:
    Tokenizer([*SPECIAL_TOKENS, *"abc", "##a", "##b", "é"]).save(folder)


def _change_tokenizer(rng: random.Random, files: Files) -> None:
    if rng.random() < 0.5:
        del files["tokenizer.json"]
    change_one(rng, files)


def _read_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    tokenizer.encode_lines(["a b abc é [MASK]", ""])
    tokenizer.encode_with_offsets("abc é")
    tokenizer.decode(range(tokenizer.vocab_size))
    tokenizer.save(folder / "again")


# Text.


def _make_text(folder: Path) -> None:
    text = "One sentence. Another one!\nA line.\n\nA second document, with é and 日本語。\n" * 5
    (folder / "a.txt").write_text(text)
    (folder / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    rows = "".join(json.dumps({"text": line, "id": n}) + "\n" for n, line in enumerate(text.split("\n")))
    (folder / "c.jsonl").write_text(rows)
    (folder / "d.csv").write_text("id,text\n" + "".join(f'{n},"a ""b"" {n}"\n' for n in range(9)))


def _change_text(rng: random.Random, files: Files) -> None:
    kept = rng.choice(sorted(files))
    for name in set(files) - {kept}:
        del files[name]
    change_one(rng, files)


def _read_text(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        corpus = open_corpus(str(file))
        corpus.fingerprint()
        for document in corpus.documents():
            document.encode("utf-8")


# Shards, with right checksums half of the time.


def _make_shards(folder: Path) -> None:
    headers = []
    for number, size in enumerate((5, 3)):
        records, tokens = np.zeros(size, dtype=RECORD), np.arange(size * 3)
        records["start"], records["length_a"], records["length_b"] = np.arange(size) * 3, 2, 1
        counts = {"documents": 1, "sentences": 2, "tokens": len(tokens), "chunk": str(number)}
        path = folder / shard_name("train", number)
        headers.append(write_shard(path, records, tokens.astype("<u2"), counts))
    write_manifest(folder, {"seed": 1}, {"train": headers})


def _change_shards(rng: random.Random, files: Files) -> None:
    if rng.random() < 0.4:
        return change_one(rng, files)
    manifest = json.loads(files["manifest.json"])
    if rng.random() < 0.5:
        manifest = mutations.of_tree(rng, manifest)
    else:
        name = shard_name("train", 0)
        length = struct.unpack_from("<Q", files[name], 8)[0]
        header, body = json.loads(files[name][24 : 24 + length]), files[name][24 + length :]
        if rng.random() < 0.5:
            header = mutations.of_tree(rng, header)
        else:
            body = mutations.of_bytes(rng, body)
            header.update(crc32=zlib.crc32(body), body_bytes=len(body))
        text = json.dumps(header).encode()
        text += b" " * (-(24 + len(text)) % 64)
        files[name] = struct.pack("<8sQQ", b"PAIRSHRD", len(text), zlib.crc32(text)) + text + body
        manifest["splits"]["train"][0] = header
    if isinstance(manifest, dict):
        rest = {key: value for key, value in manifest.items() if key != "sha256"}
        text = json.dumps(rest, sort_keys=True).encode("utf-8", "surrogatepass")
        manifest["sha256"] = hashlib.sha256(text).hexdigest()
    files["manifest.json"] = json.dumps(manifest).encode()
    return None


def _read_shards(folder: Path) -> None:
    for path in folder.glob("*.shard"):
        read_header(path)
    examples = open_shards(folder, "train")
    examples.token_counts(100)
    for start in range(0, min(len(examples), 1000), 100):
        examples.read(np.arange(start, min(start + 100, len(examples))))


# Rows of measurements.


def _make_rows(folder: Path) -> None:
    lines = (ROOT / "planning" / "published.csv").read_bytes().splitlines(keepends=True)
    (folder / "rows.csv").write_bytes(b"".join(lines[:12]))


def _change_rows(rng: random.Random, files: Files) -> None:
    lines = files["rows.csv"].split(b"\n")
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(lines))
        cells = lines[place].split(b",")
        kind = rng.randrange(4)
        if kind <= 1:
            cells[rng.randrange(len(cells))] = str(rng.choice(mutations.NASTY)).encode(
                "utf-8", "surrogatepass"
            )
        elif kind == 2:
            cells.insert(rng.randrange(len(cells)), rng.choice(cells))
        else:
            cells = [mutations.of_bytes(rng, lines[place])]
        lines[place] = b",".join(cells)
    files["rows.csv"] = b"\n".join(lines)


def _read_rows(folder: Path) -> None:
    read_rows(folder / "rows.csv")


ipu.select_device("simulator")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_MODELS = (models.ConversionError, models.ModelConfigError)
TARGETS = {
    "TFRecord": Target(_make_tfrecords, _change_tfrecords, _read_tfrecords, (DataError,)),
    "YAML": Target(_make_recipes, change_recipes, _read_recipes, (ConfigError,)),
    "SQuAD": Target(_make_questions, change_one, _read_questions, (DataError,)),
    "checkpoint": Target(_make_checkpoint, _change_checkpoint, _read_checkpoint, (TrainingError,)),
    "model": Target(_make_model, change_one, _read_model, _MODELS),
    "tokeniser": Target(_make_tokenizer, _change_tokenizer, _read_tokenizer, (DataError,)),
    "text": Target(_make_text, _change_text, _read_text, (DataError,)),
    "shards": Target(_make_shards, _change_shards, _read_shards, (DataError,)),
    "rows": Target(_make_rows, _change_rows, _read_rows, (RowsError,)),
}
