"""Prototypes of CUDA kernels for batch normalization, as objects that probe.cpp links.

    python prototypes.py FOLDER

They show which schedules Halide compiles well and what those come to: results/h200-cuda.md. hbn's own kernels come
from generators/ and schedules/. These have no weight, bias and running statistics, and want sizes that are multiples of
what a thread reads.

A tensor is seen as vectors of 16 bytes: (v, q, c, n) in NCHW, q of a plane's vectors; (v, q, row) in NHWC, q of a
pixel's channels. bfloat16 is seen as uint32, two values a word: Halide's own casts of bfloat16 abort LLVM for CUDA.
"""

import sys
from pathlib import Path

import halide as hl

F32, F64, U32, I32 = hl.Float(32), hl.Float(64), hl.UInt(32), hl.Int(32)
MACHINE = "x86-64-linux-sse41-avx-avx2-f16c-fma-cuda-cuda_capability_80"
TARGET = hl.Target(MACHINE + "-no_asserts-no_bounds_query-no_runtime")
GUARDED = hl.TailStrategy.GuardWithIf

v, q, c, n, b, u, s, k, i, one, row = (hl.Var(name) for name in "v q c n b u s k i one row".split())
kk, jj, block, thread, rest = (hl.Var(name) for name in "kk jj block thread rest".split())

folder = Path(sys.argv[1])
names = []


def emit(f, args, name):
    """Compiles f as p_NAME."""
    outputs = {
        hl.OutputFileType.object: str(folder / f"{name}.o"),
        hl.OutputFileType.c_header: str(folder / f"{name}.h"),
    }
    f.compile_to(outputs, args, "p_" + name, TARGET)
    names.append(name)


