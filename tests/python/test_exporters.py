"""Whatever lends memory, at every operation of runtime/operations.def: odd arrays, and descriptors that lie.

What is legal gives the bits that NumPy's arrays give. What is not is refused by name, with nothing written. More
examples than `make test` takes: HBN_FUZZ_EXAMPLES=100000.
"""

import array as array_module
import ctypes
import inspect
import math
import mmap
import multiprocessing
import multiprocessing.shared_memory
import multiprocessing.sharedctypes
import re
import sys
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from fuzzing import bounded
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import hbn
from hbn import _core

jax.config.update("jax_enable_x64", True)


# ---- right arguments for every operation, by role

SHAPE = (2, 3, 4, 5)
CHANNELS = SHAPE[1]
COUNT = 40.0
NUMBERS = {"training": True, "momentum": 0.25, "eps": 1e-5, "channels": CHANNELS}
DTYPES = {"tensor": "f4", "mask": "u1", "parameter": "f4", "statistic": "f8", "counter": "i8"}

OPERATIONS = {
    **_core.operations,
    "forward_and_count": [*_core.operations["forward"], ("num_batches_tracked", "counter", "inout", "optional")],
}


def argument(name, role, seed):
    if role == "number":
        return NUMBERS.get(name, COUNT)  # the others are counts of values
    if role == "activation":
        return ("relu", 0.0, 0.0, 0.0)  # which goes with all tensors that there may be
    rng = np.random.default_rng(seed)
    if role == "counter":
        return np.array(3)
    if role == "mask":
        return rng.integers(0, 2, SHAPE).astype(np.uint8)
    return rng.uniform(0.5, 2, SHAPE if role == "tensor" else CHANNELS).astype(DTYPES[role])


def arguments_of(operation):
    return {row[0]: argument(*row[:2], seed) for seed, row in enumerate(OPERATIONS[operation])}


def call(operation, arguments):
    assert getattr(_core, operation)(*arguments.values()) is None


def written(operation, arguments):
    """What a call leaves in the arrays that it may write."""
    call(operation, arguments)
    return {row[0]: arguments[row[0]].tobytes() for row in OPERATIONS[operation] if "out" in row[2]}


PLACES = [
    (operation, name, role, direction)
    for operation, rows in OPERATIONS.items()
    for name, role, direction, _ in rows
    if role in DTYPES
]
places = st.sampled_from(PLACES)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_all_arguments_may_be_given(operation):
    for name, bytes_ in written(operation, arguments_of(operation)).items():
        assert bytes_ != arguments_of(operation)[name].tobytes(), name


# ---- memory and what says where it is

ROOM = 1 << 14  # bytes on both sides of what is lent


class Memory:
    """A copy of an array, with room around it that may be read."""

    def __init__(self, array, offset=0):
        self.bytes = np.zeros(2 * ROOM + 64, np.uint8)
        self.begin = self.bytes.ctypes.data
        self.address = self.begin + ROOM + -(self.begin + ROOM) % 64 + offset
        self.at = self.address - self.begin
        self.array = np.ndarray(array.shape, array.dtype, self.bytes, self.at, array.strides)
        self.array[...] = array

    def holds(self, address, sizes, strides, itemsize):
        """Whether all elements are within it."""
        if not all(size > 0 for size in sizes):
            return True
        reaches = [(size - 1) * stride * itemsize for size, stride in zip(sizes, strides, strict=False)]
        first = address + sum(min(0, r) for r in reaches)
        last = address + sum(max(0, r) for r in reaches) + itemsize
        return self.begin <= first and last <= self.begin + self.bytes.size


def dense(sizes):
    strides = []
    step = 1
    for size in reversed(sizes):
        strides.append(step)
        step *= max(size, 1)
    return strides[::-1]


