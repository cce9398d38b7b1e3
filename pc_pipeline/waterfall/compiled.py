"""The rules as machine code, generated from the rules themselves.

Here: `TraceOps`, which records one payment date of `rules.run_month` as straight-line arithmetic, and
`run_compiled`, which loops that arithmetic over dates and paths under numba. Not here: any rule. Because
the code is recorded from the one definition, it cannot say anything else; the order of operations is kept,
so that the results agree with the array engine to the last bits (tests hold them to it).

A deal is recorded once for its terms (2-6 s of compiling) and kept for the process.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np

from pc_pipeline.waterfall.ops import GATE_TOLERANCE, TINY
from pc_pipeline.waterfall.plan import Plan
from pc_pipeline.waterfall.rules import run_month

MOST_THREADS = 8
BLOCK_PATHS = 1024  # whose state stays in cache while the dates go by
_CACHE: dict[str, Callable[..., Any]] = {}


class Symbol:
    """A number not known yet: a name in the recorded code."""

    __slots__ = ("name", "tape")

    def __init__(self, tape: Tape, name: str) -> None:
        self.tape, self.name = tape, name

    def __add__(self, other: Any) -> Any:
        return self.tape.binary("+", self, other)

    def __radd__(self, other: Any) -> Any:
        return self.tape.binary("+", other, self)

    def __sub__(self, other: Any) -> Any:
        return self.tape.binary("-", self, other)

    def __rsub__(self, other: Any) -> Any:
        return self.tape.binary("-", other, self)

    def __mul__(self, other: Any) -> Any:
        return self.tape.binary("*", self, other)

    def __rmul__(self, other: Any) -> Any:
        return self.tape.binary("*", other, self)

    def __truediv__(self, other: Any) -> Any:
        return self.tape.binary("/", self, other)

    def __neg__(self) -> Any:
        return self.tape.emit(f"-{self.name}")


class Tape:
    """Recorded lines; equal expressions are recorded once."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.known: dict[str, Symbol] = {}

    def emit(self, expression: str) -> Symbol:
        """A symbol for an expression."""
        if expression not in self.known:
            symbol = Symbol(self, f"v{len(self.lines)}")
            self.lines.append(f"{symbol.name} = {expression}")
            self.known[expression] = symbol
        return self.known[expression]

    def binary(self, sign: str, a: Any, b: Any) -> Any:
        """a sign b, with what changes nothing left out."""
        if sign == "*" and (_is(a, 1.0) or _is(b, 1.0)):
            return b if _is(a, 1.0) else a
        if sign in "+-" and _is(b, 0.0):
            return a
        if sign == "+" and _is(a, 0.0):
            return b
        return self.emit(f"{literal(a)} {sign} {literal(b)}")


def _is(value: Any, number: float) -> bool:
    return not isinstance(value, Symbol) and float(value) == number


def literal(value: Any) -> str:
    """How a symbol or number is written in the recorded code."""
    if isinstance(value, Symbol):
        return value.name
    number = float(value)
    if math.isinf(number):
        return "INF" if number > 0 else "-INF"
    return f"({number!r})"


