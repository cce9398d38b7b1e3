"""One LSTM layer for training on a CPU: bfloat16 matrix products, compiled gates, hand-written gradient.

Here: `lstm_layer`, the same function as a layer of `nn.LSTM` (to bfloat16 rounding), several times faster
where the processor multiplies bfloat16. Not here: sampling (`cascade_sampler`), the network
(`payment_cascade`).

    i, f, o = s(.), g = tanh(.) of x W + h U + b;   c' = f c + i g;   h' = o tanh(c')

Backward in time, with D = dL/dc' after the output gate, D = dc + dh o (1 - tanh(c')^2):
    di = D g i (1-i)   df = D c f (1-f)   dg = D i (1-g^2)   do = dh tanh(c') o (1-o)   dc = D f
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from pc_pipeline.models.cascade_kernels import activate, narrow, tanh, widen

_F = np.float32


@numba.njit(cache=True, fastmath=True, error_model="numpy", nogil=True)
def _forward(
    inputs: np.ndarray,
    recurrent: np.ndarray,
    bias: np.ndarray,
    before: np.ndarray,
    gates: np.ndarray,
    cell: np.ndarray,
    hidden: np.ndarray,
) -> None:
    """One month: (B, 4H) products as bfloat16 bits -> activated gates (bits), cell (B, H), hidden (bits)."""
    width = cell.shape[1]
    wide = np.empty(4 * width, dtype=np.float32)
    for row in range(cell.shape[0]):
        x, y, kept, h = inputs[row], recurrent[row], gates[row], hidden[row]
        c, old = cell[row], before[row]
        for j in range(4 * width):
            wide[j] = widen(x[j]) + widen(y[j])
        for j in range(4 * width):
            wide[j] += bias[j]
        activate(wide, width)
        for j in range(4 * width):
            kept[j] = narrow(wide[j])
        for k in range(width):
            c[k] = wide[width + k] * old[k] + wide[k] * wide[2 * width + k]
        for k in range(width):
            wide[k] = wide[3 * width + k] * tanh(c[k])
        for k in range(width):
            h[k] = narrow(wide[k])


@numba.njit(cache=True, fastmath=True, error_model="numpy", nogil=True)
def _backward(
    gates: np.ndarray,
    cell: np.ndarray,
    before: np.ndarray,
    above: np.ndarray,
    later: np.ndarray,
    cell_gradient: np.ndarray,
    out: np.ndarray,
) -> None:
    """One month backward. above, later: (B, H) bits of dL/dh from the layer above and the month after.

    cell_gradient: (B, H) dL/dc, updated to the month before. out: (B, 4H) bits of dL/d(products).
    """
    width = cell.shape[1]
    wide = np.empty(4 * width, dtype=np.float32)
    slope = np.empty(4 * width, dtype=np.float32)
    dh, d = np.empty(width, dtype=np.float32), np.empty(width, dtype=np.float32)
    for row in range(cell.shape[0]):
        kept, c, old, up, on = gates[row], cell[row], before[row], above[row], later[row]
        dc, target = cell_gradient[row], out[row]
        for j in range(4 * width):
            wide[j] = widen(kept[j])
        for j in range(4 * width):
            slope[j] = wide[j] * (_F(1.0) - wide[j])
        candidate, its_slope = wide[2 * width : 3 * width], slope[2 * width : 3 * width]
        for k in range(width):
            its_slope[k] = _F(1.0) - candidate[k] * candidate[k]
        for k in range(width):
            dh[k] = widen(up[k]) + widen(on[k])
        for k in range(width):
            d[k] = tanh(c[k])
        for k in range(width):
            slope[3 * width + k] *= dh[k] * d[k]
        for k in range(width):
            d[k] = dh[k] * wide[3 * width + k] * (_F(1.0) - d[k] * d[k])
        for k in range(width):
            d[k] += dc[k]
        for k in range(width):
            slope[k] *= d[k] * wide[2 * width + k]
        for k in range(width):
            slope[2 * width + k] *= d[k] * wide[k]
        for k in range(width):
            slope[width + k] *= d[k] * old[k]
        for k in range(width):
            dc[k] = d[k] * wide[width + k]
        for j in range(4 * width):
            target[j] = narrow(slope[j])


def _bits(tensor: Tensor) -> np.ndarray:
    return tensor.view(torch.uint16).numpy()


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor) -> Tensor:
        months, batch, _ = x.shape
        width = w_hh.shape[1]
        recurrent_weights = w_hh.t().to(torch.bfloat16).contiguous()
        inputs = torch.mm(x.flatten(0, 1), w_ih.t().to(torch.bfloat16)).view(months, batch, 4 * width)
        gates = torch.empty(months, batch, 4 * width, dtype=torch.bfloat16)
        cells = torch.zeros(months + 1, batch, width)
        hidden = torch.zeros(months + 1, batch, width, dtype=torch.bfloat16)
        product = torch.zeros(batch, 4 * width, dtype=torch.bfloat16)
        offset = bias.float().numpy()
        for t in range(months):
            if t:
                torch.mm(hidden[t], recurrent_weights, out=product)
            _forward(
                _bits(inputs[t]),
                _bits(product),
                offset,
                cells[t].numpy(),
                _bits(gates[t]),
                cells[t + 1].numpy(),
                _bits(hidden[t + 1]),
            )
        ctx.save_for_backward(x, w_ih, w_hh, gates, cells, hidden)
        return hidden[1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, w_ih, w_hh, gates, cells, hidden = ctx.saved_tensors
        above = gradients[0].to(torch.bfloat16).contiguous()
        months, batch, width = above.shape
        weights = w_hh.to(torch.bfloat16)
        products = torch.empty_like(gates)
        later = torch.zeros(batch, width, dtype=torch.bfloat16)
        cell_gradient = torch.zeros(batch, width)
        for t in range(months - 1, -1, -1):
            _backward(
                _bits(gates[t]),
                cells[t + 1].numpy(),
                cells[t].numpy(),
                _bits(above[t]),
                _bits(later),
                cell_gradient.numpy(),
                _bits(products[t]),
            )
            if t:
                torch.mm(products[t], weights, out=later)
        flat = products.flatten(0, 1)
        d_input = torch.mm(flat, w_ih.to(torch.bfloat16)).view(x.shape) if ctx.needs_input_grad[0] else None
        d_ih = torch.mm(flat.t(), x.flatten(0, 1)).float()
        d_hh = torch.mm(flat.t(), hidden[:-1].flatten(0, 1)).float()
        ones = torch.ones(1, len(flat), dtype=torch.bfloat16)
        return d_input, d_ih, d_hh, torch.mm(ones, flat)[0].float()


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (AMX or AVX-512 BF16)."""
    capability = torch.backends.cpu.get_cpu_capability() if hasattr(torch.backends, "cpu") else ""
    return "AVX512" in capability and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def lstm_layer(x_TBK: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor) -> Tensor:
    """(T, B, K) bfloat16 -> hidden states (T, B, H) bfloat16, from a zero state.

    Args:
        w_ih: (4H, K), w_hh: (4H, H), bias: (4H,) float32, gates in the order i f g o.
    """
    return _Layer.apply(x_TBK.to(torch.bfloat16).contiguous(), w_ih, w_hh, bias)