def promise_vectors(tensor, lanes=4):
    """128-bit accesses need the alignment of the first vector and of each stride."""
    tensor.set_host_alignment(16)
    tensor.dim(0).set_bounds(0, lanes).set_stride(1)
    for d in range(1, tensor.dimensions()):
        tensor.dim(d).set_min(0).set_stride((tensor.dim(d).stride() // lanes) * lanes)
    return tensor


def tensor(type, dimensions, name, lanes=4):
    """An input of vectors."""
    return promise_vectors(hl.ImageParam(type, dimensions, name), lanes)


def table(type, name, columns, stride=None):
    """An input of `columns` values a channel: stride between them as given, or any."""
    t = hl.ImageParam(type, 2, name)
    t.dim(0).set_bounds(0, columns).set_stride(hl.Expr() if stride is None else stride)
    t.dim(1).set_min(0)
    return t


def planar(name):
    """An input of 4 values a channel, (channel, k)."""
    t = hl.ImageParam(F32, 2, name)
    t.set_host_alignment(16)
    t.dim(0).set_min(0).set_stride(1)
    t.dim(1).set_bounds(0, 4).set_stride((t.dim(1).stride() // 4) * 4)
    return t


def split(index, size, outer_size):
    """index % size and index // size, which Halide can't bound by itself where size is known at run time only.

    Unsigned, since a signed division rounds down in Halide, by more instructions.
    """
    inner = hl.i32(hl.u32(index) % hl.u32(size))
    outer = hl.i32(hl.u32(index) // hl.u32(size))
    return hl.unsafe_promise_clamped(inner, 0, size - 1), hl.unsafe_promise_clamped(outer, 0, outer_size - 1)


def low(word):
    """The first bfloat16 of a word."""
    return hl.reinterpret(F32, word << 16)


def high(word):
    """The second."""
    return hl.reinterpret(F32, word & hl.u32(0xFFFF0000))


def values(word, bf16):
    """A word's values in float32."""
    return [low(word), high(word)] if bf16 else [word]


def round_to_bfloat16(value):
    """To nearest even; there are no NaN here."""
    bits = hl.reinterpret(U32, value)
    return (bits + hl.u32(0x7FFF) + ((bits >> 16) & hl.u32(1))) >> 16


def pack(results):
    """A word of one float32 or two bfloat16."""
    return results[0] if len(results) == 1 else round_to_bfloat16(results[0]) | (round_to_bfloat16(results[1]) << 16)


def plus(sums, *terms):
    """Sums with a term added to each."""
    return tuple(sums[t] + term for t, term in enumerate(terms))


def zeros():
    """What sums begin with."""
    return hl.f64(0), hl.f64(0)


def sum_of_block(at, part, threads, name):
    """Sums over part(u, *at) in shared memory, 32 threads and then one; returns the Funcs to schedule by tree_at()."""
    per_lane, lanes = hl.RDom([(0, threads // 32)]), hl.RDom([(0, 32)])
    by_lane, total = hl.Func(name + "_by_lane"), hl.Func(name + "_total")
    by_lane[(s, *at)] = zeros()
    by_lane[(s, *at)] = plus(by_lane[(s, *at)], *(part[(s + 32 * per_lane, *at)][t] for t in (0, 1)))
    total[(one, *at)] = zeros()
    total[(one, *at)] = plus(total[(one, *at)], *(by_lane[(one * 32 + lanes, *at)][t] for t in (0, 1)))
    return by_lane, per_lane, total


def bound_to_one(f, dimensions):
    """Halide doesn't see that a block or thread has one of these, and would keep many in memory."""
    for d in dimensions:
        f.bound_extent(d, 1)
    return f


def tree_at(out, at, block_var, by_lane, per_lane, total):
    """Each level has a loop over threads of its own, the last with one."""
    bound_to_one(by_lane.compute_at(out, block_var).bound(s, 0, 32), at).gpu_threads(s)
    by_lane.update().gpu_threads(s).unroll(per_lane[0])
    bound_to_one(total.compute_at(out, block_var).bound(one, 0, 1), at).gpu_threads(one).update().gpu_threads(one)


def nchw_sums(name, bf16=False, backward=False, groups=False, loads=4):
    """Sums of a channel's part b: of d and d * d, or of dy and dy * d, d: x less its channel's first value, or mean.

    256 threads read vectors side by side, `loads` each before they use one. With groups, a vector's sums are float32.
    """
    type = U32 if bf16 else F32
    x, dy, coefficients = tensor(type, 4, "x"), tensor(type, 4, "dy"), table(F32, "coefficients", 4, 1)
    steps = hl.Param(I32, "steps")  # vectors a thread, a multiple of loads
    vectors, samples = x.dim(1).extent(), x.dim(3).extent()
    r = hl.RDom([(0, loads), (0, steps // loads)])

    def index(load, step):
        return b * (256 * steps) + (step * loads + load) * 256 + u

    in_plane, sample = split(hl.min(index(kk, jj), vectors * samples - 1), vectors, samples)
    loaded, center = [], hl.Func("center")
    for source in [x, dy] if backward else [x]:
        f = hl.Func("loaded")
        f[v, kk, jj, u, b, c] = source[v, in_plane, c, sample]
        loaded.append(f)
    center[c] = coefficients[0, c] if backward else values(x[0, 0, c, 0], bf16)[0]
    sums = [None, None]
    for lane in range(4):
        words = [values(f[lane, r[0], r[1], u, b, c], bf16) for f in loaded]
        for h, value in enumerate(words[0]):
            cast = hl.f32 if groups else hl.f64
            d = cast(value) - cast(center[c])
            first = cast(words[1][h]) if backward else d
            sums = [t if total is None else total + t for total, t in zip(sums, (first, first * d))]
    ok = index(r[0], r[1]) < vectors * samples
    local, part, out = hl.Func("local"), hl.Func("part"), hl.Func(name)
    local[u, b, c] = zeros()
    local[u, b, c] = plus(local[u, b, c], *(hl.select(ok, hl.f64(t), hl.f64(0)) for t in sums))
    part[u, b, c] = (local[u, b, c][0], local[u, b, c][1])
    tree = sum_of_block((b, c), part, 256, name)
    out[k, b, c] = hl.select(k == 0, tree[2][0, b, c][0], tree[2][0, b, c][1])

    out.output_buffer().dim(0).set_bounds(0, 2).set_stride(1)
    out.bound(k, 0, 2).fuse(b, c, block).reorder(k, block).gpu_blocks(block).gpu_threads(k)
    tree_at(out, (b, c), block, *tree)
    bound_to_one(part.compute_at(out, block).bound_extent(u, 256), (b, c)).gpu_threads(u)
    bound_to_one(local.compute_at(part, u), (u, b, c)).update().reorder(r[0], r[1]).unroll(r[0])
    for f in loaded:
        bound_to_one(f.compute_at(local, r[1]).bound_extent(kk, loads).bound(v, 0, 4), (jj, u, b, c))
        f.vectorize(v).unroll(kk)
    center.compute_at(part, u)
    emit(out, [dy, x, coefficients, steps] if backward else [x, steps], name)


def merge(name, backward=False, bf16=False, nhwc=False):
    """From sums (2, part, channel) coefficients: mean in two parts, 1 / standard deviation, 0.25 for a bias.

    Or, backward: mean in two parts, the mean of dy, the mean of dy * d over the variance.
    """
    sums, old = hl.ImageParam(F64, 3, "sums"), table(F32, "old", 4)
    sums.dim(0).set_bounds(0, 2).set_stride(1)
    x = hl.ImageParam(U32 if bf16 else F32, 4, "x")
    for d in range(4):
        x.dim(d).set_min(0)
    count, eps = hl.Param(F64, "count"), hl.Param(F64, "eps")
    parts = sums.dim(1).extent()
    r, lanes = hl.RDom([(0, (parts + 31) // 32)]), hl.RDom([(0, 32)])
    by_lane, total, out = hl.Func("by_lane"), hl.Func("total"), hl.Func(name)
    p = s + 32 * r
    at = hl.unsafe_promise_clamped(hl.min(p, parts - 1), 0, parts - 1)
    by_lane[s, c] = zeros()
    by_lane[s, c] = plus(by_lane[s, c], *(hl.select(p < parts, sums[t, at, c], hl.f64(0)) for t in (0, 1)))
    total[one, c] = zeros()
    total[one, c] = plus(total[one, c], *(by_lane[one * 32 + lanes, c][t] for t in (0, 1)))
    s1, s2 = total[0, c][0] / count, total[0, c][1]
    if backward:
        invstd = hl.f64(old[2, c])
        results = [hl.f64(old[0, c]), hl.f64(old[1, c]), s1, s2 / count * invstd * invstd]
    else:
        if bf16 and nhwc:
            first = hl.select(c % 2 == 0, low(x[0, 0, c // 2, 0]), high(x[0, 0, c // 2, 0]))
        else:
            first = values(x[0, 0, c, 0], bf16)[0]
        mean = hl.f64(first) + s1
        variance = hl.max(s2 / count - s1 * s1, hl.f64(0))
        in_float32 = hl.f64(hl.f32(mean))
        results = [in_float32, mean - in_float32, hl.f64(1) / hl.sqrt(variance + eps), hl.f64(0.25)]
    out[k, c] = hl.f32(hl.select(k == 0, results[0], k == 1, results[1], k == 2, results[2], results[3]))

    out.output_buffer().dim(0).set_bounds(0, 4).set_stride(hl.Expr())
    out.bound(k, 0, 4).gpu_blocks(c).gpu_threads(k)
    total.compute_at(out, c).bound_extent(one, 1).gpu_threads(one).update().gpu_threads(one)
    by_lane.compute_at(out, c).bound_extent(s, 32).gpu_threads(s).update().gpu_threads(s)
    emit(out, [sums, old, count] if backward else [sums, x, eps, count], name)


def mapped(coefficient, value, gradient, backward):
    """An element of the output from coefficient(k)."""
    d = (value - coefficient(0)) - coefficient(1)
    if backward:
        return (gradient - coefficient(2)) - d * coefficient(3)
    return d * coefficient(2) + coefficient(3)


def nchw_map(name, bf16=False, backward=False):
    """One vector a thread of a tensor seen as (v, vector): its channel follows by two divisions."""
    type = U32 if bf16 else F32
    x, dy, coefficients = tensor(type, 2, "x"), tensor(type, 2, "dy"), table(F32, "coefficients", 4, 1)
    coefficients.set_host_alignment(16)
    coefficients.dim(1).set_stride(4)
    vectors, channels = hl.Param(I32, "vectors"), hl.Param(I32, "channels")
    of_channel, y = hl.Func("of_channel"), hl.Func(name)
    of_channel[v, i] = coefficients[v, hl.i32((hl.u32(i) // hl.u32(vectors)) % hl.u32(channels))]
    words = zip(values(x[v, i], bf16), values(dy[v, i], bf16))
    y[v, i] = pack([mapped(lambda column: of_channel[column, i], value, g, backward) for value, g in words])

    promise_vectors(y.output_buffer())
    y.bound(v, 0, 4).vectorize(v).split(i, block, thread, 256, GUARDED).gpu_blocks(block).gpu_threads(thread)
    of_channel.compute_at(y, thread).bound(v, 0, 4).bound_extent(i, 1).vectorize(v)
    emit(y, ([dy] if backward else []) + [x, coefficients, vectors, channels], name)


def resident(name, bf16=False, threads=256):
    """Forward, a block a channel, which stays in shared memory between sums and map: x is read once."""
    x, eps = tensor(U32 if bf16 else F32, 4, "x"), hl.Param(F64, "eps")
    vectors, samples = x.dim(1).extent(), x.dim(3).extent()
    total_vectors = vectors * samples
    stage, word, center = hl.Func("stage"), hl.Func("word"), hl.Func("center")
    in_plane, sample = split(i, vectors, samples)
    stage[v, i, c] = x[v, in_plane, c, sample]
    first = values(x[0, 0, c, 0], bf16)[0]
    center[c] = first
    r = hl.RDom([(0, (total_vectors + threads - 1) // threads)])
    last = total_vectors - 1
    word[v, u, k, c] = stage[v, hl.unsafe_promise_clamped(hl.min(k * threads + u, last), 0, last), c]
    sums = [None, None]
    for lane in range(4):
        for value in values(word[lane, u, r, c], bf16):
            d = value - center[c] if bf16 else hl.f64(value) - hl.f64(center[c])
            sums = [t if total is None else total + t for total, t in zip(sums, (d, d * d))]
    local, part = hl.Func("local"), hl.Func("part")
    ok = r * threads + u < total_vectors
    local[u, c] = zeros()
    local[u, c] = plus(local[u, c], *(hl.select(ok, hl.f64(t), hl.f64(0)) for t in sums))
    part[u, c] = (local[u, c][0], local[u, c][1])
    tree = sum_of_block((c,), part, threads, name)
    count = hl.f64(total_vectors * (8 if bf16 else 4))
    s1 = tree[2][0, c][0] / count
    mean = hl.f64(first) + s1
    variance = hl.max(tree[2][0, c][1] / count - s1 * s1, hl.f64(0))
    in_float32 = hl.f64(hl.f32(mean))
    coefficients, y = hl.Func("coefficients"), hl.Func(name)
    invstd = hl.f64(1) / hl.sqrt(variance + eps)
    coefficients[one, c] = (hl.f32(mean), hl.f32(mean - in_float32), hl.f32(invstd), hl.f32(0.25))
    staged = values(stage[v, n * vectors + q, c], bf16)
    y[v, q, c, n] = pack([mapped(lambda column: coefficients[0, c][column], value, None, False) for value in staged])

    promise_vectors(y.output_buffer())
    y.output_buffer().dim(1).set_extent(vectors)
    y.output_buffer().dim(3).set_extent(samples)
    step = hl.Var("step")
    y.bound(v, 0, 4).reorder(v, q, n, c).fuse(q, n, rest).split(rest, step, thread, threads, GUARDED)
    y.reorder(v, step, thread, c).vectorize(v).gpu_blocks(c).gpu_threads(thread)
    stage.compute_at(y, c).store_in(hl.MemoryType.GPUShared).bound(i, 0, total_vectors).bound(v, 0, 4)
    bound_to_one(stage, (c,)).split(i, step, thread, threads, GUARDED).reorder(v, step, thread)
    stage.vectorize(v).gpu_threads(thread)
    bound_to_one(part.compute_at(y, c).bound(u, 0, threads), (c,)).gpu_threads(u)
    bound_to_one(local.compute_at(part, u), (u, c))
    bound_to_one(word.compute_at(local, r[0]).bound(v, 0, 4), (u, k, c)).vectorize(v)
    center.compute_at(part, u)
    tree_at(y, (c,), c, *tree)
    bound_to_one(coefficients.compute_at(y, c).bound(one, 0, 1), (c,)).gpu_threads(one)
    emit(y, [x, eps], name)


def nhwc_sums(name, bf16=False, backward=False, rows_in_group=4, wide=16, deep=8):
    """The same sums as nchw_sums, of wide x deep threads, 4 channels each; groups of rows are summed in float32.

    bfloat16 is read in vectors of 8 bytes: with 8 channels a thread, sums spill from 64 registers.
    """
    type, lanes = (U32, 2) if bf16 else (F32, 4)
    x, dy, center = tensor(type, 3, "x", lanes), tensor(type, 3, "dy", lanes), planar("center")
    steps = hl.Param(I32, "steps")  # rows a thread
    rows, vectors = x.dim(2).extent(), x.dim(1).extent()
    ux, uy, group, e, channel = (hl.Var(z) for z in "ux uy group e channel".split())
    at = (group, b)

    def row_of(in_group, step):
        return b * (steps * deep) + (step * rows_in_group + in_group) * deep + uy

    vector = hl.min(group * wide + ux, vectors - 1)
    loaded, first = [], hl.Func("first")
    for source in [x, dy] if backward else [x]:
        f = hl.Func("loaded")
        f[v, kk, jj, ux, uy, group, b] = source[v, vector, hl.min(row_of(kk, jj), rows - 1)]
        loaded.append(f)

    def of_channel(word):  # a function of a lane, at e
        return hl.select(e % 2 == 0, low(word(e // 2)), high(word(e // 2))) if bf16 else word(e)

    if backward:
        first[e, ux, group] = center[vector * 4 + e, 0]
    else:
        first[e, ux, group] = of_channel(lambda lane: x[lane, vector, 0])
    r = hl.RDom([(0, (steps + rows_in_group - 1) // rows_in_group)])
    sums = [None, None]
    for g in range(rows_in_group):
        ok = (row_of(g, r) < rows) & (r * rows_in_group + g < steps)
        value = [of_channel(lambda lane, f=f: f[lane, g, r, ux, uy, group, b]) for f in loaded]
        d = value[0] - first[e, ux, group]
        terms = [hl.select(ok, t, hl.f32(0)) for t in ((value[1], value[1] * d) if backward else (d, d * d))]
        sums = [t if total is None else total + t for total, t in zip(sums, terms)]
    local, part, tree, out = hl.Func("local"), hl.Func("part"), hl.Func("tree"), hl.Func(name)
    local[e, ux, uy, group, b] = zeros()
    local[e, ux, uy, group, b] = plus(local[e, ux, uy, group, b], *(hl.f64(t) for t in sums))
    part[e, ux, uy, group, b] = (local[e, ux, uy, group, b][0], local[e, ux, uy, group, b][1])
    over = hl.RDom([(0, deep)])
    tree[e, ux, group, b] = zeros()
    tree[e, ux, group, b] = plus(tree[e, ux, group, b], *(part[e, ux, over, group, b][t] for t in (0, 1)))
    of_vector = tree[channel % 4, (channel // 4) % wide, channel // (4 * wide), b]
    out[k, b, channel] = hl.select(k == 0, of_vector[0], of_vector[1])

    out.output_buffer().dim(0).set_bounds(0, 2).set_stride(1)
    out.output_buffer().dim(1).set_min(0)
    out.output_buffer().dim(2).set_min(0)
    outer, inner = hl.Var("outer"), hl.Var("inner")
    out.bound(k, 0, 2).split(channel, outer, inner, 4 * wide, GUARDED).split(inner, thread, rest, 4)
    out.reorder(k, rest, thread, outer, b).fuse(outer, b, block).gpu_blocks(block).gpu_threads(thread)
    out.unroll(k).unroll(rest)
    bound_to_one(tree.compute_at(out, block).bound_extent(e, 4).bound_extent(ux, wide), at)
    tree.reorder(e, ux).unroll(e).gpu_threads(ux)
    tree.update().reorder(e, over[0], ux).unroll(e).gpu_threads(ux)
    bound_to_one(part.compute_at(out, block).bound_extent(e, 4).bound_extent(ux, wide).bound_extent(uy, deep), at)
    part.reorder(e, ux, uy).unroll(e).gpu_threads(ux, uy)
    bound_to_one(local.compute_at(part, ux).bound_extent(e, 4), (ux, uy, *at)).unroll(e)
    local.update().reorder(e, r[0]).unroll(e)
    bound_to_one(first.compute_at(part, ux).bound_extent(e, 4), (ux, group)).unroll(e)
    for f in loaded:
        bound_to_one(f.compute_at(local, r[0]).bound(v, 0, lanes).bound_extent(kk, rows_in_group), (jj, ux, uy, *at))
        f.vectorize(v).unroll(kk)
    emit(out, [dy, x, center, steps] if backward else [x, steps], name)


def nhwc_map(name, bf16=False, backward=False, rows=8, wide=16, deep=16):
    """Each thread keeps its channels' coefficients and walks `rows` rows."""
    type, per_vector = (U32, 8) if bf16 else (F32, 4)
    x, dy, coefficients = tensor(type, 3, "x"), tensor(type, 3, "dy"), planar("coefficients")
    y, halves = hl.Func(name), []
    for half in range(2 if bf16 else 1):
        f = hl.Func(f"coefficients_{half}")
        f[v, k, q] = coefficients[q * per_vector + (v * 2 + half if bf16 else v), k]
        halves.append(f)
    words = zip(halves, values(x[v, q, row], bf16), values(dy[v, q, row], bf16))
    y[v, q, row] = pack([mapped(lambda column, f=f: f[v, column, q], value, g, backward) for f, value, g in words])

    promise_vectors(y.output_buffer())
    outer, inner, group, step, in_step = (hl.Var(z) for z in "outer inner group step in_step".split())
    y.bound(v, 0, 4).vectorize(v).split(q, outer, inner, wide, GUARDED)
    y.split(row, group, rest, deep * rows, GUARDED).split(rest, step, in_step, deep)
    y.reorder(v, step, inner, in_step, outer, group).fuse(outer, group, block).gpu_blocks(block)
    y.gpu_threads(inner, in_step).unroll(step)
    for f in halves:
        f.compute_at(y, inner).bound(v, 0, 4).bound(k, 0, 4).bound_extent(q, 1).unroll(k)
        f.unroll(v) if bf16 else f.vectorize(v)
    emit(y, ([dy] if backward else []) + [x, coefficients], name)


folder.mkdir(parents=True, exist_ok=True)
for dtype, is_bf16 in (("float32", False), ("bfloat16", True)):
    nchw_sums(f"nchw_sums_{dtype}", is_bf16, groups=is_bf16)
    nchw_sums(f"nchw_backward_sums_{dtype}", is_bf16, backward=True, groups=is_bf16, loads=2)
    nchw_map(f"nchw_map_{dtype}", is_bf16)
    nchw_map(f"nchw_backward_map_{dtype}", is_bf16, backward=True)
    resident(f"resident_{dtype}", is_bf16)
    nhwc_sums(f"nhwc_sums_{dtype}", is_bf16, rows_in_group=8 if is_bf16 else 4)
    nhwc_sums(f"nhwc_backward_sums_{dtype}", is_bf16, backward=True)
    nhwc_map(f"nhwc_map_{dtype}", is_bf16)
    nhwc_map(f"nhwc_backward_map_{dtype}", is_bf16, backward=True, rows=4)
    merge(f"merge_nchw_{dtype}", bf16=is_bf16)
    merge(f"merge_nhwc_{dtype}", bf16=is_bf16, nhwc=True)
merge("merge_backward", backward=True)
hl.compile_standalone_runtime(str(folder / "runtime.o"), hl.Target(MACHINE))
(folder / "all.h").write_text("".join(f'#include "{name}.h"\n' for name in names))
