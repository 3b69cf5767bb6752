"""verdict.json: the schema that other programs rely on."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from ipu_simulator.cost.verdict import COMPONENTS
from ipu_simulator.report import json_text

from tests.ipu_simulator.report.samples import fitting, overflowing

KEYS = (
    "config device target fits parameters ipus pipeline step_s update_s host_s samples_per_s packs_per_s"
    " tokens_per_s flops_per_sample utilisation training_steps time_to_train_s remedies overflows bounds"
    " assumptions"
).split()


def test_every_field_is_there_whether_it_fits_or_not() -> None:
    for verdict in (fitting(), overflowing()):
        plain = json.loads(json_text(verdict))
        assert list(plain) == KEYS
        assert plain["fits"] is verdict.fits
        assert plain["step_s"] == verdict.step_s
        assert set(plain["pipeline"]) == {
            "forward_stages",
            "pipeline_cycles_per_update",
            "cycle_s",
            "bubble_fraction",
        }
        for ipu in plain["ipus"]:
            assert sum(ipu["components"].values()) == ipu["peak_bytes"]
            assert sum(ipu["always_live_components"].values()) == ipu["always_live_bytes"]
            assert set(ipu["components"]) <= set(COMPONENTS)


def test_an_overflow_comes_with_its_buffers_and_remedies() -> None:
    plain = json.loads(json_text(overflowing()))
    assert plain["overflows"][0]["buffers"][0]["component"] == "optimizer_state"
    assert plain["remedies"][0]["change"] == "--optimizer-state off_chip"


def test_what_is_no_number_is_null() -> None:
    text = json_text(replace(fitting(), time_to_train_s=math.inf, utilisation=math.nan))
    plain = json.loads(text, parse_constant=lambda name: (_ for _ in ()).throw(AssertionError(name)))
    assert plain["time_to_train_s"] is None
    assert plain["utilisation"] is None
