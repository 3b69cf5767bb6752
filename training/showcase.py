"""What a pretraining run has learnt, in words: masked tokens of held-out text, before and after.

python -m training.showcase output/demo
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import List, Sequence, Tuple

import numpy as np
import torch

import config as configuration
import data
import model as models

from .checkpoints import newest_checkpoint
from .errors import TrainingError
from .start import initial_model

_ROWS = 12
_SHOWN = 3  # answers of each model
_AROUND_CHARACTERS = 24


@dataclass(frozen=True)
class Row:
    """A masked token with its surroundings, and each model's best answers, best first."""

    before: str
    truth: str
    after: str
    untrained: Tuple[str, ...]
    trained: Tuple[str, ...]


def masked_tokens(output: Path, count: int = _ROWS) -> List[Row]:
    """A masked token of each of `count` held-out sequences; others are shown unmasked.

    Raises TrainingError and DataError.
    """
    checkpoint, _ = newest_checkpoint(output)
    if checkpoint is None:
        raise TrainingError(f"{output} has no checkpoint: give the output folder of a pretraining run")
    config = configuration.load("resolved", path=output / "resolved.yml")
    prepared = data.prepare_pretraining_data(
        config.section(data.PretrainingDataOptions),
        cache_folder=Path(config.cache_folder),
        progress=False,
        identity=checkpoint.state["data"],
    )
    held_out, tokenizer = prepared.validation, prepared.tokenizer
    if held_out is None or tokenizer is None:
        raise TrainingError(f"{output} has no held-out text with a tokeniser")
    count = min(count, held_out.num_examples)
    indices = np.arange(count) * held_out.num_examples // max(count, 1)
    batch = held_out.fetch(indices, np.zeros(count, dtype=np.int64))
    ids, positions, labels = batch[0].long(), batch[3].long(), batch[4].long()
    answers = [
        _answers(made, batch)
        for made in (
            initial_model(config.model_config(), head="pretraining", seed=config.seed, folder=None),
            models.from_pretrained(checkpoint.folder),
        )
    ]
    rows = []
    specials = set(tokenizer.special_ids)

    def words(tokens: Sequence[int]) -> str:
        text = tokenizer.decode([token for token in tokens if token not in specials])
        return text[2:] if text.startswith("##") else text

    for number in range(count):
        known = labels[number] >= 0
        text = ids[number].scatter(0, positions[number][known], labels[number][known]).tolist()
        end = int(batch[1][number].sum())
        # The masked token that is nearest to the middle has the most text around it.
        masked = int((positions[number] - end // 2).abs().masked_fill(~known, end).argmin())
        place, truth = int(positions[number, masked]), int(labels[number, masked])
        untrained, trained = (
            tuple(tokenizer.vocabulary[i] for i in best[number][masked]) for best in answers
        )
        rows.append(
            Row(
                words(text[:place])[-_AROUND_CHARACTERS:],
                tokenizer.vocabulary[truth],
                words(text[place + 1 : end])[:_AROUND_CHARACTERS],
                untrained,
                trained,
            )
        )
    return rows


def _answers(model: models.TaskModel, batch: Sequence[torch.Tensor]) -> List[List[List[int]]]:
    """The best token ids [B, M, _SHOWN] at the masked positions."""
    assert isinstance(model, models.PretrainingModel)
    model.eval()
    with torch.no_grad():
        logits, _ = model.logits(*(field.long() for field in batch[:4]))
    best: List[List[List[int]]] = logits.topk(_SHOWN).indices.view(*batch[3].shape, _SHOWN).tolist()
    return best


def table(rows: Sequence[Row]) -> str:
    """The rows as a table of text; a correct first answer has a check mark."""
    lines = [("held-out text, one token masked", "masked", "answers at step 0", "answers now", "")]
    for row in rows:
        text = f"{row.before:>{_AROUND_CHARACTERS}} [....] {row.after}"
        right = "right" if row.trained[0] == row.truth else ""
        lines.append((text, row.truth, " ".join(row.untrained), " ".join(row.trained), right))
    return configuration.text_table(lines)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="output folder of a finished pretraining run")
    output = parser.parse_args(argv).output
    print(table(masked_tokens(output)))
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    loss, entropy = summary["eval_mlm_loss"], summary["unigram_entropy_nats"]
    now = f"{1 - loss / entropy:.1%} below, because it reads the text around the mask"
    if loss >= entropy:
        now = f"{loss / entropy - 1:.1%} above: it hasn't learnt to read the text around the mask yet"
    print(
        f"\nheld-out masked-LM loss {loss:.3f} nats. A model that knows nothing but how frequent each token\n"
        f"is has the unigram entropy, {entropy:.3f}: it is as unsure as between {np.exp(entropy):,.0f} "
        f"equally likely\ntokens, this one as between {np.exp(loss):,.0f}. It is {now}."
    )
    named = shlex.quote(str(output))
    print(f"\npicture of the losses   {output / 'loss.png'}")
    print(f"verdict for IPUs        {output / 'report.html'}")
    print(f"checkpoint              {summary['checkpoint']}")
    print(
        "\nnext, answers to questions, from this checkpoint; and a published model on a machine of 16 IPUs:"
    )
    squad = f"run python run_squad.py --config squad_demo --checkpoint {named}"
    print(f"  ./dev {'squad' if output == Path('output/demo') else squad}")
    print("  ./dev run python run_pretraining.py --config groupbert_base_128_pod16 --dry-run")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
