"""Templates of three steps. Each function writes one kind of story; its name is the template's name."""

from __future__ import annotations

from gsm8k_core.story import (
    BAKED,
    CRAFTS,
    FLOWERS,
    SUPPLIES,
    Draw,
    Story,
    Writer,
    add,
    divide,
    multiply,
    subtract,
)

_COLORS = (("red", "yellow", "white"), ("pink", "white", "orange"), ("yellow", "pink", "red"))


def three_day_sale(draw: Draw) -> Story:
    who, crafts = draw.person(), draw.pick(CRAFTS)
    first, fewer = draw.number(5, 20), draw.number(2, 8)
    second = multiply(first, 2)
    third = subtract(second, fewer)
    total = add(first, second, third)
    return Story(
        f"On Friday {who} sells {first} {crafts}. On Saturday {who.he} sells twice as many as on Friday. "
        f"On Sunday {who.he} sells {fewer} fewer than on Saturday. How many {crafts} does {who} sell on "
        f"the three days?",
        (
            f"On Saturday, {who} sells {second} {crafts}.",
            f"On Sunday, {who} sells {third} {crafts}.",
            f"In all, {who} sells {total} {crafts}.",
        ),
        total.value,
    )


def bake_sale_money(draw: Draw) -> Story:
    who, baked = draw.person(), draw.pick(BAKED)
    trays, each, price = draw.number(2, 5), draw.number(4, 10), draw.number(2, 4)
    unsold = draw.number(2, trays * each - 4)
    made = multiply(trays, each)
    sold = subtract(made, unsold)
    money = multiply(sold, price)
    return Story(
        f"{who} bakes {trays} trays of {baked} with {each} {baked} on each tray. {who.He} sells all but "
        f"{unsold} of the {baked} for ${price} each. How many dollars does {who} make?",
        (f"{who} bakes {made} {baked}.", f"{who} sells {sold} {baked}.", f"{who} makes {money.dollars}."),
        money.value,
    )


def two_kinds_of_supplies(draw: Draw) -> Story:
    who, (supplies, others) = draw.person(), draw.two(SUPPLIES)
    count, price = draw.number(2, 9), draw.number(2, 5)
    other_count, other_price = draw.number(2, 9), draw.number(2, 5)
    cost = multiply(count, price)
    other_cost = multiply(other_count, other_price)
    total = add(cost, other_cost)
    return Story(
        f"{who} buys {count} {supplies} for ${price} each and {other_count} {others} for ${other_price} "
        f"each. How many dollars does {who} spend in all?",
        (
            f"The {supplies} cost {cost.dollars}.",
            f"The {others} cost {other_cost.dollars}.",
            f"In all, {who} spends {total.dollars}.",
        ),
        total.value,
    )


