"""Infinities, NaN and values at the ends of a dtype's range: every layout and path gives what IEEE's arithmetic gives.

The reference is the formula in long double, whose range holds the square of every float64. Where a result is finite, it
is right within the usual bounds; where it is not, it is the limit: one +inf makes a channel's mean +inf, and all that
subtracts the mean from it NaN. float64 has limits of its own, which PyTorch shares: a sum of squares beyond 1.8e308 is
infinite, so that invstd is 0 and y is bias; sums of dy * (x - mean) beyond it leave gradients that are no numbers.
"""

import functools
import itertools

import numpy as np
import pytest
import torch
from test_arrays import (
    EPS,
    NUMPY_DTYPES,
    REAL,
    ROUNDOFF,
    Statistics,
    gradients,
    m2_error,
    make,
    mean_error,
    normalized,
    per_channel,
    real,
    rounded_to,
    statistic,
)

import hbn

NAN, INF = np.nan, np.inf
LARGEST = {"float32": 3.4028234e38, "float64": 1.79e308, "float16": 65504.0, "bfloat16": 3.3895313892515355e38}
LEAST = {"float32": 1.4e-45, "float64": 5e-324, "float16": 6e-8, "bfloat16": 9.2e-41}


def channels_last(x):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def cropped(x):
    """Of a larger array, in each dimension but the channels'."""
    larger = np.zeros([x.shape[0], x.shape[1], *(size + 1 for size in x.shape[2:])], x.dtype)
    view = larger[(slice(None), slice(None), *(slice(1, None) for _ in x.shape[2:]))]
    view[...] = x
    return view


def cropped_last(x):
    larger = np.zeros([x.shape[0], *(size + 1 for size in x.shape[2:]), x.shape[1]], x.dtype)
    view = np.moveaxis(larger[(slice(None), *(slice(1, None) for _ in x.shape[2:]))], -1, 1)
    view[...] = x
    return view


def every_second(x):
    larger = np.zeros([*x.shape[:-1], 2 * x.shape[-1]], x.dtype)
    view = larger[..., ::2]
    view[...] = x
    return view


# One or more for each of the layouts that kernels have, and shapes that end within a vector or take several tiles: the
# sizes but for the channels.
FORMS = {
    "planes": ((3, 9, 23), np.ascontiguousarray),
    "blocks": ((33, 6, 7), np.ascontiguousarray),
    "few_channels": ((2, 47, 47), np.ascontiguousarray),
    "planes_of_tiles": ((2, 130, 130), np.ascontiguousarray),
    "narrow": ((6, 1, 3), np.ascontiguousarray),
    "rows": ((3, 9, 23), channels_last),
    "rows_of_tiles": ((2, 48, 48), channels_last),
    "narrow_rows": ((3, 2, 3), channels_last),
    "planes_cropped": ((3, 9, 23), cropped),
    "rows_cropped": ((3, 9, 11), cropped_last),
    "strided": ((3, 9, 23), every_second),
    "features": ((50,), np.ascontiguousarray),
    "volumes": ((2, 3, 5, 7), np.ascontiguousarray),
    "volumes_last": ((2, 3, 5, 7), channels_last),
}


# What a channel of M values holds: from normally distributed values z, and the places of two of them.
def put(*values):
    def fill(z, places, dtype):
        filled = z.copy()
        for place, value in zip(places, values, strict=False):
            filled[place] = value
        return filled

    return fill


