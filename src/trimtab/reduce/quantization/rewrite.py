"""Quantise the linear layers of any program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp

from trimtab.errors import InputError, unknown_name
from trimtab.graph import Program, Replacement, Site, linear_weight
from trimtab.graph.segments import split
from trimtab.kernels.group_quantized import (
    QuantizedMatrix,
    check_format,
    quantized_linear,
)
from trimtab.progress import Progress, silent
from trimtab.reduce.calibration import calibrate, keys
from trimtab.reduce.quantization.rounding import (
    METHODS,
    Method,
    Origin,
    awq_scales,
    gptq,
    quantize_matrix,
)
from trimtab.reduce.sparsity.rewrite import block_cuts, is_matrix, product_replacement

_PARTS = ("packed", "scale", "zero", "offset")


@dataclass(frozen=True)
class Quantize:
    """Replace products with constant matrices by products of codes; see :func:`quantize`."""

    bits: int
    group: int
    activations: int
    activation_group: int | None
    method: Method
    origin: Origin
    batches: tuple[Any, ...] = field(repr=False)
    where: str
    progress: Progress = field(repr=False, default=silent)

    def sites(self, program: Program) -> list[Site]:
        """Return the linear sites that match, whose weight is one plain matrix."""
        return [site for site in program.sites("linear", self.where) if is_matrix(site)]

    def apply(self, program: Program, sites: Sequence[Site]) -> Program:
        """Return the program with those sites computed from codes."""
        matrices = self._matrices(program, sites)
        return program.replace(
            [
                self._replacement(site, name, *matrices[site.parameters["weight"]])
                for name, site in zip(keys(sites), sites)
            ]
        )

    def _matrices(
        self, program: Program, sites: Sequence[Site]
    ) -> dict[str, tuple[QuantizedMatrix, Any]]:
        """Quantise each weight once, in order of execution; keyed by the weight's name."""
        done: dict[str, tuple[QuantizedMatrix, Any]] = {}
        if self.method == "nearest":
            for site in sites:
                weight = site.parameters["weight"]
                if weight not in done:
                    done[weight] = self._quantize(site, program.parameters[weight], None)
            return done
        wanted = {site.parameters["weight"] for site in sites}
        values = [tuple(jax.tree.leaves(batch)) for batch in self.batches]
        parts = split(program, block_cuts(sites))
        for index, part in enumerate(parts):
            here = [s for s in part.sites("linear") if s.parameters["weight"] in wanted]
            fresh = [site for site in here if site.parameters["weight"] not in done]
            grams = calibrate(part, values, fresh, "gram") if fresh else {}
            for key, site in zip(keys(fresh), fresh):
                weight = site.parameters["weight"]
                if weight not in done:
                    done[weight] = self._quantize(site, part.parameters[weight], grams[key])
            self.progress("quantising", index + 1, len(parts))
            if index + 1 < len(parts):
                lean = part.replace(
                    [
                        self._replacement(site, key, *done[site.parameters["weight"]])
                        for key, site in zip(keys(here), here)
                    ]
                )
                values = [tuple(lean(*batch)) for batch in values]
        return done

    def _quantize(self, site: Site, parameter: Any, gram: Any) -> tuple[QuantizedMatrix, Any]:
        matrix = linear_weight(site, parameter).astype(jnp.float32)
        stack = matrix.reshape(-1, *matrix.shape[-2:])
        grams = [None] * len(stack)
        if gram is not None:
            grams = list(jnp.asarray(gram, jnp.float32).reshape(len(stack), *gram.shape[-2:]))
        made = [self._quantize_one(w, g) for w, g in zip(stack, grams)]
        loops = matrix.shape[:-2]
        if not loops:
            return made[0]
        return jax.tree.map(
            lambda *leaves: jnp.stack(leaves).reshape(*loops, *leaves[0].shape), *made
        )

    def _quantize_one(self, weight: Any, gram: Any) -> tuple[QuantizedMatrix, Any]:
        options: Any = {"bits": self.bits, "group": self.group, "origin": self.origin}
        if self.method == "gptq":
            return gptq(weight, gram, **options), None
        if self.method == "awq":
            factors = awq_scales(weight, gram, **options)
            return quantize_matrix(weight * factors, **options), 1.0 / factors
        return quantize_matrix(weight, **options), None

    def _replacement(
        self, site: Site, name: str, matrix: QuantizedMatrix, factors: Any
    ) -> Replacement:
        extras = {
            f"{name}/quantized/{part}": getattr(matrix, part)
            for part in _PARTS
            if getattr(matrix, part) is not None
        }
        if factors is not None:
            extras[f"{name}/quantized/input_factor"] = factors

        def product(own: Mapping[str, Any], rows: Any) -> Any:
            parts = {part: own.get(f"{name}/quantized/{part}") for part in _PARTS}
            whole = QuantizedMatrix(
                **parts, bits=matrix.bits, group=matrix.group, inputs=matrix.inputs
            )
            scaled = rows * own[f"{name}/quantized/input_factor"] if factors is not None else rows
            return quantized_linear(
                scaled.astype(jnp.float32),
                whole,
                activation_bits=self.activations,
                activation_group=self.activation_group,
            )

        return product_replacement(site, extras, product)


