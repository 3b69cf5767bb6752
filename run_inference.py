#!/usr/bin/env python3
"""Runs a trained model on texts: fill-mask, answers, classes or embeddings. JSON lines out.

    python run_inference.py fill-mask --checkpoint output/demo "the file is [MASK] for reading"
    python run_inference.py answers --checkpoint output/squad_demo "What is x?" --context "x is a number."
    python run_inference.py classes --checkpoint output/glue_demo --file pairs.tsv
    cat texts.txt | python run_inference.py embeddings --checkpoint FOLDER --output vectors.jsonl

A text is an argument, a line of --file or of standard input: plain, a pair separated by a tab, or a JSON
object with `text` (and `text_pair`) or `question` and `context`. Everything but the results goes to stderr.
`main(argv)` returns a result; only `__main__` converts it, or an error, to an exit status.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # Ctrl-C during imports ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import contextlib
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Tuple

import command_line
import config as configuration
import ipu
from config import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from data import Tokenizer
    from data.texts import Text
    from ipu.options import DevicePlan

Row = Dict[str, Any]
KINDS = ("fill-mask", "answers", "classes", "embeddings")
# The configuration's keys that inference reads.
_KEYS = (
    "tokenizer device target precision simulator_precision sequence_length micro_batch_size "
    "replication_factor layers_per_ipu matmul_proportion executable_cache seed cache_folder doc_stride "
    "max_query_length max_answer_length n_best_size null_score_diff_threshold squad_version"
).split()


@dataclass(frozen=True)
class Measured:
    """Of the calls after the first, which compiles: the median latency of one, and all texts per second."""

    calls: int
    samples_per_call: int
    latency_s: float
    samples_per_s: float


@dataclass(frozen=True)
class InferenceResult:
    """The output rows, in the order of the texts; what was measured, without --dry-run; what the cost model
    predicts for the target, where it can."""

    rows: List[Row]
    measured: Optional[Measured]
    predicted: Optional[Dict[str, Any]]

    @property
    def fits(self) -> bool:
        """False for --dry-run of a program that doesn't fit."""
        return self.measured is not None or self.predicted is None or bool(self.predicted["fits"])


def main(argv: Optional[Sequence[str]] = None) -> InferenceResult:
    """Runs one kind of inference on all texts.

    Raises ValueError subclasses for mistakes that a user can correct.
    """
    flags = _parse(list(sys.argv[1:] if argv is None else argv))
    with contextlib.redirect_stdout(sys.stderr):
        result = _run(flags)
    if flags.dry_run:
        return result
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in result.rows)
    if flags.output is None:
        print(lines, end="", flush=True)
    else:
        from data.files import write_atomically

        flags.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(flags.output, lines.encode("utf-8"))
    return result


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if seconds >= 1 else f"{1e3 * seconds:.3g}"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = configuration.FlagParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=KINDS, help="what to compute")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts; none: lines of --file or of stdin")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="a model's folder, of this program or of Hugging Face, or the output folder of a run",
    )
    parser.add_argument(
        "--file", type=Path, action="append", default=[], help="texts, one a line; may be repeated"
    )
    parser.add_argument("--context", help="answers: the context of questions that have none")
    parser.add_argument("--top-k", type=int, default=5, metavar="N", help="results for each mask or text")
    parser.add_argument("--output", type=Path, help="the file of results (default: standard output)")
    parser.add_argument(
        "--dry-run", action="store_true", help="only predict latency and throughput on the target"
    )
    configuration.add_flags(parser, only=_KEYS)
    flags = parser.parse_intermixed_args(arguments)
    if flags.top_k < 1:
        raise ConfigError(f"--top-k {flags.top_k}: use 1 or more")
    if flags.context is not None and flags.kind != "answers":
        raise ConfigError(f"--context belongs to answers, not to {flags.kind}")
    return flags


