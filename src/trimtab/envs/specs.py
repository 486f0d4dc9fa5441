"""Shapes, dtypes and bounds of observations and actions, and their Gymnasium and dm_env forms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from trimtab.errors import DtypeError, InputError, ShapeError, require_extra


@dataclasses.dataclass(frozen=True)
class Array:
    """A leaf of given shape and dtype, without bounds."""

    shape: tuple[int, ...]
    dtype: Any
    name: str = ""

    def validate(self, value: Any) -> None:
        """Raise unless ``value`` has this shape and dtype.

        Raises:
            ShapeError: the shape differs.
            DtypeError: the dtype differs.
        """
        if tuple(value.shape) != tuple(self.shape):
            raise ShapeError(
                f"{self.name or 'The value'} has shape {tuple(value.shape)}; "
                f"expected {tuple(self.shape)}."
            )
        if np.dtype(value.dtype) != np.dtype(self.dtype):
            raise DtypeError(
                f"{self.name or 'The value'} has dtype {value.dtype}; "
                f"expected {np.dtype(self.dtype)}."
            )

    def generate_value(self) -> np.ndarray:
        """A valid value: zeros."""
        return np.zeros(self.shape, self.dtype)

    def replace(self, **changes: Any) -> Any:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_gymnasium(self) -> Any:
        """The Gymnasium space of this leaf."""
        spaces = require_extra("gymnasium.spaces", "rl", "Converting specs to spaces")
        dtype = np.dtype(self.dtype)
        low, high = _dtype_bounds(dtype)
        return spaces.Box(low, high, self.shape, dtype.type)

    def to_dm_env(self) -> Any:
        """The dm_env spec of this leaf."""
        specs = require_extra("dm_env.specs", "rl", "Converting specs to dm_env")
        return specs.Array(self.shape, self.dtype, self.name)


@dataclasses.dataclass(frozen=True)
class BoundedArray(Array):
    """A leaf with inclusive bounds that broadcast to its shape."""

    minimum: Any = 0
    maximum: Any = 1
    name: str = ""

    def __init__(self, shape: Any, dtype: Any, minimum: Any, maximum: Any, name: str = ""):
        set_field = object.__setattr__
        set_field(self, "shape", tuple(shape))
        set_field(self, "dtype", np.dtype(dtype))
        set_field(self, "minimum", minimum)
        set_field(self, "maximum", maximum)
        set_field(self, "name", name)

    def validate(self, value: Any) -> None:
        """Raise unless ``value`` has this shape, this dtype and lies within the bounds."""
        super().validate(value)
        value = np.asarray(value)
        if np.any(value < np.asarray(self.minimum)) or np.any(value > np.asarray(self.maximum)):
            raise InputError(
                f"{self.name or 'The value'} spans [{value.min()}, {value.max()}]; "
                f"expected values in [{np.min(self.minimum)}, {np.max(self.maximum)}]."
            )

    def generate_value(self) -> np.ndarray:
        """A valid value: the minimum (zeros where it is infinite)."""
        minimum = np.asarray(self.minimum)
        finite = np.where(np.isfinite(minimum), minimum, 0)
        return np.broadcast_to(finite, self.shape).astype(self.dtype)

    def to_gymnasium(self) -> Any:
        """The Gymnasium space of this leaf."""
        spaces = require_extra("gymnasium.spaces", "rl", "Converting specs to spaces")
        dtype = np.dtype(self.dtype)
        if dtype == np.bool_:
            return spaces.Box(0, 1, self.shape, np.int8)
        low = np.broadcast_to(np.asarray(self.minimum), self.shape).astype(dtype)
        high = np.broadcast_to(np.asarray(self.maximum), self.shape).astype(dtype)
        return spaces.Box(low, high, self.shape, dtype.type)

    def to_dm_env(self) -> Any:
        """The dm_env spec of this leaf."""
        specs = require_extra("dm_env.specs", "rl", "Converting specs to dm_env")
        return specs.BoundedArray(self.shape, self.dtype, self.minimum, self.maximum, self.name)


@dataclasses.dataclass(frozen=True)
class DiscreteArray(BoundedArray):
    """One integer in ``0 .. num_values - 1``."""

    num_values: int = 1

    def __init__(self, num_values: int, dtype: Any = np.int32, name: str = ""):
        if num_values < 1:
            raise InputError(f"A discrete spec has {num_values} values; expected at least 1.")
        super().__init__((), dtype, 0, num_values - 1, name)
        object.__setattr__(self, "num_values", int(num_values))

    def to_gymnasium(self) -> Any:
        """The Gymnasium space of this leaf."""
        spaces = require_extra("gymnasium.spaces", "rl", "Converting specs to spaces")
        return spaces.Discrete(self.num_values)

    def to_dm_env(self) -> Any:
        """The dm_env spec of this leaf."""
        specs = require_extra("dm_env.specs", "rl", "Converting specs to dm_env")
        return specs.DiscreteArray(self.num_values, self.dtype, self.name)


@dataclasses.dataclass(frozen=True)
class MultiDiscreteArray(BoundedArray):
    """Several integers, entry ``i`` in ``0 .. num_values[i] - 1``."""

    num_values: tuple[int, ...] = ()

    def __init__(self, num_values: Any, dtype: Any = np.int32, name: str = ""):
        values = tuple(int(value) for value in num_values)
        if not values or min(values) < 1:
            raise InputError(f"Component sizes {values} must be at least 1 each.")
        maximum = tuple(value - 1 for value in values)
        super().__init__((len(values),), dtype, 0, maximum, name)
        object.__setattr__(self, "num_values", values)

    def to_gymnasium(self) -> Any:
        """The Gymnasium space of this leaf."""
        spaces = require_extra("gymnasium.spaces", "rl", "Converting specs to spaces")
        return spaces.MultiDiscrete(self.num_values)


@dataclasses.dataclass(frozen=True)
class Spec:
    """A nest of specs that mirrors an observation.

    Args:
        constructor: builds an observation from keyword arguments (a named tuple class).
        children: the specs of its fields.
    """

    constructor: Any
    children: tuple[tuple[str, Any], ...]
    name: str = ""

    def __getitem__(self, field: str) -> Any:
        return dict(self.children)[field]

    def __getattr__(self, field: str) -> Any:
        for name, child in self.__dict__.get("children", ()):
            if name == field:
                return child
        raise AttributeError(f"The spec has no field {field!r}.")

    def validate(self, value: Any) -> None:
        """Raise unless every field of ``value`` fits its spec."""
        for name, child in self.children:
            child.validate(getattr(value, name))

    def generate_value(self) -> Any:
        """A valid observation."""
        return self.constructor(**{name: child.generate_value() for name, child in self.children})

    def replace(self, **changes: Any) -> Spec:
        """A copy with some children changed."""
        merged = {**dict(self.children), **changes}
        return dataclasses.replace(self, children=tuple(merged.items()))

    def to_gymnasium(self) -> Any:
        """The Gymnasium Dict space of this nest."""
        spaces = require_extra("gymnasium.spaces", "rl", "Converting specs to spaces")
        return spaces.Dict({name: child.to_gymnasium() for name, child in self.children})

    def to_dm_env(self) -> dict[str, Any]:
        """The dm_env specs of this nest."""
        return {name: child.to_dm_env() for name, child in self.children}


def nest(constructor: Any, **children: Any) -> Spec:
    """Build a :class:`Spec`, naming each leaf after its field."""
    named = tuple(
        (name, child if isinstance(child, Spec) else dataclass_renamed(child, name))
        for name, child in children.items()
    )
    return Spec(constructor, named, constructor.__name__)


def dataclass_renamed(leaf: Array, name: str) -> Array:
    """The leaf under another name, through its own constructor."""
    if isinstance(leaf, DiscreteArray | MultiDiscreteArray):
        return type(leaf)(leaf.num_values, leaf.dtype, name)  # pyright: ignore[reportArgumentType]
    if isinstance(leaf, BoundedArray):
        return BoundedArray(leaf.shape, leaf.dtype, leaf.minimum, leaf.maximum, name)
    return Array(leaf.shape, leaf.dtype, name)


def booleans(*shape: int) -> BoundedArray:
    """A boolean leaf."""
    return BoundedArray(shape, np.bool_, False, True)


def integers(shape: tuple[int, ...], minimum: int, maximum: int, dtype: Any = np.int32):
    """A bounded integer leaf; bounds are inclusive."""
    return BoundedArray(shape, dtype, minimum, maximum)


def reals(shape: tuple[int, ...], minimum: float = 0.0, maximum: float = 1.0) -> BoundedArray:
    """A bounded float32 leaf; bounds are inclusive."""
    return BoundedArray(shape, np.float32, minimum, maximum)


def observation_to_numpy(observation: Any) -> Any:
    """Turn an observation into nested dictionaries of NumPy arrays, booleans as int8."""
    if hasattr(observation, "_asdict"):
        return {k: observation_to_numpy(v) for k, v in observation._asdict().items()}
    if isinstance(observation, Mapping):
        return {k: observation_to_numpy(v) for k, v in observation.items()}
    array = np.asarray(jax.device_get(observation))
    return array.astype(np.int8) if array.dtype == np.bool_ else array


def _dtype_bounds(dtype: np.dtype) -> tuple[Any, Any]:
    if dtype.kind == "f":
        return -np.inf, np.inf
    information = np.iinfo(dtype)
    return information.min, information.max
