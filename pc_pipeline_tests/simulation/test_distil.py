"""Distillation: a teacher whose law is known must be recovered, and its distance reported as small."""

from __future__ import annotations

import copy

import numpy as np
import polars as pl
import pytest
import torch

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.loans.features import cohort_table
from pc_pipeline.loans.pool import pool_snapshot
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.models.checkpoint import save_model
from pc_pipeline.models.loan_residual import SCORE, LoanResidual, LoanResidualConfig
from pc_pipeline.schemas.units import LOAN_FEATURES, MACRO_SERIES, N_LOAN_INPUTS
from pc_pipeline.simulation import distil
from pc_pipeline.simulation.conditional import ConditionalPool
from pc_pipeline.simulation.exact import simulate_exact
from pc_pipeline.simulation.monte_carlo import SimulationConfig, simulate_pool
from pc_pipeline.simulation.pool import pool_arrays
from pc_pipeline.simulation.rows import NetworkRows, loan_inputs
from pc_pipeline_tests.simulation.hand import ROW

N_MONTHS = 18


class FlatRows(torch.nn.Module):
    """A transition model: the same rows for every path, cohort and month."""

    def __init__(self):
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(ROW, dtype=torch.float32))

    def read_cohorts(self, cohort_features, months, calendar=None, extra=None):
        level = self.level.expand(months, 4, 7)
        rows = level if extra is None else level * torch.exp(extra)
        return len(cohort_features), rows / rows.sum(dim=-1, keepdim=True)

    def rows_given(self, cohorts, macro_paths):
        count, rows = cohorts
        return rows.expand(len(macro_paths), count, *rows.shape)


class KnownTeacher:
    """p(30dpd) from performing is tripled after a miss and scaled by the loan's score; nothing else."""

    def forward(self, features, rows, states, initial_state=None, months_since_miss=None, calendar=None):
        previous = torch.cat([initial_state[:, None], states[:, :-1]], dim=1)
        months = torch.arange(states.shape[1])
        missed = torch.where((previous >= 1) & (previous <= 3), months, -1000).cummax(dim=1).values
        recently = (months - missed <= 5) & (previous == 0)
        own = rows.gather(2, previous[..., None, None].expand(-1, -1, 1, 7))[:, :, 0]
        logits = own.clamp(min=1e-30).log()
        score = torch.nan_to_num(features[:, LOAN_FEATURES.index("internal_score")], nan=60.0)
        push = recently * np.log(3.0) + (60.0 - score)[:, None] / 40.0 * (previous == 0)
        logits[..., 1] = logits[..., 1] + push
        return {"state_logits": torch.where(own > 0, logits, -torch.inf)}

    def generate(
        self,
        features,
        rows,
        macro,
        n_samples=1,
        *,
        initial_state,
        months_since_miss,
        calendar,
        seed,
        with_logits=False,
    ):
        generator = torch.Generator().manual_seed(seed % 2**63)
        states = initial_state[:, None].expand(-1, rows.shape[1]).clone()
        for month in range(rows.shape[1]):
            logits = self.forward(features, rows, states, initial_state)["state_logits"][:, month]
            states[:, month] = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        charge_offs = torch.zeros(states.shape, dtype=torch.float64)
        default = states == 4
        charge_offs[default & (default.cumsum(1) == 1)] = 100.0
        drawn = {"states": states[None], "charge_offs": charge_offs[None], "losses": 0.4 * charge_offs[None]}
        if with_logits:
            drawn["state_logits"] = self.forward(features, rows, states, initial_state)["state_logits"][None]
        return drawn


@pytest.fixture(scope="module")
def taught():
    pool = pool_snapshot(LoanTapeGenerator(n_loans=150, random_seed=2).generate_static_features())
    macro = np.tile([series.mean for series in MACRO_SERIES], (4, N_MONTHS, 1))
    config = distil.DistilConfig(n_loans=150, n_paths=4, n_steps=120, batch=4096)
    return pool, macro, distil.distil_loans(KnownTeacher(), FlatRows(), pool, macro, config)


