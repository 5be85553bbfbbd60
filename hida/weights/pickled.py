"""Read a pickle as data: an interpreter of its instructions that knows no way to import or call anything.

Python's own reader and torch's can be told which names a pickle may refer to, but both still do what it says with them:
reserve any amount of memory, nest without end, point a tensor behind its data. Here every instruction is one of a small
list, every name stands for a function of ours, and their number is bounded.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hida.errors import first_line

LONGEST = 300_000
"""instructions that a pickle may have; a checkpoint of a thousand tensors and their optimiser has a third"""
_LONGEST_NAME = 500
_KEYS = (str, bytes, int, float, type(None))
_VALUES = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "BINUNICODE8 SHORT_BINUNICODE BINBYTES BINBYTES8 SHORT_BINBYTES"
)
_PUSHED = frozenset(_VALUES.split())
_FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleError(Exception):
    """A pickle is torn, too long, or says what this reader does not do; nothing of it has run."""


class Foreign(PickleError):
    """A pickle refers to a function or class that is not admitted."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it refers to {name}")
        self.name = name


class Name(NamedTuple):
    """An admitted name in a pickle: what it makes of its arguments, or of none."""

    name: str
    make: Callable[..., Any]


class Built:
    """What an admitted name has made and may be completed later, as pickles do with ``__setstate__``."""

    def complete(self, state: Any) -> None:
        """Take the state that the pickle gives; what has no use for it leaves it."""


class Fields(dict[Any, Any], Built):
    """A dictionary, of whatever class."""


class Thing(Built):
    """An object of whatever class: its attributes, none of its methods."""

    def __init__(self, *_: Any) -> None:
        self.attributes: dict[Any, Any] = {}

    def complete(self, state: Any) -> None:
        if isinstance(state, dict):
            self.attributes = state


def read_pickle(
    stream: io.BytesIO, admitted: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Read one pickle; the stream stands behind it afterwards.

    Args:
        stream: its bytes.
        admitted: by ``module.name``, what a name stands for; one that ends in ``*`` admits all that begin so. It must
            be of ours, check its arguments, raise ValueError or TypeError, and copy nothing: the pickle may call it a
            thousand times with the same megabytes.
        persistent: what an object outside the pickle, such as a storage, is read as.

    Raises:
        PickleError: it is torn or longer than ``LONGEST``, or contains anything else; nothing of it has run.
    """
    try:
        return _Machine(admitted, persistent).run(stream)
    except PickleError:
        raise
    # Arguments that do not fit, an empty stack, a torn stream: all of them are faults of the file.
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, EOFError) as error:
        raise PickleError(_reason(error)) from None


def _reason(error: Exception) -> str:
    # Only the words of the reader of instructions are of use to anybody.
    if not isinstance(error, ValueError) or isinstance(error, UnicodeError):
        return "its instructions do not fit together: it is torn or damaged"
    return "it has a number of too many digits" if "max_str_digits" in str(error) else first_line(error)[:120]


class _Machine:
    def __init__(self, admitted: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any] | None) -> None:
        self.admitted, self.persistent = admitted, persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: io.BytesIO) -> Any:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if number >= LONGEST:
                raise PickleError(f"it has more than {LONGEST:,} instructions")
            name = opcode.name
            if name in _PUSHED:
                self.stack.append(argument)
            elif name in _FRESH:
                self.stack.append(_FRESH[name]())
            elif name in _TUPLES:
                self.stack[-_TUPLES[name] :] = [self._last(_TUPLES[name])]
            elif name == "STOP":
                return self.stack.pop()
            elif name not in ("PROTO", "FRAME"):
                step = getattr(self, f"_{name.lower()}", None)
                if step is None:
                    raise PickleError(f"it has the instruction {name}, which weights do not need")
                step(argument)
        raise PickleError("it has no end")

    def _last(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise PickleError("its stack is empty")
        return tuple(self.stack[-count:])

    def _mark(self, _: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def _to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _tuple(self, _: Any) -> None:
        items = self._to_mark()  # before the stack is looked up: it is another one afterwards
        self.stack.append(tuple(items))

    def _list(self, _: Any) -> None:
        items = self._to_mark()
        self.stack.append(items)

    def _dict(self, _: Any) -> None:
        items = self._to_mark()
        self.stack.append(_set_items({}, items))

    def _append(self, _: Any) -> None:
        value = self.stack.pop()
        _as_list(self.stack[-1]).append(value)

    def _appends(self, _: Any) -> None:
        items = self._to_mark()
        _as_list(self.stack[-1]).extend(items)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set_items(self.stack[-1], [key, value])

    def _setitems(self, _: Any) -> None:
        items = self._to_mark()
        _set_items(self.stack[-1], items)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._to_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _put(self, argument: Any) -> None:
        self.memo[argument] = self.stack[-1]

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, argument: Any) -> None:
        self.stack.append(self.memo[argument])

    _binput = _long_binput = _put
    _binget = _long_binget = _get

    def _global(self, argument: Any) -> None:
        module, _, name = argument.partition(" ")
        self._name(f"{module}.{name}")

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("it names something by other than words")
        if len(name) + len(module) > _LONGEST_NAME:
            raise PickleError("it has a name of impossible length")
        self._name(f"{module}.{name}")

    def _name(self, name: str) -> None:
        make = self.admitted.get(name)
        if make is None:
            for beginning, family in self.admitted.items():
                if beginning.endswith("*") and name.startswith(beginning[:-1]):
                    self.stack.append(Name(name, family))
                    return
            raise Foreign("".join(c if c.isprintable() else "?" for c in name[:80]))
        self.stack.append(Name(name, make))

    def _reduce(self, _: Any) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise PickleError("it calls what is no name")
        self.stack.append(name.make(*arguments))

    _newobj = _reduce

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Built):
            raise PickleError("it completes what needs no completion")
        self.stack[-1].complete(state)

    def _binpersid(self, _: Any) -> None:
        if self.persistent is None:
            raise PickleError("it refers to data outside of it")
        self.stack.append(self.persistent(self.stack.pop()))


def _as_list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise PickleError("it appends to what is no list")
    return value


def _set_items(target: Any, items: list[Any]) -> dict[Any, Any]:
    if not isinstance(target, dict) or len(items) % 2:
        raise PickleError("it sets items of what is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Tuples may nest: the hash of a deep one would overflow the stack of the machine.
        if not all(isinstance(part, _KEYS) for part in (key if type(key) is tuple else (key,))):
            raise PickleError("a dictionary's key is not a word or a number")
        target[key] = value
    return target
