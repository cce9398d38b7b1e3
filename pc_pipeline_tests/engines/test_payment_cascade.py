"""The payment cascade as users hold it: the published example, fallback, reproducibility, macro, disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from pc_pipeline.core.errors import ConfigError, DataError, ModelError
from pc_pipeline.engines import payment_cascade
from pc_pipeline.engines.cascade_data import CascadeHistories, histories_of_lists
from pc_pipeline.engines.payment_cascade import LSTMCascadeGenerator, training_data
from pc_pipeline.evaluation.sequence_rates import memory_rates
from pc_pipeline.loans.payment_status import FALLBACK_MATRIX, LIVING_STATUSES, trim_after_end
from pc_pipeline.loans.status_law import known_histories
from pc_pipeline.models.cascade_history import N_HISTORY, history_inputs
from pc_pipeline.models.cascade_lstm import lstm_layer
from pc_pipeline.models.cascade_sampler import NEVER, CascadeSampler, SamplingTask
from pc_pipeline.models.payment_cascade import CascadeConfig, LSTMCascadeModel
from pc_pipeline.schemas.states import PAYMENT_STATUSES
from pc_pipeline.schemas.units import MACRO_SERIES
from pc_pipeline.training.payment_cascade import default_epochs, predicted_rows

MEAN = np.array([series.mean for series in MACRO_SERIES])


@pytest.fixture(scope="module")
def known() -> CascadeHistories:
    law = known_histories(3000, 18, seed=1)
    return CascadeHistories(codes=trim_after_end(law.codes), features=law.features, months=law.months)


@pytest.fixture(scope="module")
def trained(known: CascadeHistories) -> LSTMCascadeGenerator:
    return LSTMCascadeGenerator(
        hidden_dim=16, num_layers=2, epochs=4, batch_size=256, learning_rate=0.01
    ).fit_histories(known)


@pytest.fixture(scope="module")
def people() -> pl.DataFrame:
    return known_histories(1500, 2, seed=5).borrowers


def test_the_published_example_runs() -> None:
    """Only the import differs from the method's own text."""
    from pc_pipeline import LSTMCascadeGenerator

    lstm = LSTMCascadeGenerator(hidden_dim=64, num_layers=2, learning_rate=0.001, epochs=50, batch_size=32)
    payment_sequences = [
        ["on_time", "on_time", "grace_period", "30_days", "on_time"],
        ["on_time", "on_time", "on_time", "paid_off"],
        ["grace_period", "30_days", "60_days", "90_days", "default"],
    ]
    borrower_features = [
        {"credit_score": 720, "dti": 0.25, "income": 85000, "risk_grade": "B"},
        {"credit_score": 780, "dti": 0.18, "income": 120000, "risk_grade": "A"},
        {"credit_score": 580, "dti": 0.55, "income": 45000, "risk_grade": "E"},
    ]
    lstm.fit(payment_sequences, borrower_features)
    borrower = {
        "credit_score": 650, "dti": 0.40, "income": 55000, "risk_grade": "C", "principal": 15000,
        "term_months": 36, "interest_rate": 0.15,
    }  # fmt: skip
    sequence = lstm.generate_sequence(borrower=borrower, num_months=24, initial_status="on_time")
    assert sequence[0] == "on_time"
    assert set(sequence) <= set(PAYMENT_STATUSES)
    assert sequence.engine == "fallback matrix"
    assert "3 sequences" in lstm.reason
    records = lstm.sequence_to_records(sequence=sequence, borrower=borrower, start_date="2024-01-01")
    wanted = {"month", "payment_status", "payment_amount", "principal_remaining", "days_past_due"}
    assert all(wanted <= set(record) for record in records)
    assert [record["payment_status"] for record in records] == sequence


