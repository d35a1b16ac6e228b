"""Seats: who sits down, what is written, who leaves, and which row moves where."""

from __future__ import annotations

from backends.torch.seats import AT_ONCE, GROUP, Seat, Seats
from gsm8k_core.types import Completion, Force, Sampling

END = 9


def seats(lengths: list[int], batch_size: int, max_new_tokens: int = 3) -> Seats:
    """Prompts of these lengths, no two of them the same."""
    prompts = [[1] * (length - 1) + [10 + number] for number, length in enumerate(lengths)]
    return books_of(prompts, batch_size, max_new_tokens)


def books_of(prompts: list[list[int]], batch_size: int, max_new_tokens: int = 3, force: Force | None = None) -> Seats:
    sampling = Sampling(max_new_tokens, batch_size, force=force)
    return Seats(Seat.of_prompts(prompts, sampling), batch_size, frozenset({END}), lambda index, token: None)


def write(books: Seats, first: int, tokens: list[int]) -> list[tuple[int, Completion]]:
    """A token of each row from `first` on is launched and seen at once."""
    rows = books.taken[first : first + len(tokens)]
    for seat in rows:
        seat.launched += 1
    return list(books.land(rows, tokens))


def test_the_shortest_prompts_sit_down_first_and_no_more_than_there_are_seats() -> None:
    books = seats([5, 2, 4, 3], batch_size=3)
    assert [seat.index for seat in books.arrivals().seats] == [1, 3, 2]
    assert books.arrivals().seats == []
    assert [seat.index for seat in books.taken] == [1, 3, 2]


def test_no_more_sit_down_at_once_than_are_prefilled_together() -> None:
    books = seats([2] * (AT_ONCE + 1), batch_size=64)
    assert [len(books.arrivals().seats) for _ in range(3)] == [AT_ONCE, 1, 0]


def test_an_end_token_ends_an_answer_and_is_not_part_of_it() -> None:
    books = seats([2, 3], batch_size=2)
    books.arrivals()
    assert write(books, 0, [7, END]) == [(1, Completion((), "stop", END))]
    assert books.order() == [0]
    assert write(books, 0, [END]) == [(0, Completion((7,), "stop", END))]
    assert books.order() == []
    assert not books


def test_the_longest_answer_ends_with_its_last_token() -> None:
    books = seats([2], batch_size=1, max_new_tokens=2)
    books.arrivals()
    assert write(books, 0, [4]) == []
    assert books.taken[0].num_cached == 2  # the prompt; the token that was written is read by the next step
    assert write(books, 0, [5]) == [(0, Completion((4, 5), "length"))]


def test_a_free_seat_is_taken_again() -> None:
    books = seats([2, 2, 2], batch_size=2)
    books.arrivals()
    write(books, 0, [END, 4])
    assert books.order() == [1]
    assert [seat.index for seat in books.arrivals().seats] == [2]
    assert [seat.index for seat in books.taken] == [1, 2]


def test_a_prefill_waits_until_enough_seats_are_free() -> None:
    books = seats([2] * 40, batch_size=2 * GROUP)
    while books.arrivals().seats:
        pass
    write(books, 0, [END] + [4] * 31)
    books.order()
    assert books.arrivals().seats == []  # one of 32 is not worth it
    write(books, 0, [END] + [4] * 30)
    books.order()
    assert len(books.arrivals().seats) == 2


def test_gaps_are_filled_from_later_groups_and_rows_only_move_down() -> None:
    books = seats([2] * 50, batch_size=50)
    while books.arrivals().seats:
        pass
    tokens = [4] * 50
    tokens[3] = tokens[20] = END
    write(books, 0, tokens)
    order = books.order()
    assert sorted(order) == [row for row in range(50) if row not in (3, 20)]
    assert all(old >= row for row, old in enumerate(order))
    assert order[3] == GROUP  # the first of the next group, whose place was filled in turn
    assert sum(old != row for row, old in enumerate(order)) <= 6


def test_a_prompt_that_is_asked_again_is_read_once_and_kept_while_others_wait_with_it() -> None:
    books = books_of([[5, 6], [7, 8], [5, 6], [5, 6], [7, 8], [5, 6]], batch_size=3)
    first = books.arrivals()
    assert [seat.index for seat in first.read] == [0]
    assert [seat.index for seat in first.copied] == [2, 3]
    assert (first.sources, first.keep, books.keeps) == ([0, 0], 0, True)
    write(books, 0, [END, END, 4])
    books.order()
    second = books.arrivals()
    assert ([seat.index for seat in second.read], [seat.index for seat in second.copied]) == ([1], [5])
    assert (second.sources, second.keep, books.keeps) == ([None], 0, True)  # the other prompt is kept now
    write(books, 1, [END, END])
    books.order()
    third = books.arrivals()
    assert ([seat.index for seat in third.read], [seat.index for seat in third.copied]) == ([], [4])
    assert (third.sources, third.keep, books.keeps) == ([None], None, False)


def test_forced_tokens_are_written_at_once_and_read_one_a_step() -> None:
    books = books_of([[2, 2]], 1, 10, force=lambda written: (7, 8) if written[-1] == 4 else ())
    books.arrivals()
    assert write(books, 0, [4]) == []
    (seat,) = books.taken
    assert (seat.written, seat.forced, seat.num_cached) == ([4, 7, 8], [1, 2], 2)
    for cached in (3, 4):
        assert write(books, 0, [5]) == []  # drawn behind what is not the last token: it counts for nothing
        assert (seat.written, seat.num_cached) == ([4, 7, 8], cached)
    assert write(books, 0, [END]) == [(0, Completion((4, 7, 8), "stop", END, (1, 2)))]


def test_a_seat_is_left_when_all_its_tokens_are_asked_for_though_none_is_seen() -> None:
    books = seats([2, 2], batch_size=1, max_new_tokens=2)
    (seat,) = books.arrivals().seats
    seat.launched = 2
    assert books.order() == []
    assert [other.index for other in books.arrivals().seats] == [1]
    assert list(books.land([seat], [4])) == []
    assert list(books.land([seat], [5])) == [(0, Completion((4, 5), "length"))]


def test_a_token_behind_the_end_is_thrown_away() -> None:
    books = seats([2], batch_size=1)
    (seat,) = books.arrivals().seats
    seat.launched = 2
    assert list(books.land([seat], [END])) == [(0, Completion((), "stop", END))]
    assert list(books.land([seat], [5])) == []
    assert (seat.written, seat.landed) == ([], 2)


def test_a_forced_token_is_read_though_one_was_drawn_in_its_place() -> None:
    books = books_of([[2, 2]], 1, 10, force=lambda written: (7, 8) if written == [4] else ())
    (seat,) = books.arrivals().seats
    seat.launched = 2  # the second token is drawn before the first is seen
    list(books.land([seat], [4]))
    assert (seat.written, seat.forced_input) == ([4, 7, 8], 7)
    seat.launched = 3
    list(books.land([seat], [5]))
    assert (seat.written, seat.forced_input) == ([4, 7, 8], 8)
    seat.launched = 4
    list(books.land([seat], [6]))
    assert (seat.written, seat.forced_input) == ([4, 7, 8], None)  # the next is what is drawn behind 8
    list(books.land([seat], [6]))
    assert seat.written == [4, 7, 8, 6]
