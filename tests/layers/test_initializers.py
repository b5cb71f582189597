import jax
import numpy as np
import peers
import pytest
from scipy import stats

from zoo.errors import UserError
from zoo.layers import Conv, Linear


def begin(layer, shape):
    params = layer.init(jax.random.key(0), np.zeros(shape, np.float32))["params"]
    return np.asarray(params["kernel"]).ravel(), np.asarray(params["bias"])


def same_distribution(ours, theirs):
    # Seeds are fixed, so the p-value is too; another distribution of 1e5 numbers has about 0.
    return stats.ks_2samp(ours, theirs.detach().numpy().ravel()).pvalue > 1e-4


def test_pytorch_is_what_pytorchs_layers_begin_with():
    torch = peers.torch()
    torch.manual_seed(0)
    for ours, theirs, fan_in in (
        (begin(Conv(4096, 3, groups=2), (1, 3, 3, 4)), torch.nn.Conv2d(4, 4096, 3, groups=2), 18),
        (begin(Linear(4096), (1, 25)), torch.nn.Linear(25, 4096), 25),
    ):
        kernel, bias = ours
        assert same_distribution(kernel, theirs.weight)
        assert same_distribution(bias, theirs.bias)
        for values in ours:
            assert 0.99 / np.sqrt(fan_in) < np.abs(values).max() <= 1 / np.sqrt(fan_in)


@pytest.mark.parametrize(
    ("name", "theirs"), [("he_uniform", "kaiming_uniform_"), ("xavier_uniform", "xavier_uniform_")]
)
def test_uniform_ones_are_pytorchs(name, theirs):
    torch = peers.torch()
    begin_theirs = getattr(torch.nn.init, theirs)
    torch.manual_seed(0)
    theirs = torch.empty(256, 16, 3, 3)
    begin_theirs(theirs)
    kernel, bias = begin(Conv(256, 3, initialization=name), (1, 3, 3, 16))
    assert same_distribution(kernel, theirs)
    assert not bias.any()


@pytest.mark.parametrize(("name", "gain"), [("lecun_normal", 1), ("he_normal", 2)])
def test_normal_ones_have_their_variance_and_no_tails(name, gain):
    kernel, bias = begin(Conv(256, 3, initialization=name), (1, 3, 3, 16))
    assert kernel.var() == pytest.approx(gain / (9 * 16), rel=0.02)
    # The normal distribution cut off at two standard deviations has 0.774 of its variance.
    cut = stats.truncnorm(-2, 2, scale=kernel.std() / np.sqrt(stats.truncnorm.var(-2, 2)))
    assert stats.kstest(kernel, cut.cdf).pvalue > 1e-4
    assert not bias.any()


def test_unknown_name():
    with pytest.raises(UserError, match="'he_norml' is unknown. Did you mean 'he_normal'"):
        begin(Linear(2, initialization="he_norml"), (1, 2))
