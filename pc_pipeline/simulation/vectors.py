"""Vector instructions for the kernel: eight or sixteen lanes a step, written in LLVM's portable vectors.

Here: numba intrinsics that read flat arrays at an offset without bounds or wraparound checks. Not here: what
is computed with them (`simulation.kernel`). LLVM splits the vectors to what the machine has (AVX-512, AVX2,
NEON), so results do not depend on the machine beyond the order of sums, which is fixed here.

Why by hand: numba's loops over 64 lanes store compares as bytes and gather them; here a compare *is* the word
of 64 bits. Offsets are elements of the flattened array; whoever calls keeps them inside.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pc_pipeline.simulation.rng import MULTIPLIER_0, MULTIPLIER_1, N_ROUNDS, WEYL_0, WEYL_1

LANES = 64
_BIT, _BYTE, _INT, _LONG = (ir.IntType(size) for size in (1, 8, 32, 64))
_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_WIDE, _HALF_BITS, _LOW = 8, 32, 0xFFFFFFFF
_LOOSE = ("contract", "reassoc", "nsz")
LISTED_AT_ONCE = 6  # bits listed without asking whether they are set


def _long(value: int) -> Any:
    return ir.Constant(_LONG, value)


def _same(kind: Any, value: float, n: int) -> Any:
    return ir.Constant(ir.VectorType(kind, n), [ir.Constant(kind, value)] * n)


def _spread(builder: Any, scalar: Any, n: int) -> Any:
    """A vector of n copies."""
    one = builder.insert_element(
        ir.Constant(ir.VectorType(scalar.type, n), ir.Undefined), scalar, ir.Constant(_INT, 0)
    )
    return builder.shuffle_vector(one, one, _same(_INT, 0, n))


def _shuffle(builder: Any, first: Any, second: Any, places: list[int]) -> Any:
    chosen = ir.Constant(ir.VectorType(_INT, len(places)), [ir.Constant(_INT, place) for place in places])
    return builder.shuffle_vector(first, second, chosen)


def _place(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(kind)(context, builder, value=array).data
    return builder.gep(data, [offset])


def _load(context: Any, builder: Any, kind: Any, array: Any, offset: Any, element: Any, n: int) -> Any:
    """n neighbours as a vector; arrays are aligned to their elements only."""
    place = builder.bitcast(
        _place(context, builder, kind, array, offset), ir.VectorType(element, n).as_pointer()
    )
    return builder.load(place, align=8 if element in (_LONG, _DOUBLE) else 4)


@intrinsic
def _read(typing_context: Any, array: Any, offset: Any) -> Any:
    """array.flat[offset]."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_place(context, builder, signature.args[0], *arguments))

    return array.dtype(array, types.int64), emit


@intrinsic
def _write(typing_context: Any, array: Any, offset: Any, value: Any) -> Any:
    """array.flat[offset] = value."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _place(context, builder, signature.args[0], *arguments[:2]))
        return context.get_dummy_value()

    return types.void(array, types.int64, array.dtype), emit


@intrinsic
def _lowest_bit(typing_context: Any, bits: Any) -> Any:
    """Place of the lowest set bit of a uint64 that is not zero."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(_BIT, 1))

    return types.int64(types.uint64), emit


@intrinsic
def _count_bits(typing_context: Any, bits: Any) -> Any:
    """Number of set bits."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), emit


@intrinsic
def _list_bits(typing_context: Any, bits: Any, base: Any, out: Any, n: Any) -> Any:
    """Write base + place of the lowest six set bits to out[n:]; the bits left over.

    Six are written whether set or not, so that nothing is guessed: places past the count are overwritten.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits, base, array, n = arguments
        for k in range(LISTED_AT_ONCE):
            place = builder.add(base, builder.cttz(bits, ir.Constant(_BIT, 0)))
            builder.store(place, _place(context, builder, signature.args[2], array, builder.add(n, _long(k))))
            bits = builder.and_(bits, builder.sub(bits, _long(1)))
        return bits

    return types.uint64(types.uint64, types.int64, out, types.int64), emit