class TraceOps:
    """The operations of `ops.Ops`, recorded instead of done; numbers that are known are folded."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape

    def minimum(self, a: Any, b: Any) -> Any:
        return self._call("lower", min, a, b)

    def maximum(self, a: Any, b: Any) -> Any:
        return self._call("higher", max, a, b)

    def gate(self, x: Any, threshold: Any) -> Any:
        return self.tape.emit(f"at_least({literal(x - threshold)})")

    def positive(self, x: Any) -> Any:
        return self.tape.emit(f"above_zero({literal(x)})")

    def ratio(self, a: Any, b: Any, otherwise: float) -> Any:
        return self.tape.emit(f"quotient({literal(a)}, {literal(b)}, {literal(otherwise)})")

    def round_to(self, x: Any, unit: float) -> Any:
        return self.tape.emit(f"rounded({literal(x)}, {literal(unit)})") if unit > 0 else x

    def power(self, base: Any, exponent: Any) -> Any:
        return self.tape.emit(f"{literal(base)} ** {literal(exponent)}")

    def _call(self, name: str, known: Callable[[float, float], float], a: Any, b: Any) -> Any:
        if not isinstance(a, Symbol) and not isinstance(b, Symbol):
            return known(float(a), float(b))
        return self.tape.emit(f"{name}({literal(a)}, {literal(b)})")


@numba.njit(inline="always")
def _lower(a: float, b: float) -> float:
    return a if a < b else b


@numba.njit(inline="always")
def _higher(a: float, b: float) -> float:
    return a if a > b else b


@numba.njit(inline="always")
def _at_least(distance: float) -> float:
    return 1.0 if distance >= -GATE_TOLERANCE else 0.0


@numba.njit(inline="always")
def _above_zero(x: float) -> float:
    return 1.0 if x > 0.0 else 0.0


@numba.njit(inline="always")
def _quotient(a: float, b: float, otherwise: float) -> float:
    return a / b if b > TINY else otherwise


@numba.njit(inline="always")
def _rounded(x: float, unit: float) -> float:
    return np.floor(x / unit + 0.5 + GATE_TOLERANCE) * unit


def record_month(plan: Plan, inputs: tuple[str, ...], places: Mapping[str, int]) -> str:
    """Python source of a function over all paths and dates, one payment date recorded inside.

    Args:
        inputs: names of the cash figures that come by path and date.
        places: where each figure is stored.
    """
    tape = Tape()
    state = {name: Symbol(tape, f"s{i}") for i, name in enumerate(plan.state)}
    constants = {name: Symbol(tape, f"k[t, {i}]") for i, name in enumerate(plan.constants)}
    loads = {name: Symbol(tape, f"k{i}") for i, name in enumerate(plan.constants)}
    cash: dict[str, Any] = {"other_interest": 0.0, "other_principal": 0.0, "delinquent": 0.0}
    cash["ysoc"] = loads["ysoc"]
    cash |= {name: Symbol(tape, f"c{i}") for i, name in enumerate(inputs)}
    carried, out = run_month(TraceOps(tape), plan, state, cash, loads)
    body = [f"s{i} = state[{i}, p - first]" for i in range(len(plan.state))]
    body += [f"c{i} = cash[{i}, t, p - first]" for i in range(len(inputs))]
    body += tape.lines
    body += [f"figures[{places[name]}, t, p] = {literal(value)}" for name, value in out.items()]
    body += [f"state[{i}, p - first] = {literal(carried[name])}" for i, name in enumerate(plan.state)]
    lines = ["def run(cash, k, state, figures, first, last):", "    for t in range(cash.shape[1]):"]
    lines += [f"        k{i} = {symbol.name}" for i, symbol in enumerate(constants.values())]
    lines += ["        for p in range(first, last):"]
    lines += [f"            {line}" for line in body]
    return "\n".join(lines) + "\n"


def compile_month(source: str) -> Callable[..., Any]:
    """The recorded source under numba, kept for the process."""
    key = hashlib.sha256(source.encode()).hexdigest()
    if key not in _CACHE:
        names = {
            "lower": _lower,
            "higher": _higher,
            "at_least": _at_least,
            "above_zero": _above_zero,
            "quotient": _quotient,
            "rounded": _rounded,
            "INF": math.inf,
        }
        exec(compile(source, f"<deal {key[:8]}>", "exec"), names)  # the text is recorded above, never read in
        function: Any = names["run"]
        _CACHE[key] = numba.njit(error_model="numpy", nogil=True)(function)
    return _CACHE[key]


def run_compiled(
    plan: Plan, inputs: Mapping[str, np.ndarray], places: Mapping[str, int], n_paths: int
) -> np.ndarray:
    """(J, T, P) every recorded figure.

    Blocks of paths run on up to `MOST_THREADS` threads; the figures do not depend on how many.

    Args:
        inputs: cash figures by name, (T,) or (P, T).
        places: see `record_month`.
    """
    names = tuple(inputs)
    run = compile_month(record_month(plan, names, places))
    constants = np.stack([np.asarray(values, dtype=np.float64) for values in plan.constants.values()], axis=1)
    start = np.array([float(value) for value in plan.state.values()])
    series = [np.asarray(inputs[name], dtype=np.float64) for name in names]
    figures = np.zeros((len(places), plan.n_periods, n_paths))

    def run_block(first: int) -> None:
        last = min(first + BLOCK_PATHS, n_paths)
        cash = np.empty((len(names), plan.n_periods, last - first))
        for place, values in enumerate(series):
            one_for_all = values.ndim == 1 or len(values) == 1
            cash[place] = values.reshape(-1, 1) if one_for_all else values[first:last].T
        run(cash, constants, np.repeat(start[:, None], last - first, axis=1), figures, first, last)

    blocks = range(0, n_paths, BLOCK_PATHS)
    with ThreadPoolExecutor(max(min(os.cpu_count() or 1, MOST_THREADS, len(blocks)), 1)) as pool:
        list(pool.map(run_block, blocks))
    return figures