def int64s(values):
    """An array of C's; wrapped around as C would."""
    return (ctypes.c_int64 * len(values))(*[(v + 2**63) % 2**64 - 2**63 for v in values])


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class DLManagedTensor(ctypes.Structure):
    _fields_ = [("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class DLManagedTensorVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    ]


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
CAPSULES = {name: ctypes.c_char_p(name) for name in (b"dltensor", b"dltensor_versioned", b"used_dltensor", b"other")}
CODES = {"i": 0, "u": 1, "f": 2, "V": 4}  # V: ml_dtypes' bfloat16
READ_ONLY, IS_COPIED, PADDED = 1, 2, 4  # flags


class Dlpack:
    """Lends an array's copy by DLPack, but for what is changed in its descriptor."""

    def __init__(
        self, array, split=0, versioned=True, capsule=None, takes=("max_version",), must_copy=False, **changes
    ):
        self.memory = Memory(array, changes.pop("offset", 0))
        self.fields = {
            "data": self.memory.address - split,
            "byte_offset": split,
            "ndim": array.ndim,
            "shape": list(array.shape),
            "strides": [stride // array.itemsize for stride in array.strides],
            "device_type": 1,
            "code": CODES[array.dtype.kind],
            "bits": array.itemsize * 8,
            "lanes": 1,
            "major": 1,
            "minor": 1,
            "flags": 0,
            **changes,
        }
        self.takes = takes
        self.must_copy = must_copy
        self.versioned = versioned
        self.capsule = capsule or (b"dltensor_versioned" if versioned else b"dltensor")
        self.deleted = 0

        def delete(_):
            self.deleted += 1

        self.delete = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(delete)
        self.lent = []

    def __dlpack__(self, **arguments):
        if unknown := set(arguments) - set(self.takes):
            raise TypeError(f"unexpected keyword arguments {unknown}")
        if self.must_copy and arguments.get("copy") is False:
            raise BufferError("it must be copied")
        fields = dict(self.fields)
        of_version = {name: fields.pop(name) for name in ("major", "minor", "flags")}
        for name in ("shape", "strides"):
            fields[name] = None if fields[name] is None else int64s(fields[name])
        managed = DLManagedTensorVersioned(**of_version) if self.versioned else DLManagedTensor()
        managed.tensor = DLTensor(**fields)
        managed.deleter = ctypes.cast(self.delete, ctypes.c_void_p)
        self.lent.append((managed, fields))
        return _new_capsule(ctypes.addressof(managed), CAPSULES[self.capsule], None)

    def __dlpack_device__(self):
        return (self.fields["device_type"], 0)

    def __setitem__(self, index, value):
        raise NotImplementedError

    @staticmethod
    def stride_unit(_):
        return 1

    def location(self):
        f = self.fields
        strides = f["strides"] or dense(f["shape"] or [])
        return (f["data"] or 0) and f["data"] + f["byte_offset"], f["ndim"], f["shape"], strides

    def is_within_memory(self):
        address, ndim, sizes, strides = self.location()
        return self.memory.holds(address, (sizes or [])[: max(ndim, 0)], strides, max(self.fields["bits"] // 8, 1))


class PyBuffer(ctypes.Structure):
    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("suboffsets", ctypes.POINTER(ctypes.c_int64)),
        ("internal", ctypes.c_void_p),
    ]


@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(PyBuffer), ctypes.c_int)
def _get_buffer(exporter, view, _):
    view[0] = PyBuffer(**exporter.c_fields)
    view[0].obj = id(exporter)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(exporter))
    exporter.lent += 1
    return 0


@ctypes.PYFUNCTYPE(None, ctypes.py_object, ctypes.POINTER(PyBuffer))
def _release_buffer(exporter, _):
    exporter.lent -= 1


class _Slot(ctypes.Structure):
    _fields_ = [("slot", ctypes.c_int), ("function", ctypes.c_void_p)]


class _Spec(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("basicsize", ctypes.c_int),
        ("itemsize", ctypes.c_int),
        ("flags", ctypes.c_uint),
        ("slots", ctypes.POINTER(_Slot)),
    ]


BF_GETBUFFER, BF_RELEASEBUFFER, TPFLAGS_BASETYPE = 1, 2, 1 << 10
_slots = (_Slot * 3)(
    _Slot(BF_GETBUFFER, ctypes.cast(_get_buffer, ctypes.c_void_p)),
    _Slot(BF_RELEASEBUFFER, ctypes.cast(_release_buffer, ctypes.c_void_p)),
    _Slot(0, None),
)
_spec = _Spec(b"test_exporters.Lender", object.__basicsize__, 0, TPFLAGS_BASETYPE, _slots)
_from_spec = ctypes.pythonapi.PyType_FromSpec
_from_spec.restype = ctypes.py_object
_from_spec.argtypes = [ctypes.POINTER(_Spec)]
# Python 3.11 has no __buffer__.
_Lender = _from_spec(ctypes.byref(_spec))


class Buffer(_Lender):
    """Lends an array's copy by the buffer protocol, but for what is changed in its descriptor."""

    def __init__(self, array, **changes):
        self.memory = Memory(array, changes.pop("offset", 0))
        self.fields = {
            "buf": self.memory.address,
            "len": array.nbytes,
            "itemsize": array.itemsize,
            "readonly": 0,
            "ndim": array.ndim,
            "format": array.dtype.char.encode(),
            "shape": list(array.shape),
            "strides": list(array.strides),
            "suboffsets": None,
            **changes,
        }
        self.c_fields = {
            name: int64s(value) if isinstance(value, list) else value for name, value in self.fields.items()
        }
        self.lent = 0

    @staticmethod
    def stride_unit(array):
        return array.itemsize

    def location(self):
        f = self.fields
        strides = f["strides"] or [s * max(f["itemsize"], 1) for s in dense(f["shape"] or [])]
        return f["buf"] or 0, f["ndim"], f["shape"], strides

    def is_within_memory(self):
        address, ndim, sizes, strides = self.location()
        sizes = (sizes or [])[: max(ndim, 0)]
        return self.memory.holds(address, sizes, strides, 1) and self.memory.holds(address + 8, sizes, strides, 1)


# ---- what is legal


def check_legal(place, lend):
    operation, name, _, direction = place
    arguments, same = arguments_of(operation), arguments_of(operation)
    expected = written(operation, same)
    array = arguments[name]
    exporter = lend(array)
    call(operation, {**arguments, name: exporter})
    for other, result in expected.items():
        if other != name:
            assert arguments[other].tobytes() == result, other
    memory = exporter.memory
    if direction == "in":
        assert memory.bytes[memory.at : memory.at + array.nbytes].tobytes() == array.tobytes()
    # And nothing around it.
    assert not memory.bytes[: memory.at].any()
    end = memory.at + array.nbytes
    if direction != "in":
        assert memory.bytes[memory.at : end].tobytes() == expected[name]
    assert not memory.bytes[end:].any()
    return exporter


@given(
    place=places,
    versioned=st.booleans(),
    strides=st.booleans(),
    split=st.sampled_from([0, 8, 4096]),
    minor=st.sampled_from([0, 1, 3, 2**32 - 1]),
    flags=st.sampled_from([0, IS_COPIED, PADDED, IS_COPIED | PADDED]),
    offset=st.sampled_from([0, 8, 24]),
)
@bounded
def test_legal_dlpack(place, versioned, strides, split, minor, flags, offset):
    if versioned and place[3] != "in":
        flags &= ~IS_COPIED  # which is refused
    changes = {} if strides else {"strides": None}
    exporter = check_legal(
        place,
        lambda array: Dlpack(array, split, versioned, minor=minor, flags=flags, offset=offset, **changes),
    )
    assert exporter.deleted == 1


@given(
    place=places, strides=st.booleans(), offset=st.sampled_from([0, 8, 24]), prefix=st.sampled_from([b"", b"@", b"="])
)
@bounded
def test_legal_buffer(place, strides, offset, prefix):
    changes = {} if strides else {"strides": None}
    exporter = check_legal(
        place,
        lambda array: Buffer(
            array,
            offset=offset,
            format=prefix + (b"q" if array.dtype.kind == "i" else array.dtype.char.encode()),
            **changes,
        ),
    )
    assert exporter.lent == 0


@pytest.mark.parametrize(("operation", "name", "role", "direction"), PLACES)
def test_ctypes_arrays(operation, name, role, direction):
    arguments, same = arguments_of(operation), arguments_of(operation)
    expected = written(operation, same)
    lent = np.ctypeslib.as_ctypes(arguments[name])
    call(operation, {**arguments, name: lent})
    for other, result in expected.items():
        assert (bytes(lent) if other == name else arguments[other].tobytes()) == result


@pytest.mark.parametrize("stride", [-(2**63), -1, 0, 2**61, 2**63 - 1])
def test_the_stride_of_one_element_is_ignored(stride):
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 1)).astype("f4")
    expected, given = [np.empty(3), np.empty(3)], [np.empty(3), np.empty(3)]
    _core.stats(x, *expected)
    for exporter in (
        Dlpack(x, strides=[stride, 4, 1, stride]),
        Buffer(x, strides=[stride, 16, 4, stride]),
    ):
        _core.stats(exporter, *given)
        assert [g.tobytes() for g in given] == [e.tobytes() for e in expected]


# ---- what is not