@intrinsic
def _philox_lanes(
    typing_context: Any, key: Any, lane: Any, c2: Any, c3: Any, k0: Any, k1: Any, out: Any, at: Any
) -> Any:
    """Four uniforms each of eight lanes: keys at key.flat[lane:], word s to out.flat[at + 64 s:].

    Only the low half of a product's factors counts, so high halves need no clearing (`rng.philox`).
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        key, lane, c2, c3, k0, k1, out, at = arguments
        low, half = _same(_LONG, _LOW, _WIDE), _same(_LONG, _HALF_BITS, _WIDE)
        x0 = _load(context, builder, signature.args[0], key, lane, _LONG, _WIDE)
        x1 = builder.lshr(x0, half)
        x2, x3 = _spread(builder, c2, _WIDE), _spread(builder, c3, _WIDE)
        for _ in range(N_ROUNDS):
            product_0 = builder.mul(builder.and_(x0, low), _same(_LONG, MULTIPLIER_0, _WIDE))
            product_1 = builder.mul(builder.and_(x2, low), _same(_LONG, MULTIPLIER_1, _WIDE))
            x0 = builder.xor(builder.xor(builder.lshr(product_1, half), x1), _spread(builder, k0, _WIDE))
            x2 = builder.xor(builder.xor(builder.lshr(product_0, half), x3), _spread(builder, k1, _WIDE))
            x1, x3 = product_1, product_0
            k0 = builder.and_(builder.add(k0, _long(WEYL_0)), _long(_LOW))
            k1 = builder.and_(builder.add(k1, _long(WEYL_1)), _long(_LOW))
        for s, word in enumerate((x0, x1, x2, x3)):
            top = builder.lshr(builder.trunc(word, ir.VectorType(_INT, _WIDE)), _same(_INT, 8, _WIDE))
            u = builder.sitofp(top, ir.VectorType(_FLOAT, _WIDE))
            u = builder.fmul(u, _same(_FLOAT, 2.0**-24, _WIDE))
            place = _place(context, builder, signature.args[6], out, builder.add(at, _long(LANES * s)))
            builder.store(u, builder.bitcast(place, ir.VectorType(_FLOAT, _WIDE).as_pointer()), align=4)
        return context.get_dummy_value()

    word = types.uint64
    return types.void(key, types.int64, word, word, word, word, out, types.int64), emit


@intrinsic
def _reach_bits(typing_context: Any, u: Any, at: Any, level: Any) -> Any:
    """Bit i set where u.flat[at + i] >= level, 64 lanes."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        u, at, level = arguments
        values = _load(context, builder, signature.args[0], u, at, _FLOAT, LANES)
        reached = builder.fcmp_ordered(">=", values, _spread(builder, level, LANES))
        return builder.bitcast(reached, _LONG)

    return types.uint64(u, types.int64, types.float32), emit


