"""Pickles from anyone: as the standard library reads them where they are plain, and refused in one line where they are not."""

import collections
import io
import os
import pickle
import pickletools
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from metadiff.errors import DataError
from metadiff.images import picklefile
from metadiff.images.picklefile import FIXED, LINES, PREFIXED, SMALL
from metadiff.images.pickles import DONE, PUSHED, read_pickle
from metadiff.images.stored import Stored, stored_npy

PROTOCOLS = range(6)
OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


def read(folder: Path, content: bytes) -> object:
    path = folder / "a.pkl"
    path.write_bytes(content)
    return read_pickle(path, scratch=folder)


def reason(folder: Path, content: bytes) -> str:
    """One line that names the file; and nothing is left in scratch."""
    with pytest.raises(DataError) as caught:
        read(folder, content)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'a.pkl'}: ")
    assert "\n" not in message
    assert [path.name for path in folder.iterdir()] == ["a.pkl"]
    return message.removeprefix(f"{folder / 'a.pkl'}: ")


def in_memory(value: object) -> object:
    """With every Stored read; its bytes are the same when mapped."""
    if isinstance(value, Stored):
        array = value.read()
        assert value.view().tobytes("A") == array.tobytes("A")
        return array
    if isinstance(value, dict):
        return {key: in_memory(item) for key, item in value.items()}
    return type(value)(map(in_memory, value)) if isinstance(value, (list, tuple)) else value


def assert_same(found: object, expected: object) -> None:
    """Type by type; long bytes come as an array of them, numpy's numbers as Python's."""
    if isinstance(found, np.ndarray) and not isinstance(expected, np.ndarray):
        raw = expected.encode("latin-1") if isinstance(expected, str) else bytes(expected)
        assert (found.dtype, found.tobytes()) == (np.uint8, raw)
        assert len(raw) > SMALL
    elif isinstance(expected, np.ndarray):
        assert (found.dtype.newbyteorder("="), found.shape) == (expected.dtype.newbyteorder("="), expected.shape)
        assert found.astype(expected.dtype).tobytes() == expected.tobytes()  # numpy may turn the bytes of each number round
    elif isinstance(expected, (list, tuple, dict)):
        assert type(found) is (dict if isinstance(expected, dict) else type(expected))
        assert len(found) == len(expected)
        if isinstance(expected, dict):
            assert [*map(repr, found)] == [*map(repr, expected)]
            found, expected = found.values(), expected.values()
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        plain = expected.item() if isinstance(expected, np.generic) else expected
        plain = bytes(plain) if isinstance(plain, bytearray) else plain
        assert type(found) is type(plain)
        assert repr(found) == repr(plain)


def check(folder: Path, content: bytes) -> None:
    assert_same(in_memory(read(folder, content)), pickle.loads(content, encoding="latin1"))  # noqa: S301


DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.byte_string_dtypes(min_len=1, max_len=5),
)
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
TEXTS = st.text(max_size=8) | st.text(alphabet="\\'\"\n\r\x00\x1a\x7fé\udc80x0", max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.binary(max_size=9)
KEYS = SCALARS | st.tuples(SCALARS, SCALARS)
LEAVES = SCALARS | ARRAYS | ARRAYS.map(np.asfortranarray) | hnp.from_dtype(np.dtype("f4")) | st.sets(st.integers())
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner) | inner.map(lambda one: [one, one]),
    max_leaves=12,
)


