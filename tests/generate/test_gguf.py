"""The GGUF container: round trips, damage, and hostile headers."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_language_models import tiny_checkpoint
from trimtab.errors import FileFormatError, TrimtabError, UnsupportedError
from trimtab.generate.gguf_file import (
    TENSOR_TYPES,
    StoredTensor,
    parse_gguf,
    read_gguf,
    write_gguf,
)
from trimtab.generate.gguf_model import read_gguf_model, write_gguf_model

NAME = Path("model.gguf")


@pytest.fixture(scope="module")
def small_file(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf_model(path, tiny_checkpoint())
    return path.read_bytes()


def test_type_sizes_are_those_of_the_gguf_package():
    for number, kind in TENSOR_TYPES.items():
        if kind.name != "i2_s":
            number_there = gguf.GGMLQuantizationType(number)
            assert number_there.name.lower() == kind.name
            assert gguf.GGML_QUANT_SIZES[number_there] == (kind.values, kind.bytes)


def test_written_files_are_read_by_the_gguf_package(tmp_path):
    path = tmp_path / "model.gguf"
    metadata = {"general.architecture": "llama", "a": 3, "b": -4, "c": 0.5, "d": ["x", "é"],
                "e": True, "f": np.arange(3, dtype=np.int32)}  # fmt: skip
    data = np.arange(64, dtype=np.float32)
    write_gguf(path, metadata, [StoredTensor("t.weight", "f32", (2, 32), data.view(np.uint8))])
    theirs, ours = gguf.GGUFReader(path), read_gguf(path)
    for name, value in metadata.items():
        assert np.array_equal(theirs.fields[name].contents(), value)
        assert np.array_equal(ours.metadata[name], value)
    assert np.array_equal(theirs.tensors[0].data, data.reshape(2, 32))
    assert ours.tensors["t.weight"].shape == (2, 32)


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "f16", "bf16", "tq2_0"])
def test_tensors_of_each_type_unpack_as_the_gguf_package_does(kind, tmp_path):
    values = np.random.default_rng(1).normal(size=(4, 256)).astype(np.float32)
    if kind == "tq2_0":
        values = np.sign(np.round(values)) * np.float32(0.25)
    number = gguf.GGMLQuantizationType[kind.upper()]
    packed = gguf.quantize(values, number)
    raw = np.ascontiguousarray(packed).view(np.uint8).reshape(-1)
    path = tmp_path / "one.gguf"
    write_gguf(path, {"general.architecture": "llama"}, [StoredTensor("w", kind, (4, 256), raw)])
    from trimtab.generate.gguf_model import _tensor

    tensor = _tensor(read_gguf(path).tensors["w"], path)
    assert np.array_equal(tensor.float32(), gguf.dequantize(packed, number).reshape(4, 256))
    assert (tensor.kind == "ternary") == (kind == "tq2_0")


def test_microsofts_ternary_type_is_unpacked_by_its_layout(tmp_path):
    codes = np.random.default_rng(2).integers(0, 3, (2, 128)).astype(np.uint8)
    packed = np.zeros((2, 32), np.uint8)
    for group, shift in enumerate((6, 4, 2, 0)):
        packed |= codes[:, 32 * group : 32 * group + 32] << shift
    trailer = np.zeros(32, np.uint8)
    trailer[:4] = np.float32([1.5]).view(np.uint8)
    raw = np.concatenate([packed.reshape(-1), trailer])
    path = tmp_path / "one.gguf"
    write_gguf(path, {"general.architecture": "x"}, [StoredTensor("w", "i2_s", (2, 128), raw)])
    from trimtab.generate.gguf_model import _tensor

    tensor = _tensor(read_gguf(path).tensors["w"], path)
    assert np.array_equal(tensor.float32(), (codes.astype(np.float32) - 1) * 1.5)


def test_a_file_that_is_not_gguf_is_named_as_such(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(FileFormatError, match="not a GGUF file"):
        read_gguf(path)


def test_an_empty_or_absent_file_is_an_error_of_ours(tmp_path):
    (tmp_path / "empty.gguf").write_bytes(b"")
    for name in ("empty.gguf", "absent.gguf"):
        with pytest.raises(FileFormatError):
            read_gguf(tmp_path / name)


def test_huge_claims_are_refused_before_anything_is_allocated():
    for tensors, fields in ((2**62, 0), (0, 2**62), (2**32, 2**32)):
        head = b"GGUF" + struct.pack("<IQQ", 3, tensors, fields)
        with pytest.raises(FileFormatError, match="more than its"):
            parse_gguf(head, NAME)
    name = struct.pack("<Q", 1) + b"k"
    array = struct.pack("<IIQ", 9, 6, 2**61)
    with pytest.raises(FileFormatError, match="array entries"):
        parse_gguf(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + name + array, NAME)
    string = struct.pack("<Q", 2**63 - 1)
    with pytest.raises(FileFormatError, match="truncated"):
        parse_gguf(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string + bytes(20), NAME)


def test_deeply_nested_arrays_are_refused():
    nest = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    with pytest.raises(FileFormatError, match="nest"):
        parse_gguf(head + nest + bytes(64), NAME)


def test_every_truncation_is_an_error_of_ours(small_file):
    for size in [*range(0, 400, 7), *range(400, len(small_file), len(small_file) // 60)]:
        with pytest.raises(TrimtabError):
            parse_gguf(small_file[:size], NAME)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_corrupted_files_raise_our_errors_or_load(small_file, tmp_path_factory, data):
    damaged = bytearray(small_file)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, min(len(damaged), 6000) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    path.write_bytes(damaged)
    try:
        checkpoint = read_gguf_model(path)
        checkpoint.tensors["final_norm/weight"].float32()
    except TrimtabError:
        pass


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_after_the_magic_raise_our_errors(tail):
    with pytest.raises(TrimtabError):
        parse_gguf(b"GGUF" + struct.pack("<I", 3) + tail + b"\xff", NAME)


def test_an_unknown_architecture_says_what_is_served(tmp_path):
    path = tmp_path / "x.gguf"
    write_gguf(path, {"general.architecture": "mamba"}, [])
    with pytest.raises(UnsupportedError, match=r"'mamba'.*gemma3.*qwen3"):
        read_gguf_model(path)


def test_an_unknown_splitting_rule_is_refused(tmp_path):
    import dataclasses

    from trimtab.generate.tokenizer import Tokenizer

    vocabulary = dataclasses.replace(tiny_checkpoint().vocabulary, pre_tokenizer="mystery")
    with pytest.raises(UnsupportedError, match="'mystery'"):
        Tokenizer(vocabulary)
