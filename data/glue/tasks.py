"""The tasks of GLUE (Wang et al. 2018): the columns, classes and metrics of each, one entry a task.

The classes are in the order of the published data sets, which number them. `leaderboard` maps the parts of a
test set to the files that gluebenchmark.com takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Tuple

# The parts that a set may have: one, or MNLI's two.
WHOLE, MATCHED, MISMATCHED = "", "matched", "mismatched"
ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class GlueTask:
    """`columns` are those of the texts, one or two. Without `classes` the labels are numbers.

    `answer_column` has the label; `headless` gives the columns of files without a header. `numbered`:
    on the leaderboard a class is its number. `metrics` are names of `scores.METRICS`.
    """

    name: str
    columns: Tuple[str, ...]
    classes: Tuple[str, ...]
    metrics: Tuple[str, ...]
    leaderboard: Dict[str, str]
    answer_column: str = "label"
    headless: Tuple[str, ...] = ()
    numbered: bool = True
    validation_parts: Tuple[str, ...] = (WHOLE,)

    @property
    def is_regression(self) -> bool:
        return not self.classes


_PAIR = ("sentence1", "sentence2")
_LIST = (
    GlueTask(
        "cola",
        ("sentence",),
        ("unacceptable", "acceptable"),
        ("matthews_correlation",),
        {WHOLE: "CoLA"},
        headless=("source", "label", "mark", "sentence"),
    ),
    GlueTask("sst2", ("sentence",), ("negative", "positive"), ("accuracy",), {WHOLE: "SST-2"}),
    GlueTask(
        "mrpc",
        ("#1 String", "#2 String"),
        ("not_equivalent", "equivalent"),
        ("f1", "accuracy"),
        {WHOLE: "MRPC"},
        answer_column="Quality",
    ),
    GlueTask("stsb", _PAIR, (), ("pearson", "spearmanr"), {WHOLE: "STS-B"}, answer_column="score"),
    GlueTask(
        "qqp",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        ("f1", "accuracy"),
        {WHOLE: "QQP"},
        answer_column="is_duplicate",
    ),
    GlueTask(
        "mnli",
        _PAIR,
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        {MATCHED: "MNLI-m", MISMATCHED: "MNLI-mm"},
        answer_column="gold_label",
        numbered=False,
        validation_parts=(MATCHED, MISMATCHED),
    ),
    GlueTask("qnli", ("question", "sentence"), ENTAILMENT, ("accuracy",), {WHOLE: "QNLI"}, numbered=False),
    GlueTask("rte", _PAIR, ENTAILMENT, ("accuracy",), {WHOLE: "RTE"}, numbered=False),
    GlueTask("wnli", _PAIR, ("not_entailment", "entailment"), ("accuracy",), {WHOLE: "WNLI"}),
    GlueTask(  # a diagnostic set for models of MNLI
        "ax",
        _PAIR,
        ("entailment", "neutral", "contradiction"),
        ("matthews_correlation",),
        {WHOLE: "AX"},
        numbered=False,
    ),
)
GLUE_TASKS: Dict[str, GlueTask] = {task.name: task for task in _LIST}
# A user's own data: the files say which texts and classes there are.
CSV, CSV_REGRESSION = "csv", "csv_regression"
GLUE_TASKS[CSV] = GlueTask(CSV, (), ("",), ("accuracy", "f1"), {WHOLE: "predictions"}, numbered=False)
GLUE_TASKS[CSV_REGRESSION] = GlueTask(
    CSV_REGRESSION, (), (), ("pearson", "spearmanr"), {WHOLE: "predictions"}
)
# The names of the text columns in JSON lines and in Hugging Face's data sets, where they differ from TSV.
OTHER_COLUMNS: Dict[str, Tuple[str, ...]] = {
    "mrpc": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
    "ax": ("premise", "hypothesis"),
}
