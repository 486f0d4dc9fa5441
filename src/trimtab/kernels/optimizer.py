"""Adam as one pass over memory, and with signal-to-noise scaling as two.

Traffic in bytes a parameter: 28 for Adam (read gradient, parameter and two moments, write three);
48 for the scaled form (the first pass reads mean and deviations, 8; the second reads six arrays,
24, and writes four, 16), or 44 with the ratio's average in bfloat16. Update rule of Kingma and Ba
2015 with bias correction and decoupled weight decay, the gradient scaled as in Jiang et al. 2023.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trimtab.errors import ShapeError
from trimtab.kernels import _library
from trimtab.kernels.binding import FLOATS, Kernel, Shaped, kernel, shaped

_NOISELESS = 1e30


def _adam_reference(
    parameter: Float[Array, " size"],
    gradient: Float[Array, " size"],
    first: Float[Array, " size"],
    second: Float[Array, " size"],
    scalars: Float[Array, " 3"],
    *,
    first_decay: float,
    second_decay: float,
    epsilon: float,
    weight_decay: float,
) -> tuple[Float[Array, " size"], Float[Array, " size"], Float[Array, " size"]]:
    rate, first_correction, second_correction = scalars[0], scalars[1], scalars[2]
    first = first_decay * first + (1.0 - first_decay) * gradient
    second = second_decay * second + (1.0 - second_decay) * gradient * gradient
    update = first * first_correction / (jnp.sqrt(second * second_correction) + epsilon)
    return parameter - rate * (update + weight_decay * parameter), first, second


def _vr_adam_reference(
    parameter: Float[Array, " size"],
    mean: Float[Array, " size"],
    deviations: Float[Array, " size"],
    average: Float[Array, " size"],
    first: Float[Array, " size"],
    second: Float[Array, " size"],
    scalars: Float[Array, " 5"],
    *,
    gamma: float,
    upper: float,
    first_decay: float,
    second_decay: float,
    epsilon: float,
    weight_decay: float,
) -> tuple[
    Float[Array, " size"], Float[Array, " size"], Float[Array, " size"], Float[Array, " size"]
]:
    count, share = scalars[3], scalars[4]
    ratio = mean * mean * count / jnp.maximum(deviations, 0.0)
    usable = ratio <= _NOISELESS
    centre = jnp.sum(jnp.where(usable, ratio, 0.0)) / jnp.maximum(jnp.sum(usable), 1)
    ratio = ratio / centre
    ratio = jnp.where(jnp.isnan(ratio), gamma, jnp.clip(ratio, gamma, upper))
    past = average.astype(jnp.float32)
    factor = past + (ratio - past) * share
    parameter, first, second = _adam_reference(
        parameter,
        factor * mean,
        first,
        second,
        scalars[:3],
        first_decay=first_decay,
        second_decay=second_decay,
        epsilon=epsilon,
        weight_decay=weight_decay,
    )
    return parameter, factor.astype(average.dtype), first, second


def _float32_only(*arguments: Shaped, **_: Any) -> bool:
    return all(argument.dtype == "float32" for argument in arguments)


def _float32_but_average(*arguments: Shaped, **_: Any) -> bool:
    rest = (*arguments[:3], *arguments[4:])
    return _float32_only(*rest) and arguments[3].dtype in FLOATS


adam_step_kernel = kernel(
    "adam_step", reference=_adam_reference, results=(0, 2, 3), accepts=_float32_only
)
vr_adam_step_kernel = kernel(
    "vr_adam_step",
    reference=_vr_adam_reference,
    results=(0, 3, 4, 5),
    accepts=_float32_but_average,
)


def adam_step(
    parameter: Float[Array, ...],
    gradient: Float[Array, ...],
    first: Float[Array, ...],
    second: Float[Array, ...],
    scalars: Float[Array, " 3"],
    *,
    first_decay: float = 0.9,
    second_decay: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Array, Array, Array]:
    """Take one Adam step on one parameter in one pass, in place where the arrays are donated.

    Args:
        parameter: float32, like all arrays here.
        gradient: of the parameter's shape.
        first: moving average of gradients.
        second: moving average of squared gradients.
        scalars: learning rate, ``1 / (1 - first_decay**t)``, ``1 / (1 - second_decay**t)``.
        first_decay: decay of ``first``.
        second_decay: decay of ``second``.
        epsilon: added to the root.
        weight_decay: share of the parameter taken off, times the rate.

    Returns:
        New parameter, first and second moment.
    """
    _check_shapes(parameter, gradient, first, second)
    return _in_place(
        adam_step_kernel,
        (parameter, gradient, first, second),
        scalars,
        {0: 0, 2: 1, 3: 2},
        first_decay=float(first_decay),
        second_decay=float(second_decay),
        epsilon=float(epsilon),
        weight_decay=float(weight_decay),
    )


def vr_adam_step(
    parameter: Float[Array, ...],
    mean: Float[Array, ...],
    deviations: Float[Array, ...],
    average: Float[Array, ...],
    first: Float[Array, ...],
    second: Float[Array, ...],
    scalars: Float[Array, " 5"],
    *,
    gamma: float = 0.1,
    upper: float = 1.0,
    first_decay: float = 0.9,
    second_decay: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Array, Array, Array, Array]:
    """Take one Adam step with signal-to-noise scaling on one parameter, which is one layer.

    Args:
        parameter: float32, like all arrays here but ``average``.
        mean: mean of the group gradients.
        deviations: sum over groups of squared deviations from it.
        average: bias-corrected moving average of the clipped ratio; float32, bfloat16 or float16.
        first: moving average of scaled gradients.
        second: moving average of squared scaled gradients.
        scalars: learning rate, both bias corrections as factors, number of groups, share of the
            new ratio in its average.
        gamma: lower limit of the ratio.
        upper: upper limit.
        first_decay: decay of ``first``.
        second_decay: decay of ``second``.
        epsilon: added to the root.
        weight_decay: share of the parameter taken off, times the rate.

    Returns:
        New parameter, average, first and second moment.
    """
    _check_shapes(parameter, mean, deviations, average, first, second)
    return _in_place(
        vr_adam_step_kernel,
        (parameter, mean, deviations, average, first, second),
        scalars,
        {0: 0, 3: 1, 4: 2, 5: 3},
        gamma=float(gamma),
        upper=float(upper),
        first_decay=float(first_decay),
        second_decay=float(second_decay),
        epsilon=float(epsilon),
        weight_decay=float(weight_decay),
    )


def _check_shapes(parameter: Any, *others: Any) -> None:
    for other in others:
        if other.shape != parameter.shape:
            raise ShapeError(
                f"The optimizer step got a parameter of shape {parameter.shape} with an array of "
                f"shape {other.shape}; all must have the parameter's shape."
            )


def _in_place(
    bound: Kernel,
    arrays: tuple[Any, ...],
    scalars: Any,
    aliases: dict[int, int],
    **attributes: float,
) -> Any:
    """Call a kernel whose results overwrite arguments, where the compiler may overwrite them."""
    shape = arrays[0].shape
    flat = [*(jnp.asarray(array).reshape(-1) for array in arrays), jnp.asarray(scalars)]
    native = bound.runs_natively([shaped(array) for array in flat], attributes)
    if native and jax.default_backend() == "cpu":
        import numpy as np

        results = jax.ffi.ffi_call(
            _library.ffi_target(bound.name),
            tuple(jax.ShapeDtypeStruct(flat[i].shape, flat[i].dtype) for i in aliases),
            input_output_aliases=aliases,
            vmap_method="sequential",
        )(*flat, **{name: np.float64(value) for name, value in attributes.items()})
    else:
        results = bound(*flat, **attributes)
    return tuple(result.reshape(shape) for result in results)
