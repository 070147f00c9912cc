import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from forecaster.errors import BadSpec
from forecaster.model.heads import Head, Symbols, create_head
from forecaster.model.quantiles import MAX_EXACT_MEAN
from forecaster.spec import HeadSpec

pytestmark = pytest.mark.integration

SPECS = {
    "mse": HeadSpec(),
    "mae": HeadSpec(loss="mae"),
    "huber": HeadSpec(loss="huber", delta=0.7),
    "quantile": HeadSpec(kind="quantile"),
    "quantile, few": HeadSpec(kind="quantile", levels=(0.05, 0.3)),
    "gaussian": HeadSpec(kind="gaussian"),
    "student_t": HeadSpec(kind="student_t"),
    "neg_binomial": HeadSpec(kind="neg_binomial"),
    "categorical": HeadSpec(kind="categorical", bins=21, bound=4.0),
}
HEAD_NAMES = list(SPECS)
DISTRIBUTION_HEADS = [name for name in HEAD_NAMES if SPECS[name].kind != "point"]
SHIFTABLE_HEADS = [name for name in HEAD_NAMES if SPECS[name].is_shiftable]
LEVELS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.95, 0.99, 0.999)


def build_head(name: str) -> Head:
    return create_head(SPECS[name])


def random_params(head: Head, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return scale * torch.randn(*shape, head.num_params, dtype=dtype, generator=torch.Generator().manual_seed(3))


def make_targets(name: str, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    normal = 1.7 * torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(4))
    return (5 * normal.abs()).floor() if name == "neg_binomial" else normal


def positive_link(raw: np.ndarray) -> np.ndarray:
    """The softplus link of every spread: 1 at zero and at least 1e-4."""
    return 1e-4 + np.logaddexp(0, raw + math.log(math.expm1(1 - 1e-4)))


def inverse_positive_link(value: np.ndarray | float) -> np.ndarray:
    """The raw output that `positive_link` maps to a value."""
    excess = np.asarray(value) - 1e-4
    return excess + np.log(-np.expm1(-excess)) - math.log(math.expm1(1 - 1e-4))


def uniform_grid(points: int) -> Tensor:
    return (torch.arange(points, dtype=torch.float64) + 0.5) / points


def kolmogorov_smirnov_distance(draws: Tensor, distribution) -> float:
    """The largest distance between the draws' empirical distribution and a continuous one."""
    cumulative = distribution.cdf(np.sort(draws.numpy()))
    return float(np.abs(cumulative - uniform_grid(len(draws)).numpy()).max() + 0.5 / len(draws))


# Zero outputs


@pytest.mark.parametrize("name", [*SHIFTABLE_HEADS, "categorical"])
def test_zero_outputs_mean_no_correction(name):
    assert build_head(name).mean(torch.zeros(3, build_head(name).num_params)).eq(0).all()


@pytest.mark.parametrize("name", ["quantile", "gaussian"])
def test_zero_outputs_are_the_standard_normal(name):
    levels = (0.1, 0.3, 0.5, 0.9)
    quantiles = build_head(name).quantiles(torch.zeros(build_head(name).num_params, dtype=torch.float64), levels)
    np.testing.assert_allclose(quantiles, stats.norm.ppf(levels), atol=1e-12)


# Losses


def test_point_head_losses():
    params, target = random_params(build_head("mse"), 50, scale=3), make_targets("mse", 50)
    error = params[:, 0] - target
    torch.testing.assert_close(build_head("mse").loss(params, target), error**2)
    torch.testing.assert_close(build_head("mae").loss(params, target), error.abs())
    expected = torch.nn.functional.huber_loss(params[:, 0], target, reduction="none", delta=0.7)
    torch.testing.assert_close(build_head("huber").loss(params, target), expected)


@pytest.mark.parametrize("name", ["quantile", "quantile, few"])
def test_quantile_loss_is_twice_the_mean_pinball_loss(name):
    head, levels = build_head(name), sorted({*SPECS[name].levels, 0.5})
    params, target = random_params(head, 20), make_targets(name, 20)
    quantiles = head.quantiles(params, levels)
    for row in range(20):
        errors = [float(target[row] - quantiles[row, column]) for column in range(len(levels))]
        losses = [
            level * error if error > 0 else (level - 1) * error for level, error in zip(levels, errors, strict=True)
        ]
        assert float(head.loss(params, target)[row]) == pytest.approx(2 * sum(losses) / len(levels))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_gaussian_loss_is_the_negative_log_density(dtype, tolerance):
    location, raw, target = np.meshgrid([-1e3, 0.0, 5.0], np.linspace(-8, 50, 15), [-50.0, 0.0, 0.3, 7.0])
    params = torch.tensor(np.stack([location, raw], -1), dtype=dtype)
    loss = build_head("gaussian").loss(params, torch.tensor(target, dtype=dtype))
    np.testing.assert_allclose(loss, -stats.norm.logpdf(target, location, positive_link(raw)), rtol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-8), (torch.float32, 5e-5)])
