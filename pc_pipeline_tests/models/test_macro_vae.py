"""The macro VAE: its likelihood, its sampling, its conditioning. Learning is tested in training/."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from pc_pipeline.core.errors import ConfigError, ModelError
from pc_pipeline.models.checkpoint import load_model, save_model
from pc_pipeline.models.macro_vae import MacroVAE, MacroVAEConfig, slow_basis, spline_basis
from pc_pipeline.models.spec import example_inputs
from pc_pipeline.schemas.units import MACRO_NAMES, MACRO_SERIES, N_MACRO

LOWER = np.array([s.lower for s in MACRO_SERIES])
UPPER = np.array([s.upper for s in MACRO_SERIES])
SMALL = MacroVAEConfig(seq_length=24, hidden_dim=8, n_layers=1, decoder_dim=8)


def linear_model(seed: int = 0, config: MacroVAEConfig = SMALL) -> MacroVAE:
    """A model with a known law: scenario s centred s/2 higher, correlated shocks, no recurrent part."""
    torch.manual_seed(seed)
    model = MacroVAE(config)
    with torch.no_grad():
        for code in range(config.n_scenarios):
            model.centre_SGM[code] = 0.5 * code - 0.5
        model.scale_M.fill_(0.4)
        model.below_diagonal.copy_(0.05 * torch.randn(36))
        model.first_below.copy_(0.3 * torch.randn(36))
    return model.eval()


def bent_model(seed: int = 0) -> MacroVAE:
    """The same with a decoder that reacts to its past."""
    model = linear_model(seed)
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        model.head.weight.normal_(0, 0.1)
        model.posterior.weight.normal_(0, 0.1)
    return model


def test_decoding_inverts_the_innovations() -> None:
    model = bent_model()
    eps = torch.randn(5, 24, N_MACRO)
    scenario = torch.tensor([0, 1, 2, 3, 0])
    recovered, _ = model.innovations(model.to_units(model.roll(eps, scenario)), scenario)
    assert torch.allclose(recovered, eps, atol=2e-3)


def test_the_likelihood_has_the_right_volume() -> None:
    """log |dy/d eps| against the determinant of the Jacobian on a short path."""
    model = bent_model()
    scenario = torch.tensor([1])
    eps = 0.5 * torch.randn(1, 3, N_MACRO)
    jacobian = torch.autograd.functional.jacobian(lambda e: model.roll(e, scenario).flatten(), eps)
    expected = torch.linalg.slogdet(jacobian.reshape(27, 27).double())[1]
    _, log_det = model.innovations(model.to_units(model.roll(eps, scenario)), scenario)
    assert float(log_det.detach()) == pytest.approx(float(expected), abs=1e-3)


def test_the_latent_costs_nothing_and_is_what_it_says() -> None:
    """Noise with the latent put in is standard normal, and rho is its correlation with the slow shocks."""
    model = linear_model()
    z, noise = model.draw_noise(24, 4000)
    slow = model.slow_part(noise)
    rho = model.config.latent_share
    eps = model._replace_slow(noise, rho * z + ((1 - rho**2) ** 0.5 - 1) * slow)
    assert kstest(eps.flatten()[::7].numpy(), "norm").pvalue > 1e-3
    covariance = torch.cov(eps.flatten(1)[:, ::5].T)
    assert float((covariance - torch.eye(len(covariance))).abs().max()) < 6 / 4000**0.5
    latent = model.slow_part(eps)
    correlation = torch.stack([torch.corrcoef(torch.stack([latent[:, k], z[:, k]]))[0, 1] for k in range(32)])
    assert torch.allclose(correlation, torch.full((32,), rho), atol=6 * (1 - rho**2) / 4000**0.5)


def test_the_bound_is_the_likelihood_where_the_posterior_is_right() -> None:
    """-ELBO = nll + gap, and the reconstruction term agrees with its definition by sampling."""
    model = bent_model()
    path = model.generate(1, 24, 1, seed=3)
    scenario = torch.tensor([1])
    with torch.no_grad():
        terms = model.bound(path, scenario)
        assert float(terms["gap"]) >= 0
        mu, log_var = model.encode(path, scenario)
        eps, log_det = model.innovations(path, scenario)
        slow, rho = model.slow_part(eps), model.config.latent_share
        z = mu + torch.exp(0.5 * log_var) * torch.randn(40_000, 32)
        # log p(y | z): the slow part is N(rho z, 1 - rho^2), the rest of eps standard normal
        rest = 0.5 * (eps.square().sum() - slow.square().sum()) + log_det
        fit = 0.5 * ((slow - rho * z).square().sum(1) / (1 - rho**2)) + 16 * np.log(1 - rho**2)
        sampled = rest + fit + 0.5 * eps.numel() * np.log(2 * np.pi)
    error = float(sampled.std()) / 200
    assert float(terms["reconstruction"]) == pytest.approx(float(sampled.mean()), abs=5 * error)


def test_sample_k_is_the_same_however_many_are_drawn() -> None:
    model = bent_model()
    many = model.generate(2, 24, 1500, seed=5)
    assert torch.equal(model.generate(2, 24, 1500, seed=5), many)
    assert torch.allclose(model.generate(2, 24, 7, seed=5), many[:7], atol=1e-5, rtol=1e-5)
    batch = model.generate(2, 24, 20, seed=5, first_sample=1015)
    assert torch.allclose(batch, many[1015:1035], atol=1e-5, rtol=1e-5)
    assert not torch.equal(model.generate(2, 24, 7, seed=6), many[:7])


def test_scenarios_share_their_random_numbers() -> None:
    model = linear_model()
    one, two = (model.to_scaled(model.generate(code, 24, 200, seed=1)) for code in (0, 1))
    assert torch.allclose(two - one, torch.full_like(one, 0.5), atol=1e-2)


def test_generated_paths_lie_inside_the_bounds() -> None:
    model = linear_model()
    with torch.no_grad():
        model.scale_M.fill_(3.0)
    paths = model.generate(3, 60, 500).numpy()
    assert (paths >= LOWER.astype("f4")).all()
    assert (paths <= UPPER.astype("f4")).all()


def test_paths_can_start_from_observed_values() -> None:
    model = linear_model()
    with torch.no_grad():
        model.log_diagonal_M.fill_(-20.0)  # silent shocks: only the start speaks
        model.below_diagonal.zero_()
    start = torch.tensor(0.3 * LOWER + 0.7 * UPPER, dtype=torch.float32)
    path = model.to_scaled(model.generate(0, 24, 1, initial=start.tolist()))[0]
    centre = -0.5
    gap = model.to_scaled(start) - centre
    persistence = torch.tensor([s.persistence for s in MACRO_SERIES])
    assert torch.allclose(path[0], centre + persistence * gap, atol=1e-4)
    assert torch.allclose(path[9], centre + persistence**10 * gap, atol=1e-3)


def test_longer_paths_than_trained_hold_the_last_centre() -> None:
    model = linear_model()
    paths = model.generate(0, 100, 50)
    assert paths.shape == (50, 100, N_MACRO)
    assert bool(torch.isfinite(paths).all())
    with pytest.raises(ModelError, match=r"1\.\.480"):
        model.generate(0, 481, 1)
    assert model.generate(0, 1, 4).shape == (4, 1, N_MACRO)


def test_forward_has_the_seed_shapes_and_gradients_reach_every_parameter() -> None:
    model = bent_model()
    inputs = example_inputs(model.describe_inputs(), B=3, T=24)
    reconstruction, mu, log_var = model(**inputs)
    assert reconstruction.shape == (3, 24, N_MACRO)
    assert mu.shape == log_var.shape == (3, 32)
    model.loss(**inputs).backward()
    silent = [
        name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)
    ]
    assert silent == []


def test_decoded_paths_carry_gradients_to_the_latent() -> None:
    model = bent_model()
    z = torch.randn(2, 32, requires_grad=True)
    model.decode(z, torch.tensor([0, 1]), torch.randn(2, 24, N_MACRO)).sum().backward()
    assert bool((z.grad.abs() > 0).all())


def test_saved_and_loaded_it_generates_the_same(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = bent_model()
    save_model(tmp_path, model)
    loaded, _ = load_model(tmp_path)
    assert torch.equal(loaded.generate("stagflation", 24, 5), model.generate(3, 24, 5))


def test_a_custom_scenario_moves_the_centre_and_keeps_the_rest() -> None:
    model = linear_model()
    centre = torch.tensor(0.6 * LOWER + 0.4 * UPPER, dtype=torch.float32).expand(24, -1)
    wider = model.with_scenario("my_crisis", centre)
    assert torch.equal(wider.generate(1, 24, 4), model.generate(1, 24, 4))
    median = wider.generate("my_crisis", 24, 2001).median(0).values
    assert torch.allclose(wider.to_scaled(median), wider.to_scaled(centre), atol=0.15)
    with pytest.raises(ModelError, match="exists already"):
        wider.with_scenario("my_crisis", centre)


# ---- conditioning --------------------------------------------------------------------------------


def _law_of_linear_model(model: MacroVAE, scenario: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (T M,) and covariance of the scaled path y, written down from eq. (2)."""
    months = model.config.seq_length
    phi = model.phi_MM.detach().double().numpy()
    first = model._factor(model.first_log_diagonal_M, model.first_below).detach().double().numpy()
    later = model._factor(model.log_diagonal_M, model.below_diagonal).detach().double().numpy()
    rows = np.zeros((months, N_MACRO, months, N_MACRO))
    rows[0, :, 0] = first
    for t in range(1, months):
        rows[t] = np.einsum("ij,jsk->isk", phi, rows[t - 1])
        rows[t, :, t] += later
    loading = rows.reshape(months * N_MACRO, -1)
    return np.full(months * N_MACRO, 0.5 * scenario - 0.5), loading @ loading.T