def _run(flags: argparse.Namespace) -> InferenceResult:
    import data
    import training
    from data.texts import Text

    folder = training.resolve_weights_folder(flags.checkpoint)
    texts = _texts(flags)
    if flags.kind == "answers":
        lacking = next((text for text in texts if len(text.parts) < 2), None)
        if lacking is not None:
            raise data.DataError(
                f"the question {lacking.parts[0][:60]!r} has no context: add --context TEXT, or lines of "
                "question, tab, context"
            )
    tokenizer = data.load_tokenizer(getattr(flags, "tokenizer", str(folder)))
    texts = texts or [Text(("[MASK]" if flags.kind == "fill-mask" else "text", "text"))]
    job = _JOBS[flags.kind](flags, folder, tokenizer, texts)
    config, plan = job.config, job.plan()
    measured, predicted = None, None
    rows: List[Row] = []
    if not flags.dry_run:
        device = ipu.select_device(config.device, precision=config.simulator_precision, target=config.target)
        print(device.banner(), flush=True)
        print(f"weights from {folder}", flush=True)
        outputs, measured = _computed(job, plan, device)
        rows = job.rows(outputs)
        where = "this host" if device.name == "simulator" else f"device {device.name}"
        print(
            f"measured on {where}: {measured.calls} calls of {measured.samples_per_call} sequences of "
            f"{job.sequence_length} tokens, {_milliseconds(measured.latency_s)} ms a call (median), "
            f"{measured.samples_per_s:,.1f} sequences/s"
        )
    if flags.dry_run or device.name == "simulator":
        predicted = _predicted(job, plan)
    return InferenceResult(rows, measured, predicted)


def _texts(flags: argparse.Namespace) -> List[Text]:
    """All texts; for --dry-run there may be none. Raises DataError."""
    from data import DataError
    from data.texts import lines_of_file, text_of, texts_of_lines

    context = flags.context
    texts = [text_of(text, f"text {n}", context=context) for n, text in enumerate(flags.texts, start=1)]
    for file in flags.file:
        texts += texts_of_lines(lines_of_file(file), repr(str(file)), context=context)
    if not texts and not flags.file and not flags.dry_run:
        texts = list(texts_of_lines(sys.stdin, "standard input", context=context))
    if not texts and not flags.dry_run:
        raise DataError("there is no text: give texts as arguments, with --file, or on standard input")
    return texts


class _Job:
    """What a kind of inference needs: a model, its int32 inputs [N, ...], and rows from its outputs."""

    task: str
    head: str

    def __init__(
        self, flags: argparse.Namespace, folder: Path, tokenizer: Tokenizer, texts: List[Text]
    ) -> None:
        from model import read_model_config
        from training import inference_config

        self.flags, self.folder, self.tokenizer, self.texts = flags, folder, tokenizer, texts
        self.lengths: Dict[str, object] = {}  # keys that follow from the sequence length
        self.model_config = replace(read_model_config(folder), hidden_dropout=0.0, attention_dropout=0.0)
        if tokenizer.vocab_size > self.model_config.vocab_size:
            from data import DataError

            raise DataError(
                f"the vocabulary has {tokenizer.vocab_size} tokens, more than the model's "
                f"{self.model_config.vocab_size}: name the model's with --tokenizer"
            )
        given = configuration.overrides_from(flags)
        most = self.model_config.max_position_embeddings
        wanted = given.get("sequence_length")
        if isinstance(wanted, int) and wanted > most:
            raise ConfigError(
                f"--sequence-length {wanted}: the model has {most} positions; use at most {most}"
            )
        self.inputs = self.encode(wanted if isinstance(wanted, int) else None, most)
        self.sequence_length = int(self.inputs[0].shape[1])
        self.config = inference_config(
            self.model_config, self.task, self.sequence_length, {**given, **self.lengths}
        )

    def encode(self, length: Optional[int], most: int) -> Tuple[np.ndarray, ...]:
        """The inputs of all texts, at a sequence length that is `length` or found."""
        from data.texts import encode

        self.encoded = encode(
            self.texts, self.tokenizer, most_tokens=most, length=length, masks=self.flags.kind == "fill-mask"
        )
        return self.encoded.input_ids, self.encoded.attention_mask, self.encoded.token_type_ids

    def loaded(self) -> Any:
        """The model with the folder's weights."""
        from model import from_pretrained

        return from_pretrained(
            self.folder, head=self.head, hidden_dropout=0.0, attention_dropout=0.0, fresh_head=False
        )

    def empty(self) -> Any:
        """The same model without the weights, for a prediction."""
        from model import TASKS, saved_classes

        kind = TASKS[self.head]
        labels = saved_classes(self.folder) if kind.has_classes else ()
        return kind.build(self.model_config, seed=None, labels=labels)

    def plan(self) -> DevicePlan:
        from ipu.options import DevicePlan

        return self.config.section(DevicePlan, head=self.kind().place)

    def kind(self) -> Any:
        """The class of the model."""
        from model import TASKS

        return TASKS[self.head]

    def rows(self, outputs: List[np.ndarray]) -> List[Row]:
        """A row for each text, from the model's outputs [N, ...]."""
        raise NotImplementedError

    def row(self, number: int) -> Row:
        from data.texts import shown

        row = shown(self.texts[number])
        if self.encoded.truncated[number]:
            row["truncated"] = True
        return row


