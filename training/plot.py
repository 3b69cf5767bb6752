"""A picture of the loss from `metrics.jsonl`."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from .metrics import read_metrics


def plot_loss(metrics: Path, picture: Path, *, unigram_entropy_nats: Optional[float] = None) -> None:
    """Training and held-out masked-LM loss (nats) against weight updates, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_metrics(metrics)
    trained = [record for record in records if record.get("mlm_loss") is not None]
    evaluated = [record for record in records if record.get("eval_mlm_loss") is not None]
    figure, axes = pyplot.subplots(figsize=(8, 5), constrained_layout=True)
    axes.plot(
        [r["step"] for r in trained], [r["mlm_loss"] for r in trained], lw=0.8, alpha=0.6, label="training"
    )
    axes.plot([r["step"] for r in evaluated], [r["eval_mlm_loss"] for r in evaluated], "o-", label="held-out")
    if unigram_entropy_nats is not None:
        axes.axhline(
            unigram_entropy_nats, color="grey", ls="--", label="unigram entropy of the validation set"
        )
    axes.set(xlabel="weight updates", ylabel="masked-LM loss (nats)", title="Pretraining loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
