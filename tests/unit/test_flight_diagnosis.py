"""What the records of several ranks are judged to mean."""

from collections.abc import Iterable

from dist_ml.flight.diagnosis import diagnose
from dist_ml.flight.flight import Call, Flight, Group

RANKS = (0, 1, 2)
DATA = "data 0-1-2 #1"
PIPE = "pipeline 0-1-2 #1"


def collective(
    sequence: int, count: int = 8, call: str = "allreduce", open_since: float | None = None
) -> Call:
    begun = float(sequence)
    ended = None if open_since is not None else begun + 0.5
    waited = open_since if open_since is not None else begun
    return Call(
        *(sequence, DATA, sequence, call, "sum", "float32", count, None, "a/reducer.py", 7),
        *("finish", begun, waited, ended),
    )


def message(
    call: str,
    peer: int,
    tag: int = 3,
    sequence: int = 1,
    waited: float | None = None,
    ended: float | None = None,
) -> Call:
    return Call(
        *(tag, PIPE, sequence, call, tag, "float32", 4, peer, "a/messages.py", 9),
        *("take", 1.0, waited, ended),
    )


def flight(rank: int, calls: Iterable[Call], at: str = "a/step.py:1 run") -> Flight:
    own = tuple(calls)
    begun = max((call.sequence for call in own if call.group == DATA), default=0)
    groups = {DATA: Group(RANKS, begun), PIPE: Group(RANKS, 0)}
    return Flight(
        rank, 3, "host", 100 + rank, "a test", 99.0, 5, groups, own, {"MainThread": (at,)}
    )


def flights(*of_ranks: Iterable[Call]) -> dict[int, Flight]:
    return {rank: flight(rank, calls) for rank, calls in enumerate(of_ranks)}


def test_a_rank_that_sleeps_is_the_one_that_never_came() -> None:
    waiting = [collective(1), collective(2, open_since=2.0)]
    found = diagnose(
        {
            0: flight(0, waiting),
            1: flight(1, [collective(1)], "user/script.py:12 nap"),
            2: flight(2, waiting),
        }
    )
    assert (found.kind, found.ranks) == ("late", (1,))
    assert "rank 1 on host (process 101) never came to allreduce sum float32[8]" in found.words
    assert f"(number 2 of {DATA})" in found.words
    assert "in which ranks 0 and 2 wait since" in found.words
    assert "at a/reducer.py:7; it stood in user/script.py:12 nap" in found.words


def test_a_rank_without_a_record_is_the_one() -> None:
    waiting = [collective(1, open_since=2.0)]
    found = diagnose({0: flight(0, waiting), 2: flight(2, waiting)}, {1: "process 7 is stopped"})
    assert (found.kind, found.ranks) == ("late", (1,))
    assert found.words.endswith("process 7 is stopped")


def test_one_that_is_present_is_named_before_those_without_a_record() -> None:
    """Other ranks had no time to write, where one ended the job."""
    found = diagnose({0: flight(0, [collective(1, open_since=2.0)]), 2: flight(2, [])})
    assert found.ranks == (2,)


def test_a_left_out_collective_is_told_from_another_one() -> None:
    """Each step calls 8 elements, then 1."""
    usual = [collective(s, 8 if s % 2 else 1) for s in range(1, 8)]
    right = [*usual, collective(8, 1, open_since=8.0)]
    left_out = diagnose(flights(right, right, [*usual, collective(8, 8, open_since=8.0)]))
    assert (left_out.kind, left_out.ranks) == ("diverged", (2,))
    assert (
        "rank 2 on host (process 102) left out allreduce sum float32[1] (number 8" in left_out.words
    )
    assert "which ranks 0 and 1 called at a/reducer.py:7" in left_out.words
    other = diagnose(flights(right, [*usual, collective(8, 1, "broadcast")], right))
    assert other.ranks == (1,)
    assert "came elsewhere than to allreduce" in other.words
    assert "it called broadcast sum float32[1]" in other.words


def test_of_two_ranks_the_one_that_breaks_the_habit_is_odd() -> None:
    usual = [collective(s, 8 if s % 2 else 1) for s in range(1, 8)]
    right, wrong = [*usual, collective(8, 1)], [*usual, collective(8, 8)]
    assert diagnose({0: flight(0, wrong), 1: flight(1, right)}).ranks == (0,)
    assert diagnose({0: flight(0, right), 1: flight(1, wrong)}).ranks == (1,)


def test_without_a_habit_both_calls_are_named() -> None:
    found = diagnose({0: flight(0, [collective(1, 8)]), 1: flight(1, [collective(1, 9)])})
    assert found.ranks == (0, 1)
    assert "rank 0 allreduce sum float32[8]" in found.words
    assert "rank 1 allreduce sum float32[9]" in found.words