class _FillMask(_Job):
    task, head = "pretraining", "pretraining"

    def encode(self, length: Optional[int], most: int) -> Tuple[np.ndarray, ...]:
        return (*super().encode(length, most), self.encoded.mask_positions)

    def kind(self) -> Any:
        from model import FillMaskModel

        return FillMaskModel

    def loaded(self) -> Any:
        from model import ConversionError, from_pretrained

        model = from_pretrained(
            self.folder, head=self.head, hidden_dropout=0.0, attention_dropout=0.0, fresh_head=True, seed=0
        )
        if "heads.masked_lm" in model.fresh_modules:  # a missing next sentence head isn't needed
            raise ConversionError(
                f"{self.folder} has no masked language model: use the folder of a pretrained model"
            )
        return self.kind()(model, self._most())

    def empty(self) -> Any:
        return self.kind()(super().empty(), self._most())

    def _most(self) -> int:
        return min(int(self.flags.top_k), self.model_config.vocab_size)

    def rows(self, outputs: List[np.ndarray]) -> List[Row]:
        from data.texts import MASK

        rows = []
        for number, count in enumerate(self.encoded.masks.tolist()):
            masks = [
                [
                    {"token": self.tokenizer.vocabulary[token], "probability": round(float(probability), 6)}
                    for probability, token in zip(
                        outputs[0][number, place], outputs[1][number, place].tolist()
                    )
                    if token
                    < self.tokenizer.vocab_size  # the embeddings may have more rows than the vocabulary
                ]
                for place in range(count)
            ]
            text = self.texts[number].parts[0]
            for mask in masks:
                token = mask[0]["token"] if mask else MASK
                # A piece of a word joins the word before it.
                before, _, after = text.partition(MASK)
                text = (
                    before.rstrip() + token[2:] + after if token.startswith("##") else before + token + after
                )
            rows.append({**self.row(number), "masks": masks, "filled": text})
        return rows


class _Classes(_Job):
    task, head = "glue", "glue"

    def loaded(self) -> Any:
        model = super().loaded()
        self.labels, self.is_regression = model.labels, model.is_regression
        return model

    def rows(self, outputs: List[np.ndarray]) -> List[Row]:
        from data.glue import softmax

        rows = []
        for number, scores in enumerate(outputs[0]):
            if self.is_regression:
                rows.append({**self.row(number), "score": float(scores[0])})
                continue
            probabilities = softmax(scores)
            order = probabilities.argsort()[::-1][: self.flags.top_k].tolist()
            found = {self.labels[place]: round(float(probabilities[place]), 6) for place in order}
            rows.append({**self.row(number), "class": self.labels[order[0]], "probabilities": found})
        return rows


class _Embeddings(_Job):
    task, head = "glue", "glue"

    def kind(self) -> Any:
        from model import EmbeddingModel

        return EmbeddingModel

    def loaded(self) -> Any:
        from model import from_pretrained

        # Any task's folder has an encoder.
        whole = from_pretrained(self.folder, head="squad", hidden_dropout=0.0, attention_dropout=0.0, seed=0)
        return self.kind()(whole.config, encoder=whole.encoder)

    def empty(self) -> Any:
        return self.kind()(self.model_config)

    def rows(self, outputs: List[np.ndarray]) -> List[Row]:
        return [
            {**self.row(number), "cls": first.tolist(), "mean": mean.tolist()}
            for number, (first, mean) in enumerate(zip(*outputs))
        ]