SPECIALS = {
    "inf": put(INF),
    "minus_inf": put(-INF),
    "inf_twice": put(INF, INF),
    "both_infs": put(INF, -INF),
    "nan": put(NAN),
    "nan_and_inf": put(NAN, INF),
    "all_inf": lambda z, places, dtype: np.full_like(z, INF),
    "largest": lambda z, places, dtype: np.full_like(z, LARGEST[dtype]),
    "largest_and_inf": lambda z, places, dtype: put(INF)(np.full_like(z, LARGEST[dtype]), places, dtype),
    "plus_minus_largest": lambda z, places, dtype: np.where(z < 0, -1.0, 1.0) * LARGEST[dtype],
    "near_largest": lambda z, places, dtype: LARGEST[dtype] * (1 - np.abs(z) / 1024),
    "denormal": lambda z, places, dtype: z * 8 * LEAST[dtype],
    "least": lambda z, places, dtype: np.sign(z) * LEAST[dtype],
    "outlier": lambda z, places, dtype: put(LARGEST[dtype] / 1e3)(z, places, dtype),
    "1e200": lambda z, places, dtype: z * 1e200,
    "mean_1e200": lambda z, places, dtype: (z + 4) * 1e200,
    "constant_1e200": lambda z, places, dtype: np.full_like(z, 1e200),
    "constant_1e200_but_one": lambda z, places, dtype: put(1.5e200)(np.full_like(z, 1e200), places, dtype),
    "1e154": lambda z, places, dtype: z * 1e154,
    "mean_1e151": lambda z, places, dtype: (z + 10) * 1e150,
    "outlier_1e200": lambda z, places, dtype: put(1e200)(z, places, dtype),
}
FLOAT64_ONLY = [name for name in SPECIALS if "1e1" in name or "1e2" in name]


def specials_of(dtype, form):
    if form == "planes_of_tiles":  # large
        return ["inf", "both_infs", "plus_minus_largest", "near_largest"]
    return [name for name in SPECIALS if dtype == "float64" or name not in FLOAT64_ONLY]


PLACES = {"first": (0, -1), "last": (-1, 0)}


class Case:
    """The same tensors with and without special channels, each beside an ordinary one."""

    def __init__(self, dtype, form, place, of="x", only=tuple(SPECIALS)):
        (n, *spatial), lay_out = FORMS[form]
        self.channels = []
        self.beyond = ["plus_minus_largest"]  # whose sums of gradients are beyond float64
        for i, special in enumerate(name for name in specials_of(dtype, form) if name in only):
            self.channels += [special] if i % 3 else [None, special]
        self.dtype, self.shape = dtype, (n, len(self.channels), *spatial)
        self.ndim = len(self.shape)
        rng = np.random.default_rng(self.shape[1])
        count = n * int(np.prod(spatial))
        tensors = {name: rng.normal(mean, 1, self.shape) for name, mean in [("x", 0.5), ("dy", 0.25), ("tangent", 0)]}
        self.weight, self.bias = (
            make("torch", rng.uniform(0.5, 1.5, self.shape[1]), statistic(dtype)),
            make("torch", rng.normal(0, 1, self.shape[1]), statistic(dtype)),
        )
        self.clean = {name: make("torch", lay_out(values), dtype) for name, values in tensors.items()}
        channels = np.moveaxis(tensors[of], 1, 0).reshape(self.shape[1], -1)
        for c, special in enumerate(self.channels):
            if special:
                channels[c] = SPECIALS[special](rng.normal(0, 1, count), PLACES[place], dtype)
        tensors[of] = np.moveaxis(channels.reshape(self.shape[1], n, *spatial), 0, 1)
        self.dirty = {**self.clean, of: make("torch", lay_out(tensors[of]), dtype)}

    def tensors(self, dirty):
        t = self.dirty if dirty else self.clean
        return t["x"], t["dy"], t["tangent"]


def running(c):
    return torch.full_like(c.weight, 0.25), torch.full_like(c.weight, 2.0)


