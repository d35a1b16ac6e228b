"""Templates of four steps. Each function writes one kind of story; its name is the template's name."""

from __future__ import annotations

from gsm8k_core.story import (
    COLLECTIBLES,
    FRUITS,
    Draw,
    Story,
    Writer,
    add,
    divide,
    multiply,
    subtract,
)


def shopping_change(draw: Draw) -> Story:
    who, (fruit, other) = draw.person(), draw.two(FRUITS)
    bags, price = draw.number(2, 5), draw.number(2, 7)
    other_bags, other_price = draw.number(2, 5), draw.number(2, 6)
    cost = multiply(bags, price)
    other_cost = multiply(other_bags, other_price)
    total = add(cost, other_cost)
    change = subtract(100, total)
    return Story(
        f"{who} buys {bags} bags of {fruit} for ${price} each and {other_bags} bags of {other} for "
        f"${other_price} each. {who.He} pays with a $100 bill. How many dollars of change does {who} get?",
        (
            f"The {fruit} cost {cost.dollars}.",
            f"The {other} cost {other_cost.dollars}.",
            f"In all, {who} spends {total.dollars}.",
            f"{who} gets {change.dollars} in change.",
        ),
        change.value,
    )


def fruit_stand(draw: Draw) -> Story:
    who, fruit = draw.person(), draw.pick(FRUITS)
    baskets, size, bag, price = draw.number(2, 5), draw.number(6, 12), draw.number(2, 5), draw.number(2, 6)
    given = baskets * size - bag * draw.number(2, (baskets * size - 2) // bag)
    picked = multiply(baskets, size)
    rest = subtract(picked, given)
    bags = divide(rest, bag)
    money = multiply(bags, price)
    return Story(
        f"{who} picks {baskets} baskets of {fruit} with {size} {fruit} in each basket. {who.He} gives "
        f"away {given} of them and packs the rest into bags of {bag}. {who.He} sells every bag for "
        f"${price}. How many dollars does {who} make?",
        (
            f"{who} picks {picked} {fruit}.",
            f"{who} has {rest} {fruit} left.",
            f"{who} packs {bags} bags.",
            f"{who} makes {money.dollars}.",
        ),
        money.value,
    )


def pooled_collection(draw: Draw) -> Story:
    (who, second), things = draw.people(), draw.pick(COLLECTIBLES)
    third = draw.pick(("little sister", "little brother", "grandmother", "grandfather", "roommate"))
    children, count = draw.number(2, 5), draw.number(4, 15)
    double = multiply(count, 2)
    more = _filler(count + 2 * double.value, children)
    most = add(double, more)
    total = add(count, double, most)
    share = divide(total, children)
    return Story(
        f"{who} has {count} {things}. {second} has twice as many as {who}. {who}'s {third} has {more} "
        f"more than {second}. They give all their {things} to {children} children, who share them "
        f"equally. How many {things} does each child get?",
        (
            f"{second} has {double} {things}.",
            f"{who}'s {third} has {most} {things}.",
            f"Together they have {total} {things}.",
            f"Each child gets {share} {things}.",
        ),
        share.value,
    )


def _filler(start: int, parts: int) -> int:
    """The smallest number from 2 on that makes `start` divisible by `parts`."""
    return next(number for number in range(2, parts + 2) if (start + number) % parts == 0)


def week_of_work(draw: Draw) -> Story:
    who, expense = draw.person(), draw.pick(("rent", "food", "books", "travel", "clothes", "music lessons"))
    days, daily, extra, pay = draw.number(2, 5), draw.number(2, 6), draw.number(2, 6), draw.number(4, 8)
    spent = draw.number(5, (days * daily + extra) * pay - 5)
    weekday_hours = multiply(days, daily)
    hours = add(weekday_hours, extra)
    earned = multiply(hours, pay)
    left = subtract(earned, spent)
    return Story(
        f"Last week {who} worked {daily} hours a day on {days} weekdays and {extra} hours on Saturday. "
        f"{who.He} earned ${pay} an hour and spent ${spent} on {expense}. How many dollars did {who} have "
        f"left?",
        (
            f"On the weekdays, {who} worked {weekday_hours} hours.",
            f"With Saturday, {who} worked {hours} hours.",
            f"{who} earned {earned.dollars}.",
            f"{who} had {left.dollars} left.",
        ),
        left.value,
    )


def class_trip_cost(draw: Draw) -> Story:
    who, place = draw.person(), draw.pick(("zoo", "museum", "castle", "farm", "aquarium", "science center"))
    cars, size, adults = draw.number(3, 9), draw.number(4, 6), draw.number(2, 6)
    toll, fee = draw.number(2, 9), draw.number(10, 50, step=5)
    people = add(cars * size - adults, adults)
    count = divide(people, size)
    parking = multiply(count, toll)
    total = add(parking, fee)
    return Story(
        f"{who} plans a trip to the {place} for a group of {cars * size - adults} children and {adults} "
        f"adults. They go in cars with {size} people in each car. Parking costs ${toll} for each car, and "
        f"a guide costs ${fee} in all. How many dollars do parking and the guide cost together?",
        (
            f"There are {people} people.",
            f"They go in {count} cars.",
            f"Parking costs {parking.dollars}.",
            f"Together, parking and the guide cost {total.dollars}.",
        ),
        total.value,
    )


def theater_tickets(draw: Draw) -> Story:
    who, show = draw.person(), draw.pick(("play", "concert", "musical", "puppet show", "dance show"))
    rows, each, price = draw.number(2, 8), draw.number(6, 12, step=2), draw.number(2, 5)
    guests = draw.number(2, rows * each // 2 - 3)
    seats = multiply(rows, each)
    half = divide(seats, 2)
    rest = subtract(half, guests)
    money = multiply(rest, price)
    return Story(
        f"A hall has {rows} rows of {each} seats. For {who}'s {show}, half of the seats are kept for "
        f"families and {guests} seats for teachers. All the other seats are sold for ${price} each. How "
        f"many dollars do the sold seats bring in?",
        (
            f"The hall has {seats} seats.",
            f"Families get {half} seats.",
            f"The number of seats to sell is {rest}.",
            f"The sold seats bring in {money.dollars}.",
        ),
        money.value,
    )


FOUR_STEPS: tuple[Writer, ...] = (
    shopping_change,
    fruit_stand,
    pooled_collection,
    week_of_work,
    class_trip_cost,
    theater_tickets,
)