LARGE = [-(2**63), -(2**62), -(2**31), -1, 0, 1, 2, 3, 5, 2**31, 2**32, 2**61, 2**62, 2**63 - 1]
integers = st.one_of(st.sampled_from(LARGE), st.integers(-8, 8), st.integers(-(2**63), 2**63 - 1))
lists = st.one_of(st.none(), st.lists(integers, min_size=20, max_size=20))
# Some of a descriptor's dimensions, among others that stay.
one_of_them = st.tuples(st.integers(0, 3), integers)
COMMON = {
    "shape": st.one_of(lists, one_of_them),
    "strides": st.one_of(lists, one_of_them),
    "ndim": st.one_of(st.integers(-2, 20), st.sampled_from([-(2**31), 2**31 - 1])),
    "offset": st.integers(1, 7),
}
DLPACK = {
    **COMMON,
    "data": st.sampled_from([None, 1, 2**64 - 8]),
    "byte_offset": st.sampled_from([1, 4, 2**63, 2**64 - 8, 2**64 - 1]),
    "device_type": st.integers(-1, 18),
    "code": st.integers(0, 18),
    "bits": st.sampled_from([0, 1, 4, 8, 16, 32, 64, 128, 255]),
    "lanes": st.sampled_from([0, 2, 4, 2**16 - 1]),
    "major": st.sampled_from([0, 2, 2**32 - 1]),
    "flags": st.sampled_from([READ_ONLY, IS_COPIED, READ_ONLY | IS_COPIED, 2**64 - 1]),
    "versioned": st.just(False),
    "capsule": st.sampled_from([b"used_dltensor", b"other"]),
}
BUFFER = {
    **COMMON,
    "buf": st.sampled_from([None, 1, 2**64 - 8]),
    "len": st.sampled_from([-1, 0, 1, 2**63 - 1]),
    "itemsize": st.sampled_from([-4, -1, 0, 1, 2, 3, 8, 16, 2**63 - 1]),
    "readonly": st.just(1),
    "format": st.sampled_from([None, *b" f d e B q l <l >f ff Zf ? T{f:a:}".split(b" ")]),
    "suboffsets": st.just([0] * 20),
}


def hostile(changes):
    """Up to three changes at once."""
    return st.lists(st.sampled_from(sorted(changes)), min_size=1, max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: changes[name] for name in names})
    )


def applied(array, changes, stride_unit):
    """Changes of one dimension as lists of all."""
    result = dict(changes)
    for name, whole in (("shape", list(array.shape)), ("strides", dense(array.shape))):
        if isinstance(changes.get(name), tuple):
            d, value = changes[name]
            values = [v * (stride_unit if name == "strides" else 1) for v in whole] + [1] * 20
            values[d] = value
            result[name] = values
    return result


def believable(address, ndim, sizes, strides):
    """Whether nothing in a descriptor says that it lies."""
    if not address or sizes is None or not 0 <= ndim <= 16 or min(sizes[:ndim], default=0) < 0:
        return False
    reach = sum((size - 1) * abs(stride) for size, stride in zip(sizes[:ndim], strides, strict=False) if size > 0)
    elements = math.prod(max(size, 1) for size in sizes[:ndim])
    # Of elements of one byte, at least.
    return elements < 2**57 and reach < 2**60 and address + reach < 2**64


def check_hostile(place, exporter_class, changes):
    operation, name, _, direction = place
    arguments = arguments_of(operation)
    array = arguments[name]
    exporter = exporter_class(array, **applied(array, changes, exporter_class.stride_unit(array)))
    # Memory that is not there is read where a descriptor says so.
    assume(exporter.is_within_memory() or not believable(*exporter.location()))
    given_ = {**arguments, name: exporter}
    before = {k: a.tobytes() for k, a in arguments.items() if isinstance(a, np.ndarray)}
    memory = exporter.memory.bytes.copy()
    try:
        call(operation, given_)
    except (ValueError, TypeError, BufferError, NotImplementedError) as e:
        assert type(e) in (ValueError, TypeError, BufferError, NotImplementedError)
        text = str(e)
        assert re.search(rf"\b({'|'.join(arguments)}|input|device)\b", text), text
        assert {k: a.tobytes() for k, a in arguments.items() if isinstance(a, np.ndarray)} == before
        assert (exporter.memory.bytes == memory).all()
    else:
        for row in OPERATIONS[operation]:
            if row[0] in before and row[2] == "in" and row[0] != name:
                assert arguments[row[0]].tobytes() == before[row[0]]
        if direction == "in":
            assert (exporter.memory.bytes == memory).all()
    return exporter


X = ("stats", "x", "tensor", "in")
Y = ("forward", "y", "tensor", "out")
WEIGHT = ("forward", "weight", "parameter", "in")
COUNTER = ("forward_and_count", "num_batches_tracked", "counter", "inout")


@given(place=places, changes=hostile(DLPACK))
@example(place=X, changes={"offset": 1})
@example(place=X, changes={"byte_offset": 1})
@example(place=X, changes={"byte_offset": 2**64 - 1})
@example(place=X, changes={"data": None})
@example(place=X, changes={"shape": None})
@example(place=X, changes={"shape": None, "strides": None})
@example(place=X, changes={"shape": [2**62, 3, 4, 5]})
@example(place=X, changes={"shape": [2**32, 3, 2**32, 5], "strides": None})
@example(place=X, changes={"shape": [2, 3, -4, -5]})
@example(place=X, changes={"strides": [2**62, 1, 1, 1]})
@example(place=X, changes={"ndim": -1})
@example(place=X, changes={"ndim": 2**31 - 1})
@example(place=X, changes={"lanes": 4})
@example(place=X, changes={"major": 2})
@example(place=X, changes={"capsule": b"other"})
@example(place=Y, changes={"flags": READ_ONLY})
@example(place=Y, changes={"flags": IS_COPIED})
@example(place=WEIGHT, changes={"device_type": 2})
@example(place=COUNTER, changes={"device_type": 2})
@example(place=COUNTER, changes={"data": None})
@example(place=COUNTER, changes={"offset": 4})
@example(place=COUNTER, changes={"flags": 1})
@bounded
def test_hostile_dlpack(place, changes):
    exporter = check_hostile(place, Dlpack, changes)
    if exporter.capsule in (b"dltensor", b"dltensor_versioned"):
        assert exporter.deleted == len(exporter.lent)


@given(place=places, changes=hostile(BUFFER))
@example(place=X, changes={"offset": 1})
@example(place=X, changes={"buf": None})
@example(place=X, changes={"shape": None})
@example(place=X, changes={"itemsize": 0})
@example(place=X, changes={"itemsize": 8})
@example(place=X, changes={"len": 0})
@example(place=X, changes={"format": None})
@example(place=X, changes={"suboffsets": [0] * 20})
@example(place=X, changes={"ndim": -1})
@example(place=X, changes={"shape": [2**62, 3, 4, 5]})
@example(place=X, changes={"strides": [2**62, 4, 4, 4]})
@example(place=Y, changes={"readonly": 1})
@example(place=COUNTER, changes={"buf": None})
@example(place=COUNTER, changes={"readonly": 1})
@bounded
def test_hostile_buffer(place, changes):
    assert check_hostile(place, Buffer, changes).lent == 0


