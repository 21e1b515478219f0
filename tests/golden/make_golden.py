"""Makes golden.bin: what PyTorch 2.13 computes on the CPU, and what is true.

    python tests/golden/make_golden.py        # needs torch 2.13 and numpy; writes golden.bin

The container, all little-endian:

    8 bytes   "HBNGOLD1"
    uint32    number of records
    then for each record, without padding:
    uint16    length of name          bytes    name (ASCII)
    uint8     dtype: as hbn_dtype, 0 float32, 1 float64, 2 bfloat16, 3 float16, 4 int64
    uint8     ndim                    int64[]  shape
    bytes     the values, C order

A case is named <dtype>[own]_<affine|plain>_<tracking|cumulative|untracked>_<NxCxHxW>. "own": the
parameters and buffers have the tensor's dtype, else float32 (float64 for float64). "cumulative" is
momentum None: three steps with x0, x1, x2; the other two are one step with x2. Records:

    data/<dtype>_<shape>/{x0,x1,x2,dy}      inputs, shared by the cases
    <case>/{eps,momentum}                   float64; no momentum when it is None
    <case>/{weight,bias}                    when affine
    <case>/{running_mean,running_var}_before, num_batches_tracked_before    unless untracked
    <case>/torch/train/...                  PyTorch's own: y, mean, invstd, grad_input, grad_weight,
                                            grad_bias, running_mean, running_var,
                                            num_batches_tracked
    <case>/torch/eval/...                   with torch/train's running buffers: y, grad_*
    <case>/true/{train,eval}/...            the same in float64 from the same rounded inputs

eval is left out of untracked cases, where it is the same as train. The truth is PyTorch in float64,
except for float64 cases: those are computed here in NumPy's long double, since a type cannot judge
itself. The script checks that the two truths agree everywhere.

torch.batch_norm_stats, batch_norm_elemt, batch_norm_backward_reduce and batch_norm_backward_elemt
exist only on accelerators (the script prints what the CPU says), so the split operations are judged
against the unsplit truth, which they have to equal.
"""
import os
import struct

import numpy as np
import torch

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16,
          "float16": torch.float16}
CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3, torch.int64: 4}
SMALL = [(3, 5, 3, 5), (4, 3, 1, 1)]    # every combination
LARGE = [(2, 17, 7, 7), (2, 16, 3, 5)]  # affine, tracking
EPS = {(2, 16, 3, 5): 1e-3}             # 1e-5 elsewhere

records = {}


def add(name, tensor):
    assert name not in records, name
    records[name] = torch.as_tensor(tensor).detach().clone().contiguous()


