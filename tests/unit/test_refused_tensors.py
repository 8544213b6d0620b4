"""Tensors and models that can't be exchanged are told at once, on every rank."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from thread_world import run_ranks

from dist_ml import DataParallel
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import CommunicationError, ConfigError

TENSORS: dict[str, tuple[Callable[[], Any], str]] = {
    "sparse": (lambda: torch.eye(2).to_sparse(), "a torch.sparse_coo tensor can't be"),
    "csr": (lambda: torch.eye(2).to_sparse_csr(), "a torch.sparse_csr tensor can't be"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2)]), "a nested tensor can't be"),
    "expanded": (lambda: torch.ones(1).expand(4), "pass x.contiguous() and copy"),
    "meta": (lambda: torch.ones(3, device="meta"), "the tensor lives on meta"),
    "complex": (lambda: torch.ones(3, dtype=torch.complex64), "dtype torch.complex64 can't be"),
    "float8": (lambda: torch.ones(3).to(torch.float8_e4m3fn), "dtype torch.float8_e4m3fn can't"),
    "list": (lambda: [1.0], "a list can't be communicated"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of prototypes
@pytest.mark.parametrize("call", ["allreduce", "broadcast"])
@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_that_cannot_be_exchanged(kind: str, call: str) -> None:
    make, words = TENSORS[kind]

    def body(comm: Communicator) -> str:
        with pytest.raises(CommunicationError) as caught:
            getattr(comm, call)(make())
        return str(caught.value)

    assert all(words in told for told in run_ranks(2, body))


@pytest.mark.parametrize("call", ["allreduce", "broadcast"])
def test_strided_and_differentiated_tensors_are_exchanged(call: str) -> None:
    def body(comm: Communicator) -> torch.Tensor:
        strided, leaf = torch.ones(4, 4).T[1:], torch.ones(3, requires_grad=True)
        for tensor in (strided, leaf, leaf * 2):
            getattr(comm, call)(tensor)
        return torch.cat([strided.flatten(), leaf.detach()])

    for found in run_ranks(2, body):
        assert found.unique().tolist() == [2.0 if call == "allreduce" else 1.0]


def linear(**changes: Any) -> torch.nn.Module:
    module = torch.nn.Linear(2, 2)
    for name, tensor in changes.items():
        if isinstance(tensor, torch.nn.Parameter):
            module.register_parameter(name, tensor)
        else:
            module.register_buffer(name, tensor)
    return module


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.nn.LazyLinear(2), "weight has no shape yet: let a batch pass"),
        (lambda: 3, "the model is of type int"),
        (lambda: linear(mask=torch.eye(2).to_sparse()), "mask is sparse, nested or expanded"),
        (lambda: linear(mask=torch.ones(1).expand(4)), "mask is sparse, nested or expanded"),
        (
            lambda: linear(weight=torch.nn.Parameter(torch.ones(1, 1).expand(2, 2))),
            "weight is sparse, nested or expanded",
        ),
    ],
)
def test_a_model_that_cannot_be_exchanged(make: Callable[[], Any], words: str) -> None:
    def body(comm: Communicator) -> str:
        with pytest.raises(ConfigError) as caught:
            DataParallel(make(), comm)
        return str(caught.value)

    assert all(words in told for told in run_ranks(2, body))


def test_a_model_is_wrapped_once_and_has_dense_gradients() -> None:
    def body(comm: Communicator) -> tuple[str, str]:
        wrapped = DataParallel(torch.nn.Embedding(4, 2, sparse=True), comm, allreduce="native")
        with pytest.raises(ConfigError) as twice:
            DataParallel(wrapped, comm)
        with pytest.raises(CommunicationError) as sparse:
            wrapped(torch.tensor([1, 2])).sum().backward()
        return str(twice.value), str(sparse.value)

    for twice, sparse in run_ranks(2, body):
        assert "is in DataParallel already" in twice
        assert "a gradient is a torch.sparse_coo tensor" in sparse