def test_the_student_finds_the_memory_and_the_score(taught):
    pool, _, compiled = taught
    features = loan_inputs(pool)
    weights = compiled.weights(features)
    assert weights.shape == (150, 15, 6)
    odds = weights[:, :, 1] / weights[:, :, 0]
    ratio = np.exp(np.mean(np.log(odds[:, 2] / odds[:, 0])))  # two months after a miss against never
    assert ratio == pytest.approx(3.0, rel=0.25)
    score = features[:, LOAN_FEATURES.index("internal_score")]
    known = np.isfinite(score)
    assert np.polyfit(score[known], np.log(odds[known, 0]), 1)[0] == pytest.approx(-1 / 40, rel=0.35)


def test_the_distance_is_small_and_has_an_error(taught):
    distance = taught[2].distance
    assert 0 <= distance["kl_per_step"] < 0.003
    assert abs(distance["default_gap_18"]) < 0.05 + 3 * distance["default_gap_18_se"]
    assert 0 < distance["default_gap_18_se"] < 0.1
    for third in ("_low", "_mid", "_high"):
        assert f"default_gap_12{third}" in distance
    for measure in ("loss_gap", "var_99_gap", "cvar_99_gap"):
        assert abs(distance[measure]) < 0.05 + 3 * distance[f"{measure}_se"], measure
        assert 0 < distance[f"{measure}_se"] < 0.2


def test_the_gap_of_losses_is_found_where_it_is_known(taught):
    """A student with half as many defaults again loses more by what the exact expectation says."""
    pool, macro, compiled = taught
    rows = NetworkRows(model=FlatRows(), cohorts=cohort_table(pool))
    ask = distil._Teacher(KnownTeacher(), rows, pool, None)
    lessons = ask.lessons(np.repeat(macro[:1], 8, axis=0), seed=6)
    features = torch.from_numpy(ask.features)
    arrays = pool_arrays(pool, cohort_table(pool), N_MONTHS, severity_GQ=compiled.severity_GQ)
    provider = NetworkRows(
        model=FlatRows(), cohorts=cohort_table(pool), intercept_TKJ=compiled.intercept(N_MONTHS)
    )
    index, levels, gaps = np.zeros((1, N_MONTHS)), [], []
    student = copy.deepcopy(compiled.model)
    for _ in range(2):
        with torch.inference_mode():
            own = torch.exp(student(features)).numpy()
            gaps.append(distil._loss_gap("gap", student, lessons, features))
        levels.append(float(ConditionalPool(arrays, own, n_threads=1).losses(provider(macro[:1]), index)[0]))
        with torch.no_grad():
            student.third_level[..., 4] += np.log(1.5)  # half as many defaults again
    exact, found = levels[1] / levels[0], (1 + gaps[1]["gap"]) / (1 + gaps[0]["gap"])
    assert exact > 1.02
    assert found == pytest.approx(exact, abs=4 * (gaps[1]["gap_se"] + 0.005))


def test_the_gap_identity_holds_against_brute_force(taught):
    """Teacher minus student by the identity equals the difference of two plain averages, within its noise."""
    pool, macro, compiled = taught
    rows = NetworkRows(model=FlatRows(), cohorts=cohort_table(pool))
    ask = distil._Teacher(KnownTeacher(), rows, pool, None)
    lessons = ask.lessons(np.repeat(macro[:1], 8, axis=0), seed=5)
    features = torch.from_numpy(ask.features)
    with torch.inference_mode():
        found = distil._distance(compiled.model, lessons, features)
        residual = compiled.model(features)[torch.from_numpy(lessons.loan_N)]
        value = distil._default_value(compiled.model, lessons, residual, N_MONTHS)[0]
    student = float(value[torch.arange(len(value)), lessons.start_N].mean())
    hazard = torch.where(lessons.class_NT >= 0, lessons.target_NTJ[..., 4], 0.0).sum(dim=1)
    plain = student / float(hazard.mean()) - 1.0
    error = float(hazard.std()) / np.sqrt(len(hazard)) / float(hazard.mean())
    assert abs(found["default_gap_18"] - plain) < 4 * error
    assert found["default_gap_18_se"] < error / 2


class SettlingTeacher(KnownTeacher):
    """As the trained model: from the final month on performing and prepaid are the contract's end."""

    def generate(self, features, rows, macro, n_samples=1, **options):
        drawn = super().generate(features, rows, macro, n_samples, **options)
        months = rows.shape[1]
        drawn["states"], logits = drawn["states"].clone(), drawn["state_logits"].clone()
        final = (torch.arange(months) >= final_months_of(features)[:, None])[None]
        ends = torch.logaddexp(logits[..., 0], logits[..., 5])
        logits[..., 6] = torch.where(final, ends, logits[..., 6])
        for state in (0, 5):
            logits[..., state] = torch.where(final, -torch.inf, logits[..., state])
        over = final & ((drawn["states"] == 0) | (drawn["states"] == 5))
        over = over.cumsum(dim=-1) > 0
        drawn["states"][over] = 6
        return drawn | {"state_logits": logits}


