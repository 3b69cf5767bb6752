"""A new task is its entry in model.TASKS, its data and its recipe: nothing else names it."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import config as configuration
import data
import ipu
import model as models
import training
from ipu.placement import Head
from model.config import ModelConfig
from model.heads import initialise, mean_cross_entropy
from planning.dry_run import verdict_of
from tests.old_hosts import needs_verdict


class ParityModel(models.TaskModel):
    """Is the number of real tokens even?"""

    task = "parity"
    inputs = ("BS", "BS", "BS", "B")
    place = Head("Parity", shares_embeddings=False)
    head_modules = ("parity",)
    architecture = "Parity"

    def __init__(self, config: ModelConfig, seed: Optional[int] = None) -> None:
        super().__init__(config)
        self.parity = nn.Linear(config.hidden_size, 2)
        initialise(self, seed)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor, labels: Tensor) -> tuple:
        logits_b2 = self.parity(self.encoder(ids, mask, types)[:, 0])
        return mean_cross_entropy(logits_b2, labels), logits_b2

    @staticmethod
    def head_flops(config: ModelConfig, sequence_length: int, masked_tokens: int) -> int:
        return 2 * config.hidden_size * 2


class ParityDataset(data.SampleDataset):
    def fetch(self, indices: np.ndarray, epochs: np.ndarray) -> data.Batch:
        tokens = torch.from_numpy(indices % 32 + 1)
        mask = (torch.arange(32) < tokens[:, None]).to(torch.int32)
        return mask * 7, mask, torch.zeros_like(mask), (tokens % 2).to(torch.int32)


class NoMetrics:
    def add(self, outputs: object) -> None: ...

    def result(self) -> training.Record:
        return {"eval_loss": 0.0}


TASK = training.metrics.Task(
    training.metrics.mean_loss, lambda record: [f"loss {record['loss']}"], lambda record: "held-out"
)


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> configuration.Config:
    with pytest.raises(configuration.ConfigError, match="task: 'parity' is not a task"):
        configuration.load("test_groupbert", overrides={"task": "parity"})
    monkeypatch.setitem(models.TASKS, "parity", ParityModel)
    return configuration.load("test_groupbert", overrides={"task": "parity", "device": "simulator"})


@needs_verdict
def test_it_is_dry_run(recipe: configuration.Config) -> None:
    verdict = verdict_of(recipe, "parity")
    assert verdict.fits and len(verdict.ipus) == 2
    assert verdict.pipeline.forward_stages == configuration.derived(recipe)["pipeline_stages"] == 2


def test_it_is_trained_saved_and_loaded(recipe: configuration.Config, tmp_path: Path) -> None:
    device = ipu.select_device("simulator")
    model = training.initial_model(recipe.model_config(), head="parity", seed=1, folder=None)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    job = training.Job(
        task=TASK,
        model=model,
        examples=ParityDataset(64, seed=1, shuffle=True),
        identity="parity",
        tokenizer=None,
        evaluator=lambda executor: lambda stop: NoMetrics().result(),
        state={},
    )
    start = training.Start(None, None, recipe.to_dict())
    stop = training.StopRequest()
    end = training.fit(recipe, job, start, device=device, output=tmp_path, arguments=[], stop=stop)
    assert end.step == recipe.training_steps and end.checkpoint is not None
    trained = model.state_dict()
    assert not torch.equal(trained["parity.weight"], before["parity.weight"])
    loaded = models.from_pretrained(end.checkpoint, head="parity", fresh_head=False)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in loaded.state_dict().items())
