"""Makes options.csv: what torch.nn.BatchNorm2d of PyTorch 2.13 takes, and what it makes of it.

    python tests/golden/make_options.py      # needs torch 2.13; writes options.csv

Rows are of two kinds:

    argument,<name>,<default>      one of BatchNorm2d's arguments after num_features, in order
    module,<num_features>,<eps>,<momentum>,<affine>,<bias>,<track_running_stats>,<keys>,<repr>
                                   a module of these arguments: the names in its state, separated by spaces, and its
                                   text; or, without a text, one that PyTorch refuses to make
"""
import csv
import inspect
import itertools
import os

import torch

NUM_FEATURES = [3, 0, 1000000]
EPS = [1e-5, 1e-3, 0.0, -1.0, 1e16, 0.1 + 0.2, 123456789.0]
MOMENTUM = [0.1, None, 0.0, 1.0, 1e-7]


def cases():
    for flags in itertools.product([True, False], repeat=3):
        for momentum in MOMENTUM:
            yield 3, 1e-5, momentum, *flags
    for eps in EPS:
        yield 3, eps, 0.1, True, True, True
    for num_features in [*NUM_FEATURES, -1]:
        yield num_features, 1e-5, 0.1, True, True, True


def describe(num_features, eps, momentum, affine, bias, track_running_stats):
    try:
        module = torch.nn.BatchNorm2d(num_features, eps, momentum, affine, track_running_stats, bias=bias)
    except RuntimeError:
        return "", ""
    for name, values in module.state_dict().items():
        assert (values == (name in ("weight", "running_var"))).all(), name
    return " ".join(module.state_dict()), repr(module)


def main():
    assert torch.__version__.startswith("2.13"), torch.__version__
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "options.csv")
    with open(path, "w", newline="") as out:
        rows = csv.writer(out, lineterminator="\n")
        for parameter in list(inspect.signature(torch.nn.BatchNorm2d).parameters.values())[1:]:
            rows.writerow(["argument", parameter.name, parameter.default])
        for case in cases():
            rows.writerow(["module", *(str(value) for value in case), *describe(*case)])
    print(path)


if __name__ == "__main__":
    main()
