"""Layers that the networks share: rotary positions, causal attention with a cache, blocks, scaling.

Here: parts without credit in them. Not here: the networks (`transition_transformer`,
`loan_trajectory`, `diffusion`, `macro_vae`).

Positions are rotary (Su et al. 2021, arXiv:2104.09864): attention sees differences of months only, so
any length up to the stated maximum works and nothing is tied to the first month of a path.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_pipeline.core.errors import ConfigError, ModelError
from pc_pipeline.schemas.units import N_SEGMENT_CODES


def check_heads(width: int, heads: int) -> None:
    """Raise ConfigError unless `heads` divides `width` into even head sizes."""
    if width < 2 or heads < 1 or width % (2 * heads):
        raise ConfigError(
            "d_model does not split into heads of even size",
            expected="d_model a multiple of 2 * n_heads",
            got=f"d_model={width}, n_heads={heads}",
        )


class RotaryPositions(nn.Module):
    """Rotates pairs of channels by an angle proportional to the month.

    Args:
        head_size: channels per head, even.
        max_months: longest sequence.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_size: int, max_months: int) -> None:
        super().__init__()
        frequency = 10_000.0 ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
        angle = torch.arange(max_months, dtype=torch.float64)[:, None] * frequency[None, :]
        self.register_buffer("cos", torch.cos(angle).float(), persistent=False)
        self.register_buffer("sin", torch.sin(angle).float(), persistent=False)

    def forward(self, x_BHTD: Tensor, offset: int = 0) -> Tensor:
        """Rotate (..., T, head_size); the first month has number `offset`."""
        months = x_BHTD.shape[-2]
        cos, sin = self.cos[offset : offset + months], self.sin[offset : offset + months]
        first, second = x_BHTD.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class KeyValueCache:
    """Keys and values of the months already read, for one attention layer.

    Args:
        batch, heads, max_months, head_size: of the layer.
        like: a tensor whose device and dtype the cache takes.
    """

    def __init__(self, batch: int, heads: int, max_months: int, head_size: int, like: Tensor) -> None:
        shape = (batch, heads, max_months, head_size)
        self.keys = like.new_zeros(shape)
        self.values = like.new_zeros(shape)
        self.length = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B,H,t,d) keys and values; returns all months so far."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class CausalAttention(nn.Module):
    """Multi-head self-attention in which month t sees months 0..t.

    Args:
        width, heads: D and H.
        max_months: longest sequence.

    No dropout on the attention weights: it would need the (T,T) weights themselves, at twice the time.
    """

    def __init__(self, width: int, heads: int, max_months: int) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads, self.max_months = heads, max_months
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.rotary = RotaryPositions(width // heads, max_months)

    def forward(self, x_BTD: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """(B,T,D) -> (B,T,D). With a cache, x holds the next months only (one at a time)."""
        batch, months, width = x_BTD.shape
        offset = 0 if cache is None else cache.length
        qkv = self.query_key_value(x_BTD).view(batch, months, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query, key = self.rotary(query, offset), self.rotary(key, offset)
        if cache is not None:
            key, value = cache.append(key, value)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=cache is None)
        return self.output(mixed.transpose(1, 2).reshape(batch, months, width))


class FeedForward(nn.Sequential):
    """Linear, GELU, linear; hidden width = ratio * width."""

    def __init__(self, width: int, ratio: int = 2, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Linear(width, ratio * width),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            nn.Linear(ratio * width, width),
        )


class CausalBlock(nn.Module):
    """Pre-norm transformer block: attention, then feed-forward, each added to its input."""

    def __init__(self, width: int, heads: int, max_months: int, dropout: float = 0.0, ratio: int = 2) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads, max_months)
        self.forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, ratio, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """(B,T,D) -> (B,T,D)."""
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), cache))
        return x_BTD + self.dropout(self.feed_forward(self.forward_norm(x_BTD)))


