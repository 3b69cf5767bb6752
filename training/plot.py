"""A picture of the loss from `metrics.jsonl`."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from .metrics import read_metrics


def plot_loss(
    metrics: Path,
    picture: Path,
    *,
    loss: str = "mlm_loss",
    named: str = "masked-LM loss",
    unigram_entropy_nats: Optional[float] = None,
) -> None:
    """Training and held-out loss (nats) against weight updates, as a PNG; `loss` is its key in `metrics`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_metrics(metrics)
    trained = [record for record in records if record.get(loss) is not None]
    evaluated = [record for record in records if record.get(f"eval_{loss}") is not None]
    figure, axes = pyplot.subplots(figsize=(8, 5), constrained_layout=True)
    axes.plot([r["step"] for r in trained], [r[loss] for r in trained], lw=0.8, alpha=0.6, label="training")
    axes.plot([r["step"] for r in evaluated], [r[f"eval_{loss}"] for r in evaluated], "o-", label="held-out")
    if unigram_entropy_nats is not None:
        axes.axhline(
            unigram_entropy_nats, color="grey", ls="--", label="unigram entropy of the validation set"
        )
    axes.set(xlabel="weight updates", ylabel=f"{named} (nats)", title=named.capitalize())
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