@settings(deadline=None, max_examples=60)
@given(value=VALUES, protocol=st.sampled_from(PROTOCOLS))
def test_plain_values_are_what_the_standard_library_reads(
    tmp_path_factory: pytest.TempPathFactory, value: object, protocol: int
) -> None:
    folder = tmp_path_factory.mktemp("a")
    check(folder, pickle.dumps(value, protocol))
    check(folder, pickletools.optimize(pickle.dumps(value, protocol)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        np.arange(50_000, dtype="<f4").reshape(5, 100, 100),
        np.asfortranarray(np.arange(8000).reshape(80, 100)),
        np.arange(30_000, dtype=np.int16)[::3],
        [np.frombuffer(os.urandom(5000), np.uint8), np.zeros(1, np.uint8), np.zeros(1, np.uint8)],
        [b"\\\n'\"" * 3000, bytearray(b"\xff" * 5000), bytes(range(256)) * 1200, bytearray(), bytearray(b"a"), b""],
        ["x" * 9000, "é\\u0041\n" * 9000, "a" * 4096],
        [np.array(["ab", "ü"]), np.array(["\U0001f600" * 2000]), np.str_("a"), np.bytes_(b"ab"), np.bool_(True), np.uint8(3)],
        np.array(5.0),
        [1 << 1000, -(1 << 1000), -1, 255, 256, 65535, 65536, -(1 << 31), 1 << 31],
        collections.OrderedDict([("b", 1), ("a", 2)]),
        collections.defaultdict(list, a=[1], b=[2, 3]),
        list(range(2500)),
        {number: str(number) for number in range(2500)},
        set(range(2500)),
        [[["deep"]]] * 3,
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_of_real_sizes(tmp_path: Path, value: object, protocol: int) -> None:
    check(tmp_path, pickle.dumps(value, protocol))


class Old:
    """Python 2's opcodes by hand."""

    def __init__(self, *, protocol: int) -> None:
        self.protocol = protocol
        self.parts = [b"\x80\x02"] if protocol == 2 else []
        self.memo = 0

    def put(self, *parts: bytes) -> None:
        self.parts += parts

    def keep(self) -> None:
        self.put(b"p%d\n" % self.memo if self.protocol == 0 else b"r" + struct.pack("<I", self.memo))
        self.memo += 1

    def text(self, value: bytes) -> None:
        if self.protocol == 0:
            self.put(b"S", repr(value)[1:].encode(), b"\n")
        else:
            self.put(b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value)), value)
        self.keep()

    def array(self, array: np.ndarray) -> None:
        self.put(b"cnumpy.core.multiarray\n_reconstruct\n")
        self.keep()
        self.put(b"(cnumpy\nndarray\n(I0\nt")
        self.text(b"b")
        self.put(b"tR")
        self.keep()
        self.put(b"(I1\n(", *(b"I%d\n" % length for length in array.shape), b"tcnumpy\ndtype\n(")
        self.text(array.dtype.str[1:].encode())
        self.put(b"I0\nI1\ntR")
        self.keep()
        self.put(b"(I3\n")
        self.text(array.dtype.str[:1].encode())
        self.put(b"NNNI-1\nI-1\nI0\ntbI00\n" if self.protocol < 2 else b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
        self.text(array.tobytes())
        self.put(b"tb")


@pytest.mark.parametrize("protocol", [0, 1, 2])
@pytest.mark.parametrize("size", [3, 255, 256, 4000, 5000, 70_000, 1_200_000])
def test_python_2_wrote_its_bytes_as_strings(tmp_path: Path, protocol: int, size: int) -> None:
    array = np.frombuffer(np.random.default_rng(size).bytes(size), np.uint8)
    old = Old(protocol=protocol)
    old.put(b"(")
    old.text(b"data")
    old.array(array)
    old.text(b"la\\b'\"el\xe9")
    old.put(b"(lp900\nL12345678901234567890L\naF1.5\naI01\naVnatur\\u00e9\na")
    old.text(bytes(array[:5]) * 2000)
    old.put(b"ad.")
    check(tmp_path, b"".join(old.parts))
    found = read(tmp_path, b"".join(old.parts))
    assert list(found) == ["data", "la\\b'\"el\xe9"]
    np.testing.assert_array_equal(found["data"].read(), array)
    assert (found["data"].path == tmp_path / "a.pkl") is (protocol > 0)


def test_sets_and_ordered_dicts_of_python_2(tmp_path: Path) -> None:
    for content in (
        b"c__builtin__\nset\n((lI1\naI2\natR.",
        b"ccollections\nOrderedDict\n((l(lS'a'\naI1\naa(lS'b'\naI2\naatR.",
        b"ccollections\ndefaultdict\n(c__builtin__\nint\ntRS'a'\nI1\ns.",
        b"c__builtin__\nbytearray\n(Vab\\u00ff\nS'latin-1'\ntR.",
        b"ccopy_reg\n_reconstructor\n(c__builtin__\nlist\nc__builtin__\nlist\n(lI7\natR.",
    ):
        check(tmp_path, content)


def test_a_stored_array_lies_in_the_pickle_and_is_not_read(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (64, 1 << 18), dtype=np.uint8)
    for protocol in (3, 4, 5):
        content = pickle.dumps({"x": array, "again": array}, protocol)
        (tmp_path / "a.pkl").write_bytes(content)
        tracemalloc.start()
        found = read_pickle(tmp_path / "a.pkl", scratch=tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20
        assert found == {"x": found["x"], "again": found["x"]}
        assert found["x"] == Stored(tmp_path / "a.pkl", content.index(array.tobytes()[:99]), array.dtype, array.shape)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]


@pytest.mark.parametrize("protocol", [0, 2])
def test_what_is_decoded_goes_to_scratch_piece_by_piece(tmp_path: Path, protocol: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, 1 << 24, dtype=np.uint8)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(array, protocol))
    tracemalloc.start()
    found = read_pickle(tmp_path / "a.pkl", scratch=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(found, Stored)
    assert found.path.parent == tmp_path
    assert found.path != tmp_path / "a.pkl"
    assert peak < 16 << 20
    np.testing.assert_array_equal(found.read(), array)


@pytest.mark.parametrize("protocol", [3, 5])
def test_many_arrays_take_less_than_200_bytes_each(tmp_path: Path, protocol: int) -> None:
    arrays = [np.full(200 + index % 100, index % 256, np.uint8) for index in range(3000)]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(arrays, protocol))
    tracemalloc.start()
    found = read_pickle(tmp_path / "a.pkl", scratch=tmp_path)
    peak = tracemalloc.get_traced_memory()[1] - picklefile.SMALL - (1 << 18)  # less the file's buffer
    tracemalloc.stop()
    assert isinstance(found, list)
    assert peak / len(arrays) < 200
    assert all((one.read() == other).all() for one, other in zip(found[::50], arrays[::50], strict=True))