def training_results(c, dirty):
    """Results of every path by which batch statistics are used: {path: {name: array}}."""
    x, dy, tangent = c.tensors(dirty)
    mean, var = running(c)
    y, save_mean, invstd = hbn.batch_norm_forward(x, c.weight, c.bias, mean, var, training=True, momentum=0.25)
    results = {"forward": {"y": y, "mean": save_mean, "invstd": invstd, "running_mean": mean, "running_var": var}}

    for residual in (None, torch.zeros_like(x)):
        mean, var = running(c)
        given = (x, residual, c.weight, c.bias, mean, var)
        relu, mask, fused_mean, fused_invstd = hbn.batch_norm_activation_forward(
            *given, activation="relu", training=True, momentum=0.25
        )
        dx, _, dw, db = hbn.batch_norm_activation_backward(
            dy, x, None, mask, c.weight, c.bias, fused_mean, fused_invstd, None, None, activation="relu", training=True
        )
        results["relu" if residual is None else "add_relu"] = {
            "relu": relu, "mean": fused_mean, "invstd": fused_invstd, "running_mean": mean, "running_var": var,
            "relu_grad_input": dx, "relu_grad_weight": dw, "relu_grad_bias": db,
        }  # fmt: skip
    mean, var = running(c)
    _, _, fused_mean, fused_invstd = hbn.batch_norm_activation_forward(
        *given[:4], mean, var, activation="silu", training=True, momentum=0.25
    )
    results["silu"] = {"mean": fused_mean, "invstd": fused_invstd, "running_mean": mean, "running_var": var}

    merged = functools.reduce(hbn.merge_moments, (hbn.batch_norm_stats(sample) for sample in x.split(1)))
    for name, moments in (("split", hbn.batch_norm_stats(x)), ("merged", merged)):
        mean, var = running(c)
        split_mean, split_invstd = hbn.mean_and_invstd(moments)
        hbn.update_running_stats(moments, 0.25, mean, var)
        results[name] = {
            "y": hbn.batch_norm_normalize(x, moments, c.weight, c.bias),
            "mean": split_mean, "invstd": split_invstd, "running_mean": mean, "running_var": var,
        }  # fmt: skip

    grad = dict(zip(("grad_input", "grad_weight", "grad_bias"), hbn.batch_norm_backward(
        dy, x, c.weight, save_mean, invstd, None, None, training=True), strict=True))  # fmt: skip
    results["backward"] = grad
    sums = hbn.batch_norm_backward_reduce(dy, x, save_mean, invstd)
    results["backward_split"] = {
        "grad_input": hbn.batch_norm_backward_elemt(
            dy, x, save_mean, invstd, c.weight, sums.sum_dy, sums.sum_dy_xmu, moments.count
        ),
        "grad_weight": sums.grad_weight,
        "grad_bias": sums.grad_bias,
    }
    results["jvp"] = {
        "y_tangent": hbn.batch_norm_jvp(tangent, x, c.weight, None, None, save_mean, invstd, None, None, training=True)
    }
    return results


def exact(array, c):
    """Its values in a type whose range and precision exceed the dtype's."""
    return real(array) if c.dtype == "float64" else real(array).astype(np.float64)


def rounded(values, dtype):
    with np.errstate(all="ignore"):
        return values.astype(np.float64).astype(NUMPY_DTYPES[dtype]).astype(np.float64)


