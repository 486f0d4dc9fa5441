"""llama.cpp as a peer: a prebuilt release driven through its C interface.

``python benchmarks/llama_cpp.py`` fetches it into the cache: the binaries from the npm package
``@node-llama-cpp/linux-x64`` (all CPU variants, the best one is chosen when they load) and the
declarations of the same version from the PyPI package ``llama-cpp-py-sync``. Used by races and
recorded test data only.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import MissingExtraError
from trimtab.files import atomic_directory, cache_directory

BINARIES = "@node-llama-cpp/linux-x64@3.22.1"
DECLARATIONS = "llama-cpp-py-sync==0.11413"
FILE_TYPES = {"q4_0": 2, "q8_0": 7}


def folder() -> Path:
    """Return where the peer lies, fetched or not."""
    return cache_directory("peers") / "llama-cpp-3.22.1"


def fetch() -> Path:
    """Download binaries and declarations, unless they are there."""
    target = folder()
    if target.exists():
        return target
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["npm", "pack", "--silent", BINARIES], cwd=scratch, check=True)
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch]
        subprocess.run([*download, DECLARATIONS], check=True)
        with atomic_directory(target) as made:
            with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
                archive.extractall(made, filter="data")
            with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as archive:
                source = archive.read("llama_cpp_py_sync/_cffi_bindings.py").decode()
            (made / "llama.h").write_text(
                re.search(r'_LLAMA_H_CDEF = """(.*?)"""', source, re.DOTALL)[1]
            )
    return target


class Library:
    """The loaded shared libraries."""

    def __init__(self) -> None:
        if not folder().exists():
            raise MissingExtraError(
                "llama.cpp is not in the cache. Run: python benchmarks/llama_cpp.py"
            )
        import cffi

        self.ffi = cffi.FFI()
        self.ffi.cdef((folder() / "llama.h").read_text())
        self.ffi.cdef("void ggml_backend_load_all_from_path(const char * path);", override=True)
        binaries = folder() / "package" / "bins" / "linux-x64"
        flags = self.ffi.RTLD_GLOBAL | self.ffi.RTLD_NOW
        self._base = self.ffi.dlopen(str(binaries / "libggml-base.so"), flags)
        self._ggml = self.ffi.dlopen(str(binaries / "libggml.v0.5.0.so"), flags)
        self.llama = self.ffi.dlopen(str(binaries / "libllama.v0.5.0.so"), flags)
        self._silent = self.ffi.callback("ggml_log_callback", lambda level, text, data: None)
        self.llama.llama_log_set(self._silent, self.ffi.NULL)
        self._ggml.ggml_backend_load_all_from_path(f"{binaries}/".encode())
        self.llama.llama_backend_init()
        if not self.llama.llama_context_default_params().offload_kqv:
            raise MissingExtraError("The declarations of llama.cpp do not match its binaries.")

    def quantize(self, source: Path, kind: str) -> Path:
        """Return ``source`` requantised to a kind of :data:`FILE_TYPES`, made once."""
        target = folder() / f"{source.stem}.{kind}.gguf"
        if not target.exists():
            params = self.llama.llama_model_quantize_default_params()
            params.ftype, params.allow_requantize, params.nthread = FILE_TYPES[kind], True, 2
            params.output_tensor_type = self.ffi.cast("enum ggml_type", 8)
            params.token_embedding_type = self.ffi.cast("enum ggml_type", 8)
            box = self.ffi.new("llama_model_quantize_params *", params)
            code = self.llama.llama_model_quantize(str(source).encode(), str(target).encode(), box)
            assert code == 0, code
        return target


class LlamaCpp:
    """One model in one context.

    Args:
        library: from :class:`Library`.
        path: GGUF file.
        threads: for prompts and decoding alike.
        context: tokens of the cache (float16 keys and values, its default).
    """

    def __init__(self, library: Library, path: Path, threads: int, context: int = 2048) -> None:
        self.ffi, self.llama = library.ffi, library.llama
        params = self.llama.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = self.llama.llama_model_load_from_file(str(path).encode(), params)
        assert self.model != self.ffi.NULL, path
        settings = self.llama.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, 1024, 512
        settings.n_threads = settings.n_threads_batch = threads
        self.context = self.llama.llama_init_from_model(self.model, settings)
        self.vocabulary = self.llama.llama_model_get_vocab(self.model)
        self.size = self.llama.llama_vocab_n_tokens(self.vocabulary)

    def forget(self, start: int = 0) -> None:
        """Drop positions from ``start`` on."""
        memory = self.llama.llama_get_memory(self.context)
        self.llama.llama_memory_seq_rm(memory, 0, start, -1)

    def extend(self, tokens: list[int]) -> np.ndarray:
        """Run tokens after those in the cache and return the last one's logits (a view)."""
        ids = self.ffi.new("llama_token[]", tokens)
        batch = self.llama.llama_batch_get_one(ids, len(tokens))
        assert self.llama.llama_decode(self.context, batch) == 0
        return self._row(-1)

    def all_logits(self, tokens: list[int]) -> np.ndarray:
        """Return the logits after every token of a fresh sequence."""
        self.forget()
        batch = self.llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, index
            batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, 1
        assert self.llama.llama_decode(self.context, batch) == 0
        rows = np.stack([self._row(index).copy() for index in range(len(tokens))])
        self.llama.llama_batch_free(batch)
        return rows

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a plain text; control tokens are not read from it."""
        raw = text.encode()
        out = self.ffi.new("llama_token[]", len(raw) + 8)
        args: tuple[Any, ...] = (self.vocabulary, raw, len(raw), out, len(raw) + 8, True, False)
        return list(out[0 : self.llama.llama_tokenize(*args)])

    def _row(self, index: int) -> np.ndarray:
        pointer = self.llama.llama_get_logits_ith(self.context, index)
        return np.frombuffer(self.ffi.buffer(pointer, 4 * self.size), np.float32)


if __name__ == "__main__":
    print(fetch())