def test_student_loss_is_the_negative_log_density(dtype, tolerance):
    axes = ([-1e3, 0.0, 5.0], np.linspace(-8, 50, 9), np.linspace(-20, 1000, 25), [-50.0, 0.0, 0.3, 7.0])
    location, scale, freedom, target = np.meshgrid(*axes)
    params = torch.tensor(np.stack([location, scale, freedom], -1), dtype=dtype)
    loss = build_head("student_t").loss(params, torch.tensor(target, dtype=dtype))
    exact = -stats.t.logpdf(target, 2 + positive_link(freedom), location, positive_link(scale))
    np.testing.assert_allclose(loss, exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_negative_binomial_loss_is_the_negative_log_probability(dtype, tolerance):
    mean, dispersion, count = np.meshgrid([0.01, 1.0, 30.0, 1e3, 1e5], [2e-4, 0.1, 1.0, 50.0], [0.0, 1, 7, 900, 1e5])
    params = torch.tensor(np.stack([inverse_positive_link(mean), inverse_positive_link(dispersion)], -1), dtype=dtype)
    exact_mean, alpha = positive_link(params[..., 0].double().numpy()), positive_link(params[..., 1].double().numpy())
    loss = build_head("neg_binomial").loss(params, torch.tensor(count, dtype=dtype))
    exact = -stats.nbinom.logpmf(count, 1 / alpha, 1 / (1 + alpha * exact_mean))
    np.testing.assert_allclose(loss, exact, rtol=tolerance, atol=1e-7)


def test_categorical_loss_is_the_negative_log_density_of_the_histogram():
    head = build_head("categorical")
    logits = random_params(head)
    probabilities = logits.softmax(-1).numpy()
    histogram = stats.rv_histogram((probabilities, np.linspace(-4, 4, 22)), density=False)
    target = torch.linspace(-3.99, 3.99, 101, dtype=torch.float64)
    np.testing.assert_allclose(head.loss(logits.expand(101, -1), target), -histogram.logpdf(target.numpy()))


def test_categorical_loss_counts_out_of_range_values_in_the_outermost_bin():
    head = build_head("categorical")
    logits = random_params(head).expand(4, -1)
    loss = head.loss(logits, torch.tensor([-1e30, -3.9, 3.9, 4.0], dtype=torch.float64))
    assert loss[0] == loss[1]
    assert loss[2] == loss[3]


@pytest.mark.parametrize("name", HEAD_NAMES)
@pytest.mark.parametrize("size", [1e4, 1e12])
def test_losses_and_gradients_stay_finite_for_extreme_outputs(name, size):
    head = build_head(name)
    if head.num_params <= 3:
        corners = torch.tensor(list(itertools.product([-size, 0.0, size], repeat=head.num_params)))
    else:
        corners = size * torch.randint(-1, 2, (50, head.num_params), generator=torch.Generator().manual_seed(0)).float()
    for target in (0.0, 1.0, 900.0) if name == "neg_binomial" else (-300.0, 0.0, 0.3):
        params = corners.clone().requires_grad_()
        loss = head.loss(params, torch.full((len(params),), target))
        loss.sum().backward()
        assert loss.isfinite().all()
        assert params.grad.isfinite().all()


@pytest.mark.parametrize("name", HEAD_NAMES)
def test_gradients_equal_finite_differences_of_the_loss(name):
    head = build_head(name)
    params, target = random_params(head, 6, scale=1.5).requires_grad_(), make_targets(name, 6)
    assert torch.autograd.gradcheck(lambda outputs: head.loss(outputs, target), params)
    assert torch.autograd.gradcheck(head.mean, params)


# Draws


def test_gaussian_samples_follow_their_distribution():
    params = torch.tensor([-3.0, 1.2], dtype=torch.float64)
    draws = build_head("gaussian").sample(params.expand(2000, 2), uniform_grid(2000)[:, None])
    assert kolmogorov_smirnov_distance(draws, stats.norm(-3, positive_link(np.array(1.2)))) < 0.0006


@pytest.mark.parametrize("freedom", [2.1, 3.0, 8.0, 100.0, 1e6])
def test_student_samples_follow_their_distribution(freedom):
    params = torch.tensor([2.0, -0.5, float(inverse_positive_link(freedom - 2))], dtype=torch.float64)
    index = torch.arange(20_000, dtype=torch.float64)
    noise = torch.stack([uniform_grid(20_000), (index * 0.6180339887498949 + 0.3) % 1], -1)  # Fibonacci's lattice
    draws = build_head("student_t").sample(params.expand(20_000, 3), noise)
    assert kolmogorov_smirnov_distance(draws, stats.t(freedom, 2, positive_link(np.array(-0.5)))) < 0.001


@pytest.mark.parametrize("mean", [0.01, 1.0, 30.0, 1e3, MAX_EXACT_MEAN / 2])
@pytest.mark.parametrize("dispersion", [2e-4, 0.1, 1.0, 10.0])
def test_negative_binomial_samples_and_quantiles_are_exact(mean, dispersion):
    params = torch.tensor(
        [float(inverse_positive_link(mean)), float(inverse_positive_link(dispersion))], dtype=torch.float64
    )
    exact = stats.nbinom(1 / dispersion, 1 / (1 + dispersion * mean))
    draws = build_head("neg_binomial").sample(params.expand(300, 2), uniform_grid(300)[:, None])
    np.testing.assert_array_equal(draws, exact.ppf(uniform_grid(300).numpy()))
    np.testing.assert_array_equal(build_head("neg_binomial").quantiles(params, LEVELS), exact.ppf(LEVELS))


@pytest.mark.parametrize("mean", [2e4, 1e6])
@pytest.mark.parametrize("dispersion", [2e-4, 0.1, 10.0])
def test_negative_binomial_quantiles_of_large_means_are_nearly_exact(mean, dispersion):
    params = torch.tensor(
        [float(inverse_positive_link(mean)), float(inverse_positive_link(dispersion))], dtype=torch.float64
    )
    exact = stats.nbinom(1 / dispersion, 1 / (1 + dispersion * mean)).ppf(LEVELS)
    np.testing.assert_allclose(build_head("neg_binomial").quantiles(params, LEVELS), exact, rtol=1e-3, atol=1)


def test_categorical_samples_follow_their_distribution():
    head = build_head("categorical")
    logits = random_params(head)
    histogram = stats.rv_histogram((logits.softmax(-1).numpy(), np.linspace(-4, 4, 22)), density=False)
    draws = head.sample(logits.expand(2000, -1), uniform_grid(2000)[:, None])
    assert kolmogorov_smirnov_distance(draws, histogram) < 0.0006
    assert float(head.mean(logits)) == pytest.approx(histogram.mean())


def test_symbols_have_the_loss_of_torch_and_no_quantiles():
    head, codes = Symbols(4), torch.tensor([1.0, 4.0, 2.0, 2.0], dtype=torch.float64)
    params = random_params(head, 4, scale=2)
    expected = torch.nn.functional.cross_entropy(params, codes.long() - 1, reduction="none")
    torch.testing.assert_close(head.loss(params, codes), expected)
    with pytest.raises(BadSpec, match="symbols have no order"):
        head.quantiles(params, (0.5,))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_symbols_are_drawn_with_their_probabilities_at_a_temperature(temperature):
    head = Symbols(5, temperature)
    logits = random_params(head, scale=2)
    draws = head.sample(logits.expand(2000, -1), uniform_grid(2000)[:, None])
    shares = torch.bincount(draws.long(), minlength=6) / 2000
    torch.testing.assert_close(shares[1:].double(), (logits / temperature).softmax(-1), atol=6e-4, rtol=0)
    assert shares[0] == 0
    edges = head.sample(logits.expand(2, -1), torch.tensor([[0.0], [1.0]]))
    assert edges.tolist() == [1.0, 5.0]


@pytest.mark.parametrize("name", [name for name in DISTRIBUTION_HEADS if name != "student_t"])
def test_a_sample_is_the_quantile_of_its_uniform_noise(name):
    head = build_head(name)
    params = random_params(head, 30)
    quantiles = head.quantiles(params, LEVELS)
    for column, level in enumerate(LEVELS):
        draws = head.sample(params, torch.full((30, 1), level, dtype=torch.float64))
        torch.testing.assert_close(draws, quantiles[:, column])


@pytest.mark.parametrize("name", DISTRIBUTION_HEADS)
def test_a_sample_does_not_depend_on_the_batch(name):
    head = build_head(name)
    params = random_params(head, 40, scale=2, dtype=torch.float32)
    noise = torch.rand(40, head.uniforms_per_draw, generator=torch.Generator().manual_seed(1))
    batched = head.sample(params, noise)
    alone = torch.cat([head.sample(params[row : row + 1], noise[row : row + 1]) for row in range(40)])
    torch.testing.assert_close(batched, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", DISTRIBUTION_HEADS)
@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_samples_are_finite_at_the_limits_of_the_uniform_noise(name, edge):
    head = build_head(name)
    params = random_params(head, 5, dtype=torch.float32)
    assert head.sample(params, torch.full((5, head.uniforms_per_draw), edge)).isfinite().all()


def test_negative_binomial_propagates_nan():
    params = torch.tensor([[math.nan, 0.0], [1.0, math.inf]])
    assert build_head("neg_binomial").sample(params, torch.full((2, 1), 0.5)).isnan().all()


# Quantiles


@pytest.mark.parametrize("name", DISTRIBUTION_HEADS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_quantiles_never_cross(name, data):
    head = build_head(name)
    size = data.draw(st.sampled_from([0.125, 4.0, 1024.0]))
    output = st.floats(-size, size, width=32)
    params = torch.tensor(data.draw(st.lists(output, min_size=head.num_params, max_size=head.num_params)))
    level = st.floats(1e-6, 1 - 1e-6)
    levels = sorted(data.draw(st.sets(level, min_size=2, max_size=8)))
    quantiles = head.quantiles(params, levels)
    assert quantiles.isfinite().all()
    assert (quantiles.diff() >= 0).all()


@pytest.mark.parametrize("freedom", [2.1, 2.3, 2.9, 3.0, 4.2, 7.0, 15.0, 40.0, 100.0, 1e5])
def test_student_quantiles_are_exact(freedom):
    exact = stats.t.ppf(LEVELS, freedom)
    params = torch.tensor([0.0, 0.0, float(inverse_positive_link(freedom - 2))], dtype=torch.float64)
    np.testing.assert_allclose(build_head("student_t").quantiles(params, LEVELS), exact, rtol=1e-8, atol=1e-12)
    # In float32 the degrees of freedom are rounded themselves, which moves the quantiles as much.
    np.testing.assert_allclose(build_head("student_t").quantiles(params.float(), LEVELS), exact, rtol=3e-6, atol=1e-6)


def test_student_quantiles_are_accurate_far_in_the_tail():
    levels = (1e-7, 1e-6, 1e-5, 1 - 1e-6)
    params = torch.tensor([0.0, 0.0, float(inverse_positive_link(0.5))], dtype=torch.float64)
    np.testing.assert_allclose(build_head("student_t").quantiles(params, levels), stats.t.ppf(levels, 2.5), rtol=1e-6)


@pytest.mark.parametrize("name", ["quantile", "quantile, few"])
def test_quantile_head_tails_are_exponential(name):
    """An exponential tail loses as much at each halving of the level."""
    head, ends = build_head(name), SPECS[name].levels
    params = random_params(head, 4)
    low = head.quantiles(params, [ends[0] / 8, ends[0] / 4, ends[0] / 2, ends[0]]).diff()
    torch.testing.assert_close(low, low[:, :1].expand_as(low))
    highest = max(ends[-1], 0.5)
    high = head.quantiles(params, [1 - (1 - highest) * 0.5**k for k in range(4)]).diff()
    torch.testing.assert_close(high, high[:, :1].expand_as(high))


def test_quantile_head_is_linear_between_its_levels():
    params = random_params(build_head("quantile"), 4)
    low, middle, high = build_head("quantile").quantiles(params, [0.2, 0.225, 0.3]).unbind(-1)
    torch.testing.assert_close(middle, low + (high - low) / 4)


def test_the_median_of_a_quantile_head_is_its_point_forecast():
    params = random_params(build_head("quantile, few"), 4)
    assert build_head("quantile, few").quantiles(params, [0.5])[:, 0].equal(build_head("quantile, few").mean(params))


@pytest.mark.parametrize("name", ["mse", "mae", "huber"])
def test_a_point_head_has_no_distribution(name):
    with pytest.raises(BadSpec, match="has no quantiles"):
        build_head(name).quantiles(torch.zeros(1, 1), [0.5])
    with pytest.raises(BadSpec, match="has no draws"):
        build_head(name).sample(torch.zeros(1, 1), torch.zeros(1, 0))


# Shifts


@pytest.mark.parametrize("name", SHIFTABLE_HEADS)
def test_a_shift_moves_mean_samples_and_quantiles(name):
    head = build_head(name)
    params, offset = random_params(head, 7), make_targets(name, 7)
    shifted = head.shift(params, offset)
    torch.testing.assert_close(head.mean(shifted), head.mean(params) + offset)
    torch.testing.assert_close(head.loss(shifted, offset + 0.3), head.loss(params, torch.full_like(offset, 0.3)))
    if head.uniforms_per_draw:
        noise = torch.rand(7, head.uniforms_per_draw, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(head.sample(shifted, noise), head.sample(params, noise) + offset)
        torch.testing.assert_close(head.quantiles(shifted, LEVELS), head.quantiles(params, LEVELS) + offset[:, None])


@pytest.mark.parametrize("head", [build_head("neg_binomial"), build_head("categorical"), Symbols(3)])
def test_a_head_with_a_fixed_support_cannot_be_shifted(head):
    with pytest.raises(BadSpec, match="supports only the base zero"):
        head.shift(torch.zeros(2, head.num_params), torch.ones(2))


@pytest.mark.parametrize("name", HEAD_NAMES)
def test_spec_and_head_agree_on_which_heads_can_be_shifted(name):
    assert build_head(name).is_shiftable == SPECS[name].is_shiftable


# Shapes and export


@pytest.mark.parametrize("name", HEAD_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_leading_axes_are_allowed_and_the_dtype_is_kept(name, dtype):
    head = build_head(name)
    params = random_params(head, 2, 3, 4, dtype=dtype)
    results = [head.loss(params, make_targets(name, 2, 3, 4, dtype=dtype)), head.mean(params)]
    if head.uniforms_per_draw:
        results.append(head.sample(params, torch.full((2, 3, 4, head.uniforms_per_draw), 0.3, dtype=dtype)))
        results.append(head.quantiles(params, (0.2, 0.7))[..., 0])
    assert all(result.shape == (2, 3, 4) and result.dtype == dtype for result in results)
    assert head.mean(params[:0]).shape == (0, 3, 4)


class _HeadOutputs(torch.nn.Module):
    """Mean, draw and quantiles in one module."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, params: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.head.mean(params), self.head.sample(params, noise), self.head.quantiles(params, (0.03, 0.4, 0.9))


@pytest.mark.parametrize("name", [name for name in DISTRIBUTION_HEADS if name != "neg_binomial"])
def test_mean_samples_and_quantiles_export_to_onnx_with_a_dynamic_batch(name):
    head = build_head(name)
    rows = torch.export.Dim("rows", min=2)
    example = (random_params(head, 5, dtype=torch.float32), torch.full((5, head.uniforms_per_draw), 0.3))
    exported = torch.export.export(_HeadOutputs(head), example, dynamic_shapes=({0: rows}, {0: rows})).module()
    other = (random_params(head, 9, dtype=torch.float32), torch.full((9, head.uniforms_per_draw), 0.7))
    torch.testing.assert_close(exported(*other), _HeadOutputs(head)(*other))


# Specifications


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "quantile", "levels": (0.1, 90.0)}, "between 0 and 1"),
        ({"kind": "quantile", "levels": (0.0, 0.5)}, "between 0 and 1"),
        ({"kind": "quantile", "levels": (0.5, 0.1)}, r"rise strictly; found 0.1 after 0.5"),
        ({"kind": "quantile", "levels": (0.1, 0.1)}, "rise strictly"),
        ({"kind": "quantile", "levels": (0.5,)}, "besides the median"),
        ({"kind": "quantile", "levels": ()}, "besides the median"),
        ({"kind": "gaussian", "loss": "mae"}, "loss belongs to a point head; this one is gaussian"),
        ({"kind": "point", "levels": (0.1, 0.9)}, "levels belongs to a quantile head"),
        ({"kind": "quantile", "bins": 10}, "bins belongs to a categorical head"),
        ({"loss": "mae", "delta": 2.0}, "delta belongs to the huber loss"),
        ({"kind": "categorical", "bound": 0.0}, "greater than 0"),
        ({"kind": "cauchy"}, "Input should be"),
        ({"quantiles": (0.1,)}, "Extra inputs"),
    ],
)
def test_an_invalid_head_is_rejected(fields, message):
    with pytest.raises(ValidationError, match=message):
        HeadSpec.model_validate(fields)


@pytest.mark.parametrize("name", HEAD_NAMES)
def test_a_head_round_trips_through_json(name):
    assert HeadSpec.model_validate_json(SPECS[name].model_dump_json()) == SPECS[name]