def final_months_of(features):
    """Months to the final one, from raw features: what the pool's remaining term says."""
    term, age = (features[:, LOAN_FEATURES.index(name)] for name in ("term_months", "age_months"))
    return (term - age).round().long() - 1


def test_what_the_contract_ends_is_no_lesson():
    loans = LoanTapeGenerator(n_loans=200, random_seed=4).generate_static_features()
    pool = pool_snapshot(loans).with_columns(term_months=pl.lit(9), remaining_term_months=pl.lit(9))
    macro = np.tile([series.mean for series in MACRO_SERIES], (4, N_MONTHS, 1))
    config = distil.DistilConfig(n_loans=200, n_paths=4, n_steps=60, batch=4096)
    found = distil.distil_loans(SettlingTeacher(), FlatRows(), pool, macro, config).distance
    assert found["kl_per_step"] < 2e-3
    for months in (12, N_MONTHS):
        assert abs(found[f"default_gap_{months}"]) < 0.01 + 3 * found[f"default_gap_{months}_se"]


def test_severities_of_the_teacher_are_kept_where_it_drew_enough(taught):
    table = taught[2].severity_GQ
    assert table.shape == (4, 33)
    assert ((table >= 0) & (table <= 1)).all()


def test_intercepts_reach_any_horizon(taught):
    table = taught[2].intercept(40)
    assert table.shape == (40, 4, 7)
    np.testing.assert_array_equal(table[30], table[N_MONTHS - 1])
    np.testing.assert_array_equal(table[..., 6], table[..., 5])


def test_too_little_to_learn_from_is_refused():
    with pytest.raises(ConfigError):
        distil.DistilConfig(n_paths=1)


def test_compiled_and_exact_mode_agree(taught):
    """Charge-offs per path under the teacher itself and under its compiled form, four standard errors."""
    pool, macro, compiled = taught
    paths = np.repeat(macro[:1], 60, axis=0)
    cohorts = cohort_table(pool)
    rows = NetworkRows(model=FlatRows(), cohorts=cohorts, intercept_TKJ=compiled.intercept(N_MONTHS))
    fast = simulate_pool(
        pool, cohorts, paths, rows, compiled.weights(loan_inputs(pool)), SimulationConfig(seed=1)
    )
    slow = simulate_exact(KnownTeacher(), FlatRows(), pool, paths, SimulationConfig(seed=2))
    assert slow.cash_PTC.shape == fast.cash_PTC.shape
    np.testing.assert_allclose(slow.cash_PTC[:, :, 1:4].sum(axis=(1, 2)), slow.pool_balance, rtol=1e-9)
    ours, theirs = fast.cash_PTC.sum(axis=1), slow.cash_PTC.sum(axis=1)
    error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / len(paths))
    z = (ours.mean(axis=0) - theirs.mean(axis=0)) / error
    assert np.abs(z[:4]).max() < 4.0, z  # recovery differs: this teacher always loses 40 %


def test_a_path_of_exact_mode_can_be_run_alone(taught):
    pool, macro, _ = taught
    whole = simulate_exact(KnownTeacher(), FlatRows(), pool, macro[:3])
    alone = simulate_exact(KnownTeacher(), FlatRows(), pool, macro[2:3], first_path=2)
    np.testing.assert_array_equal(whole.cash_PTC[2], alone.cash_PTC[0])


def test_a_pool_without_internal_scores_can_be_saved(tmp_path):
    """Real tapes have none: every loan is in the middle third."""
    student = LoanResidual(LoanResidualConfig(n_classes=2, n_months=3, width=4))
    student.third_edges.copy_(distil._thirds(torch.full((50,), torch.nan)))
    save_model(tmp_path, student)
    scores = torch.zeros(3, N_LOAN_INPUTS)
    scores[:, SCORE] = torch.tensor([torch.nan, 1.0, 100.0])
    assert student.third(scores).tolist() == [1, 1, 1]
