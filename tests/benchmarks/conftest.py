"""Real trainings of a few updates, on text of the standard library."""

import pydoc

import pytest

import config as configuration
import ipu

MODULES = "argparse json logging optparse pathlib pickle random statistics subprocess tarfile"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A text file of real documentation: one document per module, blank lines between them."""
    documents = []
    for name in MODULES.split():
        text = pydoc.plain(pydoc.render_doc(name))
        lines = (line.strip(" |") for line in text.splitlines())
        documents.append("\n".join(line for line in lines if len(line.split()) > 4 and " at 0x" not in line))
    path = tmp_path_factory.mktemp("benchmark_corpus") / "documentation.txt"
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def device():
    return ipu.select_device("simulator")


@pytest.fixture(scope="session")
def small(corpus, device, tmp_path_factory):
    """`small(**keys)`: a run of a few updates of a BERT of two layers, as a Config."""
    cache = tmp_path_factory.mktemp("benchmark_cache")

    def config(**keys):
        overrides = {
            "corpus": str(corpus),
            "cache_folder": str(cache),
            "device": device.name,
            "validation_fraction": 0.3,
            "preprocessing_workers": 0,
            "gradient_accumulation": 3,
            "ipus_per_replica": 1,
            "layers_per_ipu": (2,),
            "training_steps": 6,
            "eval_steps": 2,
            "checkpoint_steps": None,
            **keys,
        }
        return configuration.load("test_bert", overrides=overrides)

    return config