def test_the_tables_know_every_opcode() -> None:
    for opcode in pickletools.opcodes:
        code = opcode.code.encode("latin-1")
        assert (code in PUSHED) + (code in DONE) == (code != b".")
        size = opcode.arg.n if opcode.arg else 0
        if size >= 0:
            assert FIXED[code] == size
        elif size == pickletools.UP_TO_NEWLINE:
            assert LINES[code] == 1 + (opcode.arg is pickletools.stringnl_noescape_pair)
        else:
            widths = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT8U: 8}
            assert PREFIXED[code] == widths.get(size, 4)
    assert len(PUSHED) + len(DONE) + 1 == len(FIXED) + len(PREFIXED) + len(LINES) == len(pickletools.opcodes)


class Evil:
    def __init__(self, call: Callable[..., object], *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.args


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_in_a_pickle_is_run(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path.parent / f"canary-{protocol}"
    content = pickle.dumps(Evil(os.mkdir, str(canary)), protocol)
    assert "posix.mkdir: only plain containers, numbers, texts and numpy arrays are read" in reason(tmp_path, content)
    assert not canary.exists()
    pickle.loads(content)  # noqa: S301
    assert canary.exists()


NAMED = {
    b"cos\nsystem\n(S'true'\ntR.": "os.system",
    b"cbuiltins\neval\n(S'1'\ntR.": "builtins.eval",
    b"c__builtin__\ngetattr\n(S'1'\ntR.": "__builtin__.getattr",
    b"\x80\x04\x8c\x02os\x8c\x06system\x93.": "os.system",
    b"cnumpy\nload\n.": "numpy.load",
    b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.": "numpy.core.multiarray._reconstruct.__globals__",
    b"(ios\nsystem\n.": "os.system",
    b"cmade\x1b[31m up\nx\n.": r"made\x1b[31m up.x",
    pickle.dumps(complex(1, 2)): "builtins.complex",
    pickle.dumps(frozenset(), 2): "__builtin__.frozenset",
    pickle.dumps(np.random.default_rng(0), 2): "numpy.random._pickle",
}


@pytest.mark.parametrize("content", NAMED)
def test_other_names_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    message = reason(tmp_path, content)
    assert NAMED[content] in message
    assert message.endswith("only plain containers, numbers, texts and numpy arrays are read")


def array_pickle(state: bytes) -> bytes:
    return b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n" + state + b"tb."


U1 = b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"
REFUSED = {
    b"": "an empty file",
    b"<!DOCTYPE html><p>quota</p>": "an HTML page, not a pickle: the download failed",
    b"\n <html>": "an HTML page, not a pickle: the download failed",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "a pointer of git-lfs, not the file itself",
    b"\x80\x06N.": "protocol 6, expected 0 to 5",
    b"\xff.": "byte 0xff is no opcode",
    b"N": "the file ends without a stop",
    b"N.N.": "2 bytes after the end",
    b"NN.": "1 values are left at the end",
    b"(N.": "1 values are left at the end",
    b".": "nothing; the file is broken",
    b"a.": "nothing; the file is broken",
    b"t.": "nothing; the file is broken",
    b"h\x05.": "nothing; the file is broken",
    b"Na.": "nothing; the file is broken",
    b"NNa.": "a NoneType where a list must be",
    b"]N\x85s.": "nothing; the file is broken",
    b"](N\x90.": "a list where a set must be",
    b"}(Nu.": "a key without a value",
    b"}]Ns.": "a list as a key or in a set",
    b"\x8f(N\x85\x85\x90.": "a tuple as a key or in a set",
    b"B\xff\xff\xff\xff.": "4294967295 bytes are announced and 1 are left",
    b"T\xff\xff\xff\xff.": "4294967295 bytes are announced",
    b"\x8e" + b"\xff" * 8 + b".": "18446744073709551615 bytes are announced",
    b"\x95" + b"\xff" * 8 + b"N.": "a frame of 18446744073709551615 bytes",
    b"\x8b\xff\xff\x00\x00" + bytes(65535) + b".": "a number of 65535 bytes",
    b"L" + b"9" * 5000 + b"L\n.": "a number or name that is too long",
    b"I1_0\n.": "a number that is none",
    b"F1.2.3\n.": "a text or number that cannot be decoded",
    b"X\x01\x00\x00\x00\xff.": "a text or number that cannot be decoded",
    b"Sabc\n.": "a string without its quotes",
    b"S'abc\n.": "a string without its quotes",
    b"S'a\\qbcdef'\n.": "a string",
    b"Nq\x00\x94.": "a memo both numbered and counted",
    b"N\x94q\x00.": "a memo both numbered and counted",
    b"]q\x00h\x00a.": "a container that contains itself",
    b"]" * 102 + b"a" * 101 + b".": "containers more than 100 deep",
    b"Pid\n.": "a persistent id",
    b"NQ.": "a persistent id",
    b"\x82\x01.": "a name of the extension registry",
    b"\x97.": "an out-of-band buffer",
    b"N2\x86.": "a duplicate",
    b"(\x91.": "a frozenset",
    b"NN\x81.": "a call of a NoneType",
    b"]}b.": "a state for something other than an array",
    b"cnumpy\nndarray\n.": "numpy.ndarray as a value",
    U1 + b".": "as a value",
    b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.": "an array of dtype O8; only numbers",
    b"cnumpy\ndtype\n(S'V12'\nI0\nI1\ntR.": "an array of dtype V12; only numbers",
    b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nN(S'a'\nt}I-1\nI-1\nI0\ntb.": "a dtype with fields",
    b"cnumpy\nndarray\n)R.": "a call of a name with 0 arguments",
    b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.": "a call of a name with 1 arguments",
    b"c_codecs\nencode\n(Va\nS'rot13'\ntR.": "a call of a name with 2 arguments",
    array_pickle(b"(I4\nt" + U1 + b"I00\nS'abc'\n"): "an array of shape (4,) and dtype uint8 takes 4 bytes, found 3",
    array_pickle(b"(I2\nt" + U1 + b"I00\nS'abc'\n"): "takes 2 bytes, found 3",
    array_pickle(b"(I-1\nt" + U1 + b"I00\nS''\n"): "whose shape is not up to 32 counts",
    array_pickle(b"(I01\nt" + U1 + b"I00\nS'a'\n"): "whose shape is not up to 32 counts",
    array_pickle(b"(" + b"I1\n" * 33 + b"t" + U1 + b"I00\nS'a'\n"): "whose shape is not up to 32 counts",
    array_pickle(b"(I0\nI9223372036854775807\nI9\nt" + U1 + b"I00\nS''\n"): "an array larger than any memory",
    array_pickle(b"(I1\nt" + U1 + b"I00\n(lNa"): "an array made of a list",
    array_pickle(b"(I1\nt" + U1 + b"I00\nV\\u0416\n"): "cannot be decoded",
    pickle.dumps(np.array([None])): "an array of dtype O8",
    pickle.dumps(np.zeros(2, [("a", "f4")]), 2): "an array of dtype V4",
    pickle.dumps(np.zeros(2, "M8[s]"), 2): "an array of dtype M8",
    pickle.dumps(np.zeros(2, complex), 5): "an array of dtype c16",
}


@pytest.mark.parametrize("content", REFUSED, ids=lambda content: ascii(content[:30]))
def test_what_is_not_a_plain_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    message = reason(tmp_path, content)
    assert REFUSED[content] in message
    assert len(message) < 300


def test_the_position_is_named(tmp_path: Path) -> None:
    assert reason(tmp_path, b"]" * 40 + b"\xff.").startswith("position 41: byte 0xff")


def test_an_array_with_turned_axes_is_read_or_refused(tmp_path: Path) -> None:
    """Protocol 5 of a new numpy writes such arrays as they lie, an older one writes a copy."""
    content = pickle.dumps(np.arange(24.0).reshape(2, 3, 4).transpose(0, 2, 1), 5)
    if b"\x8c\x01K" in content:
        assert "an array with turned axes; write it again after numpy.ascontiguousarray" in reason(tmp_path, content)
    else:
        check(tmp_path, content)


def test_out_of_band_buffers_are_refused(tmp_path: Path) -> None:
    content = pickle.dumps(np.arange(5), 5, buffer_callback=lambda _: None)
    assert "an out-of-band buffer: the array is not in the file" in reason(tmp_path, content)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_cut_pickle_is_refused_wherever_it_was_cut(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps({"x": [np.arange(1200), b"a" * 300, "text", 1.5, 1 << 70]}, protocol)
    for place in {*range(1, len(content), 101), *range(1, 300, 11), len(content) - 1}:
        reason(tmp_path, content[:place])


def test_one_payload_used_many_times_does_not_fill_the_disk(tmp_path: Path) -> None:
    """Bytes of the memo are written for each array anew; all of them together may not be larger than the file."""
    start = b"(lc_codecs\nencode\n(V" + b"a" * 4000 + b"\nVlatin1\ntRp0\n0"
    more = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I4000\nt" + U1 + b"I00\ng0\ntba"
    assert "one piece of it is used many times" in reason(tmp_path, start + more * 20 + b".")
    (found,) = read(tmp_path, start + more + b".")
    assert found.read().tobytes() == b"a" * 4000


@pytest.mark.parametrize(
    "content",
    [
        b"(" * 200_000 + b".",
        b"]" * 200_000 + b".",
        b"]" * 200_000 + b"a" * 199_999 + b".",
        b")" + b"\x85" * 200_000 + b".",
        b"}" + b")" + b"\x85" * 200_000 + b"Ns.",
        b"]\x94" + b"".join(b"h" + bytes([index]) * 1 + b"h" + bytes([index]) + b"\x86\x94" for index in range(200)) + b".",
        b"\x8f(" + b")" + b"\x85" * 100_000 + b"\x90.",
    ],
    ids=["marks", "lists", "nested lists", "nested tuples", "a deep key", "doubling", "a deep member"],
)
def test_towers_are_refused_at_once(tmp_path: Path, content: bytes) -> None:
    reason(tmp_path, content)


def test_too_many_opcodes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picklefile, "MOST_CODES", 100)
    assert "more than 100 opcodes" in reason(tmp_path, b"]" + b"Na" * 50 + b".")


SEEDS = [
    pickle.dumps(
        {"x": [np.arange(6, dtype="f4"), np.str_("a")], ("k", 1): {1, 2}, "b": b"\xff", "d": [1.5, None, 1 << 40]}, protocol
    )
    for protocol in PROTOCOLS
]


@settings(deadline=None, max_examples=150)
@given(seed=st.sampled_from(SEEDS), data=st.data())
def test_changed_pickles_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, seed: bytes, data: st.DataObject) -> None:
    folder, content = tmp_path_factory.getbasetemp(), bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        old = data.draw(st.integers(0, 2))
        content[place : place + old] = data.draw(st.binary(max_size=3) | st.sampled_from(OPCODES))
    any_outcome(folder, bytes(content))


@settings(deadline=None, max_examples=150)
@given(codes=st.lists(st.sampled_from([*OPCODES, b"\x00", b"1\n", b"a\n"]), max_size=25))
def test_random_opcodes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, codes: list[bytes]) -> None:
    any_outcome(tmp_path_factory.getbasetemp(), b"".join(codes) + b".")


