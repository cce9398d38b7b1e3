"""The rules as machine code, generated from the rules themselves.

Here: `TraceOps`, which records one payment date of `rules.run_month` as straight-line arithmetic, and
`run_compiled`, which loops that arithmetic over dates and paths under numba. Not here: any rule. Because
the code is recorded from the one definition, it cannot say anything else; the order of operations is kept,
so that the results agree with the array engine to the last bits (tests hold them to it).

Paths go in lanes of `LANES`: state, collections and figures of a lane stand in one small array, at distances
the compiler knows, so that it turns the arithmetic into vector instructions. A deal is recorded once for its
terms (2-3 s of compiling) and kept for the process.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np

from pc_pipeline.waterfall.ops import GATE_TOLERANCE, TINY
from pc_pipeline.waterfall.plan import Plan
from pc_pipeline.waterfall.rules import run_month

MOST_THREADS = 8
LANES = 128  # paths worked on together; their rows of 1 KB each stay in cache while the dates go by
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


def _scalar(function: Callable[..., Any]) -> Callable[..., Any]:
    return numba.njit(forceinline=True, error_model="numpy")(function)


@_scalar
def _lower(a: float, b: float) -> float:
    return a if a < b else b


@_scalar
def _higher(a: float, b: float) -> float:
    return a if a > b else b


@_scalar
def _at_least(distance: float) -> float:
    return 1.0 if distance >= -GATE_TOLERANCE else 0.0


@_scalar
def _above_zero(x: float) -> float:
    return 1.0 if x > 0.0 else 0.0


@_scalar
def _quotient(a: float, b: float, otherwise: float) -> float:
    ratio = a / b  # taken always: a choice between two numbers needs no branch
    return ratio if b > TINY else otherwise


@_scalar
def _rounded(x: float, unit: float) -> float:
    return np.floor(x / unit + 0.5 + GATE_TOLERANCE) * unit


@numba.njit
def _begin(lanes: np.ndarray, start: np.ndarray) -> None:
    for row in range(len(start)):
        lanes[row * LANES : (row + 1) * LANES] = start[row]


@numba.njit
def _take(lanes: np.ndarray, cash: np.ndarray, t: int, first: int, width: int, row: int) -> None:
    for place in range(len(cash)):
        at = (row + place) * LANES
        lanes[at : at + width] = cash[place, t, first : first + width]


@numba.njit
def _give(lanes: np.ndarray, figures: np.ndarray, t: int, first: int, width: int, row: int) -> None:
    for place in range(len(figures)):
        at = (row + place) * LANES
        figures[place, t, first : first + width] = lanes[at : at + width]


def record_month(plan: Plan, inputs: tuple[str, ...], figures: Sequence[str]) -> str:
    """Python source of a function over all paths and dates, one payment date recorded inside.

    Args:
        inputs: names of the cash figures that come by path and date.
        figures: what is recorded, in order; what a deal does not have is zero.
    """
    tape = Tape()
    state = {name: Symbol(tape, f"s{i}") for i, name in enumerate(plan.state)}
    loads = {name: Symbol(tape, f"k{i}") for i, name in enumerate(plan.constants)}
    cash: dict[str, Any] = {"other_interest": 0.0, "other_principal": 0.0, "delinquent": 0.0}
    cash["ysoc"] = loads["ysoc"]
    cash |= {name: Symbol(tape, f"c{i}") for i, name in enumerate(inputs)}
    carried, out = run_month(TraceOps(tape), plan, state, cash, loads)
    n_state, n_inputs = len(plan.state), len(inputs)
    n_before = n_state + n_inputs
    body = ["u = np.uint64(i)"]  # unsigned: no check for places counted from the end
    body += [f"s{i} = lanes[u + R{i}]" for i in range(n_state)]
    body += [f"c{i} = lanes[u + R{n_state + i}]" for i in range(n_inputs)]
    body += tape.lines
    body += [f"lanes[u + R{n_before + i}] = {literal(out.get(name, 0.0))}" for i, name in enumerate(figures)]
    body += [f"lanes[u + R{i}] = {literal(carried[name])}" for i, name in enumerate(plan.state)]
    lines = [
        "def run(cash, k, start, figures, first, last):",
        f"    lanes = np.zeros({(n_before + len(figures)) * LANES})",
        f"    for path in range(first, last, {LANES}):",
        f"        width = min({LANES}, last - path)",
        "        begin(lanes, start)",
        "        for t in range(cash.shape[1]):",
        f"            take(lanes, cash, t, path, width, {n_state})",
    ]
    lines += [f"            k{i} = k[t, {i}]" for i in range(len(plan.constants))]
    lines += [f"            for i in range({LANES}):"]
    lines += [f"                {line}" for line in body]
    lines += [f"            give(lanes, figures, t, path, width, {n_before})"]
    return "\n".join(lines) + "\n"


def compile_month(source: str, n_rows: int) -> Callable[..., Any]:
    """The recorded source under numba, kept for the process."""
    key = hashlib.sha256(source.encode()).hexdigest()
    if key not in _CACHE:
        names: dict[str, Any] = {f"R{row}": np.uint64(row * LANES) for row in range(n_rows)}
        names |= {"lower": _lower, "higher": _higher, "at_least": _at_least, "above_zero": _above_zero}
        names |= {"quotient": _quotient, "rounded": _rounded, "INF": math.inf, "np": np}
        names |= {"begin": _begin, "take": _take, "give": _give}
        exec(compile(source, f"<deal {key[:8]}>", "exec"), names)  # the text is recorded above, never read in
        function: Any = names["run"]
        _CACHE[key] = numba.njit(error_model="numpy", nogil=True)(function)
    return _CACHE[key]


def run_compiled(
    plan: Plan, inputs: Mapping[str, np.ndarray], recorded: Sequence[str], n_paths: int
) -> np.ndarray:
    """(J, T, P) every recorded figure.

    Paths are shared among up to `MOST_THREADS` threads; the figures do not depend on how many.

    Args:
        inputs: cash figures by name, (T,) or (P, T).
        recorded: names of the figures, see `engine.figure_places`.
    """
    names = tuple(inputs)
    n_rows = len(plan.state) + len(names) + len(recorded)
    run = compile_month(record_month(plan, names, recorded), n_rows)
    constants = np.stack([np.asarray(values, dtype=np.float64) for values in plan.constants.values()], axis=1)
    start = np.array([float(value) for value in plan.state.values()])
    cash = np.empty((len(names), plan.n_periods, n_paths))
    for place, values in enumerate(inputs.values()):
        series = np.asarray(values, dtype=np.float64)
        cash[place] = series.reshape(-1, 1) if series.ndim == 1 or len(series) == 1 else series.T
    figures = np.empty((len(recorded), plan.n_periods, n_paths))
    n_threads = min(os.cpu_count() or 1, MOST_THREADS)
    share = -(-n_paths // (n_threads * LANES)) * LANES

    def run_share(first: int) -> None:
        run(cash, constants, start, figures, first, min(first + share, n_paths))

    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(run_share, range(0, n_paths, share)))
    return figures
