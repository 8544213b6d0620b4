"""The backward pass of one micro-batch through one stage, whole or in two parts.

    input part    the gradients of the stage's inputs, which the stage before waits for
    weight part   the gradients of its parameters, which nobody waits for until the step's end

Both parts together compute each product once: the input part goes along the paths that lead to
inputs only, and takes down the gradient at each node where parameters branch off; the weight part
starts from those nodes (Qi, Wan, Huang, Lin, "Zero bubble pipeline parallelism", ICLR 2024,
section 2.1). A norm's few parameters are the exception: one kernel makes their gradients with its
input's, so that the input part computes both and the weight part only adds them where they belong.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.autograd.graph import GradientEdge

from dist_ml.nn.backward_part import backward_part

# Norms, by torch's names of their nodes. Torch 2.13 crashes where a group norm of images that lie
# with channels last is asked for its parameters' gradients without its input's.
_NORMS = ("NativeGroupNormBackward0", "NativeLayerNormBackward0")

Node: TypeAlias = Any  # torch.autograd.graph.Node
Gradients: TypeAlias = tuple[torch.Tensor | None, ...]


class Enter(torch.autograd.Function):
    """What a stage has received, as a tensor that its first block may overwrite: another one on the
    same memory, which nobody else reads.
    """

    @staticmethod
    def forward(ctx: Any, received: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        storage, offset = received.untyped_storage(), received.storage_offset()
        same = received.new_empty(0)
        same.set_(storage, offset, received.size(), received.stride())
        return same

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return gradient


class _Root(NamedTuple):
    """Where the weight part of some parameters starts."""

    edges: Sequence[GradientEdge | torch.Tensor]
    gradients: Sequence[torch.Tensor | None]
    parameters: Sequence[torch.Tensor] | None  # those below, and no others; None: all


class SplitBackward:
    """`input_part`, then `weight_part`, of `outputs` made of `inputs` (leaves) and parameters.

    Where a parameter is used in several places of the stage the parts can't be told apart by node:
    then all of it happens in the input part.
    """

    def __init__(
        self,
        outputs: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor | None],
        inputs: Sequence[torch.Tensor],
    ) -> None:
        self._outputs, self._gradients = list(outputs), list(gradients)
        self._inputs = list(inputs)
        self._roots: list[_Root] = []

    def input_part(self) -> None:
        """`.grad` of the inputs."""
        if not self._inputs:  # nobody waits: all is weight part
            self._roots = [_Root(self._outputs, self._gradients, None)]
            return
        nodes = _Nodes(self._outputs, self._inputs)
        if nodes.shares_parameters:
            torch.autograd.backward(self._outputs, self._gradients)
            return
        found: dict[Node, Gradients] = {}
        hooks = [
            node.register_prehook(lambda gradients, node=node: found.__setitem__(node, gradients))
            for node in nodes.branching
        ]
        wanted = [*self._inputs, *nodes.of_norms]
        with backward_part("input"):
            made = torch.autograd.grad(
                self._outputs, wanted, self._gradients, retain_graph=True, allow_unused=True
            )
        for i, (tensor, new) in enumerate(zip(wanted, made, strict=True)):
            if new is not None and i < len(self._inputs):
                tensor.grad = new if tensor.grad is None else tensor.grad + new
            elif new is not None:
                self._roots.append(_Root([tensor], [new], None))
        for hook in hooks:
            hook.remove()
        for node, gradients in found.items():
            given = [(i, gradient) for i, gradient in enumerate(gradients) if gradient is not None]
            edges = [GradientEdge(node, number) for number, _ in given]
            values = [gradient for _, gradient in given]
            self._roots.append(_Root(edges, values, nodes.branching[node]))
        for output, gradient in zip(self._outputs, self._gradients, strict=True):
            if output.grad_fn in nodes.apart:
                self._roots.append(_Root([output], [gradient], None))

    def weight_part(self) -> None:
        """Adds to `.grad` of the parameters; what the forward pass kept may be freed after it."""
        roots, self._roots, self._outputs = self._roots, [], []
        for edges, gradients, parameters in roots:
            with backward_part("weight" if parameters is not None else "whole"):
                torch.autograd.backward(edges, gradients, inputs=parameters)  # type: ignore[arg-type]


class _Nodes:
    """The graph behind `outputs`, parted by whether a node leads to one of `inputs`.

    `branching`: those that do and have an edge towards parameters alone, and which these are.
    `of_norms`: parameters that branch off at norms. `apart`: nodes that don't lead to an input.
    """

    def __init__(self, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
        wanted = {id(tensor) for tensor in inputs}
        order = _in_postorder([output.grad_fn for output in outputs if output.grad_fn is not None])
        leads: set[Node] = set()
        holds: dict[Node, dict[int, torch.Tensor]] = {}  # parameters below, through nodes apart
        uses: list[int] = []
        self.branching: dict[Node, list[torch.Tensor]] = {}
        self.of_norms: list[torch.Tensor] = []
        for node in order:  # what a node leads to comes before it
            variable = getattr(node, "variable", None)
            if variable is not None:
                if id(variable) in wanted:
                    leads.add(node)
                else:
                    holds[node] = {id(variable): variable}
                continue
            below = [after for after, _ in node.next_functions if after is not None]
            reached: dict[int, torch.Tensor] = {}
            for after in below:
                if after not in leads:
                    reached |= holds.get(after, {})
            if not any(after in leads for after in below):
                holds[node] = reached
                continue
            leads.add(node)
            if reached and node.name() in _NORMS:
                self.of_norms += reached.values()
            elif reached:
                self.branching[node] = list(reached.values())
            uses += reached
        self.apart = set(order) - leads
        for output in outputs:
            if output.grad_fn in self.apart:
                uses += holds.get(output.grad_fn, {})
        self.shares_parameters = len(uses) != len(set(uses))


def _in_postorder(roots: Sequence[Node]) -> list[Node]:
    seen: set[Node] = set()
    order: list[Node] = []
    stack: list[tuple[Node, bool]] = [(root, False) for root in roots]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
            continue
        if node in seen:
            continue
        seen.add(node)
        stack.append((node, True))
        stack += [(after, False) for after, _ in node.next_functions if after is not None]
    return order
