"""The ledger while threads count into it."""

import threading

from dist_ml.comm.traffic import Traffic, Words


def test_no_count_is_lost_and_a_reader_sees_whole_tallies() -> None:
    traffic, start = Traffic(), threading.Barrier(5)

    def count(number: int) -> None:
        start.wait()
        for call in range(2000):
            traffic.count("data", f"send {call % 50}", Words(3, 2, 1), 4)
            if call % 100 == 0:
                traffic.count(f"axis {number} {call}", "new", Words(1, 1, 1), 4)

    threads = [threading.Thread(target=count, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    start.wait()
    while any(thread.is_alive() for thread in threads):
        traffic.snapshot()
    total = traffic.total()
    assert (total.calls, total.words_sent) == (4 * 2020, 4 * (2000 * 3 + 20))
    assert total.bytes_sent == 4 * total.words_sent
    traffic.reset()
    assert traffic.total().calls == 0


def test_each_thread_has_its_own_label() -> None:
    traffic = Traffic()
    with traffic.labelled("ring"):
        other = threading.Thread(target=traffic.count, args=("data", "send", Words(1, 0, 1), 4))
        other.start()
        other.join()
        traffic.count("data", "send", Words(1, 0, 1), 4)
    assert set(traffic.snapshot()) == {("data", "send"), ("data", "ring")}
