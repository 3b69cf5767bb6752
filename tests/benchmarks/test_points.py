import itertools

import pytest

import config as configuration
import model as models
from benchmarks import points
from benchmarks.points import SCALES, sizes_of
from benchmarks.trainings import digest

BASE = configuration.load("demo", path=SCALES)


def test_each_point_has_one_enhancement_more_than_the_one_before():
    configs = [point.config(BASE, seed=1) for point in points.ablation()]
    assert configs[0].model_config().is_bert
    assert configs[-1].model_config().is_groupbert
    changed = [
        {key for key in before.to_dict() if getattr(before, key) != getattr(after, key)}
        for before, after in itertools.pairwise(configs)
    ]
    assert changed == [{"norm"}, {"feed_forward"}, {"convolution"}, {"hidden_dropout"}, {"learning_rate"}]
    assert configs[-1].learning_rate == 4 * configs[0].learning_rate


def test_points_train_on_the_same_tokens():
    keys = "seed corpus sequence_length mask_tokens micro_batch_size gradient_accumulation training_steps"
    configs = [point.config(BASE, seed=3) for point in points.ablation()]
    assert len({tuple(getattr(config, key) for key in keys.split()) for config in configs}) == 1


def test_flops_grow_with_what_computes_more():
    def flops(point):
        return models.flops_per_sequence(point.config(BASE, seed=1).model_config(), 64, 10)

    bert, pre_norm, gffn, convolution, no_dropout, faster = map(flops, points.ablation())
    assert bert == pre_norm
    assert gffn < bert  # a grouped projection and a mixer, in place of a dense projection
    assert convolution > bert
    assert convolution == no_dropout == faster


@pytest.mark.parametrize("scale", ["demo", "study"])
def test_sizes_keep_the_head_size(scale):
    base = configuration.load(scale, path=SCALES)
    for size in sizes_of(base, ((0.5, 1), (1, 1), (1, 2))):
        config = points.groupbert().config(base, seed=1, size=size)
        assert (config.hidden_size, config.num_layers) == size
        assert config.hidden_size // config.num_heads == base.hidden_size // base.num_heads
        assert sum(config.layers_per_ipu) == config.num_layers


def test_demo_recipes_are_the_ablations_ends():
    # Their trainings are shared by name.
    walk = points.ablation()
    for name, point in (("demo_bert", walk[0]), ("demo_groupbert", walk[-1])):
        assert digest(configuration.load(name, path=SCALES)) == digest(point.config(BASE, seed=BASE.seed))
