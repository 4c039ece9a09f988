from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from corpora import FORMATS, pack_pair
from hypothesis import given, settings
from hypothesis import strategies as st

from mup_tune.data.indexed import IndexedTokens, PairWriter, pair_paths, token_dtype
from mup_tune.errors import UserError

nested = st.lists(st.lists(st.lists(st.integers(0, 98), max_size=7), max_size=4), min_size=1, max_size=8)


def reference_stream(documents: list[list[list[int]]]) -> list[tuple[int, int]]:
    return [(token, number) for number, doc in enumerate(documents) for sequence in doc for token in sequence]


@settings(deadline=None)
@given(documents=nested, code=st.sampled_from(sorted(FORMATS)), gap=st.integers(0, 3))
def test_reads_pairs_packed_by_hand(documents: list[list[list[int]]], code: int, gap: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pair = IndexedTokens(*pair_paths(pack_pair(Path(folder, "p.v1"), documents, code, gap)))
        stream = reference_stream(documents)
        tokens, ordinals = pair.at(np.arange(len(stream)))
        assert list(zip(tokens.tolist(), ordinals.tolist(), strict=True)) == stream
        assert pair.documents == len(documents)


@pytest.mark.parametrize(("vocab_size", "code", "token"), [(257, 8, "H"), (65536, 8, "H"), (65537, 4, "i")])
def test_writes_megatron_bytes(tmp_path: Path, vocab_size: int, code: int, token: str) -> None:
    documents = [[1, 2, vocab_size - 1], [4], [5, 6]]
    with PairWriter(tmp_path / "t", token_dtype(vocab_size)) as writer:
        for document in documents:
            writer.add(np.array(document))
    item = struct.calcsize(token)
    expected = b"MMIDIDX\0\0" + struct.pack("<Q", 1) + struct.pack("<B", code) + struct.pack("<QQ", 3, 4)
    expected += struct.pack("<3i", 3, 1, 2) + struct.pack("<3q", 0, 3 * item, 4 * item) + struct.pack("<4q", 0, 1, 2, 3)
    assert (tmp_path / "t.idx").read_bytes() == expected
    assert (tmp_path / "t.bin").read_bytes() == struct.pack(f"<6{token}", 1, 2, vocab_size - 1, 4, 5, 6)


HEADER = 34  # bytes: magic 9, version 8, code 1, counts 8 + 8


def patched(path: Path, at: int, value: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + len(value)] = value
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda idx, _: patched(idx, 0, b"NOTMMID"), "does not start with MMIDIDX"),
        (lambda idx, _: patched(idx, 9, struct.pack("<Q", 2)), "version: 2 is not supported"),
        (lambda idx, _: patched(idx, 17, b"\x06"), "6 is not the code of an integer type"),
        (lambda idx, _: patched(idx, 17, b"\x00"), "0 is not the code"),
        (lambda idx, _: idx.write_bytes(idx.read_bytes()[:20]), "truncated: 20 bytes"),
        (lambda idx, _: idx.write_bytes(idx.read_bytes()[:-1]), "truncated"),
        (lambda idx, _: patched(idx, 18, struct.pack("<Q", 2**63)), "truncated"),
        (lambda idx, _: patched(idx, HEADER + 4, struct.pack("<i", -3)), "-3 at sequence 1 is negative"),
        (lambda idx, _: patched(idx, HEADER + 8, struct.pack("<q", -2)), "pointers: must be multiples of 2"),
        (lambda idx, _: patched(idx, HEADER + 8, struct.pack("<q", 1)), "pointers: must be multiples of 2"),
        (
            lambda idx, _: patched(idx, HEADER + 8, struct.pack("<q", 2**63 - 2)),
            "points up to byte 92233720368547758",
        ),
        (lambda idx, _: patched(idx, HEADER + 24, struct.pack("<q", 1)), "must rise from 0"),
        (lambda idx, _: patched(idx, HEADER + 32, struct.pack("<q", 3)), "must rise from 0"),
        (lambda _, data: data.write_bytes(data.read_bytes()[:-2]), "has 8 bytes, but"),
        (lambda _, data: data.unlink(), "no such file"),
        (lambda idx, _: idx.unlink(), "no such file"),
    ],
)
def test_damage_is_named_with_its_file(tmp_path: Path, damage, problem: str) -> None:
    bin_path, idx_path = pair_paths(pack_pair(tmp_path / "p", [[[1, 2, 3]], [[4, 5]]]))
    damage(idx_path, bin_path)
    with pytest.raises(UserError, match=problem) as caught:
        IndexedTokens(bin_path, idx_path)
    assert str(tmp_path / "p.") in str(caught.value)


def test_indices_that_wrap_around_are_refused(tmp_path: Path) -> None:
    """Each step from one of these to the next is positive in 64 bits."""
    bin_path, idx_path = pair_paths(pack_pair(tmp_path / "p", [[[1]], [[2]], [[3]], [[4]]]))
    patched(idx_path, HEADER + 12 * 4, struct.pack("<5q", 0, 2**63 - 1, -(2**63), -1, 4))
    with pytest.raises(UserError, match="must rise from 0"):
        IndexedTokens(bin_path, idx_path)
