"""hbn's C interface for Python's arrays, python/core/module.cpp. Outputs are the caller's."""

from hbn._arrays import Array

def forward(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    training: bool,
    momentum: float | None,
    eps: float,
    y: Array,
    mean: Array | None,
    invstd: Array | None = None,
    num_batches_tracked: Array | None = None,
) -> None: ...
def backward(
    grad_output: Array,
    x: Array,
    weight: Array | None,
    mean: Array | None,
    invstd: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    training: bool,
    eps: float,
    grad_input: Array | None,
    grad_weight: Array | None,
    grad_bias: Array | None,
) -> None: ...
def relu_forward(
    x: Array,
    residual: Array | None,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    training: bool,
    momentum: float,
    eps: float,
    y: Array,
    mask: Array | None,
    mean: Array | None,
    invstd: Array | None,
) -> None: ...
def relu_backward(
    grad_output: Array,
    x: Array,
    mask: Array | None,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None,
    invstd: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    training: bool,
    eps: float,
    grad_input: Array,
    grad_residual: Array | None,
    grad_weight: Array | None,
    grad_bias: Array | None,
) -> None: ...
def jvp(
    x_tangent: Array,
    x: Array,
    weight: Array | None,
    weight_tangent: Array | None,
    bias_tangent: Array | None,
    mean: Array | None,
    invstd: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    training: bool,
    eps: float,
    y_tangent: Array,
) -> None: ...
def double_backward(
    grad_grad_input: Array,
    grad_grad_weight: Array | None,
    grad_grad_bias: Array | None,
    grad_output: Array,
    x: Array,
    weight: Array | None,
    mean: Array | None,
    invstd: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    training: bool,
    eps: float,
    grad_grad_output: Array | None,
    grad_input: Array | None,
    grad_weight: Array | None,
) -> None: ...
def stats(x: Array, mean: Array, m2: Array) -> float: ...
def merge_moments(
    count: float,
    mean: Array,
    m2: Array,
    other_count: float,
    other_mean: Array,
    other_m2: Array,
    channels: int,
) -> float: ...
def finalize_moments(
    count: float,
    mean: Array,
    m2: Array,
    channels: int,
    momentum: float,
    eps: float,
    running_mean: Array | None,
    running_var: Array | None,
    save_mean: Array | None,
    save_invstd: Array | None,
) -> None: ...
def normalize(
    x: Array,
    count: float,
    mean: Array,
    m2: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    y: Array,
) -> None: ...
def backward_reduce(
    grad_output: Array,
    x: Array,
    mean: Array,
    invstd: Array | None,
    sum_dy: Array,
    sum_dy_xmu: Array,
    grad_weight: Array | None,
    grad_bias: Array | None,
) -> None: ...
def backward_elemt(
    grad_output: Array,
    x: Array,
    mean: Array,
    invstd: Array | None,
    weight: Array | None,
    sum_dy: Array,
    sum_dy_xmu: Array,
    count: float,
    grad_input: Array,
) -> None: ...
def set_num_threads(num_threads: int) -> None: ...
def get_num_threads() -> int: ...
def instruction_sets() -> str: ...
def instruction_set() -> str: ...
def set_instruction_set(name: str) -> None: ...
def version() -> str: ...
