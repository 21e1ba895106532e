"""η as the CDF of a generalized logistic distribution, and maximum-likelihood fits.

For κ > 0, η(z; λ, κ) = (λ e^(−κz) + 1)^(−1/λ) is the CDF of a generalized logistic distribution
(type I; Balakrishnan and Leung, 1988): the logistic distribution at λ = 1, the Gumbel distribution
in the limit λ → 0 (Alexandridis et al., "Adaptive Parametric Activation", ECCV 2024, section 3).
"""

from dataclasses import dataclass

import numpy as np

_GUMBEL_BELOW = 1e-12  # λ up to here is treated as 0
_MAX_STEPS = 1000
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class GeneralizedLogistic:
    """The distribution with CDF F(z) = (λ e^(−u) + 1)^(−1/λ), u = (z − location) / scale.

    Attributes are numbers, or arrays that broadcast with z. η has location 0 and scale 1 / κ.
    """

    lambda_: float | np.ndarray  # λ ≥ 0; 1 is the logistic, 0 the Gumbel distribution
    location: float | np.ndarray = 0.0
    scale: float | np.ndarray = 1.0  # > 0

    def cdf(self, z: np.ndarray) -> np.ndarray:
        """Return F(z); for location 0 this is η."""
        return np.exp(-_power((z - self.location) / self.scale, self.lambda_))

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """Return log F'(z) = −u − (1/λ + 1) log(1 + λ e^(−u)) − log scale."""
        u = (z - self.location) / self.scale
        lambda_ = np.asarray(self.lambda_)
        return -u - (1 + lambda_) * _power(u, lambda_) - np.log(self.scale)

    def log_likelihood(self, z: np.ndarray) -> float:
        """Return the mean log-density of a sample."""
        return float(self.log_density(np.asarray(z, np.float64)).mean())


def fit(z: np.ndarray, lambda_: float) -> GeneralizedLogistic | None:
    """Fit location and scale by maximum likelihood for a given λ: 1 logistic, 0 Gumbel.

    With a = 1 / scale and b = −location / scale the log-likelihood is concave in (a, b), so
    Newton's method with a line search finds its only maximum.

    Returns:
        None if the sample has fewer than two distinct finite values, so there is no maximum.
    """
    z = np.asarray(z, np.float64).ravel()
    z = z[np.isfinite(z)]
    spread = z.std() if len(z) else 0.0
    if not spread > 1e-12 * np.abs(z).max(initial=0.0):
        return None
    mean = z.mean()
    x = (z - mean) / spread

    def mean_log_likelihood(a: float, b: float) -> float:
        return GeneralizedLogistic(lambda_, -b / a, 1 / a).log_likelihood(x)

    a, b = min(1.5, 10 / np.abs(x).max()), 0.5  # an outlier's term is at most e^10
    best = mean_log_likelihood(a, b)
    for _ in range(_MAX_STEPS):
        slope, curvature = _derivatives(a * x + b, lambda_)
        gradient = np.array([1 / a + (slope * x).mean(), slope.mean()])
        mixed = (curvature * x).mean()
        hessian = [[-(a**-2) + (curvature * x * x).mean(), mixed], [mixed, curvature.mean()]]
        step = -np.linalg.solve(hessian, gradient)
        gain = gradient @ step
        if gain < _TOLERANCE:
            break
        size = 1.0
        while size > 1e-10:
            next_a, next_b = a + size * step[0], b + size * step[1]
            if next_a > 0:
                value = mean_log_likelihood(next_a, next_b)
                if value > best + 1e-4 * size * gain:
                    break
            size /= 2
        else:
            break
        a, b, best = next_a, next_b, value
    return GeneralizedLogistic(lambda_, float(mean - spread * b / a), float(spread / a))


def _power(u: np.ndarray, lambda_: float | np.ndarray) -> np.ndarray:
    """Return log(1 + λ e^(−u)) / λ, or its limit e^(−u) for λ = 0."""
    lambda_ = np.asarray(lambda_, np.float64)
    positive = np.maximum(lambda_, _GUMBEL_BELOW)
    with np.errstate(over="ignore"):
        return np.where(
            lambda_ > _GUMBEL_BELOW, np.logaddexp(0, np.log(positive) - u) / positive, np.exp(-u)
        )


def _derivatives(u: np.ndarray, lambda_: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and second derivative of the log-density with respect to u."""
    if lambda_ <= _GUMBEL_BELOW:
        e = np.exp(-u)
        return e - 1, -e
    share = np.exp(-np.logaddexp(0, u - np.log(lambda_)))  # sigmoid(log λ − u)
    factor = 1 / lambda_ + 1
    return factor * share - 1, -factor * share * (1 - share)