def expectations(c, relu, dirty=True):
    """{name: (what it should be, its bound)}; the bound counts where both are finite."""
    x, dy, tangent = (exact(t, c) for t in c.tensors(dirty))
    weight, bias = (per_channel(exact(v, c), c.ndim) for v in (c.weight, c.bias))
    with np.errstate(all="ignore"):
        # Distances from one of the values make those of a constant channel 0.
        first = np.where(np.isfinite(first := x[:1, :, *[slice(1)] * (c.ndim - 2)]), first, 0)
        s = Statistics(x, mean=first + (x - first).mean(tuple(d for d in range(c.ndim) if d != 1), keepdims=True))
        s.of_batch = True
        std = np.sqrt(s.m2 / s.count)
        # Moments are float64, whatever the dtype.
        s.m2 = s.m2.astype(np.float64).astype(x.dtype)
        s.invstd = (1 / np.sqrt(s.m2 / s.count + REAL(EPS))).astype(x.dtype)
        dtype, u = c.dtype, ROUNDOFF[statistic(c.dtype)]
        y, y_bound = normalized(x, s, weight, bias)
        (dx, dx_bound), (dw, dw_bound), (db, db_bound) = gradients(dy, x, s, weight, True)
        (tan, tan_bound), _, _ = gradients(tangent, x, s, weight, True)
        variance = s.m2 / (s.count - 1)
        mean_bound = mean_error(dtype, s.count) * std + s.count * 2.0**-53 * abs(s.mean)
        variance_bound = (4 * u + m2_error(dtype, s.count) + 64 * s.count * 2.0**-53) * variance
        new_mean, new_var = 0.75 * 0.25 + 0.25 * s.mean, 0.75 * 2 + 0.25 * variance
        # Products with deviations below float64's least normal number.
        lost = 2 * s.count * 2.0**-1074 * s.invstd
        tiny = 2.0**-149 if statistic(dtype) == "float32" else 2.0**-1070
        dz = np.where(exact(relu, c) == 0, 0, dy)
        (zx, zx_bound), (zw, zw_bound), (zb, zb_bound) = gradients(dz, x, s, weight, True)
        return {
            "relu": (np.where(y < 0, 0, y), rounded_to(dtype, y, y_bound(dtype))),
            "relu_grad_input": (zx, zx_bound(dtype)),
            "relu_grad_weight": (zw, zw_bound(dtype) + tiny + lost),
            "relu_grad_bias": (zb, zb_bound(dtype) + tiny),
            "y": (y, rounded_to(dtype, y, y_bound(dtype))),
            "mean": (s.mean, mean_bound + tiny),
            "invstd": (s.invstd, (m2_error(dtype, s.count) + 64 * s.count * 2.0**-53) * s.invstd),
            "running_mean": (new_mean, mean_bound + 4 * u * (abs(s.mean) + std + 1)),
            "running_var": (new_var, variance_bound + 8 * u),
            "grad_input": (dx, dx_bound(dtype)),
            "grad_weight": (dw, dw_bound(dtype) + tiny + lost),
            "grad_bias": (db, db_bound(dtype) + tiny),
            "y_tangent": (tan, tan_bound(dtype) + 8 * tiny),
        }


def kind(values):
    return np.where(
        np.isnan(values), "nan", np.where(np.isposinf(values), "+inf", np.where(np.isneginf(values), "-inf", "finite"))
    )


def by_channel(values, c):
    values = np.asarray(values)
    if values.size == c.shape[1]:
        return values.reshape(c.shape[1], 1)
    return np.moveaxis(np.broadcast_to(values, c.shape), 1, 0).reshape(c.shape[1], -1)


def of_gradients_beyond_range(name):
    return name == "y_tangent" or name.endswith(("grad_input", "grad_weight"))


def differences(name, actual, expected, bound, c):
    """How channels differ from what they should be, where they do: (channel, text)."""
    of_vector = actual.ndim == 1
    actual, expected, bound = (by_channel(v, c) for v in (exact(actual, c), expected, bound))
    dtype = c.dtype if not of_vector else "float64" if name in ("mean", "invstd") else statistic(c.dtype)
    with np.errstate(all="ignore"):
        kinds = rounded(expected, dtype)
        # What is within its bound of the largest number may be either.
        near = np.isfinite(expected) & (abs(abs(expected) - LARGEST[dtype]) <= bound + abs(expected) * 2.0**-7)
        wrong_kind = (kind(actual) != kind(kinds)) & ~(near & ~np.isnan(actual))
        finite = np.isfinite(actual) & np.isfinite(expected) & (actual != expected)
        off = np.where(finite, abs(actual - expected) / np.maximum(bound, 5e-324), 0)
    if of_gradients_beyond_range(name):
        # Right, or no number, in the channels whose sums are beyond float64.
        beyond = np.array([c.dtype == "float64" and special in c.beyond for special in c.channels])
        wrong_kind &= ~(beyond[:, np.newaxis] & ~np.isfinite(actual))
    for channel in np.flatnonzero(wrong_kind.any(1) | (off > 1).any(1)):
        if wrong_kind[channel].any():
            i = int(np.argmax(wrong_kind[channel]))
            yield channel, f"{name}: {float(actual[channel, i])} instead of {float(kinds[channel, i])}"
        else:
            yield channel, f"{name}: off by {float(off[channel].max()):.3g} bounds"