def flower_bed_colors(draw: Draw) -> Story:
    who, flowers, (first, second, third) = draw.person(), draw.pick(FLOWERS), draw.pick(_COLORS)
    count = draw.number(12, 80, step=2)
    other = draw.number(3, count // 2 - 3)
    half = divide(count, 2)
    rest = subtract(count, half)
    left = subtract(rest, other)
    return Story(
        f"{who} plants {count} {flowers}. Half of them are {first}, {other} are {second}, and the others are "
        f"{third}. How many {third} {flowers} does {who} plant?",
        (
            f"There are {half} {first} {flowers}.",
            f"That leaves {rest} {flowers}.",
            f"There are {left} {third} {flowers}.",
        ),
        left.value,
    )


def lawn_savings(draw: Draw) -> Story:
    who, wish = draw.person(), draw.pick(("bicycle", "skateboard", "tent", "guitar", "watch", "camera"))
    job = draw.pick(("mows lawns", "walks dogs", "washes cars", "babysits", "cleans windows"))
    pay, jobs, weeks, saved = draw.number(4, 10), draw.number(2, 4), draw.number(2, 6), draw.number(10, 40)
    missing = subtract(saved + pay * jobs * weeks, saved)
    weekly = multiply(jobs, pay)
    needed = divide(missing, weekly)
    return Story(
        f"{who} has saved ${saved} for a {wish} that costs ${saved + pay * jobs * weeks}. {who.He} {job} "
        f"{jobs} times a week and earns ${pay} each time. In how many weeks will {who} have enough money?",
        (
            f"{who} still needs {missing.dollars}.",
            f"Each week, {who} earns {weekly.dollars}.",
            f"{who} will have enough in {needed} weeks.",
        ),
        needed.value,
    )


def pizza_slices(draw: Draw) -> Story:
    who, dish = draw.person(), draw.pick(("pizzas", "pies", "cakes", "melons"))
    slices, friends, eaten = draw.pick((6, 8, 10)), draw.number(3, 9), draw.number(2, 4)
    count = friends * eaten // slices + draw.number(2, 4)
    total = multiply(count, slices)
    gone = multiply(friends, eaten)
    left = subtract(total, gone)
    return Story(
        f"{who} cuts {count} {dish} into {slices} slices each. Then {friends} friends eat {eaten} slices "
        f"each. How many slices are left?",
        (
            f"{who} cuts {total} slices.",
            f"The friends eat {gone} slices.",
            f"There are {left} slices left.",
        ),
        left.value,
    )


def way_to_school(draw: Draw) -> Story:
    who, quarter = draw.person(), draw.number(4, 50, step=2)
    pupils = draw.pick(("students", "children", "pupils"))
    walk = divide(4 * quarter, 4)
    others = subtract(4 * quarter, walk)
    bus = divide(others, 2)
    return Story(
        f"There are {4 * quarter} {pupils} in {who}'s school. 25% of them walk to school, and half of the "
        f"others take the bus. How many {pupils} take the bus?",
        (
            f"25% is a fourth, so {walk} {pupils} walk.",
            f"That leaves {others} {pupils}.",
            f"Half of them, {bus} {pupils}, take the bus.",
        ),
        bus.value,
    )


def there_and_back(draw: Draw) -> Story:
    who, place = draw.person(), draw.pick(("the office", "the library", "the gym", "the stables", "the pool"))
    miles, days, weeks = draw.number(2, 10), draw.number(2, 5), draw.number(2, 4)
    daily = multiply(miles, 2)
    weekly = multiply(days, daily)
    total = multiply(weeks, weekly)
    return Story(
        f"{who} lives {miles} miles from {place}. {who.He} drives there and back {days} days a week. "
        f"How many miles does {who} drive in {weeks} weeks?",
        (
            f"There and back is {daily} miles.",
            f"Each week, {who} drives {weekly} miles.",
            f"In {weeks} weeks, {who} drives {total} miles.",
        ),
        total.value,
    )


def empty_seats(draw: Draw) -> Story:
    who, vans = draw.person(), draw.pick(("buses", "vans", "boats", "minibuses"))
    count, seats, adults, empty = draw.number(2, 6), draw.number(8, 15), draw.number(2, 8), draw.number(2, 6)
    children = count * seats - adults - empty
    total = multiply(count, seats)
    people = add(children, adults)
    left = subtract(total, people)
    return Story(
        f"{who} rents {count} {vans} with {seats} seats each for a group of {children} children and {adults} "
        f"adults. How many seats stay empty?",
        (
            f"The {vans} have {total} seats.",
            f"There are {people} people.",
            f"There are {left} empty seats.",
        ),
        left.value,
    )


def minutes_of_work(draw: Draw) -> Story:
    who, parts = draw.person(), draw.pick(("window frames", "walls", "doors", "shelves"))
    rooms, each, minutes = draw.number(2, 6), draw.number(2, 4), draw.number(5, 15)
    done = draw.number(2, rooms * each - 2)
    total = multiply(rooms, each)
    rest = subtract(total, done)
    time = multiply(rest, minutes)
    return Story(
        f"{who}'s house has {rooms} rooms with {each} {parts} in each room. {who.He} wants to paint all "
        f"the {parts} and has painted {done} of them so far. It takes {minutes} minutes to paint each "
        f"one. How many more minutes will {who} need?",
        (
            f"There are {total} {parts}.",
            f"{who} still has to paint {rest} {parts}.",
            f"{who} will need {time} minutes.",
        ),
        time.value,
    )


THREE_STEPS: tuple[Writer, ...] = (
    three_day_sale,
    bake_sale_money,
    two_kinds_of_supplies,
    flower_bed_colors,
    lawn_savings,
    pizza_slices,
    way_to_school,
    there_and_back,
    empty_seats,
    minutes_of_work,
)
