"""Train the cohort transition network on counts of monthly moves.

Here: `TransitionTrainer`, and how tables become count tensors. Not here: the network
(`models.transition_transformer`), the loop (`training.loop`), how moves are counted (`loans.transitions`).

    L = - sum over path, cohort, month, from, to of n log P / sum n      (docs/methods/loan_models.md, eq. 3)

First the additive part is fitted alone (convex), then the network on top of it.

In the final contractual month 'matured' collects the mass of performing and prepaid, so such moves
teach their sum. Whole macro paths are held out for validation; with fewer than five, the last months.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from torch import Tensor

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.periods import month_from_index, month_index_expr
from pc_pipeline.loans.frames import to_polars
from pc_pipeline.loans.macro_index import MacroPaths, macro_paths, pooled_moments, sensitivities
from pc_pipeline.loans.truth import KIND_OF_MOVE, LawConfig, kind_strengths
from pc_pipeline.models.checkpoint import data_fingerprint
from pc_pipeline.models.transition_transformer import MIN_MACRO_PATHS, TransitionTransformer
from pc_pipeline.schemas.states import LOAN_STATE_NAMES, N_LIVING, N_STATES, LoanState
from pc_pipeline.schemas.units import ASSET_CLASSES, COHORT_FEATURES, N_MACRO
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.loop import run_training

LOG: Final = logging.getLogger("pc_pipeline.training")
_HOLD_OUT: Final = 5  # every fifth path, or the last fifth of the months
_GROUP_CELLS: Final = 16
_MANY_MONTHS: Final = 60
_IMPOSSIBLE: Final = -1e4  # a logit whose probability is 0 in float32, yet finite against a count of 0
_SMOOTHING: Final = 0.5  # moves added to each possible cell when the level is first set
_PRIOR_SD: Final = {"level": 3.0, "shared": 0.5, "own": 0.1, "month": 0.3, "weekday": 0.3}  # logits
# A month of the year seen on one path in few years cannot be told from those months' own noise.
_MONTH_SD_FEW_YEARS: Final = 0.05
_COHORT_KEYS: Final = ("asset_class", "vintage_month")


@dataclass(frozen=True, kw_only=True)
class TransitionData:
    """Counts on tensors, one row per (macro path, cohort) in which any loan moved.

    Attributes:
        cohorts: (C,12) raw features; age0: (C,) months at the end of the month before the path begins.
        macro: (P,T,9); calendar: (T,2) month of year and month-end weekday, or None.
        path_of, cohort_of: (N,) row numbers.
        plain: (N,T,4,7) moves before the final month, matured booked as prepaid.
        final: (N,T,4,7) moves in and after it, performing and prepaid booked as matured.
    """

    cohorts: Tensor
    age0: Tensor
    macro: Tensor
    calendar: Tensor | None
    path_of: Tensor
    cohort_of: Tensor
    plain: Tensor
    final: Tensor

    def __len__(self) -> int:
        return len(self.path_of)

    @property
    def n_moves(self) -> float:
        """All moves counted."""
        return float(self.plain.sum() + self.final.sum())

    def take(self, rows: Tensor) -> TransitionData:
        """Some of the rows."""
        return dataclasses.replace(
            self,
            path_of=self.path_of[rows],
            cohort_of=self.cohort_of[rows],
            plain=self.plain[rows],
            final=self.final[rows],
        )

    def months(self, first: int, last: int) -> TransitionData:
        """The same rows with counts outside months first..last-1 set to zero."""
        keep = torch.zeros(self.plain.shape[1], 1, 1)
        keep[first:last] = 1.0
        return dataclasses.replace(self, plain=self.plain * keep, final=self.final * keep)

    def to(self, device: torch.device) -> TransitionData:
        """On another device."""
        moved = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return dataclasses.replace(self, **moved)


def calendar_of(start_month: int, months: int) -> Tensor:
    """(T,2) int64: month of year 0-11 and weekday (Monday 0) of each month's last day."""
    firsts = pl.Series([month_from_index(start_month + step) for step in range(months)])
    return torch.from_numpy(
        np.stack(
            [firsts.dt.month().to_numpy() - 1, firsts.dt.month_end().dt.weekday().to_numpy() - 1], axis=1
        )
    ).long()