REFUSED = {
    "unaligned": (
        {"offset": 2},
        ValueError,
        "x is not aligned: float32 data must be at an address that is a multiple of 4",
    ),
    "no data": ({"data": None}, ValueError, "x has no data"),
    "offset": ({"byte_offset": 2**64 - 1}, ValueError, "x has a byte offset beyond all memory"),
    "no shape": ({"shape": None}, ValueError, "x has 4 dimensions without sizes"),
    "negative size": ({"shape": [2, 3, -4, -5]}, ValueError, "x has a negative size: [2, 3, -4, -5]"),
    "sizes": ({"shape": [2**62, 3, 4, 5]}, ValueError, "x is too large: its size overflows 64 bits"),
    "strides": ({"strides": [2**62, 1, 1, 1]}, ValueError, "x is too large: its size overflows 64 bits"),
    "dimensions": ({"ndim": 17}, ValueError, "x has 17 dimensions, more than 16"),
    "negative dimensions": ({"ndim": -1}, ValueError, "x has a negative number of dimensions (-1)"),
    "lanes": ({"lanes": 4}, TypeError, "x must be float32, float64, bfloat16 or float16, got vectors of 4 float32"),
    "version": ({"major": 2}, BufferError, "x is lent by DLPack 2.1, hbn knows versions 0 and 1"),
    "capsule": ({"capsule": b"other"}, BufferError, "x has a __dlpack__ that gives no DLPack capsule"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_texts(case):
    changes, error, text = REFUSED[case]
    arguments = arguments_of("stats")
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        call("stats", {**arguments, "x": Dlpack(arguments["x"], **changes)})


# ---- numbers, and how many arguments there are


@given(
    operation=st.sampled_from(sorted(OPERATIONS)),
    which=st.integers(0, 20),
    value=st.one_of(st.floats(), integers, st.sampled_from([None, "1", b"", [], 2**2000])),
)
@bounded
def test_hostile_numbers(operation, which, value):
    numbers = [name for name, role, _, _ in OPERATIONS[operation] if role == "number"]
    assume(which < len(numbers))
    arguments = arguments_of(operation)
    arguments[numbers[which]] = value
    before = {k: a.tobytes() for k, a in arguments.items() if isinstance(a, np.ndarray)}
    try:
        call(operation, arguments)
    except (ValueError, TypeError):
        assert {k: a.tobytes() for k, a in arguments.items() if isinstance(a, np.ndarray)} == before


@pytest.mark.parametrize("operation", OPERATIONS)
def test_number_of_arguments(operation):
    values = list(arguments_of(operation).values())
    for wrong in (values[:-1], [*values, None], []):
        with pytest.raises(TypeError, match=rf"^{operation}\(\) takes {len(values)} arguments \({len(wrong)} given\)$"):
            getattr(_core, operation)(*wrong)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_required_is(operation):
    for name, role, _, presence in OPERATIONS[operation]:
        if presence != "required" or (operation, name) == ("forward_and_count", "momentum"):
            continue
        arguments = {**arguments_of(operation), name: None}
        before = {k: a.tobytes() for k, a in arguments.items() if isinstance(a, np.ndarray)}
        with pytest.raises((TypeError, ValueError), match=name):
            call(operation, arguments)
        assert {k: a.tobytes() for k, a in arguments.items() if isinstance(a, np.ndarray)} == before, (name, role)


def test_forward_and_count():
    x = argument("x", "tensor", 0)
    for counter, momentum in ((3, 0.25), (0, 1.0), (-3, -0.5)):
        given, same = arguments_of("forward_and_count"), arguments_of("forward")
        call("forward_and_count", {**given, "num_batches_tracked": (count := np.array(counter)), "momentum": None})
        assert count == counter + 1
        call("forward", {**same, "momentum": momentum})
        assert all(given[name].tobytes() == same[name].tobytes() for name in same if isinstance(same[name], np.ndarray))
    given["num_batches_tracked"] = count = np.array(2**63 - 1)
    call("forward_and_count", given)
    assert count == -(2**63)
    given["x"] = x[:1]
    with pytest.raises(ValueError, match="^y should have the shape of x"):
        call("forward_and_count", given)
    assert count == -(2**63)
    with pytest.raises(ZeroDivisionError, match="num_batches_tracked"):
        call("forward_and_count", {**given, "x": x, "num_batches_tracked": np.array(-1), "momentum": None})
    given = {**given, "x": x, "momentum": None, "num_batches_tracked": None}
    with pytest.raises(ValueError, match="^momentum may be None only where num_batches_tracked is given$"):
        call("forward_and_count", given)


# ---- the functions of hbn, each of their arguments by name

DTYPE_OF = {"f2": np.dtype("f2"), "f4": np.dtype("f4"), "f8": np.dtype("f8"), "bf16": np.dtype(ml_dtypes.bfloat16)}
ROLES = {name: role for rows in OPERATIONS.values() for name, role, _, _ in rows} | {"out": "tensor"}
# What has arrays as its members.
MEMBERS = {"moments": ("mean", "m2"), "a": ("mean", "m2"), "b": ("mean", "m2")}
SCALARS = {
    "activation": "relu", "count": COUNT, "eps": 1e-5, "grad_mask": (True, True, True),
    "max_val": 1.0, "min_val": -1.0, "momentum": 0.25, "negative_slope": 0.1,
}  # fmt: skip


def array_arguments(function):
    """Names of what may be arrays, such as "x" and "moments.mean"."""
    for name in inspect.signature(function).parameters:
        if name in MEMBERS:
            yield from (f"{name}.{member}" for member in MEMBERS[name])
        elif name not in SCALARS and ROLES.get(name, "number") != "number":
            yield name


FUNCTIONS = {
    name: names
    for name in hbn.__all__
    if inspect.isfunction(function := getattr(hbn, name)) and (names := list(array_arguments(function)))
}
RUNNING = ("running_mean", "running_var")
FUNCTION_PLACES = [(function, name) for function, names in FUNCTIONS.items() for name in names]
WRITTEN = {(function, "out") for function in FUNCTIONS} | {("update_running_stats", r) for r in RUNNING}
WRITTEN_IN_TRAINING = {
    (function, running)
    for function in ("batch_norm", "batch_norm_forward", "batch_norm_activation_forward")
    for running in RUNNING
}


def is_written(function, name, training):
    return (function, name) in WRITTEN or (training and (function, name) in WRITTEN_IN_TRAINING)


def call_function(function, arrays, training):
    """Its results, in a list."""
    arguments = {}
    for name in inspect.signature(getattr(hbn, function)).parameters:
        if name in MEMBERS:
            arguments[name] = hbn.Moments(COUNT, *(arrays[f"{name}.{member}"] for member in MEMBERS[name]))
        elif name == "training":
            arguments[name] = training
        else:
            arguments[name] = arrays[name] if name in arrays else SCALARS[name]
    results = getattr(hbn, function)(**arguments)
    return [r for r in (results if isinstance(results, tuple) else (results,)) if r is not None]


def function_arrays(function, shape, dtype):
    """Dense, of NumPy."""
    arrays = {}
    for seed, name in enumerate(FUNCTIONS[function]):
        role = ROLES[name.rpartition(".")[2]]
        size = shape if role in ("tensor", "mask") else shape[1:2]
        rng = np.random.default_rng(seed)
        if role == "mask":
            arrays[name] = rng.integers(0, 2, size).astype(np.uint8)
        else:
            kind = "f8" if role == "statistic" or (role == "parameter" and dtype == "f8") else "f4"
            kind = dtype if role == "tensor" else kind
            arrays[name] = rng.uniform(0.5, 2, size).astype(DTYPE_OF[kind])
    return arrays


def bytes_of(array):
    """Of its values in the order of its indices."""
    if isinstance(array, torch.Tensor):
        array = array.contiguous().view(torch.uint8).numpy() if array.numel() else np.empty(0)
    return np.asarray(array).tobytes()


def steps_of(array):
    """Its strides, where they lead somewhere."""
    if not isinstance(array, np.ndarray) or array.size == 0:
        return None
    return [stride for stride, size in zip(array.strides, array.shape, strict=True) if size > 1]


# ---- forms in which memory is lent: each makes of an array what lends its values, and an array to read what it lends


def in_order(array, order):
    """Of the same values, in memory as if its dimensions were in this order."""
    return np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))


