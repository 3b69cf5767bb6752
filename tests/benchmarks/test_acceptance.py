"""The row that a user sends back, and how measurements are judged."""

import csv

import pytest

import config as configuration
from benchmarks.acceptance import as_on, check, published_row
from benchmarks.points import SCALES
from ipu import DeviceChoice
from planning.published_rows import COLUMNS, read_rows

IPU = DeviceChoice("ipu", "Graphcore's PopTorch", "3.4.0", "asked for")


@pytest.mark.parametrize("name", ["bert_large_128_pod16", "groupbert_base_128_pod16", "bert_base_512_pod16"])
def test_the_row_is_one_of_published_rows(name, tmp_path):
    config = configuration.load(name)
    row = published_row(name, config, IPU, 12.5)
    assert set(COLUMNS) <= set(row)
    path = tmp_path / "row.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        writer.writeheader()
        writer.writerow(row)
    (read,), _ = read_rows(path)
    assert read.model == "-".join(name.split("_")[:2])
    assert read.framework == "PopTorch"
    assert read.layers_per_ipu == tuple(config.layers_per_ipu)
    assert read.matmul_proportion == config.matmul_proportion
    assert read.optimizer_state == config.optimizer_state
    assert read.replicated_tensor_sharding == config.replicated_tensor_sharding
    assert read.step_s == 12.5


@pytest.mark.parametrize(
    ("device", "precision"),
    [("ipu", "ipu-float16"), ("ipu-model", "ipu-float16"), ("simulator", "float32")],
)
def test_like_is_compared_with_like(device, precision):
    """An IPU's float16, and its tanh form of GELU, with the same arithmetic on the simulator."""
    config = configuration.load("acceptance", path=SCALES)
    assert as_on(DeviceChoice(device, "", "3.4.0", ""), config).simulator_precision == precision


def test_a_simulators_row_says_so():
    simulator = DeviceChoice("simulator", "ours", "3.4.0+simulator", "asked for")
    row = published_row("demo", configuration.load("demo"), simulator, 1.0)
    assert "NOT AN IPU" in str(row["source"])
    assert row["model"] == "groupbert-3x192"


@pytest.mark.parametrize(
    "here, outcome", [(1.02, "agrees"), (1.03, "DIFFERS"), (0.97, "DIFFERS"), (None, "not measured")]
)
def test_a_check_is_relative_to_what_is_expected(here, outcome):
    assert check("loss", "nats", here, 1.0, "simulator", 0.025)["outcome"] == outcome
