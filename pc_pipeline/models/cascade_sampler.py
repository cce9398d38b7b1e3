"""Fast sampling of payment histories from a trained `LSTMCascadeModel`.

Here: the network folded for sampling (status, features and context enter as columns of one matrix product a
layer and month), blocks of rows on threads, finished histories dropped as they end. A history depends on
(seed, its number, its inputs) only: not on its batch, block or thread. Products run in bfloat16, which costs
a log-loss of about 1e-5 nats (docs/methods/payment_cascade.md, section 5), or in float32. Not here: the
kernels (`cascade_kernels`), borrowers, amounts.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from pc_pipeline.core.errors import ModelError
from pc_pipeline.models.cascade_history import N_HISTORY, N_STATE
from pc_pipeline.models.cascade_kernels import draw_statuses, gates_bfloat16, gates_float32
from pc_pipeline.models.payment_cascade import N_CALENDAR, START, LSTMCascadeModel
from pc_pipeline.schemas.states import N_STATUSES, PAYMENT_STATUSES, TERMINAL_STATUSES
from pc_pipeline.schemas.units import N_MACRO

BLOCK_ROWS: Final = 1024
NEVER: Final = 1 << 30  # final month of a history without one
_CONTEXT: Final = N_CALENDAR + N_MACRO
_N_STATUS: Final = N_STATUSES + 1
_TERMINAL: Final = np.array([PAYMENT_STATUSES.index(name) for name in TERMINAL_STATUSES])
_DTYPES: Final = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingTask:
    """What to sample.

    Attributes:
        features: (N, F) float32 normalised.
        n_months: T, months of each history.
        seed: of the draws. numbers: (N,) each history's own number, the key of its draws.
        forced: (N, k) statuses given for the first k months, -1 where drawn.
        final_month: (N,) last contractual month, counted from 1; `NEVER` without one.
        calendar: (C, 2) month of year and weekday by calendar column, or None.
        macro: (P, C, 9) raw macro by path and calendar column, or None.
        path, column: (N,) path of each history and calendar column of its first month.
    """

    features: np.ndarray
    n_months: int
    seed: int
    numbers: np.ndarray
    forced: np.ndarray
    final_month: np.ndarray
    calendar: np.ndarray | None = None
    macro: np.ndarray | None = None
    path: np.ndarray | None = None
    column: np.ndarray | None = None

    @property
    def n_columns(self) -> int:
        """Calendar columns given."""
        if self.calendar is not None:
            return len(self.calendar)
        return 0 if self.macro is None else self.macro.shape[1]


class CascadeSampler:
    """A network folded for sampling.

    Args:
        model: in eval mode; later training does not reach the sampler.
        precision: of the matrix products, 'bfloat16' or 'float32'.
    """

    def __init__(self, model: LSTMCascadeModel, precision: str = "bfloat16") -> None:
        if precision not in _DTYPES:
            raise ModelError("unknown precision", expected=", ".join(_DTYPES), got=precision)
        self.config, self.dtype = model.config, _DTYPES[precision]
        self._model = model
        self.width, self.n_layers = model.config.hidden_dim, model.config.num_layers
        state = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}
        self._weights = [self._fold(state, layer) for layer in range(self.n_layers)]
        self._fc = state["fc.weight"].T.contiguous()
        self._base = (state["log_prior"] + state["fc.bias"]).numpy()
        self._allowed = model.allowed.numpy().copy()
        n_features = model.config.borrower_feature_dim
        each = model.direct_term().detach().float()
        direct = each.flatten(0, 1).T
        self._direct_own = direct[:n_features].contiguous()
        self._direct_context = torch.cat(
            [direct[n_features:-N_HISTORY], state["macro_effect"].flatten(0, 1).T]
        ).contiguous()
        self._direct_history = each[..., -N_HISTORY:].transpose(1, 2).contiguous().numpy()

    def _fold(self, state: dict[str, Tensor], layer: int) -> Tensor:
        """Weights (K, 4H) of one layer, K = [hidden, inputs, one], padded to whole tiles of 32."""
        recurrent = state[f"lstm.weight_hh_l{layer}"].T
        inputs = state[f"lstm.weight_ih_l{layer}"].T
        bias = state[f"lstm.bias_ih_l{layer}"] + state[f"lstm.bias_hh_l{layer}"]
        if layer == 0:
            split = self.width // 2
            inputs = torch.cat([state["status_embedding.weight"] @ inputs[:split], inputs[split:]])
            if self.config.macro != "learned":
                inputs = torch.cat([inputs[:-N_MACRO], torch.zeros(N_MACRO, inputs.shape[1])])
        whole = torch.cat([recurrent, inputs, bias[None]])
        return torch.nn.functional.pad(whole, (0, 0, 0, -len(whole) % 32)).to(self.dtype).contiguous()

    def sample(self, task: SamplingTask, n_threads: int | None = None) -> np.ndarray:
        """(N, T) int8 statuses; terminal ones repeat."""
        count = len(task.features)
        out = np.empty((count, task.n_months), dtype=np.int8)
        with torch.inference_mode():
            scaled = self._model.scaled(
                torch.from_numpy(np.ascontiguousarray(task.features, dtype=np.float32))
            )
            context = self._context(task)
            blocks = [slice(low, min(low + BLOCK_ROWS, count)) for low in range(0, count, BLOCK_ROWS)]
            workers = min(n_threads or os.cpu_count() or 1, len(blocks))
            threads = torch.get_num_threads()

            def run(block: slice) -> None:
                torch.set_num_threads(1)
                with torch.inference_mode():
                    _Block(self, task, scaled[block], block, context).run(out[block])

            try:
                if workers <= 1:
                    for block in blocks:
                        run(block)
                else:
                    with ThreadPoolExecutor(workers) as pool:
                        list(pool.map(run, blocks))
            finally:
                torch.set_num_threads(threads)
        return out

    def _context(self, task: SamplingTask) -> Tensor | None:
        """(P, C, 28) calendar and macro inputs, or None where neither is given."""
        if task.calendar is None and task.macro is None:
            return None
        columns = task.n_columns
        paths = 1 if task.macro is None else len(task.macro)
        out = torch.zeros(paths, columns, _CONTEXT)
        if task.calendar is not None and self.config.uses_calendar:
            out[..., :N_CALENDAR] = self._model.calendar_inputs(torch.from_numpy(task.calendar))
        if task.macro is not None:
            out[..., N_CALENDAR:] = self._model.macro_inputs(torch.from_numpy(task.macro).float())
        return out


class _Block:
    """Buffers of one block of rows; rows are compacted as histories end."""

    def __init__(
        self, sampler: CascadeSampler, task: SamplingTask, scaled: Tensor, rows: slice, context: Tensor | None
    ) -> None:
        self.sampler, self.task = sampler, task
        count, width = len(scaled), sampler.width
        self.size = count + count % 2  # a lone row would take another product routine
        self.active = np.arange(count)
        self.inputs = [torch.zeros(self.size, len(w), dtype=sampler.dtype) for w in sampler._weights]
        self.cells = [torch.zeros(self.size, width) for _ in sampler._weights]
        self.hidden = torch.zeros(self.size, width)
        self.gates = torch.empty(self.size, 4 * width, dtype=sampler.dtype)
        self.own = torch.zeros(self.size, _N_STATUS * N_STATUSES)
        self.own[:count] = (
            scaled @ sampler._direct_own if count > 1 else (scaled.repeat(2, 1) @ sampler._direct_own)[:1]
        )
        first = self.inputs[0]
        self.features_at = width + _N_STATUS
        self.context_at = self.features_at + scaled.shape[1]
        first[:count, self.features_at : self.context_at] = scaled.to(sampler.dtype)
        first[:, self.context_at + _CONTEXT] = 1.0
        for deeper in self.inputs[1:]:
            deeper[:, 2 * width] = 1.0
        self.status = np.full(self.size, START, dtype=np.int64)
        self.seen = np.zeros((self.size, N_STATE), dtype=np.float32)
        self.numbers = self._padded(task.numbers[rows], np.uint64)
        self.final = self._padded(task.final_month[rows], np.int64)
        self.forced = self._padded(task.forced[rows], np.int64)
        self.context, self.shared = context, None
        if context is not None:
            path = np.zeros(count, int) if task.path is None else task.path[rows]
            column = np.zeros(count, int) if task.column is None else task.column[rows]
            self.place = torch.from_numpy(self._padded(path * context.shape[1] + column, np.int64))
            if bool((self.place == self.place[0]).all()):
                self.shared = int(self.place[0])

    def _padded(self, values: np.ndarray, dtype: type) -> np.ndarray:
        out = np.zeros((self.size, *values.shape[1:]), dtype=dtype)
        out[: len(values)] = values
        return out

    def run(self, out: np.ndarray) -> None:
        """Fill (rows, T) statuses."""
        for month in range(self.task.n_months):
            living = self.step(month)
            rows = len(self.active)
            out[self.active, month] = self.status[:rows]
            if month + 1 < self.task.n_months and living < rows:
                ended = np.isin(self.status[:rows], _TERMINAL)
                out[self.active[ended], month + 1 :] = self.status[:rows][ended][:, None]
                if living == 0:
                    return
                if living < 0.9 * rows:
                    self.keep(np.flatnonzero(~ended))

    def step(self, month: int) -> int:
        """One month for all active rows; returns how many live on."""
        rows = len(self.active)
        padded = max(rows, 2)
        base, shift = self._enter(month, padded)
        kernel = gates_bfloat16 if self.sampler.dtype == torch.bfloat16 else gates_float32
        for layer, weights in enumerate(self.sampler._weights):
            gates = self.gates[:padded]
            torch.mm(self.inputs[layer][:padded], weights, out=gates)
            own = self.inputs[layer]
            width = self.sampler.width
            above = self.inputs[layer + 1][:, width:] if layer + 1 < self.sampler.n_layers else own
            kernel(
                _bits(gates), self.cells[layer].numpy(), _bits(own), _bits(above), self.hidden.numpy(), padded
            )
        residual = self.hidden[:padded] @ self.sampler._fc
        task = self.task
        forced = self.forced[:, month] if month < task.forced.shape[1] else np.full(self.size, -1, np.int64)
        return draw_statuses(
            residual.numpy(),
            base,
            self.own.numpy(),
            shift,
            self.seen,
            self.sampler._direct_history,
            self.sampler._allowed,
            forced,
            self.final,
            self.sampler.config.has_contract_end,
            np.uint64(task.seed),
            self.numbers,
            month,
            self.status,
            rows,
        )

    def _enter(self, month: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Write statuses and context into the first layer's inputs; (9, 8) log-odds and (R, 72) shifts."""
        width, first, sampler = self.sampler.width, self.inputs[0], self.sampler
        hot = first[:rows, width : width + _N_STATUS]
        hot.zero_()
        hot.scatter_(1, torch.from_numpy(self.status[:rows])[:, None], 1.0)
        nothing = np.zeros((0, 0), dtype=np.float32)
        if self.context is None:
            return sampler._base, nothing
        flat = self.context.flatten(0, 1)
        here = first[:rows, self.context_at : self.context_at + _CONTEXT]
        if self.shared is not None:
            row = flat[self.shared + month]
            here.copy_(row.to(first.dtype).expand(rows, -1))
            extra = (row.repeat(2, 1) @ sampler._direct_context)[0].view(_N_STATUS, N_STATUSES)
            return sampler._base + extra.numpy(), nothing
        gathered = flat[self.place[:rows] + month]
        here.copy_(gathered)
        return sampler._base, (gathered @ sampler._direct_context).numpy()

    def keep(self, kept: np.ndarray) -> None:
        """Move the living rows to the front."""
        index, n = torch.from_numpy(kept), len(kept)
        self.active = self.active[kept]
        for tensor in (*self.inputs, *self.cells, self.own):
            tensor[:n] = tensor[index]
        for array in (self.status, self.numbers, self.final, self.seen):
            array[:n] = array[kept]
        self.forced[:n] = self.forced[kept]
        if self.context is not None:
            self.place[:n] = self.place[index]


def _bits(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as float32, or bfloat16 bits as uint16."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
