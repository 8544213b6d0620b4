"""Some of PyTorch's own tests of torch.distributed, on our backend; `torch_suite/table.py` runs
all of them, beside gloo.
"""

from pathlib import Path

from dist_ml.process_group.process_group import NAME
from tests.test_mpi_worlds import run_pytest

ALL = Path(__file__).parent / "torch_suite" / "all_tests.py"
# One for each kind of call, and those that something of ours was made for.
SELECTED = (
    "test_accumulate_gradients_no_sync_allreduce_with_then_hook",
    "test_all_gather_coalesced_complex",
    "test_all_gather_coalesced_with_empty",
    "test_all_gather_object_default_pg",
    "test_all_reduce_coalesced_product",
    "test_all_reduce_complex_unsupported_ops",
    "test_all_reduce_sum_async",
    "test_all_reduce_sum_complex",
    "test_barrier_timeout_full_group",
    "test_batch_isend_irecv_gloo_tags",
    "test_destroy_full_group",
    "test_DistributedDataParallelCPU_grad_is_view",
    "test_gather_checks",
    "test_get_future",
    "test_irecv",
    "test_reduce_sum_twice",
    "test_scatter_object_list",
    "test_send_recv_any_source",
    "test_send_recv_with_tag",
    "test_sparse_all_reduce_sum",
)


def test_selected(flavour: str, tmp_path: Path) -> None:
    variables = {"TORCH_SUITE_BACKEND": NAME, "TORCH_SUITE_TESTS": ",".join(SELECTED)}
    plugin = ["-p", "tests.mpi.conftest"]
    record = tmp_path / "outcomes.jsonl"
    completed, told = run_pytest(ALL, 2, flavour, record, variables, plugin)
    wrong = [one for one in told if one.outcome != "passed"]
    assert not wrong, "\n".join(f"{one.test}: {one.text}" for one in wrong)
    ran = {one.test.split("::")[-1] for one in told}
    assert ran == set(SELECTED), completed.stdout[-3000:]
