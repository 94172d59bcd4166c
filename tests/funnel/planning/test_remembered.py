from funnel.planning.remembered import Remembered


def test_it_never_holds_more_than_it_may_and_keeps_the_newest() -> None:
    known: Remembered[float, int] = Remembered(most=10)
    for number in range(1_000):
        known[number / 1_000] = number
        assert len(known) <= 10
        assert known[number / 1_000] == number