def test_the_first_divergence_counts() -> None:
    """After it all calls differ."""
    right = [collective(1, 8), collective(2, 8), collective(3, 8)]
    found = diagnose(flights(right, [collective(1, 8), collective(2, 5), collective(3, 6)], right))
    assert "number 2 of" in found.words


def test_a_chain_of_messages_leads_to_its_end() -> None:
    """Rank 0 waits for 1, which waits for 2, which computes; what is posted waits for nobody."""
    found = diagnose(
        flights(
            [message("receive", 1, waited=2.0)],
            [message("receive", 2, waited=2.0), message("receive", 0, tag=4)],
            [message("receive", 1)],
        )
    )
    assert (found.kind, found.ranks) == ("late", (2,))
    assert "never made its side of receive from rank 2 float32[4] (tag 3" in found.words
    assert "in which rank 1 waits" in found.words


def test_a_message_that_was_sent_is_waited_for_by_nobody() -> None:
    """The second of a tag was not sent, the first was."""
    sent = message("send", 0, sequence=1, waited=1.0, ended=1.0)
    came = diagnose(flights([message("receive", 1, sequence=1, waited=2.0)], [sent], []))
    assert came.kind == "nothing"
    missing = diagnose(flights([message("receive", 1, sequence=2, waited=2.0)], [sent], []))
    assert missing.ranks == (1,)


def test_ranks_that_wait_in_a_circle() -> None:
    found = diagnose(
        flights([message("receive", 1, waited=2.0)], [message("receive", 0, waited=2.0)], [])
    )
    assert (found.kind, found.ranks) == ("circle", (0, 1))
    assert "rank 0 waits for rank 1 since" in found.words


def test_all_came_and_one_does_not_look_at_its_request() -> None:
    begun = collective(1, open_since=2.0)
    posted = Call(**{**vars(begun), "waited": None})
    assert diagnose(flights([begun], [begun], [posted])).ranks == (2,)


def test_nothing_hangs() -> None:
    found = diagnose(flights([collective(1)], [collective(1)], [collective(1)]))
    assert (found.kind, found.ranks) == ("nothing", ())


def test_a_left_out_message_is_told_from_the_rounds_before() -> None:
    """Each round rank 1 sends two messages and then all reduce; in the last one it sends one, and
    waits in the allreduce for rank 0, which waits for the message.
    """

    def sent(*skipped: tuple[int, int]) -> list[Call]:
        calls = []
        for turn in range(1, 5):
            calls += [
                message("send", 0, tag, turn, 1.0, 1.0)
                for tag in (1, 2)
                if (turn, tag) not in skipped
            ]
            calls.append(collective(turn, open_since=9.0 if turn == 4 else None))
        return calls

    def waiting(turn: int, tag: int) -> list[Call]:
        before = [collective(number) for number in range(1, turn)]
        return [*before, message("receive", 1, tag, turn, waited=8.0)]

    there = [collective(number, open_since=9.0 if number == 4 else None) for number in range(1, 5)]
    found = diagnose(flights(waiting(4, 1), sent((4, 1)), there))
    assert (found.kind, found.ranks) == ("diverged", (1,))
    assert "rank 1 on host (process 101) left out its side of receive from rank 1" in found.words
    assert "(tag 1, group" in found.words
    assert "it went on to send to rank 0 float32[4] (tag 2" in found.words
    # What it didn't make in each round may come yet.
    assert diagnose(flights(waiting(4, 1), sent((2, 1), (4, 1)), there)).ranks != (1,)


def test_where_all_wait_the_one_that_breaks_its_habit_is_late() -> None:
    """Rank 1 used to send after each allreduce, and now waits in a barrier for the others."""

    def calls(way: str, peer: int, last: Call) -> list[Call]:
        made = [
            c
            for turn in range(1, 4)
            for c in (collective(turn), message(way, peer, 3, turn, 1.0, 1.0))
        ]
        return [
            Call(**{**vars(c), "number": n}) for n, c in enumerate([*made, collective(4), last])
        ]

    barrier = collective(5, 0, "barrier", open_since=9.0)
    found = diagnose(
        flights(
            calls("receive", 1, message("receive", 1, 3, 4, waited=9.0)),
            calls("send", 0, barrier),
            [*(collective(turn) for turn in range(1, 5))],
        )
    )
    assert found.ranks == (2,)  # which waits for nobody
    found = diagnose(
        flights(
            calls("receive", 1, message("receive", 1, 3, 4, waited=9.0)),
            calls("send", 0, barrier),
            calls("receive", 0, message("receive", 0, 3, 4, waited=9.0)),
        )
    )
    assert (found.kind, found.ranks) == ("late", (1,))
    assert "rank 1 on host (process 101) never made its side of receive from rank 1" in found.words
    assert "it waits in barrier" in found.words
