import threading

from funnel.planning.remembered import Remembered


def test_it_never_holds_more_than_it_may_and_keeps_the_newest() -> None:
    known: Remembered[float, int] = Remembered(most=10)
    for number in range(1_000):
        known[number / 1_000] = number
        assert len(known) <= 10
        assert known[number / 1_000] == number


def test_what_is_asked_for_again_and_again_stays() -> None:
    known: Remembered[str | int, str] = Remembered({"often": "known"}, most=10)
    for number in range(1_000):
        known[number] = "once"
        assert known.get("often") == "known"
    assert known.get(0) is None


def test_threads_that_ask_and_tell_find_what_stays() -> None:
    known: Remembered[str | tuple[int, int], int] = Remembered({"often": 1}, most=50)
    found = []

    def work(thread: int) -> None:
        for number in range(3_000):
            known[thread, number] = number
            found.append(known.get("often"))
            list(known.items())

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {1}
    assert len(found) == 12_000
    assert len(known) == 50
