"""How entries look in a message: plain words, or values and indices made smaller.

A message is a flat int32 array. Plain: the indices, then the values' bits; its length tells the
number of entries, so there is no header, and one entry is two words in fp32. Compact: a header of
four words [entries, index form, first index, index bytes], the indices in whichever form is
smallest, the values as fp32, bf16 or 4 bits.

A lossy format reports what the receivers will see, and what was lost, so that the sender keeps the
loss as its residual: `sent + lost` is the sum that was to be sent, to the last bit of each value.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.sparse import index_code, quantise
from dist_ml.comm.sparse.entries import Entries

HEADER_WORDS = 4


class Encoded(NamedTuple):
    """A message, the entries that its receivers decode, and what those lack of the original."""

    message: Array
    sent: Entries
    lost: Entries


class EntryFormat(Protocol):
    """A way to write entries as a message and to read them back."""

    def encode(self, entries: Entries) -> Encoded: ...
    def decode(self, message: Array) -> Entries: ...


@dataclass(frozen=True)
class PlainFormat:
    """Indices and values as they are: 1 word + 1 word (fp32) or 1 + 2 (fp64) an entry."""

    dtype: str = "float32"

    def encode(self, entries: Entries) -> Encoded:
        assert entries.values.dtype == self.dtype, (entries.values.dtype, self.dtype)
        message = np.concatenate(
            [entries.indices, np.ascontiguousarray(entries.values).view(np.int32)]
        )
        return Encoded(message, entries, entries.part(0, 0))

    def decode(self, message: Array) -> Entries:
        num = message.size // (1 + np.dtype(self.dtype).itemsize // 4)
        return Entries(message[:num], message[num:].view(self.dtype))


@dataclass(frozen=True)
class CompactFormat:
    """Values as `values` says (fp32: as they are; bf16; int4: 4 bits and a scale per 1024), indices
    in the smallest form.
    """

    dtype: str = "float32"
    values: str = "bf16"

    def encode(self, entries: Entries) -> Encoded:
        form, first, coded_indices = index_code.encode(entries.indices)
        coded_values, seen = quantise.FORMATS[self.values].encode(entries.values)
        header = np.array([entries.size, form, first, coded_indices.size], dtype=np.int32)
        body = np.concatenate([coded_indices, coded_values])
        message = np.zeros(HEADER_WORDS + -(-body.size // 4), dtype=np.int32)
        message[:HEADER_WORDS] = header
        message[HEADER_WORDS:].view(np.uint8)[: body.size] = body
        sent = Entries(entries.indices, seen)
        if seen is entries.values:
            return Encoded(message, sent, entries.part(0, 0))
        with np.errstate(invalid="ignore"):  # what is not finite has no difference
            return Encoded(message, sent, Entries(entries.indices, entries.values - seen))

    def decode(self, message: Array) -> Entries:
        num, form, first, index_bytes = (int(word) for word in message[:HEADER_WORDS])
        body = message[HEADER_WORDS:].view(np.uint8)
        indices = index_code.decode(form, first, num, body[:index_bytes])
        return Entries(
            indices, quantise.FORMATS[self.values].decode(body[index_bytes:], num, self.dtype)
        )


def make_entry_format(dtype: str, values: str) -> EntryFormat:
    """The format for `values` of "plain", "fp32", "bf16" or "int4"; all but plain also code the
    indices.
    """
    return PlainFormat(dtype) if values == "plain" else CompactFormat(dtype, values)
