"""The native engines of stream networks: plain functions over int64 arrays.

What a network is and how its arrays are made says :mod:`trimtab.simulate.stream.native`; the plain
Python engine that serves without the extension is :mod:`trimtab.simulate.stream.reference`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trimtab.errors import DeviceError
from trimtab.kernels import _library

_NAMES = ("stream_simulate", "stream_grow", "stream_sweep")


def stream_engine_available() -> bool:
    """Whether the extension is built with the stream engines."""
    return _library.kernel_names().issuperset(_NAMES)


def run_stream_engine(
    name: str, arguments: Sequence[np.ndarray], results: Sequence[np.ndarray], **attributes: int
) -> None:
    """Run one engine; the results are filled in place.

    Args:
        name: ``"stream_simulate"``, ``"stream_grow"`` or ``"stream_sweep"``.
        arguments, results: contiguous int64 arrays as listed in the native sources.
        attributes: switches of the engine.

    Raises:
        DeviceError: the extension is absent.
    """
    native = _library.extension()
    if native is None or name not in _library.kernel_names():
        raise DeviceError(
            f"The native engine {name} is not built; pass engine='reference' for the slower one."
        )
    native.call(
        native.kernel_index(name),
        tuple(_raw(array) for array in arguments),
        tuple(_raw(array) for array in results),
        attributes,
    )


def _raw(array: np.ndarray) -> tuple[int, ...]:
    if array.dtype != np.int64 or not array.flags.c_contiguous:
        raise DeviceError("Stream engines take contiguous int64 arrays.")
    return (array.ctypes.data, _library.DATA_TYPES["int64"], *array.shape)
