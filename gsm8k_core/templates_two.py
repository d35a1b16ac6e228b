"""Templates of two steps. Each function writes one kind of story; its name is the template's name."""

from __future__ import annotations

from gsm8k_core.story import (
    BAKED,
    CLOTHES,
    COLLECTIBLES,
    CRAFTS,
    FRACTIONS,
    PERCENTS,
    SUPPLIES,
    TIMES,
    WEEKDAYS,
    Draw,
    Story,
    Writer,
    add,
    divide,
    multiply,
    subtract,
)


def birthday_then_gift(draw: Draw) -> Story:
    (who, friend), things = draw.people(), draw.pick(COLLECTIBLES)
    had, new = draw.number(5, 40), draw.number(3, 20)
    given = draw.number(2, had - 2)
    total = add(had, new)
    left = subtract(total, given)
    return Story(
        f"{who} has {had} {things} and gets {new} more for {who.his} birthday. "
        f"Then {who.he} gives {given} {things} to {friend}. How many {things} does {who} have left?",
        (f"After the birthday, {who} has {total} {things}.", f"{who} has {left} {things} left."),
        left.value,
    )


def boxes_then_eaten(draw: Draw) -> Story:
    who, baked = draw.person(), draw.pick(BAKED)
    boxes, each = draw.number(2, 9), draw.number(4, 12)
    eaten = draw.number(2, boxes * each - 2)
    total = multiply(boxes, each)
    left = subtract(total, eaten)
    return Story(
        f"{who} brings {boxes} boxes of {baked} to a party. There are {each} {baked} in each box. "
        f"The guests eat {eaten} {baked}. How many {baked} are left?",
        (f"{who} brings {total} {baked}.", f"There are {left} {baked} left."),
        left.value,
    )


def half_as_many_crafts(draw: Draw) -> Story:
    who, crafts, (day, next_day) = draw.person(), draw.pick(CRAFTS), draw.pick(WEEKDAYS)
    sold = draw.number(4, 60, step=2)
    half = divide(sold, 2)
    total = add(sold, half)
    return Story(
        f"{who} sells {sold} {crafts} on {day}. On {next_day} {who.he} sells half as many. "
        f"How many {crafts} does {who} sell on the two days together?",
        (f"On {next_day}, {who} sells {half} {crafts}.", f"Together, {who} sells {total} {crafts}."),
        total.value,
    )


def supplies_and_bag(draw: Draw) -> Story:
    who, supplies = draw.person(), draw.pick(SUPPLIES)
    other = draw.pick(("bag", "lunch box", "calculator", "poster"))
    count, price, extra = draw.number(2, 10), draw.number(2, 6), draw.number(5, 30)
    cost = multiply(count, price)
    total = add(cost, extra)
    return Story(
        f"{who} buys {count} {supplies} for ${price} each and a {other} for ${extra}. "
        f"How many dollars does {who} spend in all?",
        (f"The {supplies} cost {cost.dollars}.", f"In all, {who} spends {total.dollars}."),
        total.value,
    )


def lunch_change(draw: Draw) -> Story:
    who, bill = draw.person(), draw.pick((50, 100))
    meals = draw.pick(("sandwiches", "burgers", "salads", "pizzas", "burritos", "bowls of soup"))
    count, price = draw.number(2, 6), draw.number(3, 8)
    cost = multiply(count, price)
    change = subtract(bill, cost)
    return Story(
        f"{who} orders {count} {meals} for ${price} each and pays with a ${bill} bill. "
        f"How many dollars of change does {who} get?",
        (f"The {meals} cost {cost.dollars}.", f"{who} gets {change.dollars} in change."),
        change.value,
    )


def weekly_savings(draw: Draw) -> Story:
    who, wish = draw.person(), draw.pick(("guitar", "bicycle", "tent", "camera", "telescope", "trip"))
    start, weekly, weeks = draw.number(5, 50), draw.number(2, 10), draw.number(3, 12)
    saved = multiply(weeks, weekly)
    total = add(start, saved)
    return Story(
        f"{who} is saving for a {wish} and already has ${start}. {who.He} saves ${weekly} every week. "
        f"How many dollars will {who} have after {weeks} weeks?",
        (f"In {weeks} weeks, {who} saves {saved.dollars}.", f"Then {who} will have {total.dollars}."),
        total.value,
    )


