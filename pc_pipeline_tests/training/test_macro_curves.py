"""The closed-form start: penalised curves, twins, and what becomes of a decoder that gradients made worse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pc_pipeline.core.rng import stream
from pc_pipeline.models.macro_vae import MacroVAE, MacroVAEConfig, spline_basis
from pc_pipeline.schemas.units import MACRO_SERIES, N_MACRO
from pc_pipeline.training.macro_curves import Dynamics, LinearLaw, PathMoments, fit_dynamics, fit_law
from pc_pipeline.training.macro_start import position_in_scenario, twins, warm_start
from pc_pipeline.training.macro_vae import keep_if_likelier, split_by_path

MONTHS = 24
BASIS = spline_basis(MONTHS)
PHI = np.diag([series.persistence for series in MACRO_SERIES])
EYE = np.eye(N_MACRO)
SHOCKS = 0.7 * (EYE - PHI**2) + 0.3 * np.sqrt(np.outer(1 - np.diag(PHI) ** 2, 1 - np.diag(PHI) ** 2))


def law(centre_TM: np.ndarray | float = 0.0) -> LinearLaw:
    """Unit scales, decided persistences, correlated shocks, settled first month."""
    knots = np.linalg.pinv(BASIS) @ np.broadcast_to(np.asarray(centre_TM, float), (MONTHS, N_MACRO))
    rho = np.diag(PHI)
    first = SHOCKS / (1 - np.outer(rho, rho))
    flat, weight = np.zeros((BASIS.shape[1], N_MACRO)), np.full(N_MACRO, 100.0)
    return LinearLaw({0: knots}, {0: flat}, PHI, SHOCKS, first, {0: weight}, {0: weight})


def draw(known: LinearLaw, n: int, name: str) -> np.ndarray:
    noise = stream(0, "curves", name).standard_normal((n, MONTHS * N_MACRO))
    u = np.linalg.solve(known.whitener(MONTHS), noise.T).T
    centre, scale = known.curves(0, BASIS)
    return (centre + scale * u).reshape(n, MONTHS, N_MACRO)


def test_the_whitener_undoes_the_recursion() -> None:
    known = law()
    eps = stream(0, "eps").standard_normal((3, MONTHS, N_MACRO))
    u = np.zeros_like(eps)
    u[:, 0] = eps[:, 0] @ np.linalg.cholesky(known.first).T
    for t in range(1, MONTHS):
        u[:, t] = u[:, t - 1] @ PHI.T + eps[:, t] @ np.linalg.cholesky(SHOCKS).T
    assert np.allclose(u.reshape(3, -1) @ known.whitener(MONTHS).T, eps.reshape(3, -1))


def test_a_flat_curve_costs_a_few_numbers_not_one_a_month() -> None:
    """n times a centre's squared whitened error is about chi-square: 216 for raw means, 18 to 40 here."""
    known, n = law(), 400
    paths = draw(known, n, "flat")
    sample = {0: PathMoments.of(paths)}
    start = fit_dynamics(known, sample, BASIS, Dynamics(pull=0.1, stationary=False))
    fitted = fit_law(start, sample, BASIS, Dynamics(pull=10.0, stationary=True), 8)
    white = known.whitener(MONTHS)
    spent = [
        n * float(((white @ gap) ** 2).sum()) for gap in (fitted.curves(0, BASIS)[0], paths.mean(0).ravel())
    ]
    assert spent[1] == pytest.approx(MONTHS * N_MACRO, abs=5 * np.sqrt(2 * MONTHS * N_MACRO))
    assert spent[0] < 60
    scale = np.log(fitted.curves(0, BASIS)[1]).reshape(MONTHS, N_MACRO)
    assert np.abs(scale - scale.mean(0)).max() < 0.1
    assert (fitted.centre_weight[0] > 1e3).all()


def test_a_bent_curve_is_followed() -> None:
    dip = np.zeros((MONTHS, N_MACRO))
    dip[:, 1] = 3 * np.sin(np.linspace(0, np.pi, MONTHS)) ** 2
    known, n = law(dip), 400
    sample = {0: PathMoments.of(draw(known, n, "bent"))}
    fitted = fit_law(law(), sample, BASIS, Dynamics(pull=0.1, stationary=True), 8)
    gap = fitted.curves(0, BASIS)[0].reshape(MONTHS, N_MACRO) - dip
    assert np.abs(gap).max() < 5 / np.sqrt(n)
    assert fitted.negative_log_likelihood(sample, BASIS) < known.negative_log_likelihood(sample, BASIS)


def test_twins_are_told_from_scenarios_with_the_same_law() -> None:
    calm = draw(law(), 60, "calm")
    bump = np.sin(np.linspace(0, np.pi, MONTHS))[:, None]
    stretched = 2 * bump + (1 + 0.3 * bump) * calm
    alone = 2 * bump + draw(law(), 60, "alone")
    y, labels = np.concatenate([stretched, calm, alone]), np.repeat([0, 1, 2], 60)
    assert twins(y, labels) == {0: 1}
    assert twins(y[:, :, :][: 60 + 59], labels[: 60 + 59]) == {}  # another number of paths: no pairs


def test_held_out_paths_have_no_twin_in_training() -> None:
    labels = torch.tensor([0, 1] * 50)
    train, held = split_by_path(labels, 0.2, seed=3)
    position = position_in_scenario(labels)
    assert len(held) == 20
    assert not set(position[held].tolist()) & set(position[train].tolist())


def test_a_decoder_that_gradients_made_worse_is_put_back() -> None:
    torch.manual_seed(0)
    model = MacroVAE(
        MacroVAEConfig(seq_length=MONTHS, hidden_dim=4, n_layers=1, decoder_dim=4, n_scenarios=1)
    )
    paths = model.to_units(torch.tensor(0.2 * draw(law(), 120, "put back"), dtype=torch.float32))
    labels = torch.zeros(120, dtype=torch.long)
    warm_start(model, paths[:80], labels[:80])
    good = {name: value.detach().clone() for name, value in model.named_parameters()}
    with torch.no_grad():
        model.centre_SGM += 0.5
    bad = {name: value.detach().clone() for name, value in model.named_parameters()}
    said = keep_if_likelier(model, good, paths[80:], labels[80:])
    assert said["decoder"] == said["encoder"] == "closed form"
    assert said["decoder_gain"] < 0
    assert torch.equal(model.centre_SGM, good["centre_SGM"])
    said = keep_if_likelier(model, bad, paths[80:], labels[80:])
    assert said["decoder"] == "trained"
    assert said["decoder_gain"] > 2 * said["decoder_gain_error"]
    assert torch.equal(model.centre_SGM, good["centre_SGM"])


def test_the_first_encoder_is_exact_while_nothing_bends() -> None:
    """The gap KL(q || p) of the bound is 0, and each latent costs -log sqrt(1 - rho^2) on average."""
    torch.manual_seed(0)
    config = MacroVAEConfig(
        seq_length=MONTHS, hidden_dim=4, n_layers=1, decoder_dim=4, n_scenarios=1, latent_dim=21
    )
    model = MacroVAE(config)
    paths = model.to_units(torch.tensor(0.2 * draw(law(), 600, "encoder"), dtype=torch.float32))
    warm_start(model, paths, torch.zeros(600, dtype=torch.long))
    with torch.no_grad():
        terms = model.bound(paths, torch.zeros(600, dtype=torch.long))
    assert float(terms["gap"].max()) < 1e-3
    cost = -0.5 * np.log(1 - config.latent_share**2)
    assert float(terms["kl"].mean()) / 21 == pytest.approx(cost, abs=0.05)