LAYOUTS = {
    "dense": lambda a: a.copy(),
    "channels_last": lambda a: in_order(a, [0, *range(2, a.ndim), 1]) if a.ndim > 1 else a.copy(),
    "batch last": lambda a: in_order(a, [*range(1, a.ndim), 0]),
    "every third": lambda a: np.repeat(a, 3, -1)[..., ::3],
}
INPUT_LAYOUTS = {
    **LAYOUTS,
    # Of equal samples.
    "expanded": lambda a: np.broadcast_to(a[:1], a.shape) if a.ndim > 1 and a.shape[0] > 1 else a.copy(),
}
# Of dimensions that have one index.
ODD_STRIDES = (None, -(2**63), -1, 0, 1, 2**40 + 8)


def is_dense(array):
    return array.flags.c_contiguous


def format_of(array):
    return b"q" if array.dtype.kind == "i" else array.dtype.char.encode()


def with_odd_strides(array, stride, unit):
    strides = [s // unit for s in array.strides]
    return [s if stride is None or size > 1 else stride for s, size in zip(strides, array.shape, strict=True)]


SIGNATURES = ((), ("stream",), ("max_version",), ("stream", "max_version", "dl_device", "copy"))


@st.composite
def dlpack_form(draw, array, writable):
    flags = st.sampled_from([0, PADDED] if writable else [0, READ_ONLY, IS_COPIED, READ_ONLY | IS_COPIED | PADDED])
    changes = {"strides": with_odd_strides(array, draw(st.sampled_from(ODD_STRIDES)), array.itemsize)}
    if is_dense(array) and draw(st.booleans()):
        changes = {"strides": None}
    takes = draw(st.sampled_from(SIGNATURES))
    lender = Dlpack(
        array,
        split=draw(st.sampled_from([0, 8, 4096])),
        versioned="max_version" in takes and draw(st.booleans()),
        takes=takes,
        flags=draw(flags),
        device_type=draw(st.sampled_from([1, 3])),  # the CPU's memory, or pinned
        minor=draw(st.integers(0, 5)),
        **changes,
    )
    return lender, lender.memory.array


@st.composite
def buffer_form(draw, array, writable):
    assume(array.dtype.kind != "V")
    strides = with_odd_strides(array, draw(st.sampled_from(ODD_STRIDES)), 1)
    dense_ = is_dense(array) and draw(st.booleans())
    lender = Buffer(
        array,
        strides=None if dense_ else strides,
        readonly=0 if writable else draw(st.integers(0, 1)),
        format=draw(st.sampled_from([b"", b"@", b"=", b"<"])) + format_of(array),
    )
    return lender, lender.memory.array


def ctypes_form(array):
    assume(array.dtype.kind != "V" and array.dtype.char != "e" and array.size)
    lent = np.ctypeslib.as_ctypes(np.ascontiguousarray(array))
    return lent, np.ctypeslib.as_array(lent)


def raw_array_form(array):
    assume(array.ndim == 1 and array.dtype.kind == "f")
    lent = multiprocessing.sharedctypes.RawArray(array.dtype.char, array.tolist())
    return lent, np.frombuffer(lent, array.dtype)


def array_array_form(array):
    assume(array.ndim == 1 and array.dtype.kind == "f")
    lent = array_module.array(array.dtype.char, array.tolist())
    return lent, np.frombuffer(lent, array.dtype)


def cast_form(array):
    assume(array.dtype.char in "fdB" and array.size)
    lent = memoryview(bytearray(array.tobytes())).cast(array.dtype.char, list(array.shape))
    return lent, np.asarray(lent)


def memoryview_form(array):
    assume(array.dtype.kind != "V")
    lent = keeping_layout(array)
    return memoryview(lent), lent


def numpy_form(array):
    lent = keeping_layout(array)
    return lent, lent


def field_form(array):
    records = np.zeros(array.shape, [("values", array.dtype), ("others", array.dtype, (3,))])
    lent = records["values"]
    lent[...] = array
    return lent, lent


def keeping_layout(array):
    return Memory(array).array


def torch_form(array):
    assume(all(stride >= 0 for stride in array.strides))
    lent = keeping_layout(array)
    if array.dtype.kind == "V":
        return torch.from_numpy(lent.view(np.int16)).view(torch.bfloat16), lent
    return torch.from_numpy(lent), lent


def jax_form(array):
    return jnp.asarray(np.ascontiguousarray(array)), array


INPUT_FORMS = {"jax": jax_form}
FORMS = {
    "ctypes": ctypes_form,
    "RawArray": raw_array_form,
    "array.array": array_array_form,
    "cast": cast_form,
    "memoryview": memoryview_form,
    "numpy": numpy_form,
    "field": field_form,
    "torch": torch_form,
    "dlpack": dlpack_form,
    "buffer": buffer_form,
}
DENSE_FORMS = ("ctypes", "RawArray", "array.array", "cast", "jax", "field")


@given(
    place=st.sampled_from(FUNCTION_PLACES),
    form=st.sampled_from([*FORMS, *INPUT_FORMS]),
    dtype=st.sampled_from(sorted(DTYPE_OF)),
    shape=st.sampled_from([(2, 3, 4, 5), (1, 3, 4, 1), (6, 3), (2, 3, 7), (2, 3, 2, 2, 2), (4, 1, 1, 2), (0, 3, 2, 2)]),
    layout=st.sampled_from(sorted(INPUT_LAYOUTS)),
    training=st.booleans(),
    data=st.data(),
)
@settings(parent=bounded, max_examples=3 * bounded.max_examples)
def test_functions_take_what_lends_memory(place, form, dtype, shape, layout, training, data):
    function, name = place
    writes = is_written(function, name, training)
    assume(not writes or (form not in INPUT_FORMS and layout in LAYOUTS))
    # Of such an x PyTorch and NumPy choose different layouts for results.
    assume((name, form, layout) != ("x", "torch", "expanded"))
    arrays, same = (function_arrays(function, shape, dtype) for _ in range(2))
    array = INPUT_LAYOUTS["dense" if form in DENSE_FORMS else layout](arrays[name])
    if form in ("dlpack", "buffer"):
        lent, memory = data.draw(FORMS[form](array, writes))
    else:
        lent, memory = {**FORMS, **INPUT_FORMS}[form](array)
    same[name] = keeping_layout(memory)
    expected = call_function(function, same, training)
    arrays[name] = lent
    references = sys.getrefcount(lent)
    given = call_function(function, arrays, training)
    is_output = [g is lent for g in given]
    assert any(is_output) == (name == "out")
    for g, e, out in zip(given, expected, is_output, strict=True):
        if isinstance(e, float):
            assert g == e
        elif not out:
            assert bytes_of(g) == bytes_of(e)
            assert tuple(g.shape) == e.shape
            assert isinstance(g, np.ndarray) or (name == "x" and isinstance(g, torch.Tensor | jax.Array))
            assert steps_of(g) in (None, steps_of(e))
    g = given = None
    # What is written, and what is not.
    assert bytes_of(memory) == bytes_of(same[name])
    for other, e in same.items():
        if other != name:
            assert bytes_of(arrays[other]) == bytes_of(e), other
    if form == "dlpack":
        assert lent.deleted == len(lent.lent)
    if form == "buffer":
        assert lent.lent == 0
    arrays.clear()
    assert sys.getrefcount(lent) == references - 1


# ---- what the functions refuse, in each of their arguments, by name and with nothing written or kept

NOT_KNOWN = r"must be (float32, float64, bfloat16 or float16|uint8), got "
NO_ARRAY = r"must be an array \(NumPy's, or any with __dlpack__ or a buffer\), got "


def list_of(array):
    return array.tolist()


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


class Raising:
    def __init__(self, error, *arguments):
        self.error = error, arguments

    def __dlpack__(self, **_):
        error, arguments = self.error
        raise error(*arguments)


def misaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)
    lent = memory[1:].view(array.dtype).reshape(array.shape)
    lent[...] = array
    return lent


