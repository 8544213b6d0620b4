"""What a communicator checks, counts and refuses, on threads and on one rank; what it moves is
compared with numpy.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from thread_world import run_ranks

from dist_ml.comm import checked
from dist_ml.comm.agreement import from_root, raise_on_all_ranks
from dist_ml.comm.buffer import as_buffer
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.comm.reduction import check_reducible, narrow, widen
from dist_ml.comm.request import Request
from dist_ml.comm.traffic import Traffic
from dist_ml.errors import CommunicationError, ConfigError, DataError
from dist_ml.partition import counts
from tests.message_world import Seen, run_message_ranks

ALONE = Communicator(Loopback())


def own(rank: int, n: int) -> np.ndarray:
    return np.arange(n, dtype=np.float64) * (rank + 1)


class TestCollectives:
    @pytest.mark.parametrize("op", ["sum", "mean", "max", "min"])
    @pytest.mark.parametrize("ranks", [1, 3])
    def test_reductions_blocking_and_not(self, op: str, ranks: int) -> None:
        parts = np.stack([own(rank, 7) for rank in range(ranks)])
        expected = getattr(np, op)(parts, axis=0)

        def body(comm: Communicator) -> list[np.ndarray]:
            blocking, later = own(comm.rank, 7), torch.from_numpy(own(comm.rank, 7))
            comm.allreduce(blocking, op)  # type: ignore[arg-type]
            comm.iallreduce(later, op).wait()  # type: ignore[arg-type]
            scattered = np.empty(counts(7, ranks)[comm.rank])
            comm.reduce_scatter(own(comm.rank, 7), scattered, op)  # type: ignore[arg-type]
            gathered = np.empty(7)
            comm.allgather(scattered, gathered)
            return [blocking, later.numpy(), gathered]

        for found in run_ranks(ranks, body):
            for result in found:
                np.testing.assert_array_equal(result, expected)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_summed_in_float32_and_rounded_once(self, dtype: torch.dtype) -> None:
        """1 + many numbers that are each too small to move it in the half's own arithmetic."""
        small = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}[dtype]

        def body(comm: Communicator) -> list[float]:
            mine = 1.0 if comm.rank == 0 else small
            found = []
            for reduce in (comm.allreduce, lambda x: comm.iallreduce(x).wait()):
                x = torch.full((3,), mine, dtype=dtype)
                reduce(x)
                found.append(x[0].item())
            part = torch.empty(counts(9, comm.size)[comm.rank], dtype=dtype)
            comm.reduce_scatter(torch.full((9,), mine, dtype=dtype), part)
            return [*found, part[0].item()]

        for found in run_ranks(5, body):
            assert found == [1.0 + 4 * small] * 3

    def test_a_vector_longer_than_a_piece_is_widened_piece_by_piece(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dist_ml.comm.communicator.HALF_PIECE", 4)

        def body(comm: Communicator) -> list[float]:
            x = torch.arange(11, dtype=torch.bfloat16)
            comm.allreduce(x, "mean")
            return x.tolist()

        assert run_ranks(3, body) == [list(range(11))] * 3

    @pytest.mark.parametrize("kind", ["torch", "numpy"])
    def test_what_is_not_contiguous_is_reduced_and_broadcast_in_place(self, kind: str) -> None:
        def body(comm: Communicator) -> np.ndarray:
            whole: Any = np.full((4, 3), comm.rank + 1.0)
            whole = torch.from_numpy(whole) if kind == "torch" else whole
            comm.allreduce(whole[:, 1])
            comm.broadcast(whole[:, 2], root=1)
            with pytest.raises(CommunicationError, match="not contiguous; pass x"):
                comm.iallreduce(whole[:, 0])
            return np.asarray(whole)

        for rank, found in enumerate(run_message_ranks(3, lambda comm, _: body(comm))):
            np.testing.assert_array_equal(found, [[rank + 1, 6, 2]] * 4)

    def test_uneven_pieces_reach_whom_they_are_for(self) -> None:
        """Rank r sends (r + j) % 3 elements to rank j."""

        def body(comm: Communicator, seen: Seen) -> None:
            size, rank = comm.size, comm.rank
            outgoing = [(rank + other) % 3 for other in range(size)]
            incoming = comm.exchange_counts(outgoing)
            assert incoming == [(other + rank) % 3 for other in range(size)]
            sent = np.repeat(10.0 * rank + np.arange(size), outgoing)
            found = np.empty(sum(incoming))
            before, at = comm.traffic.total(), seen.as_tuple()
            comm.alltoall(sent, found, outgoing, incoming)
            np.testing.assert_array_equal(found, np.repeat(10.0 * np.arange(size) + rank, incoming))
            moved = comm.traffic.total().minus(before)
            below = [b - a for a, b in zip(at, seen.as_tuple(), strict=True)]
            assert [moved.words_sent, moved.words_received, moved.messages] == below

        run_message_ranks(5, body)


class TestRefusals:
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda c: c.allgather(np.ones(2), np.ones(3)), "send has 2 elements, but the counts"),
            (lambda c: c.allgather(np.ones(3), np.ones(3), [3, 3]), "one size a rank: 1 on axis"),
            (lambda c: c.allgather(np.ones(3, np.float32), np.ones(3)), "send is float32 and the"),
            (lambda c: c.reduce_scatter(np.ones(4), np.ones(3)), "receive has 3 elements"),
            (lambda c: c.alltoall(np.ones(2), np.ones(2), [2, 0], [2]), "send_counts a rank: 1"),
            (lambda c: c.alltoall(np.ones(2), np.ones(3), [2], [3]), "sends itself 2 elements but"),
            (lambda c: c.broadcast(np.ones(2), root=1), "root=1 is not a rank of axis data: they"),
            (lambda c: c.send(np.ones(2), -1), "destination=-1 is not a rank"),
            (lambda c: c.receive(np.ones(2), 7), "source=7 is not a rank"),
            (lambda c: c.receive_message("float64", 1), "source=1 is not a rank"),
            (lambda c: c.allreduce(np.ones(2), "prod"), "op=prod is not one of sum, mean, max"),
            (lambda c: c.allreduce(np.ones(2, np.int32), "mean"), "a mean of int32 would be round"),
            (lambda c: c.allreduce(torch.ones(2, dtype=torch.bool)), "a sum of bool is ambiguous"),
        ],
    )  # fmt: skip
    def test_a_call_that_cannot_be_right_moves_and_counts_nothing(
        self, call: Callable[[Communicator], None], message: str
    ) -> None:
        comm = Communicator(Loopback(), "data")
        with pytest.raises(CommunicationError, match=message):
            call(comm)
        assert comm.traffic.total().calls == 0

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            ([1.0], "a list can't be communicated"),
            (np.ones(2, np.complex64), "dtype complex64 can't be communicated"),
            (np.ones(2, ">f4"), "can't be communicated"),
            (np.array(["a"]), "can't be communicated"),
            (torch.ones(2, dtype=torch.complex64), "dtype torch.complex64 can't"),
            (torch.ones(2, device="meta"), "lives on meta, and only host memory"),
        ],
        ids=["list", "complex", "big-endian", "text", "torch complex", "device"],
    )
    def test_what_is_no_tensor_of_numbers_in_host_memory_is_told(
        self, x: Any, message: str
    ) -> None:
        with pytest.raises(CommunicationError, match=message):
            ALONE.allreduce(x)

    @pytest.mark.parametrize("op", ["max", "min"])
    def test_flags_are_compared_as_any_and_all(self, op: str) -> None:
        def body(comm: Communicator) -> list[bool]:
            flags = torch.tensor([comm.rank == 1, True, False])
            comm.allreduce(flags, op)  # type: ignore[arg-type]
            return flags.tolist()

        expected = [True, True, False] if op == "max" else [False, True, False]
        assert run_ranks(3, body) == [expected] * 3


