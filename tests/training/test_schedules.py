"""Learning rates against their definition and the published shapes."""

import pytest

from training import Schedule


def schedule(**changes):
    values = {
        "learning_rate": 0.012,
        "lr_schedule": "linear",
        "warmup_steps": 10,
        "lr_warmup_power": 1.0,
        "lr_end": 0.0,
        "training_steps": 100,
    }
    return Schedule(**{**values, **changes})


@pytest.mark.parametrize("name", ["constant", "linear", "polynomial"])
def test_the_peak_is_reached_when_the_warm_up_ends(name):
    assert schedule(lr_schedule=name, lr_warmup_power=0.5).at(9) == pytest.approx(0.012)
    assert schedule(lr_schedule=name, lr_warmup_power=0.5).at(10) == pytest.approx(0.012)


def test_square_root_warm_up_of_groupbert():
    rates = [schedule(lr_schedule="polynomial", warmup_steps=4, lr_warmup_power=0.5).at(s) for s in range(4)]
    assert rates == pytest.approx([0.012 * (n / 4) ** 0.5 for n in (1, 2, 3, 4)])


def test_linear_ignores_what_belongs_to_polynomial():
    linear = schedule(lr_warmup_power=0.5, lr_end=1e-7)
    assert linear.at(4) == pytest.approx(0.012 * 5 / 10)
    assert linear.at(55) == pytest.approx(0.012 * 45 / 90)
    assert linear.at(99) > linear.at(100) == 0


def test_polynomial_decays_to_its_end():
    polynomial = schedule(lr_schedule="polynomial", lr_end=1e-7)
    assert polynomial.at(55) == pytest.approx(1e-7 + (0.012 - 1e-7) * 45 / 90)
    assert polynomial.at(99) > polynomial.at(100) == 1e-7


def test_every_update_moves_the_weights():
    for name in ("constant", "linear", "polynomial"):
        assert all(schedule(lr_schedule=name).at(step) > 0 for step in range(100))


def test_no_warm_up_starts_at_the_peak():
    assert schedule(warmup_steps=0).at(0) == pytest.approx(0.012)