class _Answers(_Job):
    task, head = "squad", "squad"

    def encode(self, length: Optional[int], most: int) -> Tuple[np.ndarray, ...]:
        import numpy as np

        from data.squad import Question, QuestionSet, SquadDataset, WindowOptions, prepare_features

        given = configuration.overrides_from(self.flags)
        length = length or min(384, most)
        query = int(str(given.get("max_query_length", min(64, (length - 3) // 2))))
        window = max(1, length - query - 3)
        stride = int(str(given.get("doc_stride", min(128, max(1, window // 2)))))
        self.lengths = {"max_query_length": query, "doc_stride": stride}
        asked = tuple(
            Question(str(number), "", text.parts[0], text.parts[1]) for number, text in enumerate(self.texts)
        )
        self.questions = QuestionSet("texts", asked, given.get("squad_version") == "2.0")
        self.features = prepare_features(
            self.questions,
            self.tokenizer,
            WindowOptions(length, stride, query),
            cache_folder=Path(str(given.get("cache_folder", "cache"))),
        )
        every = np.arange(len(self.features))
        windows = SquadDataset(self.features, seed=0, shuffle=False).fetch(every, 0 * every)
        return tuple(field.numpy() for field in windows[:3])

    def rows(self, outputs: List[np.ndarray]) -> List[Row]:
        from data.squad import AnswerKeys, find_answers

        found = find_answers(
            self.questions, self.features, outputs[0], outputs[1], self.config.section(AnswerKeys)
        )
        rows = []
        for text, one in zip(self.texts, found):
            best = [
                {"answer": candidate.text, "probability": round(candidate.probability, 6)}
                for candidate in one.candidates[: self.flags.top_k]
            ]
            row = {} if text.id is None else {"id": text.id}
            rows.append({**row, "question": text.parts[0], "answer": one.text, "answers": best})
        return rows


_JOBS: Dict[str, Callable[..., _Job]] = {
    "fill-mask": _FillMask,
    "answers": _Answers,
    "classes": _Classes,
    "embeddings": _Embeddings,
}


def _computed(job: _Job, plan: DevicePlan, device: ipu.DeviceChoice) -> Tuple[List[np.ndarray], Measured]:
    """The model's outputs [N, ...], and the speed. The last call is filled with copies of the last text."""
    import numpy as np
    import torch

    import training
    from ipu.options import inference_options

    model = job.loaded().eval()
    training.place(model, job.config, plan.layers_per_ipu, device=device)
    options = inference_options(plan)
    size = plan.micro_batch_size * options.device_iterations * options.replication_factor
    count = len(job.inputs[0])
    rows = np.minimum(np.arange(-(-count // size) * size), count - 1)
    executor = ipu.poptorch.inferenceModel(model, options)
    gathered: List[List[np.ndarray]] = []
    seconds: List[float] = []
    for start in range(0, len(rows), size):
        batch = [
            torch.from_numpy(np.ascontiguousarray(field[rows[start : start + size]])) for field in job.inputs
        ]
        if not executor.isCompiled():
            training.compile_program(executor, batch, "inference")
        began = time.perf_counter()
        outputs = executor(*batch)
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        seconds.append(time.perf_counter() - began)
        gathered.append([(one.float() if one.is_floating_point() else one).cpu().numpy() for one in outputs])
    executor.destroy()
    found = [np.concatenate(parts)[:count] for parts in zip(*gathered)]
    if not all(bool(np.isfinite(part).all()) for part in found):
        raise training.DivergenceError(
            "the model's outputs are NaN or infinite: its weights are unusable. Use an earlier checkpoint"
        )
    timed = seconds[1:] or seconds  # the first call also loads the program
    return found, Measured(len(seconds), size, statistics.median(timed), size * len(timed) / sum(timed))


def _predicted(job: _Job, plan: DevicePlan) -> Optional[Dict[str, Any]]:
    """Prints and returns what the cost model predicts; None where it can't run."""
    lacking = command_line.what_a_verdict_lacks()
    if lacking is not None:
        print(f"no prediction: it needs {lacking}")
        return None
    from planning.inference import predict

    shapes = [(plan.micro_batch_size, *field.shape[1:]) for field in job.inputs]
    predicted = predict(job.empty, job.config, plan, shapes)
    print(f"{job.flags.kind}, sequences of {job.sequence_length} tokens, {predicted}", flush=True)
    return asdict(predicted)


def run_as_program() -> int:
    """The exit status of the program."""
    return command_line.run_as_program(main)


if __name__ == "__main__":
    sys.exit(run_as_program())
