"""The same scaling for PyTorch: a wrapper around any ``torch.optim`` optimizer."""

from __future__ import annotations

from typing import Any, Literal

from trimtab.errors import InputError, require_extra, unknown_name


class VrOptimizer:
    """Scale gradients by their signal-to-noise ratio before a PyTorch optimizer's step.

    Call :meth:`accumulate` after each group's ``backward()``, then :meth:`step` once. Statistics
    are kept in float32 by Chan's rule. Learning-rate schedulers take ``wrapper.base``.

    Args:
        base: the optimizer that takes the step.
        gamma: lower limit of the ratio, in (0, 1].
        decay: decay of the ratio's moving average; 0 for none.
        clip: ``"paper"``, ``"symmetric"`` or ``"renormalised"``, as in
            :func:`trimtab.train.optimizers.vr`.
        process_group: merge the statistics of all ranks of this ``torch.distributed`` group
            (``torch.distributed.group.WORLD`` for all); gradients must then not be averaged by
            DistributedDataParallel, so wrap backward passes in ``no_sync()``.

    Raises:
        InputError: an argument is out of range.
        MissingExtraError: PyTorch is not installed.
    """

    def __init__(
        self,
        base: Any,
        gamma: float = 0.1,
        decay: float = 0.0,
        *,
        clip: Literal["paper", "symmetric", "renormalised"] = "paper",
        process_group: Any = None,
    ) -> None:
        if not 0.0 < gamma <= 1.0 or not 0.0 <= decay < 1.0:
            raise InputError(
                f"gamma must lie in (0, 1] and decay in [0, 1), got {gamma} and {decay}."
            )
        if clip not in ("paper", "symmetric", "renormalised"):
            raise unknown_name("clip", clip, ("paper", "symmetric", "renormalised"))
        self._torch = require_extra("torch", "torch", "The PyTorch optimizer wrapper")
        self.base = base
        self._gamma, self._decay, self._clip = gamma, decay, clip
        self._process_group = process_group
        self._count = 0
        self._steps = 0
        self._means: dict[Any, Any] = {}
        self._deviations: dict[Any, Any] = {}
        self._momentum: dict[Any, Any] = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's parameter groups."""
        return self.base.param_groups

    def accumulate(self) -> None:
        """Take the gradients that ``backward`` left as those of one group, and clear them."""
        with self._torch.no_grad():
            share = 1.0 / (self._count + 1)
            for parameter in self._parameters():
                if parameter.grad is None:
                    gradient = self._torch.zeros_like(parameter, dtype=self._torch.float32)
                else:
                    gradient = parameter.grad.detach().float()
                if parameter not in self._means:
                    self._means[parameter] = self._torch.zeros_like(gradient)
                    self._deviations[parameter] = self._torch.zeros_like(gradient)
                away = gradient - self._means[parameter]
                self._means[parameter].add_(away, alpha=share)
                self._deviations[parameter].addcmul_(away, away, value=self._count * share)
                parameter.grad = None
            self._count += 1

    def step(self) -> bool:
        """Scale the mean gradient, let the base optimizer step, and forget the statistics.

        Returns:
            Whether it stepped; statistics that are not finite change nothing.

        Raises:
            InputError: fewer than two groups were accumulated.
        """
        count = self._merged_count()
        if count < 2:
            raise InputError(
                f"step() needs at least 2 groups, {count} accumulated. Call accumulate() after "
                "each backward() and step() after the last."
            )
        with self._torch.no_grad():
            finite = all(
                bool(self._torch.isfinite(mean).all() and self._torch.isfinite(m2).all())
                for mean, m2 in zip(self._means.values(), self._deviations.values())
            )
            if finite:
                self._steps += 1
                for parameter, mean in self._means.items():
                    factor = self._factor(parameter, mean, self._deviations[parameter], count)
                    parameter.grad = (factor * mean).to(parameter.dtype)
        if finite:
            self.base.step()
        self.zero_grad()
        return finite

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the statistics and the gradients."""
        self._count = 0
        self._means.clear()
        self._deviations.clear()
        self.base.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the state between two steps, with parameters by position."""
        order = {parameter: index for index, parameter in enumerate(self._parameters())}
        return {
            "base": self.base.state_dict(),
            "steps": self._steps,
            "momentum": {order[p]: value for p, value in self._momentum.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        parameters = self._parameters()
        self.base.load_state_dict(state["base"])
        self._steps = state["steps"]
        self._momentum = {parameters[i]: value.clone() for i, value in state["momentum"].items()}

    def _parameters(self) -> list[Any]:
        return [p for group in self.base.param_groups for p in group["params"] if p.requires_grad]

    def _factor(self, parameter: Any, mean: Any, deviations: Any, count: int) -> Any:
        torch = self._torch
        ratio = mean.square() / (deviations / count)
        ratio = torch.where(ratio > 1e30, torch.inf, ratio)
        finite = torch.isfinite(ratio)
        centre = ratio[finite].sum() / finite.sum().clamp(min=1)
        upper = 1.0 / self._gamma if self._clip == "symmetric" else 1.0
        factor = (ratio / centre).clamp(self._gamma, upper)
        factor = torch.where(torch.isnan(ratio), self._gamma, factor)
        if self._clip == "renormalised":
            factor = factor / factor.mean()
        if not self._decay:
            return factor
        momentum = self._momentum.setdefault(parameter, torch.zeros_like(factor))
        momentum.mul_(self._decay).add_(factor, alpha=1.0 - self._decay)
        return momentum / (1.0 - self._decay**self._steps)

    def _merged_count(self) -> int:
        """Merge the statistics of all ranks in place and return the number of groups."""
        if self._process_group is None:
            return self._count
        torch = self._torch
        distributed = torch.distributed
        ranks = distributed.get_world_size(self._process_group)
        for parameter, own in self._means.items():
            mean = own.clone()
            distributed.all_reduce(mean, group=self._process_group)
            mean /= ranks
            deviations = self._deviations[parameter]
            deviations.addcmul_(own - mean, own - mean, value=self._count)
            distributed.all_reduce(deviations, group=self._process_group)
            self._means[parameter] = mean
        return self._count * ranks