def write(path):
    with open(path, "wb") as out:
        out.write(b"HBNGOLD1" + struct.pack("<I", len(records)))
        for name, tensor in records.items():
            out.write(struct.pack("<H", len(name)) + name.encode("ascii"))
            out.write(struct.pack("<BB", CODES[tensor.dtype], tensor.dim()))
            out.write(struct.pack("<%dq" % tensor.dim(), *tensor.shape))
            out.write(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return os.path.getsize(path)


def make_data(dtype_name, shape, generator):
    """Channels of different means (to 4) and spreads (0.25 to 2); another of each every step."""
    data = {}
    for name in ("x0", "x1", "x2", "dy"):
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        offset = torch.rand(1, shape[1], 1, 1, generator=generator, dtype=torch.float64) * 8 - 4
        spread = 2 ** (torch.rand(1, shape[1], 1, 1, generator=generator,
                                  dtype=torch.float64) * 3 - 2)
        value = noise + 0.25 if name == "dy" else noise * spread + offset
        data[name] = value.to(DTYPES[dtype_name])
        add("data/%s_%s/%s" % (dtype_name, text(shape), name), data[name])
    return data


def text(shape):
    return "x".join(map(str, shape))


def vector(tensor):
    return None if tensor is None else np.asarray(tensor.detach().double().numpy(), np.longdouble)


def long_double(x, dy, weight, bias, stats, eps):
    """y, gradients and moments by the textbook, in long double. stats: (mean, var) or None."""
    x, dy = vector(x), vector(dy)
    axes, count = (0, 2, 3), x.shape[0] * x.shape[2] * x.shape[3]

    def wide(v):
        return v[None, :, None, None]

    channels = x.shape[1]
    weight = np.ones(channels, np.longdouble) if weight is None else vector(weight)
    bias = np.zeros(channels, np.longdouble) if bias is None else vector(bias)
    if stats is None:
        mean = x.sum(axes) / count
        var = ((x - wide(mean)) ** 2).sum(axes) / count
    else:
        mean, var = map(vector, stats)
    invstd = 1 / np.sqrt(var + np.longdouble(eps))
    xhat = (x - wide(mean)) * wide(invstd)
    result = {"y": xhat * wide(weight) + wide(bias), "mean": mean, "invstd": invstd,
              "grad_weight": (dy * xhat).sum(axes), "grad_bias": dy.sum(axes)}
    centred = dy
    if stats is None:
        centred = (dy - wide(result["grad_bias"] / count) -
                   xhat * wide(result["grad_weight"] / count))
        result["unbiased"] = var * count / (count - 1)
    result["grad_input"] = wide(weight * invstd) * centred
    return result


class Layer:
    """nn.BatchNorm2d with state from `before`, in its dtype or in float64."""

    def __init__(self, channels, tracking, eps, before, dtype):
        self.module = torch.nn.BatchNorm2d(
            channels, eps=eps, momentum=None if tracking == "cumulative" else 0.1,
            affine="weight" in before, track_running_stats=tracking != "untracked", dtype=dtype)
        self.module.load_state_dict({k: v.clone() for k, v in before.items()})

    def step(self, x, dy, train):
        module = self.module.train(train)
        x = x.clone().requires_grad_()
        result = {}
        batch = train or module.running_mean is None
        if batch:
            copies = [None if b is None else b.clone()
                      for b in (module.running_mean, module.running_var)]
            _, result["mean"], result["invstd"] = torch.native_batch_norm(
                x.detach(), module.weight, module.bias, *copies, True, 0.1, module.eps)
        module.zero_grad()
        result["y"] = module(x)
        result["y"].backward(dy)
        result["grad_input"] = x.grad
        if module.affine:
            result["grad_weight"], result["grad_bias"] = module.weight.grad, module.bias.grad
        if train and module.track_running_stats:
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                result[name] = getattr(module, name)
        return {k: v.detach().clone() for k, v in result.items()}


def check(name, truth, exact):
    got, exact = truth.double().numpy(), np.asarray(exact, np.float64).reshape(truth.shape)
    error = np.abs(got - exact).max()
    assert error <= 1e-12 * max(1, np.abs(exact).max()), (name, error)


def make_case(dtype_name, own, affine, tracking, shape, data, generator):
    channels, eps = shape[1], EPS.get(shape, 1e-5)
    dtype = DTYPES[dtype_name]
    parameters = dtype if own or dtype == torch.float64 else torch.float32
    case = "%s%s_%s_%s_%s" % (dtype_name, "own" if own else "", "affine" if affine else "plain",
                              tracking, text(shape))

    def random(low, high):
        value = torch.rand(channels, generator=generator, dtype=torch.float64)
        return (value * (high - low) + low).to(parameters)

    before = {}
    if affine:
        before["weight"], before["bias"] = random(-2, 2), random(-1, 1)
    if tracking == "tracking":
        before.update(running_mean=random(-2, 2), running_var=random(0.5, 3),
                      num_batches_tracked=torch.tensor(7))
    elif tracking == "cumulative":
        before.update(running_mean=torch.zeros(channels, dtype=parameters),
                      running_var=torch.ones(channels, dtype=parameters),
                      num_batches_tracked=torch.tensor(0))
    add(case + "/eps", torch.tensor(eps, dtype=torch.float64))
    if tracking != "cumulative":
        add(case + "/momentum", torch.tensor(0.1, dtype=torch.float64))
    for name, value in before.items():
        add(case + "/" + name + ("" if name in ("weight", "bias") else "_before"), value)

    wide = {k: v.double() if v.is_floating_point() else v for k, v in before.items()}
    layer = Layer(channels, tracking, eps, before, parameters)
    truth = Layer(channels, tracking, eps, wide, torch.float64)
    steps = ("x0", "x1", "x2") if tracking == "cumulative" else ("x2",)
    weight, bias = before.get("weight"), before.get("bias")
    for mode in ("train", "eval"):
        train = mode == "train"
        if not train and tracking == "untracked":
            continue
        if not train:  # with the rounded buffers, for truth to be of the same inputs
            truth.module.load_state_dict({k: v.double() if v.is_floating_point() else v
                                          for k, v in layer.module.state_dict().items()})
        running = None
        if train and tracking != "untracked":
            running = [vector(before["running_mean"]), vector(before["running_var"])]
        for i, step in enumerate(steps if train else ("x2",)):
            ours = layer.step(data[step], data["dy"], train)
            true = truth.step(data[step].double(), data["dy"].double(), train)
            stats = None if train else (layer.module.running_mean, layer.module.running_var)
            exact = long_double(data[step], data["dy"], weight, bias, stats, eps)
            if running:
                average = np.longdouble(1) / (i + 1)
                factor = np.longdouble(0.1) if tracking == "tracking" else average
                running = [(1 - factor) * old + factor * new
                           for old, new in zip(running, (exact["mean"], exact["unbiased"]))]
        if running:
            exact["running_mean"], exact["running_var"] = running
        for name, value in true.items():
            if name != "num_batches_tracked":
                check(case + "/" + mode + "/" + name, value, exact[name])
            if dtype == torch.float64 and name != "num_batches_tracked":
                value = torch.from_numpy(np.asarray(exact[name], np.float64)).reshape(value.shape)
            add("%s/torch/%s/%s" % (case, mode, name), ours[name])
            add("%s/true/%s/%s" % (case, mode, name), value)


def try_split():
    x, v = torch.randn(2, 3, 4, 4), torch.ones(3)
    for name, call in (("batch_norm_stats", lambda: torch.batch_norm_stats(x, 1e-5)),
                       ("batch_norm_elemt", lambda: torch.batch_norm_elemt(x, v, v, v, v, 1e-5)),
                       ("batch_norm_backward_reduce",
                        lambda: torch.batch_norm_backward_reduce(x, x, v, v, v, True, True, True))):
        try:
            call()
            print("torch.%s runs on the CPU: record it" % name)
        except (NotImplementedError, RuntimeError) as error:
            print("torch.%s: %s" % (name, str(error).split("\n")[0][:80]))


def main():
    assert torch.__version__.startswith("2.13"), torch.__version__
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(20130)
    for dtype_name, dtype in DTYPES.items():
        for shape in SMALL + LARGE:
            data = make_data(dtype_name, shape, generator)
            for affine in (True, False):
                for tracking in ("tracking", "cumulative", "untracked"):
                    if shape in SMALL or (affine and tracking == "tracking"):
                        make_case(dtype_name, False, affine, tracking, shape, data, generator)
            if dtype.itemsize == 2 and shape == SMALL[0]:
                for tracking in ("tracking", "cumulative"):
                    make_case(dtype_name, True, True, tracking, shape, data, generator)
    try_split()
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden.bin")
    print("%s: %d records, %d bytes" % (path, len(records), write(path)))


if __name__ == "__main__":
    main()