def transition_data(cohort_data: Any, transitions: Any, macro_data: Any) -> TransitionData:
    """Tensors from tables, or from the seed tutorial's arrays.

    Args:
        cohort_data: frame with asset_class, vintage_month and any of the `COHORT_FEATURES`.
        transitions: table `transitions`; or counts (T,7,7) of all loans; or (C,T,7,7) in the order of
            `cohort_data`.
        macro_data: table `macro_scenarios`, or one path (month and the nine series).

    Raises:
        DataError: columns are missing, or moves lie outside the macro paths' months.
    """
    cohorts = to_polars(cohort_data, _COHORT_KEYS, "cohort_data")
    paths = macro_paths(macro_data)
    if isinstance(transitions, np.ndarray | Tensor):
        return _from_counts(cohorts, np.asarray(transitions, dtype=np.float64), paths)
    required = ["asset_class", "vintage_month", "reporting_month", "from_state", "to_state", "n_moves"]
    table = to_polars(transitions, required, "transitions")
    return _from_table(cohorts, table, paths)


def _from_table(cohorts: pl.DataFrame, table: pl.DataFrame, paths: MacroPaths) -> TransitionData:
    if table.is_empty():
        raise DataError("no moves to learn from", expected="at least one row", got=0, where="transitions")
    for name, default in (("scenario", paths.keys[0][0]), ("macro_path_id", 0), ("is_final", False)):
        if name not in table.columns:
            table = table.with_columns(pl.lit(default).alias(name))
    keyed = cohorts.unique(_COHORT_KEYS, keep="first", maintain_order=True).with_row_index("cohort")
    joined = table.join(
        keyed.select("cohort", *_COHORT_KEYS), on=_COHORT_KEYS, how="left", maintain_order="left"
    )
    if joined["cohort"].null_count():
        lost = joined.filter(pl.col("cohort").is_null()).select(_COHORT_KEYS).unique().rows()[:3]
        raise DataError("moves of cohorts that are not described", expected="rows in cohort_data", got=lost)
    month = joined.select(month_index_expr("reporting_month")).to_series().to_numpy() - paths.start_month
    if month.min() < 0 or month.max() >= paths.n_months:
        raise DataError(
            "moves outside the macro paths' months",
            expected=f"{month_from_index(paths.start_month)} and {paths.n_months} months on",
            got=(str(joined["reporting_month"].min()), str(joined["reporting_month"].max())),
            where="transitions",
        )
    path, cohort = paths.rows_of(joined), joined["cohort"].to_numpy().astype(np.int64)
    pairs, row = np.unique(path * keyed.height + cohort, return_inverse=True)
    shape = (len(pairs), paths.n_months, N_LIVING, N_STATES)
    counts = {False: np.zeros(shape, np.float32), True: np.zeros(shape, np.float32)}
    origin, target = joined["from_state"].to_numpy(), joined["to_state"].to_numpy()
    is_final, moves = joined["is_final"].to_numpy(), joined["n_moves"].to_numpy()
    for final in (False, True):
        chosen = is_final == final
        booked = _book_maturity(target[chosen], final)
        np.add.at(counts[final], (row[chosen], month[chosen], origin[chosen], booked), moves[chosen])
    age0 = paths.start_month - 1 - keyed.select(month_index_expr("vintage_month")).to_series().to_numpy()
    return TransitionData(
        cohorts=_cohort_matrix(keyed),
        age0=torch.from_numpy(age0.astype(np.float32)),
        macro=torch.from_numpy(paths.values.astype(np.float32)),
        calendar=calendar_of(paths.start_month, paths.n_months),
        path_of=torch.from_numpy(pairs // keyed.height),
        cohort_of=torch.from_numpy(pairs % keyed.height),
        plain=torch.from_numpy(counts[False]),
        final=torch.from_numpy(counts[True]),
    )


def _book_maturity(target: np.ndarray, final: bool) -> np.ndarray:
    if final:
        paid_up = (target == LoanState.performing) | (target == LoanState.prepaid)
        return np.where(paid_up, int(LoanState.matured), target)
    return np.where(target == LoanState.matured, int(LoanState.prepaid), target)


def _from_counts(cohorts: pl.DataFrame, counts: np.ndarray, paths: MacroPaths) -> TransitionData:
    """The seed tutorial's form: counts without cohorts belong to one pooled cohort on the first path."""
    if counts.ndim == 3:
        counts, cohorts = counts[None], _pooled_cohort(cohorts)
    shape = (cohorts.height, min(counts.shape[1], paths.n_months), N_STATES, N_STATES)
    if counts.ndim != 4 or counts.shape[0] != cohorts.height or counts.shape[2:] != shape[2:]:
        raise DataError(
            "counts do not fit", expected=f"{shape} or (T, 7, 7)", got=counts.shape, where="transitions"
        )
    if counts.shape[1] > paths.n_months:
        raise DataError("more months of moves than of macro", expected=paths.n_months, got=counts.shape[1])
    plain = np.zeros((cohorts.height, paths.n_months, N_LIVING, N_STATES), np.float32)
    plain[:, : shape[1]] = counts[:, :, :N_LIVING]
    plain[..., LoanState.prepaid] += plain[..., LoanState.matured]
    plain[..., LoanState.matured] = 0.0
    features = _cohort_matrix(cohorts)
    age = features[:, COHORT_FEATURES.index("vintage_age_months")]
    return TransitionData(
        cohorts=features,
        age0=torch.nan_to_num(age, nan=0.0),
        macro=torch.from_numpy(paths.values.astype(np.float32)),
        calendar=calendar_of(paths.start_month, paths.n_months),
        path_of=torch.zeros(cohorts.height, dtype=torch.long),
        cohort_of=torch.arange(cohorts.height),
        plain=torch.from_numpy(plain),
        final=torch.zeros_like(torch.from_numpy(plain)),
    )


def _pooled_cohort(cohorts: pl.DataFrame) -> pl.DataFrame:
    weight = cohorts["loan_id"] if "loan_id" in cohorts.columns else pl.Series([1] * cohorts.height)
    share = {
        f"class_{name}": float(weight.filter(cohorts["asset_class"] == name).sum()) / float(weight.sum())
        for name in ASSET_CLASSES
    }
    return pl.DataFrame({name: [value] for name, value in share.items()})


def _cohort_matrix(cohorts: pl.DataFrame) -> Tensor:
    """(C,12) raw features; columns the frame lacks are missing values, classes come from `asset_class`."""
    columns = []
    for name in COHORT_FEATURES:
        if name in cohorts.columns:
            columns.append(cohorts[name].cast(pl.Float64).fill_null(float("nan")).to_numpy())
        elif name.startswith("class_"):
            columns.append(
                (cohorts["asset_class"] == name.removeprefix("class_")).cast(pl.Float64).to_numpy()
            )
        else:
            columns.append(np.full(cohorts.height, np.nan))
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


class TransitionTrainer:
    """Fit a `TransitionTransformer` to counts.

    Args:
        model: trained in place.
        lr: peak learning rate.
        config: further settings; its `lr`, `epochs` and `batch_size` give way to the arguments here.
    """

    def __init__(
        self, model: TransitionTransformer, lr: float = 1e-4, *, config: TrainConfig | None = None
    ) -> None:
        self.model, self.lr, self.config = model, lr, config or TrainConfig()

    def fit(
        self,
        cohort_data: Any,
        transitions: Any,
        macro_data: Any,
        epochs: int = 100,
        batch_size: int = 64,
        *,
        resume: Path | str | None = None,
        on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Train; see `transition_data` for what the tables may be.

        Args:
            epochs: passes over the (path, cohort) rows. batch_size: rows per step.
            resume: file to continue from. on_epoch: called with each epoch's record.

        Returns:
            The loop's history, and: val_log_loss, level_log_loss (class Markov), additive_log_loss (level,
            season and macro term), all on the same rows in nats per move; fallback ('' or the simpler form
            kept because the network predicted held-out moves worse: 'additive', or 'level', the class Markov
            table); absent_classes (they take the pooled rows); is_macro_anchored, n_macro_paths, n_moves,
            data_fingerprint.

        Raises:
            DataError: tables do not fit, or hold moves the network's config excludes.
        """
        data = transition_data(cohort_data, transitions, macro_data).to(self.model.base.device)
        self._check_moves(data)
        training, validation = split(data)
        anchored = len(data.macro) < MIN_MACRO_PATHS
        self._prepare(training, anchored)
        weight = float(len(training)) / max(training.n_moves, 1.0)
        config = dataclasses.replace(self.config, lr=self.lr, epochs=epochs, batch_size=batch_size)
        fingerprint = data_fingerprint(data.cohorts, data.macro, data.plain, data.final)
        level, level_weights = log_loss(self.model, validation), _weights(self.model)
        fit_additive(self.model, training)
        additive, additive_weights = log_loss(self.model, validation), _weights(self.model)
        groups = path_groups(training.path_of, _GROUP_CELLS if len(data.macro) >= MIN_MACRO_PATHS else 1)
        config = dataclasses.replace(config, batch_size=max(1, round(batch_size / len(groups[0]))))

        def loss_of(numbers: Tensor, _: torch.Generator) -> Tensor:
            rows = torch.cat([groups[number] for number in numbers.tolist()])
            return negative_log_likelihood(self.model, training.take(rows)) * weight / len(rows)

        history = run_training(
            self.model,
            len(groups),
            loss_of,
            config,
            name="transition_transformer",
            validation_loss=lambda: log_loss(self.model, validation),
            resume=resume,
            fingerprint=fingerprint,
            on_epoch=on_epoch,
        )
        reached = log_loss(self.model, validation)
        simpler = min(
            (level, "level", level_weights), (additive, "additive", additive_weights), key=itemgetter(0)
        )
        if simpler[0] < reached:
            self.model.load_state_dict(simpler[2])
            LOG.warning(
                "the cohort network is worse than its %s form on held-out moves (%.5f against %.5f nats): "
                "that form is kept",
                simpler[1],
                reached,
                simpler[0],
            )
        return history | {
            "val_log_loss": min(reached, simpler[0]),
            "fallback": simpler[1] if simpler[0] < reached else "",
            "absent_classes": _absent_classes(data),
            "level_log_loss": level,
            "additive_log_loss": additive,
            "is_macro_anchored": anchored,
            "n_macro_paths": len(data.macro),
            "n_moves": data.n_moves,
            "data_fingerprint": fingerprint,
        }

    def _prepare(self, data: TransitionData, anchored: bool) -> None:
        """Scaling constants, level of each class, and the anchor where macro is not identified."""
        model = self.model
        model.cohort_scale.fit(data.cohorts[data.cohort_of.unique()])
        moments = pooled_moments()
        model.macro_scale.mean.copy_(torch.from_numpy(moments.mean))
        model.macro_scale.sd.copy_(torch.from_numpy(moments.sd))
        with torch.no_grad():
            model.base.copy_(_class_levels(data, model.allowed).to(model.base))
        if anchored:
            model.anchor_macro(stated_macro_effect())

    def _check_moves(self, data: TransitionData) -> None:
        possible = self.model.allowed.clone()
        possible[:, LoanState.matured] = True
        counts = data.plain.sum((0, 1)) + data.final.sum((0, 1))
        broken = (counts > 0) & ~possible
        if bool(broken.any()):
            origin, target = broken.nonzero()[0].tolist()
            move = f"{LOAN_STATE_NAMES[origin]} -> {LOAN_STATE_NAMES[target]}"
            raise DataError(
                "the data hold moves that the network excludes",
                expected=f"moves of the set {self.model.config.moves!r} (TransitionConfig.moves)",
                got=f"{int(counts[origin, target])} x {move}",
                where="transitions",
            )


def _weights(model: TransitionTransformer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _absent_classes(data: TransitionData) -> str:
    """Names of the asset classes without a single move, comma-separated."""
    present = torch.nan_to_num(data.cohorts[data.cohort_of][:, : len(ASSET_CLASSES)]).sum(0) > 0
    return ", ".join(name for name, seen in zip(ASSET_CLASSES, present.tolist(), strict=True) if not seen)


def stated_macro_effect(config: LawConfig | None = None) -> Tensor:
    """(4,28,9) logit change per scaled series: the stated sensitivities, as the synthetic law reads them."""
    law, weights, moments = config or LawConfig(), sensitivities(), pooled_moments()
    length = np.sqrt(np.einsum("fcm,mn,fcn->fc", weights, moments.correlation, weights))
    strength = kind_strengths(law) * np.sqrt(law.macro_share)
    by_kind = weights / length[..., None] * strength[:, None, None]
    effect = np.zeros((len(ASSET_CLASSES), N_LIVING, N_STATES, N_MACRO), np.float32)
    for origin, target in np.argwhere(KIND_OF_MOVE >= 0):
        effect[:, origin, target] = by_kind[KIND_OF_MOVE[origin, target]]
    return torch.from_numpy(effect).flatten(1, 2)


def additive_prior_sd(anchored: bool, months: int) -> dict[str, float]:
    """sd of the normal priors of `fit_additive`, logits, by kind of term."""
    return _PRIOR_SD | ({"month": _MONTH_SD_FEW_YEARS} if anchored and months < _MANY_MONTHS else {})


def fit_additive(model: TransitionTransformer, data: TransitionData, steps: int = 25) -> float:
    """Maximum a posteriori level, season and (unless anchored) macro term, before the network learns.

    The additive part alone is a multinomial logit over (path, class, month), so it is convex and L-BFGS
    finds it in a second. Priors: normal, mean 0 around the class level; sd as in `_PRIOR_SD`.

    Returns:
        Penalised nats per move.
    """
    weights = torch.nan_to_num(data.cohorts[data.cohort_of][:, : len(ASSET_CLASSES)])
    paths, months = data.macro.shape[:2]
    cells = N_LIVING * N_STATES
    place = data.path_of[:, None] * len(ASSET_CLASSES) + torch.arange(
        len(ASSET_CLASSES), device=weights.device
    )

    def by_class(counts: Tensor) -> Tensor:
        flat = counts.flatten(1)
        total = torch.zeros(paths * len(ASSET_CLASSES), flat.shape[1], dtype=flat.dtype, device=flat.device)
        for column in range(len(ASSET_CLASSES)):
            total.index_add_(0, place[:, column], flat * weights[:, column, None])
        return total.view(paths, len(ASSET_CLASSES), months, N_LIVING, N_STATES)

    plain, final = by_class(data.plain), by_class(data.final)
    z = model.macro_scale(data.macro)
    level = model.base.detach().clone().flatten(1)
    free = {
        name: torch.zeros(shape, device=z.device, requires_grad=True)
        for name, shape in {
            "level": (len(ASSET_CLASSES), cells),
            "shared": (cells, N_MACRO),
            "own": (len(ASSET_CLASSES), cells, N_MACRO),
            "month": (12, cells),
            "weekday": (7, cells),
        }.items()
    }
    anchored = bool(model.macro_anchored)
    prior_sd = additive_prior_sd(anchored, months)
    stated = model.macro_effect.detach().clone()
    n_moves = max(data.n_moves, 1.0)

    def objective() -> Tensor:
        effect = stated if anchored else free["shared"] + free["own"]
        logits = torch.einsum("ptm,ckm->pctk", z, effect) + (level + free["level"])[:, None]
        if data.calendar is not None:
            month = free["month"] - free["month"].mean(0)
            weekday = free["weekday"] - free["weekday"].mean(0)
            logits = logits + month[data.calendar[:, 0]] + weekday[data.calendar[:, 1]]
        rows = logits.unflatten(-1, (N_LIVING, N_STATES)).masked_fill(~model.allowed, _IMPOSSIBLE)
        nats = moves_nats(rows.log_softmax(-1), plain, final)
        prior = sum((0.5 / prior_sd[name] ** 2) * (value**2).sum() for name, value in free.items())
        return (nats + prior) / n_moves

    optimizer = torch.optim.LBFGS(
        list(free.values()), max_iter=steps, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        model.base.add_(free["level"].view_as(model.base))
        model.season.month.copy_(free["month"])
        model.season.weekday.copy_(free["weekday"])
        if not anchored:
            model.macro_effect.copy_(free["shared"] + free["own"])
        return float(objective())


def moves_nats(log_rows: Tensor, plain: Tensor, final: Tensor) -> Tensor:
    """- sum n log P: (..., 4, 7) log-probabilities against counts before, and from, the final month."""
    paid_up = torch.logaddexp(log_rows[..., LoanState.performing], log_rows[..., LoanState.prepaid])
    others = (final[..., : LoanState.matured] * log_rows[..., : LoanState.matured]).sum()
    return -(plain * log_rows).sum() - others - (final[..., LoanState.matured] * paid_up).sum()


def split(data: TransitionData) -> tuple[TransitionData, TransitionData]:
    """Training and validation: every fifth macro path held out; below five, the last fifth of the months."""
    paths = len(data.macro)
    if paths >= _HOLD_OUT:
        held = data.path_of % _HOLD_OUT == _HOLD_OUT - 1
        if bool(held.any()) and bool((~held).any()):
            return data.take((~held).nonzero()[:, 0]), data.take(held.nonzero()[:, 0])
    moves = (data.plain + data.final).sum((0, 2, 3)).cumsum(0)
    cut = int((moves < moves[-1] * (1 - 1 / _HOLD_OUT)).sum()) + 1
    if cut >= len(moves) or float(moves[-1] - moves[cut - 1]) == 0.0:
        return data, data
    return data.months(0, cut), data.months(cut, len(moves))


def path_groups(path_of: Tensor, size: int) -> list[Tensor]:
    """Rows in groups of at most `size` rows of one path: a batch of groups reads few paths."""
    order = path_of.argsort(stable=True)
    paths = order.split(torch.bincount(path_of).tolist())
    return [group for path in paths if len(path) for group in torch.tensor_split(path, -(-len(path) // size))]


def negative_log_likelihood(model: TransitionTransformer, data: TransitionData) -> Tensor:
    """- sum n log P over all rows of `data`."""
    used, path_of = data.path_of.unique(return_inverse=True)
    rows = model.pair_rows(
        data.cohorts[data.cohort_of], data.macro[used], path_of, data.calendar, data.age0[data.cohort_of]
    )
    log_rows = rows.clamp(min=torch.finfo(rows.dtype).tiny).log()
    return moves_nats(log_rows, data.plain, data.final)


def log_loss(model: TransitionTransformer, data: TransitionData, batch_size: int = 512) -> float:
    """Nats per move, without gradients."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        total = sum(
            float(negative_log_likelihood(model, data.take(rows)))
            for rows in torch.arange(len(data)).split(batch_size)
        )
    model.train(was_training)
    return total / max(data.n_moves, 1.0)


def _class_levels(data: TransitionData, allowed: Tensor) -> Tensor:
    """(4,4,7) log of each class's mean rows; a class absent from the data takes the pooled rows."""
    weights = torch.nan_to_num(data.cohorts[data.cohort_of][:, : len(ASSET_CLASSES)])
    moves = data.plain.sum(1)
    # Final months do not tell performing from prepaid; their other moves count.
    moves = moves + torch.cat(
        [data.final.sum(1)[..., : LoanState.prepaid], torch.zeros_like(moves[..., :2])], -1
    )
    by_class = torch.einsum("nc,nkj->ckj", weights.double(), moves.double())
    pooled = by_class.sum(0) + _SMOOTHING
    prior = pooled * allowed / (pooled * allowed).sum(-1, keepdim=True)
    rows = (by_class + 20.0 * prior) * allowed
    rows = rows / rows.sum(-1, keepdim=True)
    return rows.clamp(min=1e-6).log().float()