def pointers(array):
    return Buffer(array, suboffsets=[0] * array.ndim)


# A form; the error and its text after the argument's name; whether it goes for arrays of one byte, too.
REFUSED_FORMS = {
    "list": (list_of, TypeError, NO_ARRAY + "list$", True),
    "tuple": (tuple, TypeError, NO_ARRAY + "tuple$", True),
    "number": (lambda a: 1.0, TypeError, NO_ARRAY + "float$", True),
    "str": (lambda a: "weight", TypeError, NO_ARRAY + "str$", True),
    "multiprocessing.Array": (
        lambda a: multiprocessing.Array("d", a.size),
        TypeError,
        NO_ARRAY + r"multiprocessing\.sharedctypes\.SynchronizedArray: give what its get_obj\(\) returns$",
        True,
    ),
    "masked": (
        lambda a: np.ma.masked_array(a, a > 1),
        TypeError,
        "is a masked array, of which hbn would not see the mask: fill it first, or give its data$",
        True,
    ),
    "masked, nothing masked": (np.ma.asarray, TypeError, "is a masked array, ", True),
    "big-endian": (
        lambda a: a.astype(a.dtype.newbyteorder(">")),
        TypeError,
        NOT_KNOWN + r"big-endian float(32|64)$",
        False,
    ),
    "big-endian ctypes": (
        lambda a: (ctypes.c_float.__ctype_be__ * a.size)(),
        TypeError,
        NOT_KNOWN + "big-endian float32$",
        True,
    ),
    "int32": (lambda a: a.astype(np.int32), TypeError, NOT_KNOWN + "int32$", True),
    "int16 of DLPack": (lambda a: Dlpack(a.astype(np.int16)), TypeError, NOT_KNOWN + "int16$", True),
    "uint16 of torch": (
        lambda a: torch.from_numpy(a.astype(np.uint16)),
        TypeError,
        NOT_KNOWN + "uint16$",
        True,
    ),
    "bool": (lambda a: a > 1, TypeError, NOT_KNOWN + "bool$", False),
    "bool of torch": (lambda a: torch.from_numpy(a > 1), TypeError, NOT_KNOWN + "bool$", False),
    "bool of jax": (lambda a: jnp.asarray(a > 1), TypeError, NOT_KNOWN + "bool$", False),
    "complex64": (lambda a: a.astype(np.complex64), TypeError, NOT_KNOWN + "complex64$", True),
    "complex128 of torch": (
        lambda a: torch.from_numpy(a.astype(np.complex128)),
        TypeError,
        NOT_KNOWN + "complex128$",
        True,
    ),
    "longdouble": (lambda a: a.astype(np.longdouble), TypeError, NOT_KNOWN + "float128$", True),
    "object": (lambda a: a.astype(object), TypeError, NOT_KNOWN + "object$", True),
    "strings": (lambda a: a.astype("S3"), TypeError, NOT_KNOWN + r"buffer format '3s'$", True),
    "records": (lambda a: a.view([("v", a.dtype)]), TypeError, NOT_KNOWN + r"buffer format 'T{.:v:}'$", True),
    "datetime": (lambda a: a.astype("M8[s]"), TypeError, NOT_KNOWN + r"datetime64\[s\]$", True),
    "float8": (
        lambda a: a.astype(ml_dtypes.float8_e5m2),
        TypeError,
        NOT_KNOWN + "float8_e5m2$",
        True,
    ),
    "float8 of torch": (
        lambda a: torch.from_numpy(a).to(torch.float8_e4m3fn),
        TypeError,
        NOT_KNOWN + "float8_e4m3fn$",
        True,
    ),
    "float4 of DLPack": (
        lambda a: Dlpack(a, code=17, bits=4, flags=PADDED),
        TypeError,
        NOT_KNOWN + "float4_e2m1fn$",
        True,
    ),
    "lanes": (lambda a: Dlpack(a, lanes=4), TypeError, NOT_KNOWN + "vectors of 4 ", True),
    "unaligned": (misaligned, ValueError, "is not aligned: ", False),
    "Metal": (
        lambda a: Dlpack(a, device_type=8),
        TypeError,
        "is in the memory of device 'metal', which hbn does not know$",
        True,
    ),
    "device 99": (lambda a: Dlpack(a, device_type=99), TypeError, "is in the memory of device '99', ", True),
    "version 2": (
        lambda a: Dlpack(a, major=2),
        BufferError,
        r"is lent by DLPack 2\.1, hbn knows versions 0 and 1$",
        True,
    ),
    "capsule": (
        lambda a: Dlpack(a, capsule=b"used_dltensor"),
        BufferError,
        "has a __dlpack__ that gives no DLPack capsule$",
        True,
    ),
    "stream": (
        lambda a: Dlpack(a, takes=(), capsule=b"other"),
        BufferError,
        "has a __dlpack__ that gives no DLPack capsule$",
        True,
    ),
    "raises": (lambda a: Raising(KeyError, "lost"), BufferError, "can't be lent: 'lost'$", True),
    "raises what has no UTF-8": (
        lambda a: Raising(ValueError, "\ud800" + "\u20ac" * 400),
        BufferError,
        r"can't be lent: \\ud800\u20ac+$",
        True,
    ),
    "pointers": (pointers, ValueError, "is an array of pointers, which hbn does not follow$", True),
}
REFUSED_OUTPUTS = {
    "read-only": (lambda a: read_only(a), ValueError, "is read-only, but is to be written$"),
    "bytes": (lambda a: memoryview(a.tobytes()).cast(a.dtype.char, a.shape), ValueError, "is read-only, "),
    "read-only buffer": (lambda a: Buffer(a, readonly=1), ValueError, "is read-only, but is to be written$"),
    "read-only DLPack": (lambda a: Dlpack(a, flags=READ_ONLY), ValueError, "is read-only, but is to be written$"),
    "a copy": (lambda a: Dlpack(a, flags=IS_COPIED), ValueError, "lends a copy, but is to be written$"),
    "a copy, if it may": (
        lambda a: Dlpack(a, flags=IS_COPIED, takes=("max_version", "copy"), must_copy=True),
        BufferError,
        "can't be lent: it must be copied$",
    ),
    "jax": (jnp.asarray, ValueError, "is read-only, but is to be written$"),
    "bfloat16 of jax": (
        lambda a: jnp.asarray(a, jnp.bfloat16),
        ValueError,
        "is read-only, but is to be written$",
    ),
    "one value": (
        lambda a: np.lib.stride_tricks.as_strided(a, a.shape, (0,) * a.ndim),
        ValueError,
        r"more than one element of the written-to tensor \(NAME\) refers to a single memory location$",
    ),
}