def quantize(
    bits: int = 4,
    group: int = 128,
    activations: int = 16,
    *,
    method: str | None = None,
    origin: Origin = "zero",
    activation_scales: str = "group",
    calibrate: Iterable[Any] = (),
    where: str = "**",
    progress: Progress = silent,
) -> Quantize:
    """Make a rewrite that quantises linear layers in groups.

    Args:
        bits: width of a weight code: 2, 3, 4 or 8.
        group: inputs that share a scale; a multiple of 8.
        activations: 8 rounds activations to int8 at run time, 16 keeps them as float16, 32 leaves
            them alone.
        method: ``"nearest"``, ``"gptq"`` or ``"awq"``; by default GPTQ where calibration batches
            are given and nearest rounding otherwise.
        origin: ``"zero"`` (integer zero point), ``"offset"`` (float minimum, as GGUF's Q4_1) or
            ``"symmetric"``.
        activation_scales: ``"group"`` for an int8 scale per row and group, ``"row"`` for one per
            row, which loses accuracy on inputs with outliers.
        calibrate: input tuples (or single inputs) of the program.
        where: globs on layer and parameter names; ``!`` excludes.
        progress: told about each part.

    Returns:
        A rewrite for ``Program.rewrite``.

    Raises:
        InputError: an unsupported width, or a method without calibration batches.
        UnknownNameError: the method does not exist.

    >>> import equinox as eqx, jax, trimtab as tt
    >>> model = eqx.nn.Linear(64, 32, key=jax.random.key(0))
    >>> program = tt.capture(model, jax.numpy.ones((2, 64)), batched=True)
    >>> lean = program.rewrite(quantize(bits=4, group=32))
    >>> sum(array.nbytes for array in lean.parameters.values()) < 2048
    True
    """
    check_format(bits, group)
    batches = tuple(calibrate)
    name = method or ("gptq" if batches else "nearest")
    if name not in METHODS:
        raise unknown_name("quantisation method", name, METHODS)
    if name != "nearest" and not batches:
        raise InputError(
            f"{name} rounds with the inputs in view: pass calibrate=batches, or method='nearest'."
        )
    if activations not in (8, 16, 32):
        raise InputError(f"Activations have 8, 16 or 32 bits, not {activations}.")
    if activation_scales not in ("group", "row"):
        raise unknown_name("granularity of activation scales", activation_scales, ("group", "row"))
    per_group = -1 if activation_scales == "group" else None
    return Quantize(
        bits, group, activations, per_group, cast(Method, name), origin, batches, where, progress
    )
