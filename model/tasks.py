"""The facts about each task that configurations and placements need; they need no PyTorch."""

from __future__ import annotations

from typing import ClassVar, Dict, Optional, Tuple, Type

from ipu.placement import Head


class TaskFacts:
    """A task without its module. `model.heads` has the modules, which inherit the facts."""

    task: ClassVar[str]  # its name in configurations
    inputs: ClassVar[Tuple[str, ...]]  # shape of each argument: B sequences, S tokens, M masked positions
    # The same with packed rows of up to D sequences; none: the task has no packed form.
    packed_inputs: ClassVar[Optional[Tuple[str, ...]]] = None
    place: ClassVar[Head]  # of the head, among the blocks of a pipeline
    head_modules: ClassVar[Tuple[str, ...]]  # a pipeline's last block begins at the first of them
    architecture: ClassVar[str]  # its name in transformers' class names
    has_classes: ClassVar[bool] = False  # `TaskModel.build` takes the names of classes
    # Modules of a file, by other names, whose weights the head's modules take: {head's: file's}.
    adopts: ClassVar[Dict[str, str]] = {}
    is_pretraining: ClassVar[bool] = False  # otherwise fine-tuning: its head may be initialised randomly
    # Of fine-tuning: the key that chooses a published training set, and the number of examples in each.
    dataset_key: ClassVar[Optional[str]] = None
    training_examples: ClassVar[Dict[str, int]] = {}


class PretrainingFacts(TaskFacts):
    """Masked language modelling plus next sentence prediction."""

    task = "pretraining"
    inputs = ("BS", "BS", "BS", "BM", "BM", "B")
    packed_inputs = ("BS", "BS", "BS", "BM", "BM", "BD", "BS", "BD")
    place = Head("Classifier", shares_embeddings=True)
    head_modules = ("heads",)
    architecture = "PreTraining"
    is_pretraining = True


class SquadFacts(TaskFacts):
    """Extractive question answering."""

    task = "squad"
    inputs = ("BS", "BS", "BS", "B", "B")
    place = Head("QA Outputs", shares_embeddings=False)
    head_modules = ("span",)
    architecture = "QuestionAnswering"
    dataset_key = "squad_version"
    # Questions (Rajpurkar et al. 2016, 2018); a long context makes several windows of one.
    training_examples: ClassVar[Dict[str, int]] = {"1.1": 87_599, "2.0": 130_319}


class ClassificationFacts(TaskFacts):
    """Classification of a sequence or a pair."""

    task = "glue"
    inputs = ("BS", "BS", "BS", "B")
    place = Head("Classifier", shares_embeddings=False)
    head_modules = ("pooler", "classes")
    architecture = "SequenceClassification"
    has_classes = True
    adopts: ClassVar[Dict[str, str]] = {"pooler": "heads.pooler", "classes": "classifier"}
    dataset_key = "glue_task"
    # Lines of the files that gluebenchmark.com distributes; Wang et al. 2018, table 1, rounds them.
    training_examples: ClassVar[Dict[str, int]] = {
        "mnli": 392_702,
        "qqp": 363_846,
        "qnli": 104_743,
        "sst2": 67_349,
        "cola": 8_551,
        "stsb": 5_749,
        "mrpc": 3_668,
        "rte": 2_490,
        "wnli": 635,
    }


FACTS: Dict[str, Type[TaskFacts]] = {
    facts.task: facts for facts in (PretrainingFacts, SquadFacts, ClassificationFacts)
}