def failure_of(call):
    """The class and the text of what it raises."""
    try:
        call()
    except Exception as e:
        return type(e), str(e)
    return None, "nothing is wrong"


def check_function_refuses(place, lend, error, text, training):
    function, name = place
    arrays = function_arrays(function, (2, 3, 4, 5), "f4")
    lent = lend(arrays.pop(name))
    before = {other: array.tobytes() for other, array in arrays.items()}
    memory = bytes_of(lent.memory.array) if isinstance(lent, Dlpack | Buffer) else None
    references = sys.getrefcount(lent)
    raised, said = failure_of(lambda: call_function(function, {**arrays, name: lent}, training))
    assert raised is error, said
    argument_name, _, member = name.partition(".")
    called = {"out": "(y|grad_input)", "a": f"{member}_a", "b": f"{member}_b"}.get(argument_name, member or name)
    assert re.search(text.replace("NAME", called) if "NAME" in text else f"^{called} {text}", said), said
    assert {other: array.tobytes() for other, array in arrays.items()} == before
    if memory is not None:
        assert bytes_of(lent.memory.array) == memory
    if isinstance(lent, Dlpack) and lent.capsule in (b"dltensor", b"dltensor_versioned"):
        assert lent.deleted == len(lent.lent)
    if isinstance(lent, Buffer):
        assert lent.lent == 0
    if not isinstance(lent, str):
        assert sys.getrefcount(lent) == references