def unaffected(clean, dirty, c):
    """Whether ordinary channels are the same bit for bit."""
    ordinary = [i for i, special in enumerate(c.channels) if not special]
    a, b = (torch.as_tensor(v) for v in (clean, dirty))
    a, b = (v[ordinary] if v.ndim == 1 else v[:, ordinary] for v in (a, b))
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def raw(results):
    return {
        (path, name): torch.as_tensor(v).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for path, of_path in results.items()
        for name, v in of_path.items()
    }


def problems_of(results, expected, c):
    problems, seen, bits = [], set(), raw(results)
    for path, of_path in results.items():
        for name, value in of_path.items():
            # Many paths give the same bits.
            if (name, bits[path, name]) not in seen:
                seen.add((name, bits[path, name]))
                for channel, text in differences(name, value, *expected[name], c):
                    problems.append(f"{c.channels[channel]} {path} {text}")
    return problems


def place_in(dtype, form):
    """Half of the forms of each dtype have special values first, half last."""
    return list(PLACES)[(list(FORMS).index(form) + list(NUMPY_DTYPES).index(dtype)) % 2]


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_training(dtype, form):
    c = Case(dtype, form, place_in(dtype, form))
    hbn.set_num_threads(1)
    clean, dirty = (training_results(c, d) for d in (False, True))
    hbn.set_num_threads(2)
    again = training_results(c, True)
    hbn.set_num_threads(0)
    a, b = raw(dirty), raw(again)
    problems = [f"{k}: threads differ" for k in a if a[k] != b[k]]
    problems += problems_of(dirty, expectations(c, dirty["relu"]["relu"]), c)
    for path, of_path in dirty.items():
        for name, value in of_path.items():
            if not unaffected(clean[path][name], value, c):
                problems.append(f"{path} {name}: ordinary channels changed")
    assert not problems, f"{len(problems)}:\n" + "\n".join(problems)


def evaluation_expectations(c, mean, var):
    """As `expectations`, of evaluation with these running statistics."""
    x, dy, tangent = (exact(t, c) for t in c.tensors(True))
    weight, bias = (per_channel(exact(v, c), c.ndim) for v in (c.weight, c.bias))
    with np.errstate(all="ignore"):
        s = Statistics(x, mean=exact(mean, c), var=exact(var, c))
        s.invstd = s.invstd.astype(x.dtype)
        dtype, infinite = c.dtype, np.isinf(s.mean)
        y, y_bound = normalized(x, s, weight, bias)
        (dx, dx_bound), (dw, dw_bound), (db, db_bound) = gradients(dy, x, s, weight, False)
        tangent = tangent * s.invstd * weight
        return {
            "y": (y, rounded_to(dtype, y, y_bound(dtype))),
            "grad_input": (dx, dx_bound(dtype)),
            "grad_weight": (dw, np.where(infinite, 0, dw_bound(dtype)) + 2.0**-140 * (dtype != "float64")),
            "grad_bias": (db, db_bound(dtype) + 2.0**-140 * (dtype != "float64")),
            "y_tangent": (tangent, rounded_to(dtype, tangent, 16 * ROUNDOFF[statistic(dtype)] * abs(tangent))),
            "y_tangent_with_bias": (
                tangent + bias,
                rounded_to(dtype, tangent + bias, 16 * ROUNDOFF[statistic(dtype)] * (abs(tangent) + abs(bias))),
            ),
        }


