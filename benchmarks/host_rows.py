"""The rows of `speed` beside training steps: encoder layers on the simulator, masking and tokenising, and the
list of those with many micro batches.

Each function builds one side in a separate process; data rows count that process's CPU time.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Literal, Optional, Tuple

import numpy as np
import torch
from torch import Tensor, nn

import data
import ipu
import model as models
from config import Config, ConfigError
from data.masking import Masker
from ipu.options import DevicePlan, training_options

from .contenders import Contender

Family = Literal["bert", "groupbert"]
Precision = Literal["float32", "float32-onednn", "bfloat16"]

_BATCH, _LENGTH, _MASKED, _VOCABULARY = 32, 128, 20, 8000
# Milliseconds or less: repeated, so that the clock's resolution doesn't matter.
_REPETITIONS = 50
_SAMPLES = 4  # of an encoder

# Many micro batches of one sequence, which the simulator merges. The other sides: a plain loop as its user
# finds it; the same in a process that keeps freed memory, as the simulator's does; and, there too, a loop
# over one batch of all these sequences. The last one computes another loss, a mean over the whole batch, with
# the fewest operations: it is the bound of what merging can reach.
PLAIN, KEEPS_MEMORY, ONE_BATCH = "plain_loop", "plain_loop_that_keeps_memory", "one_batch"

# Name -> the other side, model, dtype, sequences per micro batch, micro batches per update.
MICRO_BATCHES: Tuple[Tuple[str, str, str, str, int, int], ...] = tuple(
    (f"accumulation_{count}_vs_{other}", other, size, "float32", 1, count)
    for size, count in (("tiny", 64), ("mini", 16))
    for other in (PLAIN, KEEPS_MEMORY, ONE_BATCH)
)
_TO_REACH = {64: (3.5, 4.0), 16: (1.7, 2.0)}
# Name -> the goal, and what would be better still.
MICRO_BATCH_GOALS: Dict[str, Tuple[float, float]] = {
    name: (0.95, 1.0) if other == ONE_BATCH else _TO_REACH[count]
    for name, other, _, _, _, count in MICRO_BATCHES
}


class _Layers(nn.Module):
    """An encoder's layers on hidden states, without embeddings, head and optimiser state."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = models.PretrainingModel(config.model_config(), seed=0).encoder.layers

    def forward(self, x_bsh: Tensor) -> Tensor:
        real_bs1 = torch.ones_like(x_bsh[:, :, :1])
        mask_b11s = torch.zeros_like(x_bsh[:, None, None, :, 0])
        for layer in self.layers:
            x_bsh = layer(x_bsh, real_bs1, mask_b11s)
        loss: Tensor = ipu.poptorch.identity_loss(x_bsh.mean(), reduction="none")
        return loss


def layers(config: Config) -> Contender:
    """Forward and backward passes of an encoder's layers by the simulator, in its precision."""
    ipu.select_device(config.device, target=config.target, precision=config.simulator_precision)
    model = _Layers(replace(config, vocab_size=128))
    options = training_options(config.section(DevicePlan))
    optimizer = ipu.poptorch.optim.SGD(model.parameters(), lr=1e-9)
    executor = ipu.poptorch.trainingModel(model, options, optimizer)
    x = torch.randn(_SAMPLES, config.sequence_length, config.hidden_size)

    def step_s() -> float:
        began = time.perf_counter()
        executor(x)
        return time.perf_counter() - began

    return Contender(step_s, model)


def layers_of(family: Family, size: str, count: int, precision: Precision) -> Config:
    """GroupBERT's or BERT's layers in base or large size."""
    hidden, heads = {"base": (768, 12), "large": (1024, 16)}[size]
    return Config(
        model=family,
        hidden_size=hidden,
        num_layers=count,
        num_heads=heads,
        vocab_size=30522,
        sequence_length=_LENGTH,
        mask_tokens=_MASKED,
        micro_batch_size=_SAMPLES,
        gradient_accumulation=1,
        training_steps=1,
        learning_rate=1e-4,
        device="simulator",
        target="pod4",
        ipus_per_replica=1,
        layers_per_ipu=(count,),
        simulator_precision=precision,
    )


def masking() -> Contender:
    """Our masks of 32 x 128 tokens."""
    ids, lengths, keys = _tokens(), np.full(_BATCH, _LENGTH), np.arange(_BATCH, dtype=np.uint64)
    masker = Masker(
        mask_id=4,
        special_ids=range(5),
        is_continuation=np.zeros(_VOCABULARY, dtype=bool),
        mask_tokens=_MASKED,
    )
    return _repeated(lambda: masker(ids, lengths, keys))


def collator() -> Contender:
    """The same amount by transformers' DataCollatorForLanguageModeling, from lists of ids."""
    transformers = transformers_or_error()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.txt"
        file.write_text("\n".join(_vocabulary()), encoding="utf-8")
        tokenizer = transformers.BertTokenizerFast(str(file))
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    rows = [{"input_ids": row} for row in _tokens().tolist()]
    return _repeated(lambda: collate([dict(row) for row in rows]))


def tokenising() -> Contender:
    """Our tokeniser on Python's reference; its cache is empty at the start of each repetition."""
    trained, lines = _trained()

    def encode() -> None:
        tokenizer = data.Tokenizer(trained.vocabulary)
        for line in lines:
            tokenizer.encode_lines(line)

    return _cpu(encode)


def encode_batch() -> Contender:
    """The same by the tokenizers library's encode_batch."""
    import tokenizers

    trained, lines = _trained()
    ids = {token: number for number, token in enumerate(trained.vocabulary)}
    encoder = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    encoder.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()

    def encode() -> None:
        for line in lines:
            for encoding in encoder.encode_batch(line, add_special_tokens=False):
                np.array(encoding.ids, dtype=np.int32)

    return _cpu(encode)


def _trained() -> Tuple[Any, List[List[str]]]:
    """A tokeniser of Python's language reference, and its lines in lots of 2000."""
    from pydoc_data import topics

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "reference.txt"
        file.write_text("\n\n".join(topics.topics.values()), encoding="utf-8")
        tokenizer = data.train_tokenizer(data.open_corpus(str(file)), 4000)
    lines = [line for text in topics.topics.values() for line in text.splitlines()]
    return tokenizer, [lines[start : start + 2000] for start in range(0, len(lines), 2000)]


def _tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(5, _VOCABULARY, (_BATCH, _LENGTH)).astype(np.int32)


def _vocabulary() -> List[str]:
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"t{n}" for n in range(_VOCABULARY - 5))]


def _repeated(step: Callable[[], object]) -> Contender:
    def steps() -> None:
        for _ in range(_REPETITIONS):
            step()

    return _cpu(steps)


def _cpu(step: Callable[[], object]) -> Contender:
    return Contender(cpu_s(step))


def cpu_s(step: Callable[[], object]) -> Callable[[], float]:
    """Calls `step`, and returns the CPU seconds that it took, of all threads of this process."""

    def step_s() -> float:
        began = time.process_time()
        step()
        return time.process_time() - began

    return step_s


def transformers_or_error() -> Any:
    """The package. Raises ConfigError if this machine lacks it."""
    reason = lacks_transformers()
    if reason is not None:
        raise ConfigError(f"{reason}, or choose other rows with --only")
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers


def lacks_transformers() -> Optional[str]:
    """Why this machine can't show a row against transformers; None if it can."""
    try:
        import accelerate  # noqa: F401 (the Trainer needs it, and says so less plainly)
        import transformers  # noqa: F401
    except ImportError as error:
        return f"needs {error.name}, which isn't installed: pip install {error.name}"
    return None