@pytest.mark.parametrize("form", REFUSED_FORMS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_refuse(function, form):
    lend, error, text, of_bytes = REFUSED_FORMS[form]
    for name in FUNCTIONS[function]:
        is_copied = function == "merge_moments" and name.startswith("a.") and form == "unaligned"
        if (of_bytes or name != "mask") and not is_copied:
            for training in (True, False):
                check_function_refuses((function, name), lend, error, text, training)


@pytest.mark.parametrize("form", REFUSED_OUTPUTS)
@pytest.mark.parametrize(("function", "name"), [p for p in FUNCTION_PLACES if is_written(*p, True)])
def test_functions_refuse_outputs(function, name, form):
    check_function_refuses((function, name), *REFUSED_OUTPUTS[form], True)


def test_a_capsule_is_taken_once():
    x = function_arrays("batch_norm_stats", SHAPE, "f4")["x"]
    lender = Dlpack(x)
    capsule = lender.__dlpack__()
    lender.__dlpack__ = None

    class Again:
        shape = x.shape

        def __dlpack__(self, **_):
            return capsule

    assert hbn.batch_norm_stats(Again()).count == COUNT
    assert failure_of(lambda: hbn.batch_norm_stats(Again())) == (
        BufferError,
        "x has a __dlpack__ that gives no DLPack capsule",
    )
    assert lender.deleted == 1


# ---- what was reported, and each library's bfloat16, with right values


def formula(x, weight, bias, eps=1e-5):
    """y and the batch's statistics, in float64."""
    x = np.asarray(x, np.float64)
    over = (0, *range(2, x.ndim))
    mean, var = x.mean(over, keepdims=True), x.var(over, keepdims=True)
    to = (1, -1) + (1,) * (x.ndim - 2)
    y = (x - mean) / np.sqrt(var + eps) * weight.reshape(to) + bias.reshape(to)
    return y, mean.ravel(), var.ravel() * (x.size / x.shape[1]) / (x.size / x.shape[1] - 1)


def mapped(array, make):
    """Memory of a map of bytes, which `make` gives for a size, filled with the array."""
    lent = memoryview(make(array.nbytes))[: array.nbytes].cast("B").cast(array.dtype.char, list(array.shape))
    np.asarray(lent)[...] = array
    return lent


def shared(array):
    memory = multiprocessing.shared_memory.SharedMemory(create=True, size=array.nbytes)
    memory.unlink()
    SHARED.append(memory)  # which closes what it lent when it goes
    return mapped(array, lambda _: memory.buf)


SHARED = []


def as_field(array):
    records = np.zeros(array.shape[0], [("other", "i4"), ("values", "f4", array.shape[1:])]).view(np.recarray)
    records.values[...] = array
    return records.values


REPORTED = {
    "ctypes": np.ctypeslib.as_ctypes,
    "memoryview": memoryview,
    "memoryview.cast": lambda a: memoryview(bytearray(a.tobytes())).cast("f", list(a.shape)),
    "mmap": lambda a: mapped(a, lambda size: mmap.mmap(-1, size)),
    "shared memory": shared,
    "subarrays of a recarray": as_field,
    "matrix": lambda a: a.view(np.matrix) if a.ndim == 2 else a,
}
VECTORS = {
    "ctypes": np.ctypeslib.as_ctypes,
    "RawArray": lambda a: multiprocessing.sharedctypes.RawArray("f", a.tolist()),
    "get_obj of Array": lambda a: multiprocessing.Array("f", a.tolist()).get_obj(),
    "array.array": lambda a: array_module.array("f", a.tolist()),
    "memoryview": memoryview,
    "shared memory": shared,
}


@pytest.mark.parametrize("ndim", [2, 4])
@pytest.mark.parametrize("vectors", VECTORS)
@pytest.mark.parametrize("form", REPORTED)
def test_reported_forms(form, vectors, ndim):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (16, 3, 4, 5)[:ndim]).astype("f4")
    weight, bias = rng.uniform(0.5, 2, (2, 3)).astype("f4")
    expected, mean, var = formula(x, weight, bias)
    lent_x, out = REPORTED[form](x.copy()), REPORTED[form](np.zeros_like(x))
    lent = [VECTORS[vectors](v) for v in (weight, bias, np.zeros(3, "f4"), np.zeros(3, "f4"))]
    y, save_mean, invstd = hbn.batch_norm_forward(lent_x, *lent, training=True, momentum=1.0)
    assert type(y) is np.ndarray
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(save_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(lent[2], mean, rtol=1e-6)
    np.testing.assert_allclose(lent[3], var, rtol=1e-6)
    assert hbn.batch_norm_forward(lent_x, *lent, training=True, out=out)[0] is out
    assert np.asarray(out).tobytes() == y.tobytes()
    gradients = hbn.batch_norm_backward(lent_x, lent_x, lent[0], save_mean, invstd, None, None, training=True)
    same = hbn.batch_norm_backward(x, x, weight, save_mean, invstd, None, None, training=True)
    assert [g.tobytes() for g in gradients] == [s.tobytes() for s in same]


@pytest.mark.parametrize("form", [bytes, bytearray, lambda a: a.view(bool), torch.from_numpy, "bool of torch"])
def test_masks(form):
    arrays = function_arrays("batch_norm_activation_backward", SHAPE, "f4")
    expected = [r.tobytes() for r in call_function("batch_norm_activation_backward", arrays, True)]
    mask = arrays["mask"]
    if form in (bytes, bytearray):
        arrays["mask"] = memoryview(form(mask.tobytes())).cast("B", SHAPE)
    else:
        arrays["mask"] = torch.from_numpy(mask).bool() if form == "bool of torch" else form(mask)
    assert [r.tobytes() for r in call_function("batch_norm_activation_backward", arrays, True)] == expected
    arrays["mask"] = mask.tobytes()
    assert failure_of(lambda: call_function("batch_norm_activation_backward", arrays, True)) == (
        ValueError,
        "mask should have the shape of grad_output, [2, 3, 4, 5], not [120]",
    )


class TensorFlowLike(Dlpack):
    """As an EagerTensor: a dtype with a name, no version of DLPack, no assignment, and no more of NumPy's."""

    dtype = types.SimpleNamespace(name="bfloat16")
    __setitem__ = property()  # which hasattr() does not see

    def __init__(self, array):
        super().__init__(array, takes=("stream",), versioned=False)
        self.shape = list(array.shape)


class MlxLike(_Lender):
    """As mlx.core.array: of bfloat16 it lends a buffer whose format is no type's, or another's; it has no float64."""

    def __init__(self, array, format=b"B"):
        array = array.astype("f4") if array.dtype.char == "d" else array
        self.c_fields = Buffer(array, format=format if array.dtype.kind == "V" else array.dtype.char.encode()).c_fields
        self.lender = Dlpack(array, takes=("stream", "max_version", "dl_device", "copy"), versioned=False)
        self.array, self.lent, self.shape = array, 0, array.shape
        self.dtype = "mlx.core." + array.dtype.name

    def __dlpack__(self, **arguments):
        return self.lender.__dlpack__(**arguments)

    def __setitem__(self, index, value):
        raise NotImplementedError

    def __array_namespace__(self):
        return types.SimpleNamespace(asarray=MlxLike, from_dlpack=lambda a: MlxLike(np.from_dlpack(a)))


BFLOAT16 = {
    "TensorFlow": (TensorFlowLike, np.ndarray),
    "MLX": (MlxLike, MlxLike),
    "MLX since 0.32": (lambda a: MlxLike(a, b"bfloat16"), MlxLike),
    "JAX": (jnp.asarray, jax.Array),
    "PyTorch": (lambda a: torch.from_numpy(a.view(np.int16)).view(torch.bfloat16), torch.Tensor),
    "another": (Dlpack, np.ndarray),
}


@pytest.mark.parametrize("library", BFLOAT16)
def test_bfloat16(library):
    make, class_ = BFLOAT16[library]
    x = function_arrays("batch_norm_stats", SHAPE, "bf16")["x"]
    weight = np.ones(3, x.dtype)
    expected = hbn.batch_norm_forward(x, weight, weight, None, None, training=True)
    gradients = hbn.batch_norm_backward(x, x, weight, *expected[1:], None, None, training=True)
    np.testing.assert_allclose(
        expected[0].astype(float), formula(x, np.ones(3), np.ones(3))[0], rtol=2**-8, atol=2**-16
    )
    lent, lent_weight = make(x), make(weight)
    given = hbn.batch_norm_forward(lent, lent_weight, weight, None, None, training=True)
    given_gradients = hbn.batch_norm_backward(lent, lent, lent_weight, *given[1:], None, None, training=True)
    assert hbn.batch_norm_stats(lent).count == COUNT
    for g, e in zip(given + given_gradients, expected + gradients, strict=True):
        g = g.array if isinstance(g, MlxLike) else g
        assert bytes_of(g) == bytes_of(e)
    assert isinstance(given[0], class_)
    assert all(isinstance(g, class_) for g in given_gradients)
    lender = getattr(lent, "lender", lent)
    if isinstance(lender, Dlpack):
        assert lender.deleted == len(lender.lent) > 0
    assert getattr(lent, "lent", 0) == 0 or lent is lender


def test_what_is_written_in_mlx_arrays_is_in_them():
    x = function_arrays("batch_norm_stats", SHAPE, "f4")["x"]
    out = MlxLike(np.zeros_like(x))
    y = hbn.batch_norm_forward(x, None, None, None, None, training=True, out=out)[0]
    assert y is out
    # By DLPack, since its buffer may be a copy.
    assert out.lender.memory.array.tobytes() == call_function("batch_norm_forward", {
        "x": x, "weight": None, "bias": None, "running_mean": None, "running_var": None, "out": None
    }, True)[0].tobytes()  # fmt: skip


@pytest.mark.parametrize("form", ["memmap", "matrix", "recarray field"])
def test_results_are_plain_arrays(form, tmp_path):
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("f4")
    if form == "memmap":
        lent = np.memmap(tmp_path / "x", "f4", "w+", shape=x.shape)
        lent[...] = x
    else:
        lent = x.view(np.matrix) if form == "matrix" else as_field(x)
    results = hbn.batch_norm_forward(lent, None, None, None, None, training=True)
    assert [type(r) for r in results] == [np.ndarray] * 3
    assert results[0].shape == x.shape
    np.testing.assert_allclose(results[0], formula(x, np.ones(3), np.zeros(3))[0], atol=2e-6)


def test_a_list_is_refused_before_it_is_read():
    class Long(list):
        def __iter__(self):
            raise AssertionError("read")

    assert failure_of(lambda: hbn.batch_norm_stats(Long([0.0] * 10))) == (
        TypeError,
        "x must be an array (NumPy's, or any with __dlpack__ or a buffer), got test_exporters.Long",
    )


def test_a_refused_device_changes_nothing_later():
    """What is remembered of the last dtype and device is of one array."""
    x = argument("x", "tensor", 0)
    expected, given = [np.empty(3), np.empty(3)], [np.empty(3), np.empty(3)]
    _core.stats(Dlpack(x), *expected)
    with pytest.raises(TypeError, match="of device 'metal'"):
        _core.stats(Dlpack(x.astype("f8"), device_type=8), *given)
    _core.stats(Dlpack(x), *given)
    assert all(np.array_equal(a, b) for a, b in zip(given, expected, strict=True))
