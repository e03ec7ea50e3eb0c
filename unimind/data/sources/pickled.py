"""The arrays of a dictionary that numpy saved by pickle, found without running the pickle.

`numpy.save` of a dictionary, which is how GLMsingle keeps its results, writes a pickle: a program whose instructions may call
anything. Here its instructions are read as data. A small machine follows those that build dictionaries, lists, numbers and numpy
arrays, and knows no other: names of functions are compared and never looked up. Arrays stay in the file and are mapped from there.
"""

import mmap
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray


class Unfamiliar(Exception):
    """The pickle does something other than build arrays."""


@dataclass
class _Name:
    """A function or class that the pickle names, such as `numpy dtype`."""

    path: str


@dataclass
class _Call:
    """A call of a function by the pickle, that was not made; with the state that is set on what it returns."""

    function: str
    arguments: tuple
    state: Any = None


@dataclass
class _Bytes:
    """Bytes of the file."""

    start: int
    length: int


class _Mapped:
    """What `pickletools.genops` reads from, handing out long pieces as places in the file."""

    def __init__(self, data: mmap.mmap, start: int) -> None:
        self.data, self.at = data, start

    def tell(self) -> int:
        return self.at

    def read(self, count: int) -> Any:
        piece = self.data[self.at : self.at + count] if count < 1 << 16 else memoryview(self.data)[self.at : self.at + count]
        self.at += len(piece)
        return piece

    def readline(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        return self.read((end + 1 if end >= 0 else len(self.data)) - self.at)


_NUMPY = {"numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric"}
_KNOWN = {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}


def pickled_arrays(path: Path) -> dict[str, NDArray] | None:
    """Arrays of numbers by key, `outer/inner` in nested dictionaries, of a .npy file that holds a pickled dictionary.

    Returns
    -------
    dict of str to read-only memory-mapped array; None where the pickle holds no single dictionary

    Raises
    ------
    Unfamiliar
        The pickle holds something else than numpy's arrays, numbers, texts, lists and dictionaries.
    """
    with open(path, "rb") as stream:
        version = np.lib.format.read_magic(stream)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        reader(stream)
        start = stream.tell()
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    whole = _build(data, start)
    held = whole.state[4] if isinstance(whole, _Call) and isinstance(whole.state, tuple) and len(whole.state) == 5 else None
    if not isinstance(held, list) or len(held) != 1 or not isinstance(held[0], dict):
        return None
    found: dict[str, NDArray] = {}
    _collect(held[0], "", data, found)
    return found


def _collect(held: dict, above: str, data: mmap.mmap, found: dict[str, NDArray]) -> None:
    for key, value in held.items():
        if isinstance(value, dict):
            _collect(value, f"{above}{key}/", data, found)
        elif isinstance(value, _Call) and (array := _array(value, data)) is not None:
            found[f"{above}{key}"] = array


def _array(call: _Call, data: mmap.mmap) -> NDArray | None:
    """The array that a call would make; None for one of objects, and for a single number."""
    if call.function == "_reconstruct" and isinstance(call.state, tuple) and len(call.state) == 5:
        _, shape, kind, by_column, content = call.state
    elif call.function == "_frombuffer" and len(call.arguments) == 4:
        content, kind, shape, order = call.arguments
        by_column = order == "F"
    else:
        return None
    dtype = _dtype(kind)
    if dtype is None or not isinstance(content, _Bytes) or not isinstance(shape, tuple):
        return None
    count = int(np.prod(shape, dtype=np.int64))
    if count * dtype.itemsize != content.length:
        raise Unfamiliar("an array whose bytes do not fit its shape")
    return np.frombuffer(data, dtype, count, content.start).reshape(shape, order="F" if by_column else "C")


def _dtype(call: Any) -> np.dtype | None:
    """A type of plain numbers."""
    if not isinstance(call, _Call) or call.function != "dtype" or not isinstance(call.arguments[0], str):
        return None
    name = call.arguments[0]
    if name[:1] not in "biufc" or not name[1:].isdigit():
        return None
    order = call.state[1] if isinstance(call.state, tuple) and len(call.state) > 1 else "="
    return np.dtype(f"{order if order in ('<', '>') else '='}{name}")


def _build(data: mmap.mmap, start: int) -> Any:
    """Follow the instructions from `start` on; returns what they leave on the stack."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    source = _Mapped(data, start)
    argument: Any
    for code, argument, _ in pickletools.genops(cast(Any, source)):
        name = code.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"):
            stack.append(str(argument, "utf-8") if isinstance(argument, memoryview) else argument)
        elif name in ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"):
            stack.append(_Bytes(source.at - len(argument), len(argument)))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else since_mark()
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            module, what = argument.split(" ", 1) if name == "GLOBAL" else (stack.pop(-2), stack.pop())
            if module not in _NUMPY or what not in _KNOWN:
                raise Unfamiliar(f"it calls {module}.{what}")
            stack.append(_Name(what))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_Call(function.path, arguments))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        else:
            raise Unfamiliar(f"instruction {name}")
    raise Unfamiliar("it does not end")