def test_conditioning_is_exact_gaussian_conditioning_for_a_linear_decoder() -> None:
    model = linear_model()
    value = {"gdp_growth_yoy": (6, 0.02), "unemployment_rate": (14, 0.15)}
    conditions = {name: {"month": month, "value": v} for name, (month, v) in value.items()}
    n = 3000
    paths = model.generate_conditional(conditions, 24, n, scenario=1, seed=2)
    y = model.to_scaled(paths).flatten(1).double().numpy()
    mean, covariance = _law_of_linear_model(model, 1)
    at = [month * N_MACRO + MACRO_NAMES.index(name) for name, (month, _) in value.items()]
    row = torch.zeros(2, N_MACRO) + 0.5 * (model.lower_M + model.upper_M)
    for k, (name, (_, v)) in enumerate(value.items()):
        row[k, MACRO_NAMES.index(name)] = v
    target = np.array([float(model.to_scaled(row)[k, MACRO_NAMES.index(n)]) for k, n in enumerate(value)])
    gain = covariance[:, at] @ np.linalg.inv(covariance[np.ix_(at, at)])
    exact_mean = mean + gain @ (target - mean[at])
    exact_variance = np.diag(covariance - gain @ covariance[at])
    free = np.setdiff1d(np.arange(len(mean)), at)
    z = (y.mean(0) - exact_mean)[free] / np.sqrt(exact_variance[free] / n)
    assert np.abs(z).max() < 5
    assert np.abs(y.var(0)[free] / exact_variance[free] - 1).max() < 6 * np.sqrt(2 / n)
    for name, (month, v) in value.items():
        series = MACRO_NAMES.index(name)
        assert float((paths[:, month, series] - v).abs().max()) < 1e-4 * (UPPER - LOWER)[series]