def evaluation_results(c, mean, var):
    x, dy, tangent = c.tensors(True)
    statistics = None, None, mean, var
    grads = hbn.batch_norm_backward(dy, x, c.weight, *statistics, training=False)
    only_input = hbn.batch_norm_backward(dy, x, c.weight, *statistics, training=False, grad_mask=(True, False, False))
    fused, _, _, _ = hbn.batch_norm_activation_forward(
        x, None, c.weight, c.bias, mean, var, activation="identity", training=False
    )
    return {
        "forward": {"y": hbn.batch_norm_forward(x, c.weight, c.bias, mean, var, training=False)[0]},
        "identity": {"y": fused},
        "backward": dict(zip(("grad_input", "grad_weight", "grad_bias"), grads, strict=True)),
        "backward_input": {"grad_input": only_input[0]},
        "jvp": {
            "y_tangent": hbn.batch_norm_jvp(tangent, x, c.weight, None, None, *statistics, training=False),
            "y_tangent_with_bias": hbn.batch_norm_jvp(tangent, x, c.weight, None, c.bias, *statistics, training=False),
        },
        "double_backward": {
            "y_tangent": hbn.batch_norm_double_backward(
                tangent, None, None, dy, x, c.weight, *statistics, training=False
            )[0]
        },
    }


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("form", [form for form in FORMS if "tiles" not in form])
def test_evaluation(dtype, form):
    c = Case(dtype, form, "first")
    c.beyond = [special for special in SPECIALS if "largest" in special]
    mean, var = running(c)
    problems = problems_of(evaluation_results(c, mean, var), evaluation_expectations(c, mean, var), c)
    # Running statistics after a batch with an infinity, and others that some other training left.
    specials = itertools.product((INF, -INF, NAN, 1.0), (INF, NAN, 0.0, 2.0))
    for channel, (special_mean, special_var) in zip(range(c.shape[1]), specials, strict=False):
        mean[channel], var[channel] = special_mean, special_var
    c.dirty = c.clean
    c.channels = [f"mean {float(m)} var {float(v)}" for m, v in zip(mean, var, strict=True)]
    problems += problems_of(evaluation_results(c, mean, var), evaluation_expectations(c, mean, var), c)
    assert not problems, f"{len(problems)}:\n" + "\n".join(problems)


OF_GRADIENTS = ["inf", "minus_inf", "inf_twice", "both_infs", "nan", "nan_and_inf", "all_inf", "denormal"]


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("form", [form for form in FORMS if "tiles" not in form])
def test_gradients(dtype, form):
    """Sums of infinite gradients are what adding them up gives; what has such a sum subtracted from it is no number."""
    problems = []
    c = Case(dtype, form, place_in(dtype, form), of="dy", only=OF_GRADIENTS)
    results = training_results(c, True)
    expected = expectations(c, results["relu"]["relu"])
    for path in ("backward", "backward_split"):
        of_path = results[path]
        inputs, of_oracle = (by_channel(exact(v, c), c) for v in (of_path.pop("grad_input"), expected["grad_input"][0]))
        problems += problems_of({path: of_path}, expected, c)
        different = (np.isfinite(inputs) != np.isfinite(of_oracle)).any(1)
        problems += [f"{c.channels[i]} {path} grad_input" for i in np.flatnonzero(different)]
    assert not problems, f"{len(problems)}:\n" + "\n".join(problems)


OF_PYTORCH = ["inf", "minus_inf", "inf_twice", "both_infs", "nan", "nan_and_inf", "all_inf", "1e200", "mean_1e200"]


@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_as_pytorch(dtype):
    """PyTorch gives infinities and NaN in the same places."""
    for form in FORMS:
        c = Case(dtype, form, place_in(dtype, form), only=OF_PYTORCH)
        x = c.dirty["x"]
        mean, var = running(c)
        hbn_mean, hbn_var = running(c)
        y = torch.nn.functional.batch_norm(x, mean, var, c.weight, c.bias, True, 0.25, EPS)
        hbn_y, _, _ = hbn.batch_norm_forward(x, c.weight, c.bias, hbn_mean, hbn_var, training=True, momentum=0.25)
        for theirs, ours in ((mean, hbn_mean), (var, hbn_var), (y, hbn_y)):
            np.testing.assert_array_equal(kind(real(ours)), kind(real(theirs)), err_msg=f"{form} {c.channels}")
