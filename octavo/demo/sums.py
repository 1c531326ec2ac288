"""Numbers: sums, counting, sorting, comparing, word problems, clocks."""

# ruff: noqa: E501 (a template is one line, however many choices it has)

from __future__ import annotations

from random import Random

from octavo.demo.grammar import ask, cap, comma, say
from octavo.demo.talk import Scene, Turn, one
from octavo.demo.words import BOYS, COUNTED, GIRLS, NAMES, NUMBER_WORDS

_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(n: int) -> str:
    """The English name of a number below one thousand."""
    if n <= 20:
        return NUMBER_WORDS[n]
    if n < 100:
        return _TENS[n // 10] + (f"-{NUMBER_WORDS[n % 10]}" if n % 10 else "")
    rest = f" and {in_words(n % 100)}" if n % 100 else ""
    return f"{NUMBER_WORDS[n // 100]} hundred{rest}"


def _number(r: Random) -> int:
    return r.randrange(10 ** r.choice((1, 2, 2, 2, 3, 3)))


def _problem(r: Random) -> tuple[int, str, int, int]:
    """a, sign, b and the result, from what the model can learn."""
    sign = r.choice("+++--*/")
    a, b = _number(r), _number(r)
    if sign == "+":
        return a, sign, b, a + b
    if sign == "-":
        a, b = (a, b) if r.random() < 0.05 else (max(a, b), min(a, b))
        return a, sign, b, a - b
    a, b = (r.randint(0, 12), r.randint(0, 12)) if r.random() < 0.6 else (r.randint(10, 99), r.randint(2, 9))
    if sign == "*":
        a, b = (a, b) if r.random() < 0.5 else (b, a)
        return a, sign, b, a * b
    b = max(b, 1)
    return a * b, sign, b, a


_NAMES_OF = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
_SHOWN = {"+": "+", "-": "-", "*": "×", "/": "÷"}


def _spoken(r: Random, a: int, sign: str, b: int) -> str:
    dice = r.random()
    if dice < 0.55:
        return f"{a} {sign} {b}"
    if dice < 0.68:
        return f"{a}{sign}{b}"
    if dice < 0.76:
        return f"{a} {'x' if sign == '*' else _SHOWN[sign]} {b}"
    if dice < 0.96:
        return f"{a} {_NAMES_OF[sign]} {b}"
    return f"{in_words(a)} {_NAMES_OF[sign]} {in_words(b)}" if max(a, b) < 1000 else f"{a} {sign} {b}"


def arithmetic(r: Random) -> Scene:
    a, sign, b, result = _problem(r)
    command = {
        "+": "Add {a} and {b}.",
        "-": "Subtract {b} from {a}.",
        "*": "Multiply {a} by {b}.",
        "/": "Divide {a} by {b}.",
    }[sign]
    frame = f"<What is {{s}}?|What's {{s}}?|{{s}}|{{s}}?|{{s}} =|{{s}} = ?|How much is {{s}}?|Calculate {{s}}.|Compute {{s}}.|Solve {{s}}.|Can you calculate {{s}}?|{command}>"
    user = ask(r, frame, s=_spoken(r, a, sign, b), a=a, b=b)
    turns = [Turn(user, f"{a} {_SHOWN[sign]} {b} = {result}.", str(result))]
    while r.random() < 0.2 and 0 <= result < 900:  # go on from the result
        a, b = result, r.randint(1, 99)
        sign = "+" if a < b or r.random() < 0.5 else "-"
        result = a + b if sign == "+" else a - b
        verb = {
            "+": "<And plus {b}?|Now add {b}.|Plus {b}?|Add {b} to that.>",
            "-": "<And minus {b}?|Now subtract {b}.|Minus {b}?|Take away {b}.>",
        }[sign]
        turns.append(Turn(ask(r, verb, b=b), f"{a} {sign} {b} = {result}.", str(result)))
    return [turns]


def too_large(r: Random) -> Scene:
    """The model has learned sums of up to three digits and says so."""
    a, b = r.randrange(10 ** r.randint(4, 8)) + 1000, r.randrange(10 ** r.randint(1, 8))
    a, b = (a, b) if r.random() < 0.5 else (b, a)
    user = ask(
        r, "<What is {s}?|{s}|{s} =|How much is {s}?|Calculate {s}.|Compute {s}.>", s=f"{a} {r.choice('+-*/')} {b}"
    )
    return one(
        user,
        say(
            r,
            "<That is too large for me|These numbers are too large for me>: I have only learned numbers <with|of> up to three digits.",
        ),
        "Unknown",
    )


def sums_of_three(r: Random) -> Scene:
    numbers = [r.randint(0, 30) for _ in range(r.choice((3, 3, 4)))]
    first, rest = numbers[0], numbers[1:]
    steps, total = [], first
    for n in rest:
        steps.append(f"{total} + {n} = {total + n}")
        total += n
    user = ask(
        r,
        "<What is {s}?|{s}|Add up {l}.|What is the sum of {l}?|Calculate {s}.>",
        s=" + ".join(map(str, numbers)),
        l=comma(numbers),
    )
    return one(user, f"{', '.join(steps)}. The sum is {total}.", str(total))


def word_problem(r: Random) -> Scene:
    name = r.choice(NAMES)
    he = "She" if name in GIRLS else "He"
    a, b, thing = r.randint(1, 60), r.randint(1, 40), r.choice(COUNTED)
    other = r.choice([n for n in BOYS + GIRLS if n != name])
    kind = r.randrange(4)
    if kind == 0:
        text = say(
            r,
            "{n} has {a} {t}s. <{h} gets {b} more.|{o} gives {n} {b} more.|{h} finds {b} more.|{h} buys {b} more.>",
            n=name,
            a=a,
            b=b,
            t=thing,
            h=he,
            o=other,
        )
        question, sign, result, owner = "{t}s does {n} have <now|in all>", "+", a + b, name
    elif kind == 1:
        a += b
        text = say(
            r,
            "{n} has {a} {t}s. <{h} gives {b} to {o}.|{h} loses {b}.|{h} sells {b}.|{h} gives {b} away.>",
            n=name,
            a=a,
            b=b,
            t=thing,
            h=he,
            o=other,
        )
        question, sign, result, owner = "{t}s <does {n} have left|are left|does {n} have now>", "-", a - b, name
    elif kind == 2:
        a, b = r.randint(2, 10), r.randint(2, 10)
        text = say(
            r, "{n} has {a} <boxes|bags|baskets> <with {b} {t}s in each|of {b} {t}s each>.", n=name, a=a, b=b, t=thing
        )
        question, sign, result, owner = "{t}s <are there|does {n} have>", "×", a * b, name
    else:
        text = say(r, "{n} has {a} {t}s and {o} has {b} {t}s.", n=name, a=a, b=b, t=thing, o=other)
        question, sign, result, owner = "{t}s do they have together", "+", a + b, "they"
    user = text + " " + say(r, f"How many {question}?", n=name, t=thing)
    have = "there are" if sign == "×" else ("they have" if owner == "they" else f"{name} has")
    plural = thing if result == 1 else f"{thing}s"
    return one(user, f"{a} {sign} {b} = {result}, so {have} {result} {plural}.", str(result))


def counting(r: Random) -> Scene:
    dice = r.random()
    if dice < 0.5:
        start = 1 if r.random() < 0.6 else r.randint(0, 200)
        stop = start + r.randint(2, 24)
        numbers = list(range(start, stop + 1))
        user = ask(
            r,
            "<Count from {a} to {b}.|Count {a} to {b}|List the numbers from {a} to {b}.|Can you count from {a} to {b}?|Write the numbers {a} to {b}.>",
            a=start,
            b=stop,
        )
    elif dice < 0.68:
        start, length = r.randint(3, 60), r.randint(3, 15)
        stop = max(0, start - length)
        numbers = list(range(start, stop - 1, -1))
        user = ask(
            r,
            "<Count down from {a} to {b}.|Count backwards from {a} to {b}.|Count back from {a} to {b}.>",
            a=start,
            b=stop,
        )
    elif dice < 0.88:
        step = r.choice((2, 2, 3, 4, 5, 5, 10, 10))
        start = step if r.random() < 0.6 else r.choice((0, 1, step, 2 * step, 10))
        stop = start + step * r.randint(3, 12)
        numbers = list(range(start, stop + 1, step))
        user = ask(
            r,
            "<Count by {s}s from {a} to {b}.|Count in {s}s from {a} to {b}.|Count from {a} to {b} in steps of {s}.>",
            s=step,
            a=start,
            b=stop,
        )
    else:
        n = r.randint(3, 12)
        kind, numbers = r.choice((("even", list(range(2, 2 * n + 1, 2))), ("odd", list(range(1, 2 * n, 2)))))
        user = ask(r, "<List the first {n} {k} numbers.|Give me {n} {k} numbers.|Write {n} {k} numbers.>", n=n, k=kind)
    return one(user, ", ".join(map(str, numbers)), prose=False)


def sequence(r: Random) -> Scene:
    start, step = r.randint(0, 60), r.choice((1, 2, 3, 4, 5, 10, -1, -2, 100))
    if step < 0:
        start += 40
    shown = [start + i * step for i in range(r.randint(3, 5))]
    following = shown[-1] + step
    user = ask(
        r,
        "<What comes next: {s}?|Continue: {s}|Which number comes next? {s}|What is the next number in {s}?|{s}, ?>",
        s=", ".join(map(str, shown)),
    )
    return one(user, say(r, "The next number is {x}.", x=following), str(following))


def next_number(r: Random) -> Scene:
    n = _number(r)
    user, x = r.choice((("<What|Which number> comes after {n}?", n + 1), ("<What|Which number> comes before {n}?", n - 1),
                        ("What is one more than {n}?", n + 1), ("What is one less than {n}?", n - 1), ("What is ten more than {n}?", n + 10)))  # fmt: skip
    return one(ask(r, user, n=n), f"It is {x}.", str(x))


def sorting(r: Random) -> Scene:
    top = r.choice((20, 100, 100, 1000))
    numbers = r.sample(range(top), r.randint(3, 8))
    shown = ", ".join(map(str, numbers))
    dice = r.random()
    if dice < 0.4:
        user = ask(
            r,
            "<Sort these numbers: {s}.|Sort {s}.|Put these numbers in order: {s}.|Sort the numbers {s} from small to large.|Order these: {s}>",
            s=shown,
        )
        return one(user, ", ".join(map(str, sorted(numbers))), prose=False)
    if dice < 0.55:
        user = ask(
            r,
            "<Sort {s} from large to small.|Sort these numbers in descending order: {s}.|Sort {s}, largest first.>",
            s=shown,
        )
        return one(user, ", ".join(map(str, sorted(numbers, reverse=True))), prose=False)
    if dice < 0.65:
        user = ask(r, "<Reverse this list: {s}.|Write {s} backwards.|Reverse the order of {s}.>", s=shown)
        return one(user, ", ".join(map(str, reversed(numbers))), prose=False)
    if dice < 0.85:
        word, pick = r.choice(
            (("largest", max), ("biggest", max), ("highest", max), ("smallest", min), ("lowest", min))
        )
        user = ask(
            r,
            f"<What is the {word} of {{s}}?|Which number is the {word}: {{s}}?|Find the {word} number: {{s}}.>",
            s=shown,
        )
        return one(user, f"The {word} number is {pick(numbers)}.", str(pick(numbers)))
    user = ask(
        r,
        "<How many numbers are in this list: {s}?|Count these numbers: {s}.|How many numbers do you see? {s}>",
        s=shown,
    )
    return one(user, f"There are {len(numbers)} numbers.", str(len(numbers)))


def comparing(r: Random) -> Scene:
    a, b = _number(r), _number(r)
    if a == b:
        b += 1
    word, pick = r.choice((("bigger", max), ("larger", max), ("greater", max), ("smaller", min), ("less", min)))
    x = pick(a, b)
    other = a + b - x
    if r.random() < 0.6:
        user = ask(
            r,
            f"<Which is {word}, {{a}} or {{b}}?|Which number is {word}: {{a}} or {{b}}?|What is {word}, {{a}} or {{b}}?>",
            a=a,
            b=b,
        )
        return one(user, f"{x} is {word} than {other}.", str(x))
    yes = a == x
    user = ask(r, f"Is {{a}} {word} than {{b}}?", a=a, b=b)
    return one(
        user, f"{'Yes' if yes else 'No'}, {a} is {'' if yes else 'not '}{word} than {b}.", "Yes" if yes else "No"
    )


def properties(r: Random) -> Scene:
    n = _number(r)
    dice = r.random()
    if dice < 0.35:
        odd = "odd" if n % 2 else "even"
        asked = r.choice(("even", "odd", ""))
        if not asked:
            return one(
                ask(r, "<Is {n} even or odd?|Is {n} odd or even?|Even or odd: {n}?>", n=n),
                f"{n} is {odd}.",
                odd.capitalize(),
            )
        yes = asked == odd
        return one(
            ask(r, f"<Is {{n}} {asked}?|Is {{n}} an {asked} number?>", n=n),
            f"{'Yes' if yes else 'No'}, {n} is {odd}.",
            "Yes" if yes else "No",
        )
    if dice < 0.55:
        n = r.randint(1, 200)
        word, x, sign = r.choice((("Double", 2 * n, f"2 × {n} = {2 * n}"), ("Half", n, f"{2 * n} ÷ 2 = {n}")))
        of = n if word == "Double" else 2 * n
        user = ask(
            r,
            f"<What is {word.lower()} of {{n}}?|{'Double' if word == 'Double' else 'Halve'} {{n}}.|{word} of {{n}}?>",
            n=of,
        )
        return one(user, f"{sign}.", str(x))
    if dice < 0.75:
        n = r.randrange(1000) if r.random() < 0.4 else r.randrange(101)
        if r.random() < 0.6:
            user = ask(
                r, "<Write {n} in words.|How do you write {n} in words?|Spell the number {n}.|{n} in words?>", n=n
            )
            return one(user, f"{cap(in_words(n))}.", cap(in_words(n)))
        return one(
            ask(r, "<Write {w} as a number.|{w} in digits?|Which number is {w}?>", w=in_words(n)), f"{n}", str(n)
        )
    if dice < 0.87:
        n = r.randint(1, 12)
        return one(
            ask(r, "<What is {n} squared?|What is the square of {n}?>", n=n), f"{n} × {n} = {n * n}.", str(n * n)
        )
    table = r.randint(2, 12)
    user = ask(
        r,
        "<Write the {n} times table.|Show me the times table of {n}.|Recite the {n} times table.|Multiplication table of {n}, please.>",
        n=table,
    )
    return one(user, "\n".join(f"{table} × {i} = {table * i}" for i in range(1, 11)), prose=False)


def clock(r: Random) -> Scene:
    start, hours = r.randint(1, 12), r.randint(1, 11)
    after = r.random() < 0.6
    x = (start + (hours if after else -hours) - 1) % 12 + 1
    word = "after" if after else "before"
    span = "1 hour" if hours == 1 else f"{hours} hours"
    if r.random() < 0.7:
        user = ask(
            r,
            "<What time is {s} {w} {t} o'clock?|What is {s} {w} {t} o'clock?|Which time is {s} {w} {t}:00?>",
            s=span,
            w=word,
            t=start,
        )
        return one(user, f"{cap(span)} {word} {start} o'clock is {x} o'clock.", f"{x} o'clock")
    what, count, unit = r.choice((("a day", 24, "hours"), ("an hour", 60, "minutes"), ("a minute", 60, "seconds"), ("a week", 7, "days"),
                                  ("a year", 12, "months"), ("a year", 365, "days"), ("a decade", 10, "years"), ("a century", 100, "years"),
                                  ("a metre", 100, "centimetres"), ("a kilometre", 1000, "metres"), ("a dozen", 12, "things"), ("a kilogram", 1000, "grams")))  # fmt: skip
    return one(
        ask(r, "<How many {u} are <there |>in {w}?|How many {u} does {w} have?>", u=unit, w=what),
        f"There are {count} {unit} in {what}.",
        str(count),
    )
