"""Templates of one step. Each function writes one kind of story; its name is the template's name."""

from __future__ import annotations

from gsm8k_core.story import (
    BAKED,
    COLLECTIBLES,
    FRACTIONS,
    FRUITS,
    GROUPS,
    TIMES,
    VENUES,
    Draw,
    Story,
    Writer,
    add,
    divide,
    multiply,
    subtract,
)


def market_find(draw: Draw) -> Story:
    who, things = draw.person(), draw.pick(COLLECTIBLES)
    had, more = draw.number(5, 60), draw.number(3, 40)
    total = add(had, more)
    return Story(
        f"{who} collects {things} and has {had} of them. {who.He} finds {more} more {things} at a flea "
        f"market. How many {things} does {who} have now?",
        (f"{who} now has {total} {things}.",),
        total.value,
    )


def fruit_for_neighbor(draw: Draw) -> Story:
    who, fruit = draw.person(), draw.pick(FRUITS)
    gift, kept = draw.number(3, 30), draw.number(3, 50)
    left = subtract(gift + kept, gift)
    return Story(
        f"{who} picks {gift + kept} {fruit} in the garden and gives {gift} of them to {who.his} neighbor. "
        f"How many {fruit} does {who} have left?",
        (f"{who} has {left} {fruit} left.",),
        left.value,
    )


def bakery_boxes(draw: Draw) -> Story:
    who, baked = draw.person(), draw.pick(BAKED)
    boxes, each = draw.number(2, 12), draw.number(3, 12)
    total = multiply(boxes, each)
    return Story(
        f"{who} works in a bakery and packs {baked} into {boxes} boxes. Each box holds {each} {baked}. "
        f"How many {baked} does {who} pack?",
        (f"{who} packs {total} {baked}.",),
        total.value,
    )


def equal_shares(draw: Draw) -> Story:
    who, things = draw.person(), draw.pick(COLLECTIBLES)
    friends, each = draw.number(2, 10), draw.number(2, 12)
    share = divide(friends * each, friends)
    return Story(
        f"{who} shares {friends * each} {things} equally among {friends} friends. "
        f"How many {things} does each friend get?",
        (f"Each friend gets {share} {things}.",),
        share.value,
    )


def ticket_cost(draw: Draw) -> Story:
    who, venue = draw.person(), draw.pick(VENUES)
    tickets, price = draw.number(2, 10), draw.number(3, 15)
    cost = multiply(tickets, price)
    return Story(
        f"{who} buys {tickets} {venue} tickets for {who.his} family. Each ticket costs ${price}. "
        f"How many dollars does {who} spend?",
        (f"{who} spends {cost.dollars}.",),
        cost.value,
    )


def age_later(draw: Draw) -> Story:
    who, relative = draw.person(), draw.pick(("cousin", "uncle", "aunt", "teacher", "best friend", "coach"))
    age, years = draw.number(22, 60), draw.number(2, 30)
    later = add(age, years)
    return Story(
        f"{who}'s {relative} is {age} years old today. How old will the {relative} be {years} years from now?",
        (f"The {relative} will be {later} years old.",),
        later.value,
    )


def fraction_of_club(draw: Draw) -> Story:
    who, group, (parts, fraction) = draw.person(), draw.pick(GROUPS), draw.pick(FRACTIONS)
    fact = draw.pick(("wear glasses", "have a pet", "walk to school", "play the piano", "like soccer"))
    children = parts * draw.number(3, 20)
    some = divide(children, parts)
    return Story(
        f"{who}'s {group} has {children} children. {fraction.capitalize()} of the children {fact}. "
        f"How many of the children {fact}?",
        (f"In the {group}, {some} children {fact}.",),
        some.value,
    )


def times_as_many_pages(draw: Draw) -> Story:
    (who, other), (factor, times) = draw.people(), draw.pick(TIMES)
    pages = draw.number(5, 40)
    more = multiply(pages, factor)
    return Story(
        f"{who} reads {pages} pages on Sunday. {other} reads {times} as many pages as {who}. "
        f"How many pages does {other} read?",
        (f"{other} reads {more} pages.",),
        more.value,
    )


