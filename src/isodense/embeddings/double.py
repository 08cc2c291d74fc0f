"""float64 from end to end, so that vectors have the same bytes on every machine.

Matrix products and exponentials differ in their last bits between processors, and in float32 so do
the vectors, by about 3e-7. Computed in float64 and rounded to float32 once, at the end, they do
not: an error of 1e-16 crosses a rounding boundary about twice in 10^8 values. Models of
``transformers`` compute parts in float32 whatever their weights are (rotary angles, RMS norms);
inside :class:`Double` these are float64, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Double(TorchFunctionMode):
    """A context in which tensors become float64 wherever code asks for float32.

    Examples
    --------
    >>> with Double():
    ...     print(torch.ones(2, dtype=torch.int64).float().dtype)
    torch.float64
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, with float64 in the place of float32."""
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        named = {name: _doubled(value) for name, value in (kwargs or {}).items()}
        return func(*map(_doubled, args), **named)


def computing_in(precision: str) -> AbstractContextManager[Any]:
    """Return the context that a model of a precision is loaded and run in."""
    return Double() if precision == "float64" else nullcontext()


def _doubled(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