@intrinsic
def _leave_bits(typing_context: Any, u: Any, at: Any, weight: Any, own: Any, row: Any, first: Any) -> Any:
    """Bit i set where u total >= w[0]; w[j] = row.flat[first + j] weight.flat[own + 64 j + i], 64 lanes."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        u, at, weight, own, row, first = arguments
        kinds, n = signature.args, 16
        base = [
            builder.load(_place(context, builder, kinds[4], row, builder.add(first, _long(j))))
            for j in range(6)
        ]

        def add(a: Any, b: Any) -> Any:
            return builder.fadd(a, b, flags=("contract",))

        bits = _long(0)
        for low in range(0, LANES, n):
            drawn = _load(context, builder, kinds[0], u, builder.add(at, _long(low)), _FLOAT, n)
            w = [
                builder.fmul(
                    _load(
                        context,
                        builder,
                        kinds[2],
                        weight,
                        builder.add(own, _long(LANES * j + low)),
                        _FLOAT,
                        n,
                    ),
                    _spread(builder, base[j], n),
                    flags=("contract",),
                )
                for j in range(6)
            ]
            total = add(add(add(w[0], w[1]), add(w[2], w[3])), add(w[4], w[5]))
            leaves = builder.fcmp_ordered(">=", builder.fmul(drawn, total), w[0])
            word = builder.zext(builder.bitcast(leaves, ir.IntType(n)), _LONG)
            bits = builder.or_(bits, builder.shl(word, _long(low)))
        return bits

    return types.uint64(u, types.int64, weight, types.int64, row, types.int64), emit


def _pick(builder: Any, weights: Any, u: Any) -> Any:
    """Place of u among the cumulative sums of the first six of eight weights, 0..5."""
    zero = _same(_FLOAT, 0.0, _WIDE)
    for step in (1, 2, 4):
        moved = _shuffle(builder, zero, weights, [_WIDE + i - step if i >= step else 0 for i in range(_WIDE)])
        weights = builder.fadd(weights, moved)
    total = builder.extract_element(weights, ir.Constant(_INT, 5))
    drawn = _spread(builder, builder.fmul(u, total), _WIDE)
    passed = builder.bitcast(builder.fcmp_ordered(">=", drawn, weights), _BYTE)
    return builder.zext(builder.ctpop(builder.and_(passed, ir.Constant(_BYTE, 0b11111))), _LONG)


@intrinsic
def _choose(typing_context: Any, row: Any, at: Any, u: Any) -> Any:
    """State moved to, 0..5: inverse of the cumulative weights row.flat[at:at + 6] at u."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, at, u = arguments
        return _pick(builder, _load(context, builder, signature.args[0], row, at, _FLOAT, _WIDE), u)

    return types.int64(row, types.int64, types.float32), emit


@intrinsic
def _choose_own(typing_context: Any, row: Any, at: Any, own: Any, own_at: Any, u: Any) -> Any:
    """`_choose` with weights row.flat[at + j] own.flat[own_at + j]."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, at, own, own_at, u = arguments
        shared = _load(context, builder, signature.args[0], row, at, _FLOAT, _WIDE)
        mine = _load(context, builder, signature.args[2], own, own_at, _FLOAT, _WIDE)
        return _pick(builder, builder.fmul(shared, mine), u)

    return types.int64(row, types.int64, own, types.int64, types.float32), emit


def _sum(builder: Any, vector: Any) -> Any:
    """Sum of eight: halves upon halves."""
    for n in (4, 2, 1):
        low = _shuffle(builder, vector, vector, list(range(n)))
        high = _shuffle(builder, vector, vector, list(range(n, 2 * n)))
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, ir.Constant(_INT, 0))


@intrinsic
def _instalments(
    typing_context: Any, bits: Any, schedule: Any, at: Any, rate: Any, floating: Any, lane: Any, index: Any
) -> Any:
    """(interest, principal) of one instalment of the lanes whose bit is set.

    Balance before and after at schedule.flat[at:] and 64 further; rate max(rate + floating index, 0).
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits, schedule, at, rate, floating, lane, index = arguments
        kinds, zero = signature.args, _same(_DOUBLE, 0.0, _WIDE)
        interest, principal, level = zero, zero, _spread(builder, index, _WIDE)
        for low in range(0, LANES, _WIDE):

            def lanes(kind: int, array: Any, start: Any, further: int = low) -> Any:
                offset = builder.add(start, _long(further))
                return _load(context, builder, kinds[kind], array, offset, _DOUBLE, _WIDE)

            before, after = lanes(1, schedule, at), lanes(1, schedule, at, low + LANES)
            indexed = builder.fmul(lanes(4, floating, lane), level, flags=_LOOSE)
            accrues = builder.fadd(lanes(3, rate, lane), indexed, flags=_LOOSE)
            accrues = builder.select(builder.fcmp_ordered(">", accrues, zero), accrues, zero)
            eight = builder.trunc(builder.lshr(bits, _long(low)), _BYTE)
            pays = builder.bitcast(eight, ir.VectorType(_BIT, _WIDE))
            owed = builder.select(pays, before, zero)
            interest = builder.fadd(interest, builder.fmul(owed, accrues, flags=_LOOSE), flags=_LOOSE)
            repaid = builder.select(pays, builder.fsub(before, after), zero)
            principal = builder.fadd(principal, repaid, flags=_LOOSE)
        sums = [_sum(builder, interest), _sum(builder, principal)]
        return context.make_tuple(builder, signature.return_type, sums)

    number, offset = types.float64, types.int64
    inputs = (types.uint64, schedule, offset, rate, floating, offset, number)
    return types.UniTuple(number, 2)(*inputs), emit


