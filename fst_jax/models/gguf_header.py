"""A look at the header of a GGUF file before a reader trusts it.

The format (ggml/docs/gguf.md): magic, version, the numbers of tensors and of metadata entries, the
entries, and for each tensor its name, dimensions, type and offset.  Every count and length is held
against the bytes that are left, so that no reader is led to loop or allocate by a number that the
file merely claims.
"""

import math
import struct
from pathlib import Path
from typing import BinaryIO

from fst_jax.errors import ModelError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # their bytes
_STRING, _ARRAY = 8, 9
_LEAST_ENTRY, _LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8  # bytes
_LONGEST_NAME = 1 << 16  # of an entry or a tensor; the format allows as much
_MOST_DIMENSIONS = 4
_MOST_PER_BYTE = 8  # elements, of the densest quantisation


def check_header(file: Path) -> None:
    """Raise ModelError unless the header is whole and its tensors can lie in the file."""
    try:
        with file.open("rb") as opened:
            _Walk(opened, file.stat().st_size).through()
    except (OSError, ValueError, struct.error) as error:
        raise ModelError(f"{file} is not a readable GGUF file ({error}).") from error


class _Walk:
    """One pass over a header; raises ValueError for what cannot be."""

    def __init__(self, opened: BinaryIO, size: int):
        self._file, self._size = opened, size

    def through(self) -> None:
        if self._file.read(4) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self._number("<I")
        if version not in _VERSIONS:
            raise ValueError(f"version {version} is not one of {_VERSIONS}")
        tensors, entries = self._number("<Q"), self._number("<Q")
        self._fits(entries, _LEAST_ENTRY, "metadata entries")
        for _ in range(entries):
            self._skip_text("a name", _LONGEST_NAME)
            self._skip_value(self._number("<I"), nested=False)
        self._fits(tensors, _LEAST_TENSOR, "tensors")
        for _ in range(tensors):
            self._tensor()

    def _tensor(self) -> None:
        self._skip_text("a name", _LONGEST_NAME)
        dimensions = self._number("<I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f"a tensor has {dimensions} dimensions")
        shape = [self._number("<Q") for _ in range(dimensions)]
        self._number("<I")  # the type, which the reader knows
        offset = self._number("<Q")
        if math.prod(shape) > _MOST_PER_BYTE * self._size or offset > self._size:
            raise ValueError(f"a tensor of shape {shape} at {offset} does not fit into the file")

    def _skip_value(self, kind: int, nested: bool) -> None:
        if kind in _SCALARS:
            self._skip(_SCALARS[kind])
        elif kind == _STRING:
            self._skip_text("a text", self._size)
        elif kind == _ARRAY and not nested:
            kind, count = self._number("<I"), self._number("<Q")
            if kind in _SCALARS:
                self._fits(count, _SCALARS[kind], "array elements")
                self._skip(count * _SCALARS[kind])
            else:
                self._fits(count, 8, "array elements")
                for _ in range(count):
                    self._skip_value(kind, nested=True)
        else:
            raise ValueError(f"metadata of type {kind}{' within an array' * nested}")

    def _skip_text(self, what: str, longest: int) -> None:
        length = self._number("<Q")
        if length > longest:
            raise ValueError(f"{what} of {length} bytes")
        self._skip(length)

    def _number(self, form: str) -> int:
        number: int = struct.unpack(form, self._file.read(struct.calcsize(form)))[0]
        return number

    def _skip(self, count: int) -> None:
        self._fits(count, 1, "bytes")
        self._file.seek(count, 1)

    def _fits(self, count: int, least: int, what: str) -> None:
        left = self._size - self._file.tell()
        if count * least > left:
            raise ValueError(f"{count} {what} where {left} bytes are left")
