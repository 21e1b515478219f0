"""Makes torch_errors.csv: how far PyTorch 2.13 is from the truth on the inputs of hard_inputs.h.

    python tests/golden/make_torch_errors.py      # needs torch 2.13 and numpy; writes torch_errors.csv

Each row is one input in one layout (nchw, nhwc) with one size of parameters (1 or 1000), float32, in training:

    input, layout, parameters
    checksum      FNV-1a, 64 bits, of x, weight, bias and dy as float32, little-endian, each channel's values
                  after the other's: that the C++ test has the same data
    y             the largest |y - truth| / max(1, |weight * xhat| + |bias|)
    grad_input    the largest |grad_input - truth| / |weight * invstd| / (|dy| + |a| + |xhat * b|), where
                  grad_input = weight * invstd * (dy - a - xhat * b); with dy from a normal distribution, and
                  PyTorch's own saved statistics

The truth is NumPy's long double. inf stands for a result that is not finite where the truth is.
The errors are those of the processor this ran on; on it PyTorch used one thread.
"""
import csv
import math
import os

import numpy as np
import torch

SHAPE = (16, 8, 28, 28)
VALUES = SHAPE[0] * SHAPE[2] * SHAPE[3]  # a channel
EPS = 1e-5


class Normal:
    """std::mt19937 and libstdc++'s std::normal_distribution<double>."""

    def __init__(self, seed):
        self.generator = np.random.MT19937()
        self.generator._legacy_seeding(seed)
        self.saved = None

    def canonical(self):
        low, high = (int(v) for v in self.generator.random_raw(2))
        return (float(low) + float(high) * 2.0**32) / 2.0**64

    def __call__(self, mean=0.0, deviation=1.0):
        if self.saved is not None:
            value, self.saved = self.saved, None
        else:
            while True:
                x = 2.0 * self.canonical() - 1.0
                y = 2.0 * self.canonical() - 1.0
                r2 = x * x + y * y
                if 0 < r2 <= 1:
                    break
            scale = math.sqrt(-2 * math.log(r2) / r2)
            self.saved, value = x * scale, y * scale
        return mean + deviation * value


HARD_INPUTS = {
    "mean_1e4": lambda normal, i: normal(1e4),
    "mean_1e6": lambda normal, i: normal(1e6),
    "mean_minus_1e6": lambda normal, i: normal(-1e6),
    "constant": lambda normal, i: 3.25,
    "constant_but_one": lambda normal, i: 16777216.0 if i == 5 else 16777214.0,
    "zero": lambda normal, i: 0.0,
    "denormal": lambda normal, i: normal(0, 1e-41),
    "smallest_denormals": lambda normal, i: 1.4e-45 if i % 2 else -1.4e-45,
    "tiny": lambda normal, i: normal(0, 1e-30),
    "huge_1e18": lambda normal, i: normal(0, 1e18),
    "huge_mean_1e18": lambda normal, i: normal(1e18, 1e12),
    "outlier_1e20": lambda normal, i: 1e20 if i == 0 else normal(),
    "last_outlier_1e20": lambda normal, i: 1e20 if i == VALUES - 1 else normal(),
    "largest": lambda normal, i: 3.4028234e38 if i % 2 else -3.4028234e38,
    "largest_constant": lambda normal, i: 3.4028234e38,
    "mixed_magnitudes": lambda normal, i: normal() * math.pow(10.0, i % 37),
    "ramp": lambda normal, i: float(i),
}


def make_problem(value, parameters):
    """x and dy as (C, N*H*W), weight and bias, all float32."""
    normal = Normal(11)
    weight = [normal(0, parameters) for _ in range(SHAPE[1])]
    bias = [normal(0, parameters) for _ in range(SHAPE[1])]
    x = [[value(normal, i) for i in range(VALUES)] for _ in range(SHAPE[1])]
    dy_normal = Normal(12)
    dy = [[dy_normal() for _ in range(VALUES)] for _ in range(SHAPE[1])]
    return [np.array(values, np.float64).astype(np.float32) for values in (x, dy, weight, bias)]


def checksum(arrays):
    state = 0xcbf29ce484222325
    for array in arrays:
        for byte in array.astype("<f4").tobytes():
            state = (state ^ byte) * 0x100000001b3 % 2**64
    return "%016x" % state


def largest(error, size):
    """Of a result without meaning, infinite; 0 where both are 0."""
    if not np.isfinite(error).all():
        return math.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(error == 0, 0, error / size).max())


def errors(x, dy, weight, bias, layout):
    n, channels, h, w = SHAPE
    memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format

    def tensor(values):
        dense = torch.from_numpy(values.reshape(channels, n, h, w)).transpose(0, 1)
        return dense.contiguous(memory_format=memory_format)

    def by_channel(values):
        return np.asarray(values.transpose(0, 1).reshape(channels, -1).numpy(), np.longdouble)

    t_x, t_weight, t_bias = tensor(x), torch.from_numpy(weight), torch.from_numpy(bias)
    y, mean, invstd = torch.native_batch_norm(t_x, t_weight, t_bias, None, None, True, 0.1, EPS)
    dx = torch.ops.aten.native_batch_norm_backward(tensor(dy), t_x, t_weight, None, None, mean,
                                                   invstd, True, EPS, [True, True, True])[0]

    x, dy = np.asarray(x, np.longdouble), np.asarray(dy, np.longdouble)
    weight = np.asarray(weight, np.longdouble)[:, None]
    bias = np.asarray(bias, np.longdouble)[:, None]
    centred = x - x.mean(1, keepdims=True)
    true_invstd = 1 / np.sqrt((centred**2).mean(1, keepdims=True) + np.longdouble(EPS))
    xhat = centred * true_invstd
    y_error = np.abs(by_channel(y) - (xhat * weight + bias))
    y_size = np.maximum(1, np.abs(weight * xhat) + np.abs(bias))
    a = dy.mean(1, keepdims=True)
    slope = xhat * (dy * xhat).mean(1, keepdims=True)
    gain = weight * true_invstd
    dx_error = np.abs(by_channel(dx) - gain * (dy - a - slope))
    dx_size = np.abs(gain) * (np.abs(dy) + np.abs(a) + np.abs(slope))
    return largest(y_error, y_size), largest(dx_error, dx_size)


def main():
    assert torch.__version__.startswith("2.13"), torch.__version__
    torch.set_num_threads(1)
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torch_errors.csv")
    with open(path, "w", newline="") as out:
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(["input", "layout", "parameters", "checksum", "y", "grad_input"])
        for name, value in HARD_INPUTS.items():
            for parameters in (1, 1000):
                x, dy, weight, bias = make_problem(value, parameters)
                same = checksum([x, weight, bias, dy])
                for layout in ("nchw", "nhwc"):
                    found = errors(x, dy, weight, bias, layout)
                    rows.writerow([name, layout, parameters, same] + ["%.3e" % e for e in found])
    print(path)


if __name__ == "__main__":
    main()