def test_a_bent_decoder_meets_its_conditions_too() -> None:
    model = bent_model()
    paths = model.generate_conditional(
        {"credit_spread_hy": [{"month": 3, "value": 900.0}, {"month": 20, "value": 700.0}]}, 24, 64
    )
    assert float((paths[:, 3, 6] - 900).abs().max()) < 0.18
    assert float((paths[:, 20, 6] - 700).abs().max()) < 0.18


def test_without_a_scenario_the_conditions_choose_it() -> None:
    model = linear_model()
    low, high = (
        model.to_scaled(model.generate_conditional({"unemployment_rate": {"month": 12, "value": v}}, 24, 400))
        for v in (0.10, 0.19)
    )
    other = MACRO_NAMES.index("equity_return")
    assert float(high[:, :, other].mean()) > float(low[:, :, other].mean()) + 0.3


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({}, "empty"),
        ({"gdp": {"month": 1, "value": 0.0}}, "unknown macro series"),
        ({"gdp_growth_yoy": {"month": 24, "value": 0.0}}, r"0\.\.23"),
        ({"gdp_growth_yoy": {"month": 3, "value": 0.2}}, "out of bounds"),
        ({"gdp_growth_yoy": {"month": 3}}, "not a condition"),
        ({"unemployment_rate": {"month": 3, "value": 0.2499}}, "implausible"),
        ({"policy_rate": [{"month": 3, "value": 0.05}, {"month": 4, "value": 0.14}]}, "implausible together"),
    ],
)
def test_conditions_that_make_no_sense_say_why(conditions: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        linear_model().generate_conditional(conditions, 24, 5)


def test_the_implausible_message_gives_the_models_own_range() -> None:
    with pytest.raises(ModelError) as caught:
        linear_model().generate_conditional(
            {"unemployment_rate": {"month": 3, "value": 0.2499}}, 24, 5, scenario=0
        )
    low, high = (float(part) for part in str(caught.value.expected).split(" ")[0].split(".."))
    sampled = linear_model().generate(0, 24, 4000)[:, 3, 1]
    assert low < float(sampled.min()) < float(sampled.max()) < high < 0.2499


# ---- input that makes no sense ----------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [{"latent_dim": 0}, {"beta": 0.0}, {"latent_share": 1.0}, {"n_macro_vars": 8}]
)
def test_configs_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        MacroVAEConfig(**wrong)


def test_inputs_that_make_no_sense_are_refused() -> None:
    model = linear_model()
    for call in (
        lambda: model.generate("boom"),
        lambda: model.generate(4),
        lambda: model.generate(0, 24, 0),
        lambda: model.generate(0, 24, 1, initial=[0.0] * 8),
        lambda: model.generate(0, 24, 1, initial=[9.0] * 9),
        lambda: model(torch.zeros(2, 24, 8), torch.zeros(2, dtype=torch.long)),
        lambda: model(torch.full((2, 24, 9), torch.nan), torch.zeros(2, dtype=torch.long)),
        lambda: model(torch.zeros(2, 24, 9), torch.zeros(3, dtype=torch.long)),
    ):
        with pytest.raises(ModelError):
            call()


def test_bases_are_what_they_claim() -> None:
    basis = spline_basis(60)
    assert np.allclose(basis.sum(1), 1)
    waves = slow_basis(60, 3)
    assert np.allclose(waves.T @ waves, np.eye(3), atol=1e-12)
    assert spline_basis(3).shape == (3, 3)
