"""Linear layers on oneDNN, with prepacked weights: for float32 on a CPU.

On AMD's processors with AVX-512 they take half of the time of torch's default BLAS, which does not
use it there, and as long as that on Intel's (``docs/benchmarks.md``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch.autograd.function import once_differentiable

ROWS_HINT = 1024  # batch size that oneDNN prepacks weights for; fixed, as bytes depend on it


class Prepacked(torch.nn.Module):
    """A linear layer on oneDNN, with prepacked weights.

    Parameters
    ----------
    layer : torch.nn.Linear
        On the CPU, in float32.
    """

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS_HINT)
        self.bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs, shape (…, out), of states of shape (…, in)."""
        return torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, "none", [], "")


def prepack(model: torch.nn.Module) -> None:
    """Replace the linear layers of a float32 model on the CPU by oneDNN's, where torch has them."""
    for name, child in list(model.named_children()):
        if _is_packable(child):
            setattr(model, name, Prepacked(child))
        else:
            prepack(child)


def prepack_frozen(model: torch.nn.Module) -> None:
    """Run the linear layers of a model that are not trained on oneDNN, for training others.

    They stay in the model, with their weights, which must not change from here on and are in memory
    twice: as they are and prepacked. As with :func:`prepack`, only layers in float32 on the CPU. A
    layer that is compiled, under autocast, or parametrised (as by peft's ``target_parameters``)
    runs as it did.
    """
    for layer in model.modules():
        if _is_packable(layer) and not any(one.requires_grad for one in layer.parameters()):
            layer.forward = _forward(layer)  # type: ignore[method-assign, assignment]


class _Product(torch.autograd.Function):
    """What a frozen layer computes of rows; its gradient is that of the rows alone, once."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, packed: Prepacked, weight: torch.Tensor
    ) -> torch.Tensor:
        ctx.transposed = weight.t()
        return packed(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        found = torch.ops.mkldnn._linear_pointwise(gradient, ctx.transposed, None, "none", [], "")
        return found, None, None


def _forward(layer: torch.nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    packed = Prepacked(layer)

    def forward(input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as torch names it
        if (
            type(layer) is not torch.nn.Linear  # while it is parametrised
            or layer.weight.requires_grad
            or torch.compiler.is_compiling()
            or torch.is_autocast_enabled("cpu")
        ):
            return type(layer).forward(layer, input)
        found = _Product.apply(input.reshape(-1, input.shape[-1]), packed, layer.weight.detach())
        return found.view(*input.shape[:-1], found.shape[-1])

    return forward


def _is_packable(layer: torch.nn.Module) -> TypeGuard[torch.nn.Linear]:
    return (
        type(layer) is torch.nn.Linear
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