class CausalCrossAttention(nn.Module):
    """Queries of month t read keys of months 0..t of another sequence.

    Queries and keys are projected apart (`project_queries`, `project_memory`), so that one memory
    serves many queries and one set of queries many memories.
    """

    def __init__(self, width: int, heads: int, max_months: int) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.rotary = RotaryPositions(width // heads, max_months)

    def _split(self, x_BTD: Tensor) -> Tensor:
        batch, months, width = x_BTD.shape
        return x_BTD.view(batch, months, self.heads, width // self.heads).transpose(1, 2)

    def project_queries(self, x_BTD: Tensor) -> Tensor:
        """(B,T,D) -> rotated queries (B,H,T,d)."""
        return self.rotary(self._split(self.query(x_BTD)))

    def project_memory(self, memory_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """(B,T,D) -> rotated keys and values (B,H,T,d)."""
        key, value = self.key_value(memory_BTD).chunk(2, dim=-1)
        return self.rotary(self._split(key)), self._split(value)

    def forward(self, query_BHTd: Tensor, key_BHTd: Tensor, value_BHTd: Tensor) -> Tensor:
        """Mix the values; (B,H,T,d) three times -> (B,T,D)."""
        mixed = F.scaled_dot_product_attention(query_BHTd, key_BHTd, value_BHTd, is_causal=True)
        batch, heads, months, size = mixed.shape
        return self.output(mixed.transpose(1, 2).reshape(batch, months, heads * size))


class Scaler(nn.Module):
    """(x - mean) / sd with constants kept among the weights; missing values become 0 and a flag.

    Args:
        mean, sd: per feature, in the feature's own unit; set from training data by `fit`.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, mean: Tensor, sd: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone().float())
        self.register_buffer("sd", sd.clone().float())

    def fit(self, x_NF: Tensor, columns: list[int] | None = None) -> None:
        """Take mean and sd of (N,F), ignoring NaN; a constant feature keeps sd 1.

        Args:
            x_NF: raw features.
            columns: the features to scale; the others keep their constants.
        """
        values = x_NF.double()
        known = ~torch.isnan(values)
        count = known.sum(0).clamp(min=1)
        filled = torch.where(known, values, torch.zeros_like(values))
        mean = filled.sum(0) / count
        spread = torch.where(known, (values - mean) ** 2, torch.zeros_like(values)).sum(0) / count
        sd = torch.where(spread > 1e-12, spread.sqrt(), torch.ones_like(spread))
        chosen = list(range(x_NF.shape[1])) if columns is None else columns
        self.mean[chosen] = mean[chosen].float()
        self.sd[chosen] = sd[chosen].float()

    def forward(self, x: Tensor) -> Tensor:
        """Scaled features (..., F), clipped at 8 sd; NaN becomes 0."""
        scaled = ((x - self.mean) / self.sd).clamp(-8.0, 8.0)
        return torch.nan_to_num(scaled, nan=0.0)


class NormalScores(nn.Module):
    """Rank-based scaling: each feature to the normal score of its quantile in the training data.

    Order and ties survive, outliers do not; beyond the training range the score stays at its end.

    Args:
        mean, sd: stated constants, used as normal quantiles until `fit` sees data.
    """

    knots: Tensor
    scores: Tensor

    def __init__(self, mean: Tensor, sd: Tensor, n_knots: int = 65) -> None:
        super().__init__()
        middle = (torch.arange(n_knots, dtype=torch.float64) + 0.5) / n_knots
        scores = torch.special.ndtri(middle).float()
        self.register_buffer("scores", scores, persistent=False)
        self.register_buffer("knots", (mean.float()[:, None] + sd.float()[:, None] * scores).contiguous())

    def fit(self, x_NF: Tensor) -> None:
        """Take quantiles of (N,F), ignoring NaN; a feature never seen keeps its stated ones."""
        middle = torch.special.ndtr(self.scores.double())
        for column in range(x_NF.shape[1]):
            known = x_NF[:, column].double()
            known = known[~torch.isnan(known)].sort().values
            if len(known):
                at = middle * len(known) - 0.5
                low = at.floor().long().clamp(0, len(known) - 1)
                high = (low + 1).clamp(max=len(known) - 1)
                self.knots[column] = torch.lerp(known[low], known[high], (at - low).clamp(0, 1)).float()

    def forward(self, x_NF: Tensor) -> Tensor:
        """Scores (N,F) between about -2.4 and 2.4; NaN becomes 0."""
        filled = torch.nan_to_num(x_NF, nan=0.0)
        columns = []
        for column in range(x_NF.shape[1]):
            knots = self.knots[column]
            x = filled[:, column].contiguous()
            low, high = torch.searchsorted(knots, x), torch.searchsorted(knots, x, right=True)
            at_knot = high > low  # ties: the middle of their ranks
            left = (low - 1).clamp(0, len(knots) - 1)
            right = low.clamp(0, len(knots) - 1)
            gap = knots[right] - knots[left]
            share = torch.where(gap > 0, (x - knots[left]) / gap.clamp(min=1e-30), torch.zeros_like(x))
            between = torch.lerp(self.scores[left], self.scores[right], share.clamp(0.0, 1.0))
            tied = 0.5 * (self.scores[right] + self.scores[(high - 1).clamp(0, len(knots) - 1)])
            columns.append(torch.where(at_knot, tied, between))
        scores = torch.stack(columns, dim=-1)
        return torch.where(torch.isnan(x_NF), torch.zeros_like(scores), scores)


def segment_effect(table_SV: Tensor, codes_B2: Tensor) -> Tensor:
    """(B,V) effect of industry and region: of the pair, of each; zero where a code is NaN.

    Args:
        table_SV: rows industry * K + region, then K industries, then K regions, K = `N_SEGMENT_CODES`.
        codes_B2: (B,2) codes 0..K-1.
    """
    size = N_SEGMENT_CODES
    known = (~torch.isnan(codes_B2)).to(table_SV.dtype)
    industry, region = torch.nan_to_num(codes_B2).long().clamp(0, size - 1).unbind(-1)
    of_pair = table_SV[industry * size + region] * known.prod(-1, keepdim=True)
    of_industry = table_SV[size * size + industry] * known[:, :1]
    return of_pair + of_industry + table_SV[size * (size + 1) + region] * known[:, 1:]


def log_or_minus_infinity(probability: Tensor) -> Tensor:
    """log p, exactly -inf where p = 0, with a gradient that stays finite."""
    tiny = torch.finfo(probability.dtype).tiny
    logarithm = probability.clamp(min=tiny).log()
    return torch.where(probability > 0, logarithm, torch.full_like(logarithm, -torch.inf))


def require_shape(name: str, x: Tensor, shape: tuple[int | None, ...]) -> None:
    """Raise ModelError unless the tensor has this shape (None: any size)."""
    if x.dim() != len(shape) or any(
        want is not None and got != want for got, want in zip(x.shape, shape, strict=True)
    ):
        raise ModelError(
            f"{name} does not fit the network",
            expected=tuple("any" if size is None else size for size in shape),
            got=tuple(x.shape),
        )


def require_months(months: int, max_months: int) -> None:
    """Raise ModelError unless 1 <= months <= max_months."""
    if not 1 <= months <= max_months:
        raise ModelError(
            "sequence length outside the network's range", expected=f"1..{max_months}", got=months
        )


def zero_init(layer: nn.Linear) -> nn.Linear:
    """The layer with weights and bias zero, so that what it adds starts at nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
