"""What Python adds to a call: hbn's functions beside the C++ call, hbn's modules beside PyTorch's.

Writes bench/results/python.md. Contestants take turns; figures are minima over the rounds, in one process.
"""

import argparse
import ctypes
import dataclasses
import pathlib
import time
from collections.abc import Callable

import hbn
import hbn.torch
import machine
import report
import torch
from grid import Cell
from worker import Buffers, Contestant, settle, warm_up

ROOT = pathlib.Path(__file__).resolve().parent.parent
SETTLE_SECONDS = 0.02
LARGE = (32, 256, 56, 56)
SMALL = (1, 64, 8, 8)
MODULE_SHAPES = [(32, 64, 56, 56), (32, 256, 14, 14)]


@dataclasses.dataclass
class Ratio:
    """Ours beside the other."""

    value: float
    where: str

    def name(self) -> str:
        """For report.worst_line."""
        return self.where


def python_seconds(call: Callable[[], object], repeats: int) -> float:
    """Of one call, the mean over `repeats`."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def minima(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Seconds of each, which take turns, the first one another every round."""
    names = list(contestants)
    best = dict.fromkeys(names, float("inf"))
    for done in range(rounds):
        for name in names[done % len(names):] + names[:done % len(names)]:
            settle(SETTLE_SECONDS)
            best[name] = min(best[name], contestants[name]())
    return best


def large_calls(threads: int, rounds: int) -> tuple[list[str], list[Ratio]]:
    """Functions on NumPy arrays and tensors, over C++'s call on the same memory."""
    cells = {name: Cell(name, "nchw", "float32", LARGE) for name in ("forward_training", "forward_inference", "backward")}
    buffers = Buffers(list(cells.values()))
    cpp = Contestant("hbn", ROOT / "build/x86/bench/contestant_hbn.so")
    count = LARGE[0] * LARGE[1] * LARGE[2] * LARGE[3]
    x, grad_output, out = (b.as_array("float32", count).reshape(LARGE) for b in (buffers.x, buffers.grad_output, buffers.out))
    vectors = {name: b.as_array("float32", LARGE[1]) for name, b in buffers.vectors.items()}
    lines, ratios = [], []
    hbn.set_num_threads(threads)
    for operation, cell in cells.items():
        buffers.fill(cell)
        problem = buffers.problem(cell, threads)
        prepared = cpp.library.prepare(ctypes.byref(problem))

        def arguments(convert: Callable[[object], object]) -> Callable[[], object]:
            # Statistics that forward saves are float64, whatever the tensors are.
            given = [v.astype("float64") if name in ("mean", "invstd") else v for name, v in vectors.items()]
            weight, bias, mean, invstd, running_mean, running_var = map(convert, given)
            tensors = [convert(t) for t in (x, grad_output, out)]
            if operation == "backward":
                return lambda: hbn.batch_norm_backward(tensors[1], tensors[0], weight, mean, invstd, None, None,
                                                       training=True, out=tensors[2])
            training = operation == "forward_training"
            return lambda: hbn.batch_norm_forward(tensors[0], weight, bias, running_mean, running_var, training=training,
                                                  out=tensors[2])

        def timed_cpp() -> float:
            warm_up(cpp, prepared)
            return float(cpp.library.run(prepared, 1))

        def timed(call: Callable[[], object]) -> Callable[[], float]:
            def seconds() -> float:
                call()
                return python_seconds(call, 1)
            return seconds

        best = minima({"C++": timed_cpp, "NumPy": timed(arguments(lambda a: a)), "PyTorch": timed(arguments(torch.from_numpy))},
                      rounds)
        cpp.library.release(prepared)
        lines.append(f"| {operation} | {threads} | " + " | ".join(f"{1e3 * s:.2f}" for s in best.values()) + " |")
        ratios += [Ratio(best["C++"] / best[name], f"{operation}, {name}, {threads} threads") for name in ("NumPy", "PyTorch")]
    return lines, ratios


def module_calls(shape: tuple[int, ...], repeats: int, rounds: int) -> tuple[list[str], list[Ratio]]:
    """hbn.torch's module beside PyTorch's."""
    x, gradient = torch.randn(shape), torch.randn(shape)
    x_with_gradient = x.clone().requires_grad_()
    modules = {"PyTorch": torch.nn.BatchNorm2d(shape[1]), "hbn": hbn.torch.BatchNorm2d(shape[1])}

    def forward_and_backward(module: torch.nn.Module) -> None:
        torch.autograd.backward([module(x_with_gradient)], [gradient])

    def without_gradients(module: torch.nn.Module) -> None:
        with torch.no_grad():
            module(x)

    lines, ratios = [], []
    for name, training, call in (("forward, training", True, lambda m: m(x)),
                                 ("forward and backward", True, forward_and_backward),
                                 ("inference, no_grad", False, without_gradients)):
        for module in modules.values():
            module.train(training)
        best = minima({rival: lambda m=m: (call(m), python_seconds(lambda: call(m), repeats))[1] for rival, m in modules.items()},
                      rounds)
        shape_name = "x".join(map(str, shape))
        ratio = best["PyTorch"] / best["hbn"]
        lines.append(f"| {name} | {shape_name} | {torch.get_num_threads()} | {1e6 * best['PyTorch']:.1f} | "
                     f"{1e6 * best['hbn']:.1f} | {ratio:.2f} |")
        ratios.append(Ratio(ratio, f"{name}, {shape_name}"))
    return lines, ratios


def main() -> None:
    """Writes bench/results/python.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    processors = machine.threads()
    large, large_ratios = [], []
    for threads in sorted({1, processors}):
        lines, ratios = large_calls(threads, rounds)
        large += lines
        large_ratios += ratios
    torch.set_num_threads(1)
    small, small_ratios = module_calls(SMALL, 300, rounds)
    torch.set_num_threads(processors)
    modules = [line for shape in MODULE_SHAPES for line in module_calls(shape, 1, rounds)[0]]
    verdicts = [report.worst_line("C++ call's time / Python call's", large_ratios, lambda r: r.value, 1 / 1.03, ""),
                report.worst_line("PyTorch's module's time / hbn's, 1x64x8x8", small_ratios, lambda r: r.value, 1 / 1.3, "")]
    header = ["| operation | shape | threads | PyTorch, us | hbn.torch, us | ratio |", "| --- | --- | --- | --- | --- | --- |"]
    text = "\n".join([
        "# Calls from Python, measured", "", "`make bench-python`", "",
        f"{machine.describe()['cpu']}, {processors} processors, instruction set {hbn.instruction_set()}, PyTorch {torch.__version__}.",
        "", *(f"    {line}" for line in verdicts), "",
        "## hbn's functions beside the C++ call, 32x256x56x56 float32, ms", "",
        "Results go to memory that is there (`out=`).", "",
        "| operation | threads | C++ | NumPy | PyTorch tensors |", "| --- | --- | --- | --- | --- |", *large, "",
        "## hbn.torch.BatchNorm2d beside torch.nn.BatchNorm2d, float32", "", *header, *small, *modules, ""])
    (ROOT / "bench/results/python.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