def test_fallback_is_exact_and_named(people: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    lstm = LSTMCascadeGenerator()
    assert lstm.transition_matrix() == {k: dict(v) for k, v in FALLBACK_MATRIX.items()} == lstm.cascade_matrix
    assert lstm.generate_sequences(people, 6).engine == "fallback matrix"
    monkeypatch.setattr(payment_cascade, "has_torch", lambda: False)
    without = LSTMCascadeGenerator().fit([["on_time", "30_days"]] * 2000, [{}] * 2000)
    assert without.engine == "fallback matrix"
    assert without.reason == "torch is not installed"
    assert len(without.generate_sequence({}, 12)) <= 12


def test_the_fallback_imports_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pc_pipeline import LSTMCascadeGenerator as G; "
        "g = G(); s = g.generate_sequences([{}] * 3, 5); g.sequences_to_records(s, [{}] * 3, '2024-01-01'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_epochs_follow_the_size_of_the_data() -> None:
    assert [default_epochs(n) for n in (1000, 9999, 10_000, 100_000, 100_001)] == [20, 20, 50, 50, 100]


def test_it_learns_what_a_first_order_chain_cannot(trained: LSTMCascadeGenerator) -> None:
    law = known_histories(3000, 18, seed=2)
    codes = trim_after_end(law.codes)
    data = training_data(CascadeHistories(codes=codes, features=law.features, months=law.months))
    known = codes >= 0
    known[:, 0] = False
    happened, before = codes[known], data.before[known]
    p = predicted_rows(trained.model, data)[known]
    prior = np.exp(trained.model.log_prior.numpy())[before]
    markov, ours, oracle = (
        -np.log(rows[np.arange(len(happened)), happened]).mean() for rows in (prior, p, law.truth[known])
    )
    assert trained.engine == "LSTM"
    assert oracle < ours < markov
    assert (markov - ours) / (markov - oracle) > 0.6
    made = trained.resample(CascadeHistories(codes=codes, features=law.features, months=law.months), seed=1)
    rates = memory_rates(trim_after_end(made)).values()
    assert rates[0] > 1.5 * rates[1]


def test_probabilities_are_zero_where_no_move_leads(trained: LSTMCascadeGenerator) -> None:
    model = trained.model
    assert model is not None
    status = torch.arange(9)[None]
    p = torch.softmax(model(status, torch.rand(1, 10)), -1)[0]
    assert torch.allclose(p.sum(-1), torch.ones(9), atol=1e-6)
    assert (p[~model.allowed] == 0).all()
    assert (p[5:8] == torch.eye(8)[5:]).all()
    codes = trained.generate_sequences([{}] * 3000, 30, seed=3).codes
    moves = np.zeros((8, 8), int)
    np.add.at(moves, (codes[:, :-1], codes[:, 1:]), 1)
    assert (moves[~model.allowed.numpy()[:8]] == 0).all()
    assert moves[5:, :5].sum() == 0


def test_same_seed_same_history_in_any_batch(trained: LSTMCascadeGenerator, people: pl.DataFrame) -> None:
    for generator in (trained, LSTMCascadeGenerator()):
        whole = generator.generate_sequences(people, 20, seed=9)
        numbers = np.arange(700, 710)
        part = generator.generate_sequences(people[700:710], 20, seed=9, numbers=numbers)
        assert np.array_equal(part.codes, whole.codes[700:710])
        alone = generator.generate_sequence(people.row(0, named=True), 20, seed=9)
        assert alone == whole[0]
        assert not np.array_equal(whole.codes, generator.generate_sequences(people, 20, seed=10).codes)
        table = pl.concat(generator.stream_records(people, 6, "2024-01-31", seed=4, batch_size=401))
        assert table.equals(pl.concat(generator.stream_records(people, 6, "2024-01-31", seed=4)))


def test_bfloat16_and_float32_sample_one_law(trained: LSTMCascadeGenerator, tmp_path: Path) -> None:
    """Sampled shares of every status agree with the network's own probabilities along the same histories."""
    trained.save(tmp_path)
    for precision in ("bfloat16", "float32"):
        generator = LSTMCascadeGenerator.load(tmp_path)
        generator.settings = payment_cascade.replace(generator.settings, precision=precision)
        codes = generator.generate_sequences([{}] * 6000, 12, seed=1).codes
        histories = histories_of_lists(codes, None)
        p = predicted_rows(generator.model, training_data(histories))
        known = histories.codes >= 0
        known[:, 0] = False
        expected, got = p[known].sum(axis=0), np.bincount(codes[known], minlength=8)
        noise = np.sqrt((p[known] * (1 - p[known])).sum(axis=0)) + 1e-9
        assert (np.abs(expected - got) / noise).max() < 4.5


def test_a_recession_changes_histories_after_it_only(
    trained: LSTMCascadeGenerator, people: pl.DataFrame
) -> None:
    calm = np.tile(MEAN, (18, 1))
    crisis = calm.copy()
    crisis[6:, [0, 1, 6]] = -0.05, 0.12, 1200.0
    for generator in (trained, LSTMCascadeGenerator()):
        a, b = (generator.generate_sequences(people, 18, seed=2, macro=m).codes for m in (calm, crisis))
        assert np.array_equal(a[:, :6], b[:, :6])
        assert (b[:, 17] == 5).mean() > 1.3 * (a[:, 17] == 5).mean()


def test_a_stated_term_ends_the_contract(trained: LSTMCascadeGenerator) -> None:
    for generator in (trained, LSTMCascadeGenerator()):
        codes = generator.generate_sequences([{"term_months": 10}] * 400, 14, seed=1).codes
        assert (codes[:, 9:] > 1).all()
        assert (codes[:, 9] == 6).mean() > 0.5


def test_known_months_are_kept_and_go_on(trained: LSTMCascadeGenerator) -> None:
    past = ["on_time", "30_days", "60_days"]
    for generator in (trained, LSTMCascadeGenerator()):
        made = generator.generate_sequences([{}] * 500, 8, past, seed=1)
        assert all(list(row[:3]) == past for row in made)
        assert len({tuple(row) for row in made}) > 20
    first = trained.generate_sequences([{}] * 300, 3, None, seed=1).codes[:, 0]
    assert set(first.tolist()) <= set(LIVING_STATUSES)


def test_what_is_saved_comes_back_and_a_changed_file_does_not(
    trained: LSTMCascadeGenerator, people: pl.DataFrame, tmp_path: Path
) -> None:
    for name, generator in (("lstm", trained), ("fallback", LSTMCascadeGenerator())):
        generator.save(tmp_path / name)
        again = LSTMCascadeGenerator.load(tmp_path / name)
        assert again.engine == generator.engine
        assert again.transition_matrix() == generator.transition_matrix()
        assert again.generate_sequences(people, 9, seed=1) == generator.generate_sequences(people, 9, seed=1)
    card = tmp_path / "lstm" / "card.json"
    card.write_text(card.read_text().replace("LSTM", "GRU"))
    with pytest.raises(ModelError):
        LSTMCascadeGenerator.load(tmp_path / "lstm")


@pytest.mark.parametrize(
    "bad", [{"hidden_dim": 7}, {"num_layers": 0}, {"epochs": 0}, {"dropout": 1.0}, {"learning_rate": -1}]
)
def test_senseless_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        LSTMCascadeGenerator(**bad)  # type: ignore[arg-type]


def test_bad_calls_are_refused() -> None:
    lstm = LSTMCascadeGenerator()
    for months in (0, 601, True):
        with pytest.raises(ConfigError):
            lstm.generate_sequence({}, months)
    for call in (
        lambda: lstm.generate_sequence({}, 5, "late"),
        lambda: lstm.generate_sequence({"dti": 7}, 5),
        lambda: lstm.fit([["on_time"]], [{}, {}]),
        lambda: lstm.generate_sequence({}, 5, macro=np.ones((5, 3))),
    ):
        with pytest.raises(DataError):
            call()


def test_the_fused_layer_is_an_lstm() -> None:
    torch.manual_seed(0)
    layer = torch.nn.LSTM(12, 16, batch_first=False)
    x = torch.randn(7, 9, 12)
    weight = torch.randn(7, 9, 16)

    def gradients(answer: torch.Tensor) -> list[torch.Tensor]:
        layer.zero_grad()
        (answer.float() * weight).sum().backward()
        return [p.grad.clone() for p in layer.parameters() if p.grad is not None]

    exact = gradients(layer(x)[0])
    w_ih, w_hh, b_ih, b_hh = layer.all_weights[0]
    ours = lstm_layer(x, w_ih, w_hh, b_ih + b_hh)
    assert torch.allclose(ours.float(), layer(x)[0], atol=0.02)
    for a, b in zip(exact, gradients(ours), strict=True):
        assert float((a - b).norm() / a.norm()) < 0.02


def test_what_a_history_says_by_hand() -> None:
    """On time, 30 days, 60 days, on time: two misses, the last one a month before the present one."""
    seen = history_inputs(torch.tensor([[8, 0, 2, 3, 0]]))[0].numpy()
    assert not seen[0].any()
    assert seen[4, :12].tolist() == [0.0, 1.0, 1.0] + [0.0] * 9
    fade = np.exp(-0.25)
    expected = [fade, 3 * (2 + 0.3) / (4 + 3), np.log(3), fade, np.log(5), np.log(2), 0.0]
    assert np.allclose(seen[4, 12:], expected, atol=1e-4)
    assert np.allclose(seen[3, [12, 17]], [1.0, np.log(3)], atol=1e-4)


def test_sampling_and_training_see_the_same_history() -> None:
    """A network that knows nothing but 'missed six months ago': its samples repeat what it was told."""
    model = LSTMCascadeModel(CascadeConfig(hidden_dim=4, num_layers=1)).eval()
    with torch.no_grad():
        model.fc.bias[0] = 20.0
        model.common[2, 5 - N_HISTORY] = 40.0
    past = np.zeros((3000, 7), dtype=np.int64)
    past[::2, 1] = 2
    task = SamplingTask(
        features=np.zeros((3000, 10), dtype=np.float32),
        n_months=9,
        seed=1,
        numbers=np.arange(3000),
        forced=past,
        final_month=np.full(3000, NEVER),
    )
    codes = CascadeSampler(model, "float32").sample(task)
    assert (codes[1::2] == 0).all()
    assert (codes[::2, 7:] == [2, 0]).all()
    before = torch.from_numpy(np.insert(codes[:2], 0, 8, axis=1)[:, :-1]).long()
    told = model(before, torch.zeros(2, 10)).argmax(-1).numpy()
    assert (told[:, 7:] == codes[:2, 7:]).all()


def test_a_future_status_changes_no_earlier_answer() -> None:
    torch.manual_seed(0)
    model = LSTMCascadeModel(CascadeConfig(hidden_dim=8, num_layers=1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    status = torch.randint(5, (3, 8))
    other = status.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 5
    features = torch.rand(3, 10)
    assert torch.equal(model(status, features)[:, :5], model(other, features)[:, :5])