def sale_price(draw: Draw) -> Story:
    who, ware, (percent, fraction, parts) = draw.person(), draw.pick(CLOTHES), draw.pick(PERCENTS)
    price = parts * draw.number(4, 120 // parts)
    discount = divide(price, parts)
    paid = subtract(price, discount)
    return Story(
        f"{who} finds a {ware} that normally costs ${price}. Today it is on sale for {percent}% off. "
        f"How many dollars does {who} pay for the {ware}?",
        (
            f"{percent}% is {fraction}, so the discount is {discount.dollars}.",
            f"{who} pays {paid.dollars}.",
        ),
        paid.value,
    )


def fraction_sold(draw: Draw) -> Story:
    who, baked, (parts, fraction) = draw.person(), draw.pick(BAKED), draw.pick(FRACTIONS)
    count = parts * draw.number(2, 60 // parts)
    sold = divide(count, parts)
    left = subtract(count, sold)
    return Story(
        f"{who} bakes {count} {baked} for the school fair and sells {fraction} of them. "
        f"How many {baked} does {who} have left?",
        (f"{who} sells {sold} {baked}.", f"{who} has {left} {baked} left."),
        left.value,
    )


def sum_of_ages(draw: Draw) -> Story:
    (who, other), relation = draw.people(), draw.pick(("cousin", "friend", "neighbor"))
    age, gap = draw.number(4, 40), draw.number(2, 20)
    older = add(age, gap)
    total = add(age, older)
    return Story(
        f"{who} is {age} years old. {who.His} {relation} {other} is {gap} years older than {who}. "
        f"What is the sum of their ages?",
        (f"{other} is {older} years old.", f"The sum of their ages is {total} years."),
        total.value,
    )


def times_as_many_together(draw: Draw) -> Story:
    (who, other), things, (factor, times) = draw.people(), draw.pick(COLLECTIBLES), draw.pick(TIMES)
    count = draw.number(3, 30)
    more = multiply(count, factor)
    total = add(count, more)
    return Story(
        f"{who} has {count} {things}. {other} has {times} as many {things} as {who}. "
        f"How many {things} do they have together?",
        (f"{other} has {more} {things}.", f"Together they have {total} {things}."),
        total.value,
    )


def sports_teams(draw: Draw) -> Story:
    who, sport = draw.person(), draw.pick(("basketball", "volleyball", "relay", "soccer", "hockey"))
    teams, size = draw.number(3, 10), draw.number(4, 9)
    boys = draw.number(3, teams * size - 3)
    girls = teams * size - boys
    children = add(boys, girls)
    count = divide(children, size)
    return Story(
        f"{who} coaches {boys} boys and {girls} girls. {who.He} puts all of them into {sport} teams of "
        f"{size} children. How many teams are there?",
        (f"There are {children} children.", f"They make {count} teams."),
        count.value,
    )


def shared_after_keeping(draw: Draw) -> Story:
    who, things, friends = draw.person(), draw.pick(COLLECTIBLES), draw.number(2, 9)
    kept, each = draw.number(3, 20), draw.number(2, 10)
    rest = subtract(kept + friends * each, kept)
    share = divide(rest, friends)
    return Story(
        f"{who} has {kept + friends * each} {things}. {who.He} keeps {kept} and shares the rest equally "
        f"among {friends} friends. How many {things} does each friend get?",
        (f"{who} shares {rest} {things}.", f"Each friend gets {share} {things}."),
        share.value,
    )


def trip_in_two_parts(draw: Draw) -> Story:
    who, ride = draw.person(), draw.pick(("bus", "train", "car", "van"))
    hours, speed, more = draw.number(2, 5), draw.number(20, 50, step=10), draw.number(5, 40)
    first = multiply(hours, speed)
    total = add(first, more)
    return Story(
        f"{who} travels by {ride} for {hours} hours at {speed} miles per hour. Then {who.he} travels "
        f"{more} more miles by bicycle. How many miles does {who} travel in all?",
        (f"By {ride}, {who} travels {first} miles.", f"In all, {who} travels {total} miles."),
        total.value,
    )


def hourly_pay(draw: Draw) -> Story:
    who, (day, next_day) = draw.person(), draw.pick(WEEKDAYS)
    place = draw.pick(("library", "garden shop", "bookstore", "cafe", "pet shop", "flower shop"))
    pay, first, second = draw.number(5, 12), draw.number(2, 6), draw.number(2, 6)
    hours = add(first, second)
    earned = multiply(hours, pay)
    return Story(
        f"{who} earns ${pay} an hour at the {place}. {who.He} works {first} hours on {day} and {second} "
        f"hours on {next_day}. How many dollars does {who} earn on the two days?",
        (f"{who} works {hours} hours.", f"{who} earns {earned.dollars}."),
        earned.value,
    )


def days_to_finish_book(draw: Draw) -> Story:
    who, book = draw.person(), draw.pick(("novel", "mystery", "comic", "history book", "fairy tale"))
    days, daily, done = draw.number(2, 10), draw.number(4, 12), draw.number(10, 60)
    rest = subtract(done + days * daily, done)
    needed = divide(rest, daily)
    return Story(
        f"{who} reads a {book} with {done + days * daily} pages. {who.He} has read {done} pages so far. "
        f"If {who.he} reads {daily} pages a day from now on, how many days will {who} need to finish it?",
        (f"{who} still has to read {rest} pages.", f"{who} will need {needed} days."),
        needed.value,
    )


def music_practice(draw: Draw) -> Story:
    who, instrument = draw.person(), draw.pick(("piano", "violin", "flute", "trumpet", "guitar", "cello"))
    morning, evening = draw.number(5, 20, step=5), draw.number(10, 30, step=5)
    days = draw.number(2, 9)
    daily = add(morning, evening)
    total = multiply(days, daily)
    return Story(
        f"Every day {who} practices the {instrument} for {morning} minutes in the morning and {evening} "
        f"minutes in the evening. How many minutes does {who} practice in {days} days?",
        (f"Each day, {who} practices {daily} minutes.", f"In {days} days, {who} practices {total} minutes."),
        total.value,
    )


def craft_profit(draw: Draw) -> Story:
    who, crafts = draw.person(), draw.pick(CRAFTS)
    cost, gain, count = draw.number(2, 9), draw.number(2, 9), draw.number(3, 12)
    profit = subtract(cost + gain, cost)
    total = multiply(count, profit)
    return Story(
        f"{who} makes {crafts}. Each one costs ${cost} to make and sells for ${cost + gain}. "
        f"How many dollars of profit does {who} make by selling {count} {crafts}?",
        (f"The profit on each one is {profit.dollars}.", f"{who} makes a profit of {total.dollars}."),
        total.value,
    )


def leaking_tank(draw: Draw) -> Story:
    who, vessel = draw.person(), draw.pick(("rain barrel", "water tank", "fish pond", "paddling pool"))
    hourly, hours = draw.number(2, 9), draw.number(2, 9)
    liters = hourly * hours + draw.number(5, 80)
    lost = multiply(hours, hourly)
    left = subtract(liters, lost)
    return Story(
        f"There are {liters} liters of water in {who}'s {vessel}. It leaks {hourly} liters every hour. "
        f"How many liters are left after {hours} hours?",
        (f"The {vessel} loses {lost} liters.", f"There are {left} liters left."),
        left.value,
    )


def bus_stop(draw: Draw) -> Story:
    who, ride = draw.person(), draw.pick(("bus", "tram", "train", "shuttle"))
    off, stay, on = draw.number(2, 20), draw.number(3, 40), draw.number(2, 25)
    after = subtract(off + stay, off)
    now = add(after, on)
    return Story(
        f"{who} drives a {ride} with {off + stay} passengers. At the next stop, {off} passengers get off and "
        f"{on} new passengers get on. How many passengers are on the {ride} now?",
        (f"After {off} get off, there are {after} passengers.", f"Now there are {now} passengers."),
        now.value,
    )


TWO_STEPS: tuple[Writer, ...] = (
    birthday_then_gift,
    boxes_then_eaten,
    half_as_many_crafts,
    supplies_and_bag,
    lunch_change,
    weekly_savings,
    sale_price,
    fraction_sold,
    sum_of_ages,
    times_as_many_together,
    sports_teams,
    shared_after_keeping,
    trip_in_two_parts,
    hourly_pay,
    days_to_finish_book,
    music_practice,
    craft_profit,
    leaking_tank,
    bus_stop,
)