def bike_ride(draw: Draw) -> Story:
    who = draw.person()
    hours, speed = draw.number(2, 9), draw.number(5, 15)
    miles = multiply(hours, speed)
    return Story(
        f"{who} rides {who.his} bike at {speed} miles per hour. How many miles does {who.he} ride in {hours} hours?",
        (f"{who} rides {miles} miles.",),
        miles.value,
    )


def change_from_bill(draw: Draw) -> Story:
    who, bill = draw.person(), draw.pick((20, 50, 100))
    ware = draw.pick(("puzzle", "book", "lamp", "hat", "plant", "kettle", "vase", "board game"))
    price = draw.number(3, bill - 2) if bill == 20 else draw.number(11, bill - 5)
    change = subtract(bill, price)
    return Story(
        f"{who} buys a {ware} that costs ${price} and pays with a ${bill} bill. How many dollars does {who} get back?",
        (f"{who} gets back {change.dollars}.",),
        change.value,
    )


def chair_rows(draw: Draw) -> Story:
    who, event = draw.person(), draw.pick(("concert", "wedding", "play", "meeting", "lecture", "puppet show"))
    rows, each = draw.number(3, 12), draw.number(4, 12)
    count = divide(rows * each, each)
    return Story(
        f"{who} sets up {rows * each} chairs for a {event}. {who.He} puts {each} chairs in every row. "
        f"How many rows of chairs does {who} make?",
        (f"{who} makes {count} rows.",),
        count.value,
    )


def dozen_eggs(draw: Draw) -> Story:
    who, place = draw.person(), draw.pick(("farm", "henhouse", "market", "village shop"))
    day, dozens = draw.pick(("Monday", "Tuesday", "Friday", "Saturday", "Sunday")), draw.number(2, 12)
    eggs = multiply(dozens, 12)
    return Story(
        f"On {day}, {who} gets {dozens} dozen eggs from the {place}. How many eggs does {who} get?",
        (f"A dozen is 12, so {who} gets {eggs} eggs.",),
        eggs.value,
    )


def weeks_to_wait(draw: Draw) -> Story:
    who, weeks = draw.person(), draw.number(2, 12)
    event = draw.pick(("summer camp", "vacation", "dance class", "art course", "school trip"))
    days = multiply(weeks, 7)
    return Story(
        f"{who}'s {event} starts in exactly {weeks} weeks. How many days does {who} have to wait?",
        (f"A week has 7 days, so {who} has to wait {days} days.",),
        days.value,
    )


def tree_heights(draw: Draw) -> Story:
    who, (tall, short) = draw.person(), draw.two(("oak", "birch", "pine", "maple", "cedar", "willow"))
    height, more = draw.number(10, 50), draw.number(4, 40)
    gap = subtract(height + more, height)
    return Story(
        f"The {tall} in {who}'s yard is {height + more} feet tall and the {short} is {height} feet tall. "
        f"How many feet taller is the {tall} than the {short}?",
        (f"The {tall} is {gap} feet taller.",),
        gap.value,
    )


def warmer_by_noon(draw: Draw) -> Story:
    who, place = draw.person(), draw.pick(("garden", "village", "valley", "harbor", "town", "mountain hut"))
    morning, rise = draw.number(30, 65), draw.number(4, 25)
    noon = add(morning, rise)
    return Story(
        f"When {who} woke up, it was {morning} degrees in the {place}. By noon it was {rise} degrees warmer. "
        f"How many degrees was it at noon?",
        (f"At noon it was {noon} degrees.",),
        noon.value,
    )


ONE_STEP: tuple[Writer, ...] = (
    market_find,
    fruit_for_neighbor,
    bakery_boxes,
    equal_shares,
    ticket_cost,
    age_later,
    fraction_of_club,
    times_as_many_pages,
    bike_ride,
    change_from_bill,
    chair_rows,
    dozen_eggs,
    weeks_to_wait,
    tree_heights,
    warmer_by_noon,
)
