"""Pickles and npz files that harm who reads them as the standard library and numpy do.

The code of ``code_pickles`` and ``code_arrays`` writes the canary, a file that nobody should ever write; ``bomb_pickles`` and
``bomb_arrays`` are small and need gigabytes, hours or the whole stack; ``refused_pickles`` are an error even to a naive reader.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np

from tests.formats.deflated import MEBI, zeros, zip_of

HUGE = 1 << 40
NONE, MARK, POP = b"N", b"(", b"0"


def hostile_pickles(canary: Path) -> dict[str, bytes]:
    return code_pickles(canary) | bomb_pickles() | refused_pickles()


def hostile_arrays(canary: Path) -> dict[str, bytes]:
    return code_arrays(canary) | bomb_arrays()


def spiked(good: bytes, bad: bytes) -> bytes:
    """The pickle of a dict, one more entry of which has the other pickle for its value."""
    return good.removesuffix(b".") + b"U\x05extra" + bad.removesuffix(b".") + b"s."


def code_pickles(canary: Path) -> dict[str, bytes]:
    return _plain_code(canary) | _by_opcode(canary) | _in_disguise(canary) | _by_numpy(canary)


def _plain_code(canary: Path) -> dict[str, bytes]:
    code, shell = _code(canary), _shell(canary)
    return {
        "os.system": _stream(_call("os", "system", shell)),
        "posix.system": _stream(_call("posix", "system", shell)),
        "eval": _stream(_call("builtins", "eval", code)),
        "exec": _stream(_call("builtins", "exec", code)),
        "open": _stream(_call("builtins", "open", _text(canary), _text("w"))),
        "subprocess": _stream(_call("subprocess", "check_output", b"](" + _text("touch") + _text(canary) + b"e")),
        "logging.FileHandler": _stream(_call("logging", "FileHandler", _text(canary))),
        "timeit.timeit": _stream(_call("timeit", "timeit", code, _text("pass"), _global("time", "time"), b"K\x01")),
        "pickle.loads": _stream(_call("pickle", "loads", _bytes(_stream(_call("os", "system", shell))))),
        "in the middle of a dict": _stream(
            b"}(" + _text("labels") + b"](K\x00K\x01e" + _text("data") + _call("os", "system", shell) + b"u"
        ),
        "before what is returned": _stream(_call("os", "system", shell) + POP + b"}"),
    }


def _by_opcode(canary: Path) -> dict[str, bytes]:
    """Each way in which a pickle can call something."""
    code, shell = _code(canary), _shell(canary)
    memmap = _text(canary) + _text("uint8") + _text("w+") + b"K\x00K\x04"
    keywords = b"}(" + _text("mode") + _text("w+") + _text("shape") + b"K\x04u"
    partial = _global("functools", "partial") + _global("builtins", "print") + b"\x85\x81"
    return {
        "GLOBAL of python 2": _stream(_call("__builtin__", "eval", code)),
        "protocol 0": b"cos\nsystem\n(V" + _command(canary).encode() + b"\ntR.",
        "INST": _stream(MARK + shell + b"ios\nsystem\n"),
        "OBJ": _stream(MARK + _global("os", "system") + shell + b"o"),
        "NEWOBJ": _stream(_global("numpy", "memmap") + MARK + memmap + b"t\x81"),
        "NEWOBJ_EX": _stream(_global("numpy", "memmap") + _text(canary) + b"\x85" + keywords + b"\x92", 4),
        "STACK_GLOBAL": _stream(_short("os") + _short("system") + b"\x93" + shell + b"\x85R", 4),
        "BUILD calls __setstate__": _stream(partial + MARK + _global("builtins", "exec") + code + b"\x85}Ntb)R"),
        "BUILD sets attributes": _stream(
            _global("os", "path") + NONE + _replace("basename") + b"\x86b0" + _call("os.path", "basename", shell)
        ),
    }


def _in_disguise(canary: Path) -> dict[str, bytes]:
    """Names that look as if numpy or something harmless were meant."""
    code, shell = _code(canary), _shell(canary)
    module = _call("builtins", "getattr", _global("os", "path"), _text("os"))
    return {
        "getattr": _stream(_call("builtins", "getattr", module, _text("system")) + shell + b"\x85R"),
        "dotted name in numpy": _stream(_short("numpy") + _short("lib._npyio_impl.os.system") + b"\x93" + shell + b"\x85R", 4),
        "dotted name of a class": _stream(_short("pathlib") + _short("Path.touch") + b"\x93" + _path(canary) + b"\x85R", 4),
        "dict of a module": _stream(
            _call("builtins", "dict.get", _global("numpy", "__builtins__"), _text("eval")) + code + b"\x85R", 4
        ),
        "builtins.map": _stream(
            _call("builtins", "list", _call("builtins", "map", _global("os", "system"), b"](" + shell + b"e"))
        ),
        "as a key": _stream(b"}" + _call("os", "system", shell) + b"K\x00s"),
        "in a tuple in a list": _stream(b"]" + _call("os", "system", shell) + b"\x85a"),
        "through the memo": _stream(_global("os", "system") + b"q\x000h\x00" + shell + b"\x85R"),
    }


def _by_numpy(canary: Path) -> dict[str, bytes]:
    """numpy itself runs code, unpickles and writes files."""
    code, shell = _code(canary), _shell(canary)
    inner = _call("io", "BytesIO", _bytes(_stream(_call("os", "system", shell))))
    array = pickle.dumps(np.zeros(4, dtype=np.uint8), 2)[2:-1]
    empty = _call("numpy.core.multiarray", "_reconstruct", _global("numpy", "ndarray"), b"K\x00\x85", _text("b"))
    objects = _call("numpy", "dtype", _text("O8")) + b"\x89](" + _call("os", "system", shell) + b"et"
    return {
        "numpy.load": _stream(_call("numpy", "load", inner, NONE, b"\x88")),
        "numpy.testing.runstring": _stream(_call("numpy.testing", "runstring", code, b"}")),
        "numpy.f2py": _stream(_call("numpy.f2py.crackfortran", "myeval", code)),
        "numpy.savetxt": _stream(_call("numpy", "savetxt", _text(canary), b"](K\x01e")),
        "numpy.memmap": _stream(_call("numpy", "memmap", _text(canary), _text("uint8"), _text("w+"), b"K\x00", b"K\x04")),
        "numpy.ndarray.tofile": _stream(_call("numpy", "ndarray.tofile", array, _text(canary)), 4),
        "numpy array of objects": _stream(empty + b"(K\x01K\x01\x85" + objects + b"b"),
        "numpy scalar": _stream(
            _call("numpy.core.multiarray", "scalar", _call("numpy", "dtype", _text("O8")), _call("os", "system", shell))
        ),
    }


def bomb_pickles() -> dict[str, bytes]:
    doubled = b")" + b"".join(b"q%ch%c\x86" % (level, level) for level in range(64))
    lists = b"](K\x01K\x02e" + b"".join(b"q%c0](" % level + b"h%c" % level * 10 + b"e" for level in range(30))
    array = _global("numpy", "ndarray") + b"\x8a\x06" + HUGE.to_bytes(6, "little") + b"\x85" + _text("b")
    return {
        "memo at a huge index": _stream(NONE + b"r" + struct.pack("<I", (1 << 31) - 1)),
        "bytearray of a huge declared length": _stream(b"\x96" + struct.pack("<Q", HUGE), 5),
        "text of a huge declared length": _stream(b"\x8d" + struct.pack("<Q", HUGE) + b"ab", 4),
        "bytes of a huge declared length": _stream(b"\x8e" + struct.pack("<Q", HUGE) + b"ab", 4),
        "long of a huge declared length": _stream(b"\x8b" + struct.pack("<i", (1 << 31) - 1) + b"\x01"),
        "frame of a huge declared length": _stream(b"\x95" + struct.pack("<Q", HUGE) + NONE, 4),
        "array of a huge shape": _stream(_global("numpy.core.multiarray", "_reconstruct") + array + b"\x87R"),
        "numpy.zeros": _stream(_call("numpy", "ones", _long(HUGE))),
        "bytearray": _stream(_call("builtins", "bytearray", _long(HUGE))),
        "text times a number": _stream(_call("operator", "mul", _text("ab"), _long(HUGE))),
        "codec that inflates": _stream(_call("_codecs", "decode", _bytes(b"\x78\xda" + zeros(2048) + b"sum?"), _text("zlib"))),
        "tuples of tuples as a key": _stream(b"}" + doubled + b"K\x00s"),
        "lists of lists": _stream(lists),
        "deep list": _stream(b"]" * 200_000 + b"a" * 199_999),
        "deep tuple as a key": _stream(b"})" + b"\x85" * 1_000_000 + b"K\x00s"),
    }


def refused_pickles() -> dict[str, bytes]:
    return {
        "long of a negative length": _stream(b"\x8b" + struct.pack("<i", -5) + b"\x01"),
        "decimal of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
        "EXT1": _stream(b"\x82\x01" + _text("x") + b"\x85R"),
        "EXT4": _stream(b"\x84\xff\xff\xff\x7f"),
        "PERSID": b"Pos.system\n.",
        "BINPERSID": _stream(_text("os.system") + b"Q"),
        "NEXT_BUFFER": _stream(b"\x97", 5),
        "empty stack": _stream(b"R"),
        "memo that nobody filled": _stream(b"h\x07"),
        "global of no module": _stream(_global("no_such_module", "name")),
        "opcode that does not exist": _stream(b"\xff"),
        "no end": _stream(b"}")[:-1],
    }


def code_arrays(canary: Path) -> dict[str, bytes]:
    """numpy.load runs their code where allow_pickle is true."""
    code = _stream(_call("os", "system", _shell(canary)))
    return {
        "objects.npz": _npz(_npy("|O", (1,)) + code),
        "no_zip.npz": code,
        "array.npz": _npy("|O", (1,)) + code,
    }


def bomb_arrays() -> dict[str, bytes]:
    header = _npy("|u1", (3072 * MEBI,))
    return {
        "huge_shape.npz": _npz(_npy("|u1", (HUGE,)) + bytes(8)),
        "inflates.npz": zip_of("images.npy", zeros(3072, header), len(header) + 3072 * MEBI),
    }


def _npy(descr: str, shape: tuple[int, ...]) -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def _npz(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("images.npy", content)
    return stream.getvalue()


def _command(canary: Path) -> str:
    return f"echo > '{canary}'"


def _shell(canary: Path) -> bytes:
    return _text(_command(canary))


def _code(canary: Path) -> bytes:
    return _text(f"open({str(canary)!r}, 'w').close()")


def _path(canary: Path) -> bytes:
    return _global("pathlib", "Path") + _text(canary) + b"\x85R"


def _replace(name: str) -> bytes:
    return b"}" + _text(name) + _global("os", "system") + b"s"


def _stream(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def _call(module: str, name: str, *args: bytes) -> bytes:
    return _global(module, name) + MARK + b"".join(args) + b"tR"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(value: str | Path) -> bytes:
    utf8 = str(value).encode()
    return b"X" + struct.pack("<I", len(utf8)) + utf8


def _short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def _bytes(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def _long(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little")
