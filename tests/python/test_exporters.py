"""Whatever lends memory, at every operation of runtime/operations.def: odd arrays, and descriptors that lie.

What is legal gives the bits that NumPy's arrays give. What is not is refused by name, with nothing written. More
examples than `make test` takes: HBN_FUZZ_EXAMPLES=100000.
"""

import ctypes
import math
import os
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from hbn import _core

bounded = settings(
    max_examples=int(os.environ.get("HBN_FUZZ_EXAMPLES", 300)),
    deadline=None,
    derandomize="HBN_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)

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
        self.bytes[self.at : self.at + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)

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
CODES = {"i": 0, "u": 1, "f": 2}
READ_ONLY, IS_COPIED, PADDED = 1, 2, 4  # flags


class Dlpack:
    """Lends an array's copy by DLPack, but for what is changed in its descriptor."""

    def __init__(self, array, split=0, versioned=True, capsule=None, **changes):
        self.memory = Memory(array, changes.pop("offset", 0))
        self.fields = {
            "data": self.memory.address - split,
            "byte_offset": split,
            "ndim": array.ndim,
            "shape": list(array.shape),
            "strides": dense(array.shape),
            "device_type": 1,
            "code": CODES[array.dtype.kind],
            "bits": array.itemsize * 8,
            "lanes": 1,
            "major": 1,
            "minor": 1,
            "flags": 0,
            **changes,
        }
        self.versioned = versioned
        self.capsule = capsule or (b"dltensor_versioned" if versioned else b"dltensor")
        self.deleted = 0

        def delete(_):
            self.deleted += 1

        self.delete = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(delete)
        self.lent = []

    def __dlpack__(self, *, max_version=None):
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
    return 0


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


BF_GETBUFFER, TPFLAGS_BASETYPE = 1, 1 << 10
_slots = (_Slot * 2)(_Slot(BF_GETBUFFER, ctypes.cast(_get_buffer, ctypes.c_void_p)), _Slot(0, None))
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
            "strides": [stride * array.itemsize for stride in dense(array.shape)],
            "suboffsets": None,
            **changes,
        }
        self.c_fields = {
            name: int64s(value) if isinstance(value, list) else value for name, value in self.fields.items()
        }

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
    check_legal(
        place,
        lambda array: Buffer(
            array,
            offset=offset,
            format=prefix + (b"q" if array.dtype.kind == "i" else array.dtype.char.encode()),
            **changes,
        ),
    )


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
    return elements < 2**57 and reach < 2**60 and address + 8 * reach + 8 < 2**64


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
    check_hostile(place, Buffer, changes)


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
    for counter, momentum in ((3, 0.25), (0, 1.0), (-1, np.inf)):
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
    given = {**given, "x": x, "momentum": None, "num_batches_tracked": None}
    with pytest.raises(ValueError, match="^momentum may be None only where num_batches_tracked is given$"):
        call("forward_and_count", given)
