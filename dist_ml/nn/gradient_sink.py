"""Where a layer's own backward pass puts the gradient of a parameter.

Autograd adds a new tensor into `.grad`: the product is written, then read and added to a buffer
that was zeroed before. A layer that computes the product itself can write it where it belongs, C =
A B the first time in a step and C += A B after that, which saves four passes over the gradient and
the temporary. The layer puts a sink on its parameter (`parameter.gradient_sink`), and whoever owns
the gradient buffer attaches it; until then, the layer returns its gradient to autograd as others
do.
"""

from collections.abc import Callable

import torch


class GradientSink:
    """The gradient of one parameter, written by its layer. `empty` until the first write since
    `clear`.
    """

    def __init__(self) -> None:
        self.empty = True
        self._left_to_autograd = False
        self._view: torch.Tensor | None = None

    @property
    def attached(self) -> bool:
        return self._view is not None

    def attach(self, view: torch.Tensor) -> None:
        """From now on the gradient goes into `view`, of the parameter's shape."""
        self._view = view
        self.empty = True

    def clear(self) -> None:
        """A new step begins: what the view holds will be overwritten."""
        self.empty = True
        if self._left_to_autograd:  # also by forward passes of this step that ran before it began
            self.zero_if_empty()

    def leave_to_autograd(self) -> None:
        """Autograd will add the gradient of this pass, so that the view must hold a sum by then."""
        self._left_to_autograd = True
        self.zero_if_empty()

    def zero_if_empty(self) -> torch.Tensor:
        """The view with a valid sum in it: zeros, if nothing was written."""
        assert self._view is not None
        if self.empty:
            self._view.zero_()
            self.empty = False
        return self._view

    def write(self, product: Callable[[torch.Tensor, float], None]) -> None:
        """Have `product(c, beta)` compute c = A B + beta c in the view."""
        assert self._view is not None
        product(self._view, 0.0 if self.empty else 1.0)
        self.empty = False