def any_outcome(folder: Path, content: bytes) -> None:
    path = folder / "fuzz.pkl"
    path.write_bytes(content)
    with suppress(DataError):
        in_memory(read_pickle(path, scratch=folder))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_character_that_there_is_not_is_refused(tmp_path: Path, order: str) -> None:
    """numpy ends in a SystemError when such an array, or a number made of it, becomes a text."""
    good = np.array(["a\U0010ffff", "é"], order + "U2")
    for protocol in PROTOCOLS:
        check(tmp_path, pickle.dumps([good, good[0]], protocol))
    whole = pickle.dumps(good, 5)
    array = read(tmp_path, whole.replace(good.tobytes(), b"\xff" * 16))
    for look in (array.read, array.view):
        with pytest.raises(DataError, match=r"a text at byte [0-9]+ has a character that there is not"):
            look()
    for file in tmp_path.iterdir():
        file.unlink()
    assert "cannot be decoded" in reason(tmp_path, pickle.dumps(good[0], 5).replace(good[0].tobytes(), b"\xff" * 8))


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_an_npy_file_is_found_by_its_header(tmp_path: Path, version: tuple[int, int]) -> None:
    for array in (np.arange(12.0).reshape(3, 4), np.asfortranarray(np.eye(3)), np.array(["ab", "c"]), np.zeros((0, 3), bool)):
        with (tmp_path / "a.npy").open("wb") as file:
            np.lib.format.write_array(file, array, version=version)
        assert_same(in_memory(stored_npy(tmp_path / "a.npy")), array)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a .npy file of format 1 or 2"),
        (b"\x93NUMPY\x01\x00\xff\xff", "not a .npy file"),
        (b"\x93NUMPY\x07\x00", "not a .npy file"),
        (b"PK\x03\x04", "not a .npy file"),
        (b"objects", "an array of dtype object; only numbers"),
        (b"fields", "an array of dtype"),
        (b"cut", "its header promises 80 bytes, found 79"),
        (b"long", "its header promises 80 bytes, found 81"),
    ],
)
def test_other_npy_files_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    made, whole = io.BytesIO(), io.BytesIO()
    np.save(whole, np.arange(10))
    if content == b"objects":
        np.save(made, np.array([None]), allow_pickle=True)
    elif content == b"fields":
        np.save(made, np.zeros(2, [("a", "f4")]))
    special = {b"cut": whole.getvalue()[:-1], b"long": whole.getvalue() + b"x"}
    (tmp_path / "a.npy").write_bytes(special.get(content, made.getvalue() or content))
    with pytest.raises(DataError, match=said) as caught:
        stored_npy(tmp_path / "a.npy")
    assert str(caught.value).startswith(f"{tmp_path / 'a.npy'}: ")


def test_a_file_that_shrank_is_said_so(tmp_path: Path) -> None:
    found = read(tmp_path, pickle.dumps(np.arange(1000)))
    (tmp_path / "a.pkl").write_bytes(b"")
    with pytest.raises(DataError, match="has become shorter than it was"):
        found.read()
