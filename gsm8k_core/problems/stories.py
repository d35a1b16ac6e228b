"""The templates of generated problems: what one is made of, then those of one, two, three and four steps.

People and things, a source of numbers, and steps that compute themselves. Each template is a function that writes one
kind of story; its name is the template's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step:
    """One computed step. In a sentence it reads `48/2 = <<48/2=24>>24`."""

    expression: str
    value: int

    def __str__(self) -> str:
        return f"{self.expression} = <<{self.expression}={self.value}>>{self.value}"

    @property
    def dollars(self) -> str:
        """As `str(step)`, with the result in dollars: `3*4 = $<<3*4=12>>12`."""
        return f"{self.expression} = $<<{self.expression}={self.value}>>{self.value}"


Operand: TypeAlias = "int | Step"


def _value(operand: Operand) -> int:
    return operand.value if isinstance(operand, Step) else operand


def add(*operands: Operand) -> Step:
    values = [_value(operand) for operand in operands]
    return Step("+".join(str(value) for value in values), sum(values))


def subtract(start: Operand, taken: Operand) -> Step:
    before, less = _value(start), _value(taken)
    if less > before:
        raise ValueError(f"a template computes {before}-{less}, which is below zero")
    return Step(f"{before}-{less}", before - less)


def multiply(first: Operand, second: Operand) -> Step:
    left, right = _value(first), _value(second)
    return Step(f"{left}*{right}", left * right)


def divide(whole: Operand, parts: Operand) -> Step:
    total, count = _value(whole), _value(parts)
    if total % count:
        raise ValueError(f"a template computes {total}/{count}, which is not a whole number")
    return Step(f"{total}/{count}", total // count)


@dataclass(frozen=True, slots=True)
class Person:
    """A name with its pronouns. In a sentence it reads as the name."""

    name: str
    he: str
    his: str

    def __str__(self) -> str:
        return self.name

    @property
    def He(self) -> str:
        return self.he.capitalize()

    @property
    def His(self) -> str:
        return self.his.capitalize()


@dataclass(frozen=True, slots=True)
class Story:
    """What a template writes: the question, one sentence for each step, and the last step's number."""

    question: str
    steps: tuple[str, ...]
    gold: int


@dataclass(frozen=True, slots=True)
class Draw:
    """Everything random in a story. It only uses `rng.integers`: a seed means the same story everywhere."""

    rng: np.random.Generator

    def number(self, low: int, high: int, step: int = 1) -> int:
        """One of low, low + step, ... up to and including high."""
        return low + step * int(self.rng.integers((high - low) // step + 1))

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def two(self, options: Sequence[T]) -> tuple[T, T]:
        """Two different ones, in random order."""
        first = int(self.rng.integers(len(options)))
        second = int(self.rng.integers(len(options) - 1))
        return options[first], options[second + (second >= first)]

    def person(self) -> Person:
        return self.pick(PEOPLE)

    def people(self) -> tuple[Person, Person]:
        return self.two(PEOPLE)


Writer: TypeAlias = Callable[[Draw], Story]

_SHE = "Anna Maria Emma Sofia Lily Grace Nora Priya Mei Zoe Hannah Ruth Fatima Chloe Olga Julia Amina Kate"
_HE = "Tom Ben Omar Leo Jack David Raj Sam Noah Carlo Felix Ivan Peter Hugo Kenji Adam Paul Victor Daniel"
PEOPLE = (
    *(Person(name, "she", "her") for name in _SHE.split()),
    *(Person(name, "he", "his") for name in _HE.split()),
)

COLLECTIBLES = ("stickers", "marbles", "seashells", "buttons", "postcards", "stamps", "beads", "toy cars")
FRUITS = ("apples", "oranges", "pears", "plums", "peaches", "lemons", "apricots", "figs")
BAKED = ("cookies", "muffins", "cupcakes", "rolls", "biscuits", "brownies", "scones", "bagels")
FLOWERS = ("roses", "tulips", "daisies", "lilies", "sunflowers", "daffodils")
SUPPLIES = ("pens", "pencils", "notebooks", "erasers", "markers", "folders", "rulers", "crayons")
CRAFTS = ("bracelets", "candles", "scarves", "keychains", "birdhouses", "baskets", "mugs", "bookmarks")
CLOTHES = ("coat", "sweater", "jacket", "dress", "backpack", "raincoat", "blanket", "suitcase")
VENUES = ("museum", "zoo", "concert", "movie", "train", "circus", "ferry", "theater")
GROUPS = ("chess club", "school choir", "swimming class", "art class", "drama club", "science club")
WEEKDAYS = (
    ("Monday", "Tuesday"),
    ("Tuesday", "Wednesday"),
    ("Wednesday", "Thursday"),
    ("Thursday", "Friday"),
)

# (number to divide by, how the question says it)
FRACTIONS = ((2, "half"), (3, "a third"), (4, "a fourth"), (5, "a fifth"))
# (number to multiply by, how the question says it)
TIMES = ((2, "twice"), (3, "three times"), (4, "four times"))
# (percent, the same as a fraction, number to divide by)
PERCENTS = ((10, "a tenth", 10), (20, "a fifth", 5), (25, "a fourth", 4), (50, "half", 2))


# --- one step -------------------------------------------------------------------------------------------------


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


# --- two steps ------------------------------------------------------------------------------------------------


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


_COLORS = (("red", "yellow", "white"), ("pink", "white", "orange"), ("yellow", "pink", "red"))


# --- three steps ----------------------------------------------------------------------------------------------


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


# --- four steps -----------------------------------------------------------------------------------------------


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