@intrinsic
def _luck_lanes(
    typing_context: Any,
    bits: Any,
    weight: Any,
    own: Any,
    row: Any,
    first: Any,
    worth: Any,
    at: Any,
    factor: Any,
    level: Any,
    out: Any,
    out_at: Any,
) -> Any:
    """(sum, sum of squares) over the lanes whose bit is set of worth if it stays less expected worth.

    Worth of move j is worth.flat[at + 64 j + i] factor.flat[level + j] for j < 4, without factor for default,
    nothing for prepaid; weights as in `leave_bits`. Expected worths go to out.flat[out_at:].
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits, weight, own, row, first, worth, at, factor, level, out, out_at = arguments
        kinds, n = signature.args, 16
        flags = ("contract", "reassoc", "nsz", "arcp")

        def scalar(kind: int, array: Any, offset: Any, j: int) -> Any:
            return builder.load(_place(context, builder, kinds[kind], array, builder.add(offset, _long(j))))

        base = [_spread(builder, scalar(3, row, first, j), n) for j in range(6)]
        scale = [_spread(builder, scalar(7, factor, level, j), n) for j in range(4)]
        scale.append(_same(_FLOAT, 1.0, n))
        total, squares = _same(_FLOAT, 0.0, n), _same(_FLOAT, 0.0, n)
        for low in range(0, LANES, n):

            def lanes(kind: int, array: Any, start: Any, j: int, low: int = low) -> Any:
                offset = builder.add(start, _long(LANES * j + low))
                return _load(context, builder, kinds[kind], array, offset, _FLOAT, n)

            w = [builder.fmul(lanes(1, weight, own, j), base[j], flags=flags) for j in range(6)]
            v = [builder.fmul(lanes(5, worth, at, j), scale[j], flags=flags) for j in range(5)]
            whole, expected = w[5], _same(_FLOAT, 0.0, n)
            for j in range(5):
                whole = builder.fadd(whole, w[j], flags=flags)
                expected = builder.fadd(expected, builder.fmul(w[j], v[j], flags=flags), flags=flags)
            expected = builder.fdiv(expected, whole, flags=flags)
            place = _place(context, builder, kinds[9], out, builder.add(out_at, _long(low)))
            builder.store(expected, builder.bitcast(place, ir.VectorType(_FLOAT, n).as_pointer()), align=4)
            some = builder.trunc(builder.lshr(bits, _long(low)), ir.IntType(n))
            some = builder.bitcast(some, ir.VectorType(_BIT, n))
            moved = builder.select(some, builder.fsub(v[0], expected), _same(_FLOAT, 0.0, n))
            total = builder.fadd(total, moved, flags=flags)
            squares = builder.fadd(squares, builder.fmul(moved, moved, flags=flags), flags=flags)
        sums = []
        for vector in (total, squares):
            low, high = (_shuffle(builder, vector, vector, list(range(k, k + 8))) for k in (0, 8))
            sums.append(builder.fpext(_sum(builder, builder.fadd(low, high)), _DOUBLE))
        return context.make_tuple(builder, signature.return_type, sums)

    word, offset, number = types.uint64, types.int64, types.float64
    inputs = (word, weight, offset, row, offset, worth, offset, factor, offset, out, offset)
    return types.UniTuple(number, 2)(*inputs), emit


# What `intrinsic` returns has no Python signature a type checker could use.
read: Any = _read
write: Any = _write
lowest_bit: Any = _lowest_bit
count_bits: Any = _count_bits
list_bits: Any = _list_bits
philox_lanes: Any = _philox_lanes
reach_bits: Any = _reach_bits
leave_bits: Any = _leave_bits
choose: Any = _choose
choose_own: Any = _choose_own
instalments: Any = _instalments
luck_lanes: Any = _luck_lanes
