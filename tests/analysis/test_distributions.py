"""Distributions against apa(), closed forms and samples of known distributions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apa_det import apa
from apa_det.analysis import GeneralizedLogistic, fit


@pytest.mark.parametrize("lambda_", [0.0, 1e-4, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("kappa", [0.4, 1.0, 3.0])
def test_cdf_is_eta_and_density_its_derivative(lambda_, kappa):
    z = torch.linspace(-4, 6, 41, dtype=torch.float64, requires_grad=True)
    eta = apa(z, lambda_, kappa)
    (slope,) = torch.autograd.grad(eta.sum(), z)
    distribution = GeneralizedLogistic(lambda_, scale=1 / kappa)
    z, eta = z.detach().numpy(), eta.detach().numpy()
    np.testing.assert_allclose(distribution.cdf(z), eta, rtol=1e-9)
    density = np.exp(distribution.log_density(z))
    np.testing.assert_allclose(density, slope.numpy(), rtol=1e-7, atol=1e-300)


def test_densities_in_closed_form():
    z = np.linspace(-3, 8, 23)
    u = (z - 1.5) / 2
    logistic = np.exp(-u) / (2 * (1 + np.exp(-u)) ** 2)
    gumbel = np.exp(-u - np.exp(-u)) / 2
    for lambda_, expected in ((1, logistic), (0, gumbel), (1e-9, gumbel)):
        density = np.exp(GeneralizedLogistic(lambda_, 1.5, 2.0).log_density(z))
        np.testing.assert_allclose(density, expected, rtol=1e-7)


def sample(lambda_, location, scale, size=20_000, seed=0):
    """Sample by inverting the CDF."""
    p = np.random.default_rng(seed).uniform(size=size)
    e = -np.log(p) if lambda_ == 0 else (p**-lambda_ - 1) / lambda_
    return location - scale * np.log(e)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([0.0, 0.5, 1.0]), st.floats(-1e4, 1e4), st.floats(1e-3, 1e3), st.integers(0, 99)
)
def test_fit_recovers_the_distribution(lambda_, location, scale, seed):
    """Within five standard errors (about 2 scale / √n), and as likely as the true one."""
    z = sample(lambda_, location, scale, seed=seed)
    fitted = fit(z, lambda_)
    assert fitted.location == pytest.approx(location, abs=10 * scale / math.sqrt(len(z)))
    assert fitted.scale == pytest.approx(scale, rel=5 / math.sqrt(len(z)))
    truth = GeneralizedLogistic(lambda_, location, scale)
    assert fitted.log_likelihood(z) >= truth.log_likelihood(z)


@pytest.mark.parametrize("lambda_,better", [(1.0, 1.0), (0.0, 0.0)])
def test_distinguishes_logistic_from_gumbel(lambda_, better):
    z = sample(lambda_, 2.0, 3.0)
    fits = {value: fit(z, value).log_likelihood(z) for value in (0.0, 1.0)}
    assert max(fits, key=fits.get) == better


def test_fit_is_the_maximum():
    """Textbook conditions of the maximum likelihood."""
    z = np.random.default_rng(1).normal(3, 2, 5000)
    gumbel = fit(z, 0)
    weights = np.exp(-z / gumbel.scale)
    assert gumbel.scale == pytest.approx(z.mean() - (z * weights).sum() / weights.sum(), rel=1e-5)
    assert gumbel.location == pytest.approx(-gumbel.scale * math.log(weights.mean()), rel=1e-5)
    logistic = fit(z, 1)
    u = (z - logistic.location) / logistic.scale
    assert np.tanh(u / 2).mean() == pytest.approx(0, abs=1e-5)
    assert (u * np.tanh(u / 2)).mean() == pytest.approx(1, rel=1e-5)


def test_outliers():
    z = np.append(np.random.default_rng(0).normal(size=10_000), [-300.0, 400.0])
    for lambda_ in (0, 1):
        fitted, moved = fit(z, lambda_), GeneralizedLogistic(lambda_, 0.0, 2.0)
        assert np.isfinite(fitted.log_likelihood(z))
        assert fitted.log_likelihood(z) > moved.log_likelihood(z)


@pytest.mark.parametrize("z", [[], [1.0], [0.1] * 50, [np.nan, 1.0], [1e8] * 3])
def test_nothing_to_fit(z):
    assert fit(np.array(z), 1) is None