@given(
    st.lists(st.floats(width=16, allow_nan=False), max_size=20),
    st.sampled_from([torch.bfloat16, torch.float16]),
)
def test_widening_and_narrowing_is_exact_for_what_a_half_can_say(
    values: list[float], dtype: torch.dtype
) -> None:
    x = torch.tensor(values, dtype=dtype)
    expected = x.clone()
    wide = widen(as_buffer(x))
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide, x.float().numpy())
    narrow(wide, as_buffer(x.zero_()))
    assert torch.equal(x, expected)


@pytest.mark.parametrize("op", ["sum", "mean", "max", "min"])
def test_the_gate_lets_every_float_through_and_rounds_no_integer(op: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        check_reducible("allreduce", as_buffer(torch.ones(1, dtype=dtype)), op)
    for kind in (np.int64, np.int8, np.uint8, np.uint32):
        buffer = as_buffer(np.ones(1, kind))
        if op != "mean":
            check_reducible("allreduce", buffer, op)
        else:
            with pytest.raises(CommunicationError, match="convert it to a floating dtype"):
                check_reducible("allreduce", buffer, op)


class TestLoneRank:
    """A group of one needs no MPI, moves nothing, and gives what any group gives."""

    def test_collectives_copy_what_they_must(self) -> None:
        comm, x, found = Communicator(Loopback()), own(2, 5), np.zeros(5)
        for call in (
            lambda: comm.reduce_scatter(x, found),
            lambda: comm.ireduce_scatter(x, found, "mean").wait(),
            lambda: comm.allgather(x, found),
            lambda: comm.iallgather(x, found).wait(),
            lambda: comm.alltoall(x, found, [5], [5]),
        ):
            found[...] = 0
            call()
            np.testing.assert_array_equal(found, x)
        for unchanged in (
            lambda: comm.allreduce(found),
            lambda: comm.iallreduce(found, "mean").wait(),
            lambda: comm.broadcast(found),
            lambda: comm.ibroadcast(found).wait(),
            lambda: comm.allgather(None, found),
        ):
            unchanged()
            np.testing.assert_array_equal(found, x)
        assert comm.traffic.total().calls == 0
        assert comm.exchange_counts([3]) == [3]

    def test_messages_to_oneself_wait_in_their_order_by_tag(self) -> None:
        comm = Communicator(Loopback())
        first, second, other = np.ones(2), np.full(2, 2.0), np.full(3, 3.0)
        comm.send(first, 0)
        comm.send(second, 0)
        comm.isend(other, 0, tag=7).wait()
        first[...] = 9  # the sender may use its memory again
        found = np.empty(2)
        assert comm.receive_message("float64", 0, tag=7).tolist() == [3, 3, 3]
        comm.receive(found, 0)
        assert found.tolist() == [1, 1]
        comm.receive(found, 0)
        assert found.tolist() == [2, 2]

    def test_a_receive_may_be_posted_before_its_send(self) -> None:
        comm, found = Communicator(Loopback()), np.empty(2)
        request = comm.ireceive(found, 0, tag=1)
        comm.send(np.ones(2), 0, tag=1)
        request.wait()
        assert found.tolist() == [1, 1]

    def test_what_would_wait_for_ever_is_an_error(self) -> None:
        comm = Communicator(Loopback())
        for call in (
            lambda: comm.receive(np.empty(1), 0, tag=5),
            lambda: comm.receive_message("float64", 0, tag=5),
        ):
            with pytest.raises(AssertionError, match=r"tag 5.*this would wait for ever"):
                call()

    def test_it_splits_into_itself_or_nothing(self) -> None:
        comm = Communicator(Loopback(), "data", Traffic())
        child = comm.split(3, axis="pipeline")
        assert child is not None
        assert (child.size, child.axis, child.traffic is comm.traffic) == (1, "pipeline", True)
        assert comm.split(None) is None
        assert comm.split_by_node().size == 1
        assert not comm.with_checks().compares_calls  # there is nobody to compare with


class TestChecked:
    @pytest.mark.parametrize(
        ("call", "words"),
        [
            (lambda c: c.allreduce(np.ones(3 + c.rank)), "count=3"),
            (lambda c: c.allreduce(np.ones(3, [np.float64, np.float32][c.rank % 2])), "float64"),
            (lambda c: c.allreduce(np.ones(3), ["sum", "max"][c.rank % 2]), "allreduce sum"),
            (lambda c: c.broadcast(np.ones(3), root=c.rank % 2), "root=0"),
            (lambda c: c.barrier() if c.rank else c.allgather_objects(1), "allgather_objects"),
        ],
        ids=["count", "dtype", "op", "root", "collective"],
    )
    def test_a_difference_is_told_on_all_ranks_with_both_calls(
        self, call: Callable[[Communicator], Any], words: str
    ) -> None:
        def body(comm: Communicator) -> str:
            with pytest.raises(CommunicationError) as caught:
                call(comm.with_checks())
            return str(caught.value)

        found = run_ranks(3, body)
        assert found == [found[0]] * 3
        assert words in found[0].split("but rank 1 calls")[0]
        assert "unit/test_communicator.py:" in found[0], "where the program makes the call"

    def test_right_calls_pass_also_in_groups_that_are_split_off(self) -> None:
        def body(comm: Communicator) -> tuple[list[float], bool]:
            safe = comm.with_checks()
            x = np.ones(2)
            safe.allreduce(x)
            half = safe.split(comm.rank % 2)
            assert half is not None
            half.allreduce(x, "max" if comm.rank % 2 else "sum")
            safe.barrier()
            return x.tolist(), half.compares_calls

        assert run_ranks(3, body) == [([6, 6], True), ([3, 3], False), ([6, 6], True)]

    def test_a_rank_that_does_not_come_is_told_with_the_call(self) -> None:
        class Never:
            rank, size = 1, 2

            def iallgather(self, *_: Any) -> Request:
                class Pending:
                    def Test(self) -> bool:  # noqa: N802
                        return False

                    def Wait(self) -> None:  # noqa: N802
                        raise AssertionError("a wait has no limit")

                return Request([Pending()])

        checker = checked.Checker(Never(), limit_seconds=0.01)  # type: ignore[arg-type]
        with pytest.raises(
            CommunicationError, match=r"rank 1 waited 0\.01 s in barrier dtype=- at .* did not come"
        ):
            checker.check("barrier", "-", None, None)


class TestAgreement:
    def body(
        self, failing: Sequence[int], comm: Communicator, error: type[Exception] = DataError
    ) -> tuple[str, str, bool] | None:
        try:
            with raise_on_all_ranks(comm):
                if comm.rank in failing:
                    raise error(f"file {comm.rank} is missing")
        except (DataError, ConfigError) as caught:
            return type(caught).__name__, str(caught), caught.agreed
        return None

    def test_the_lowest_failing_rank_speaks_for_all(self) -> None:
        found = run_ranks(4, lambda comm: self.body([3, 1], comm))
        assert found == [found[0]] * 4
        assert found[0] is not None
        kind, words, agreed = found[0]
        assert (kind, agreed) == ("DataError", True)
        assert words.startswith("rank 1 on ")
        assert words.endswith(": file 1 is missing")

    def test_where_all_fail_alike_no_rank_is_named(self) -> None:
        found = run_ranks(3, lambda comm: self.body([0, 1, 2], comm, ConfigError))
        assert found == [("ConfigError", "file 0 is missing", True)] * 3

    def test_where_none_fails_nothing_happens(self) -> None:
        assert run_ranks(3, lambda comm: self.body([], comm)) == [None] * 3

    def test_a_bug_passes_on_its_rank(self) -> None:
        with pytest.raises(ZeroDivisionError), raise_on_all_ranks(ALONE):
            _ = 1 / 0

    def test_the_roots_answer_or_error_is_everybodys(self) -> None:
        def body(comm: Communicator) -> tuple[Any, str]:
            called: list[int] = []
            value = from_root(comm, lambda: called.append(comm.rank) or {"k": comm.size})
            assert called == ([0] if comm.rank == 0 else [])

            def fails() -> None:
                raise ConfigError("no such folder")

            with pytest.raises(ConfigError) as caught:
                from_root(comm, fails)
            assert caught.value.agreed
            return value, str(caught.value)

        assert run_ranks(3, body) == [({"k": 3}, "no such folder")] * 3


class TestRequest:
    def test_what_follows_runs_once_after_what_came_before(self) -> None:
        log: list[str] = []
        request = Request(finish=lambda: log.append("first")).then(lambda: log.append("second"))
        assert log == []
        assert request.test()
        request.wait()
        assert request.test()
        assert log == ["first", "second"]


@pytest.mark.parametrize("timing", [False, True])
def test_seconds_are_entered_where_asked_for_by_axis_and_collective(timing: bool) -> None:
    def body(comm: Communicator) -> dict[tuple[str, str], bool]:
        comm.traffic.timing = timing
        comm.allreduce(np.ones(3))
        sent = comm.isend(np.ones(2), (comm.rank + 1) % 3)
        comm.receive_message("float64", (comm.rank - 1) % 3)
        sent.wait()
        return {key: tally.seconds > 0 for key, tally in comm.traffic.snapshot().items()}

    assert run_ranks(3, body) == [{("data", "allreduce"): timing, ("data", "send"): timing}] * 3


def test_a_label_outside_wins_and_reset_forgets() -> None:
    traffic = Traffic()
    comm = run_ranks(2, lambda comm: (comm.traffic, comm.allreduce(np.ones(4)))[0])[0]
    assert comm.total().words_sent == 4
    comm.reset()
    assert comm.snapshot() == {}
    with traffic.labelled("outer"), traffic.labelled("inner"):
        assert traffic.label == "outer"
    assert traffic.label is None
