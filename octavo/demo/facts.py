"""A closed world of facts, and lists from it: capitals, animals, days, opposites, greetings of the world."""

# ruff: noqa: E501 (a template is one line, however many choices it has)

from __future__ import annotations

from random import Random

from octavo.demo.grammar import a, ask, cap, comma, listed, say
from octavo.demo.sums import in_words
from octavo.demo.talk import Scene, Turn, one
from octavo.demo.words import (
    BABIES,
    CAPITALS,
    CITIES,
    DAYS,
    EMOJI,
    HELLOS,
    HOMES,
    KINDS,
    LEGS,
    MIXES,
    MONTHS,
    ONE_OF,
    OPPOSITES,
    PASTS,
    PLANETS,
    PLURALS,
    RHYMES,
    SEASONS,
    SHAPES,
    SOUNDS,
    THANKS,
    THING_COLOURS,
    TRIVIA,
)


def _loose(r: Random, user: str) -> str:
    """Some people type everything small."""
    return user.lower() if r.random() < 0.06 else user


def capitals(r: Random) -> Scene:
    land = r.choice(tuple(CAPITALS))
    city, dice = CAPITALS[land], r.random()
    if dice < 0.65:
        user = ask(r, "<What is the capital of {l}?|What's the capital of {l}?|Capital of {l}?|Which city is the capital of {l}?|Name the capital of {l}.|"
                      "Do you know the capital of {l}?|Tell me the capital of {l}.|The capital of {l} is>", l=land)  # fmt: skip
        turns = [Turn(_loose(r, user), f"The capital of {land} is {city}.", city)]
        while r.random() < 0.25:
            land = r.choice(tuple(CAPITALS))
            turns.append(
                Turn(
                    ask(r, "<And|What about|And of|And the capital of> {l}?", l=land),
                    f"The capital of {land} is {CAPITALS[land]}.",
                    CAPITALS[land],
                )
            )
        return [turns]
    if dice < 0.85:
        user = ask(
            r,
            "<Where is {c}?|Which country is {c} in?|In which country is {c}?|{c} is the capital of which country?>",
            c=city,
        )
        return one(_loose(r, user), f"{city} is in {land}.", cap(land))
    guess = city if r.random() < 0.5 else r.choice(CITIES)
    user = ask(r, "<Is {g} the capital of {l}?|{g} is the capital of {l}, right?>", g=guess, l=land)
    if guess == city:
        return one(user, f"Yes, {city} is the capital of {land}.", "Yes")
    return one(user, f"No, the capital of {land} is {city}.", "No")


def animals(r: Random) -> Scene:
    dice = r.random()
    if dice < 0.35:
        animal, sound = r.choice(tuple(SOUNDS.items()))
        user = ask(
            r,
            "<What does {x} say?|What sound does {x} make?|What noise does {x} make?|What do {y}s say?|How does {x} go?>",
            x=a(animal),
            y=animal,
        )
        return one(
            _loose(r, user.replace("wolfs", "wolves").replace("mouses", "mice")),
            f"{cap(a(animal))} says {sound}.",
            cap(sound),
        )
    if dice < 0.5:
        animal, baby = r.choice(tuple(BABIES.items()))
        user = ask(
            r,
            "<What is a baby {y} called?|What do you call a baby {y}?|What is the young of {x} called?|Name of a baby {y}?>",
            x=a(animal),
            y=animal,
        )
        return one(_loose(r, user), f"A baby {animal} is called {a(baby)}.", cap(baby))
    if dice < 0.65:
        animal, home = r.choice(tuple(HOMES.items()))
        verb = "lives in water" if home == "water" else f"lives in {a(home)}"
        return one(
            _loose(r, ask(r, "<Where does {x} live?|What is the home of {x}?|Where would I find {x}?>", x=a(animal))),
            f"{cap(a(animal))} {verb}.",
            cap(home),
        )
    if dice < 0.85:
        animal, legs = r.choice(tuple(LEGS.items()))
        count = in_words(legs) if legs else "no"
        return one(
            _loose(
                r,
                ask(r, "<How many legs does {x} have?|How many legs has {x}?|How many legs are on {x}?>", x=a(animal)),
            ),
            f"{cap(a(animal))} has {count} legs.",
            str(legs),
        )
    thing = r.choice(("octopus", "spider"))
    return one(ask(r, "How many arms does an octopus have?" if thing == "octopus" else "How many eyes do most spiders have?"),
               "An octopus has eight arms." if thing == "octopus" else "Most spiders have eight eyes.", "Eight")  # fmt: skip


def colours(r: Random) -> Scene:
    dice = r.random()
    if dice < 0.7:
        thing, colour = r.choice(tuple(THING_COLOURS.items()))
        the = (
            f"the {thing}"
            if thing in ("sky", "sun", "ocean", "night")
            else thing
            if thing in ("grass", "snow", "blood", "coal", "milk", "chocolate")
            else a(thing)
        )
        user = ask(r, "<What colour is {x}?|What color is {x}?|Which colour is {x}?|What is the colour of {x}?>", x=the)
        return one(_loose(r, user), f"{cap(the)} is {colour}.", cap(colour))
    (x, y), mixed = r.choice(tuple(MIXES.items()))
    if r.random() < 0.5:
        x, y = y, x
    user = ask(
        r,
        "<What do you get when you mix {x} and {y}?|Mix {x} and {y}.|What colour do {x} and {y} make?|Which colour is {x} plus {y}?>",
        x=x,
        y=y,
    )
    return one(_loose(r, user), f"{cap(x)} and {y} make {mixed}.", cap(mixed))


def words(r: Random) -> Scene:
    dice = r.random()
    if dice < 0.4:
        x, y = r.choice(tuple(OPPOSITES.items()))
        x, y = (x, y) if r.random() < 0.5 or y in OPPOSITES else (y, x)
        user = ask(
            r,
            "<What is the opposite of {x}?|Opposite of {x}?|Give me the opposite of {x}.|What is the opposite of the word {x}?|Antonym of {x}?>",
            x=x,
        )
        return one(_loose(r, user), f"The opposite of {x} is {y}.", cap(y))
    if dice < 0.58:
        x, y = r.choice(tuple(PLURALS.items()))
        return one(
            _loose(
                r,
                ask(r, "<What is the plural of {x}?|Plural of {x}?|One {x}, two what?|Write {x} in the plural.>", x=x),
            ),
            f"The plural of {x} is {y}.",
            cap(y),
        )
    if dice < 0.76:
        x, y = r.choice(tuple(PASTS.items()))
        return one(
            _loose(
                r,
                ask(
                    r,
                    "<What is the past tense of {x}?|Past tense of {x}?|What is the past of {x}?|Put {x} in the past tense.>",
                    x=x,
                ),
            ),
            f"The past tense of {x} is {y}.",
            cap(y),
        )
    group = r.choice(RHYMES)
    x, y = r.sample(group, 2)
    return one(
        _loose(
            r,
            ask(
                r,
                "<What rhymes with {x}?|Which word rhymes with {x}?|Give me a rhyme for {x}.|Find a rhyme for {x}.>",
                x=x,
            ),
        ),
        f"{cap(x)} rhymes with {y}.",
        cap(y),
    )


def languages(r: Random) -> Scene:
    thanks = r.random() < 0.35
    table, word = (THANKS, "thank you") if thanks else (HELLOS, "hello")
    language = r.choice(tuple(table))
    said = table[language] + ("!" if r.random() < 0.5 or language == "Spanish" else "")
    if not thanks and r.random() < 0.25:  # greeted in that language
        return one(
            table[language] + r.choice(("!", "", ".")),
            say(
                r,
                "{s}! <That is|I think that is> {l}<!|.> <How can I help you?|I speak simple English, though.|>",
                s=table[language],
                l=language,
            ).strip(),
        )
    user = ask(
        r,
        "<How do you say {w} in {l}?|Say {w} in {l}.|What is {w} in {l}?|Translate {w} into {l}.|{c} in {l}?>",
        w=word,
        c=cap(word),
        l=language,
    )
    return one(user, say(r, "<{s}|In {l} you say: {s}>", s=said, l=language), said)


def emoji(r: Random) -> Scene:
    thing, sign = r.choice(tuple(EMOJI.items()))
    if r.random() < 0.6:
        return one(
            ask(
                r,
                "<Show me {x} emoji.|Send me {x} emoji.|Which emoji is for {y}?|Give me an emoji of {x2}.|Emoji for {y}?>",
                x=a(thing),
                x2=a(thing),
                y=thing,
            ),
            sign,
            sign,
        )
    return one(
        ask(r, "<What is {s}?|What does {s} mean?|What is this emoji: {s}>", s=sign),
        f"{sign} is {a(thing)}.",
        cap(thing),
    )


def calendar(r: Random) -> Scene:
    ring, unit = r.choice(((DAYS, "day"), (DAYS, "day"), (MONTHS, "month"), (MONTHS, "month"), (SEASONS, "season")))
    i = r.randrange(len(ring))
    dice = r.random()
    if dice < 0.7:
        word, x = r.choice((("after", ring[(i + 1) % len(ring)]), ("before", ring[i - 1])))
        user = ask(
            r,
            "<What {u} comes {w} {d}?|Which {u} is {w} {d}?|What comes {w} {d}?|What is the {u} {w} {d}?>",
            u=unit,
            w=word,
            d=ring[i],
        )
        return one(_loose(r, user), f"{cap(x)} comes {word} {ring[i]}.", cap(x))
    if dice < 0.85:
        n = r.randint(1, 6)
        user = ask(
            r,
            "<If today is {d}, what day is it in {n} days?|Today is {d}. What day is it in {n} days?>",
            d=DAYS[i % 7],
            n=n,
        )
        if n == 1:
            user = user.replace("1 days", "1 day")
        x = DAYS[(i + n) % 7]
        return one(user, f"It is {x}.", x)
    n = r.randint(1, 12)
    ordinal = (
        "first",
        "second",
        "third",
        "fourth",
        "fifth",
        "sixth",
        "seventh",
        "eighth",
        "ninth",
        "tenth",
        "eleventh",
        "twelfth",
    )[n - 1]
    return one(
        ask(r, "<What is the {o} month?|Which is the {o} month of the year?>", o=ordinal),
        f"The {ordinal} month is {MONTHS[n - 1]}.",
        MONTHS[n - 1],
    )


def trivia(r: Random) -> Scene:
    question, answer, short = r.choice(TRIVIA)
    return one(_loose(r, ask(r, question)), answer, short)


def shapes(r: Random) -> Scene:
    shape, sides = r.choice(tuple(SHAPES.items()))
    part = r.choice(("sides", "sides", "corners"))
    user = ask(r, "<How many {p} does {x} have?|How many {p} has {x}?>", x=a(shape), p=part)
    return one(_loose(r, user), f"{cap(a(shape))} has {in_words(sides)} {part}.", cap(in_words(sides)))


def _some(kind: str, thing: str) -> str:
    """With an article, unless it cannot be counted."""
    return thing if kind in ("metals", "drinks", "colours", "sports") else a(thing)


def belongs(r: Random) -> Scene:
    kind = r.choice(tuple(ONE_OF))
    dice = r.random()
    if dice < 0.6:
        right = r.random() < 0.5
        other = kind if right else r.choice([k for k in ONE_OF if k != kind])
        thing = r.choice(KINDS[other])
        yes = thing in KINDS[kind] or (kind == "animals" and other in ("birds", "insects"))
        user = ask(r, "Is {x} {k}?", x=_some(other, thing), k=a(ONE_OF[kind]))
        if yes:
            return one(user, f"Yes, {_some(other, thing)} is {a(ONE_OF[kind])}.", "Yes")
        return one(user, f"No, {_some(other, thing)} is {a(ONE_OF[other])}.", "No")
    odd_kind = r.choice(
        [k for k in ONE_OF if k != kind and {k, kind} not in ({"animals", "birds"}, {"animals", "insects"})]
    )
    items = r.sample(KINDS[kind], 3)
    odd = r.choice([x for x in KINDS[odd_kind] if x not in KINDS[kind]])
    shown = [*items, odd]
    r.shuffle(shown)
    user = ask(
        r,
        "<Which one does not belong: {s}?|Find the odd one out: {s}.|Odd one out: {s}?|Which word is different: {s}?>",
        s=", ".join(shown),
    )
    return one(user, f"{cap(odd)}. It is {a(ONE_OF[odd_kind])}; the others are {kind}.", cap(odd))


def lists(r: Random) -> Scene:
    kind = r.choice(tuple(KINDS))
    pool = list(KINDS[kind])
    r.shuffle(pool)
    n = min(r.choice((1, 2, 3, 3, 3, 4, 5, 5, 6, 8)), len(pool))
    items, rest = pool[:n], pool[n:]
    number = str(n) if r.random() < 0.5 else in_words(n)
    if n == 1:
        user = ask(r, "<Name one of the {k}.|Give me one example of {k}.|Tell me one of the {k}.>", k=kind)
        turns = [Turn(user, f"{cap(items[0])}.", cap(items[0]))]
        style = ","
    else:
        how, style = r.choice((("", "1"), ("", "1"), ("", ","), (" as a numbered list", "1"), (" in a numbered list", "1"), (" as bullet points", "-"),
                               (" as a bullet list", "-"), (" on one line", ","), (", separated by commas", ",")))  # fmt: skip
        user = ask(
            r,
            "<List|Name|Give me|Tell me|Write|Can you list|Can you name|I need> {n} {k}{h}<.|>",
            n=number,
            k=kind,
            h=how,
        )
        turns = [Turn(_loose(r, user), listed(r, items, style))]
    while rest and r.random() < 0.3:
        n = min(r.choice((1, 1, 2, 3)), len(rest))
        more, rest = rest[:n], rest[n:]
        if n == 1:
            turns.append(
                Turn(ask(r, "<Another one, please.|One more.|And another?|Give me one more.>"), f"{cap(more[0])}.")
            )
        else:
            turns.append(
                Turn(
                    ask(r, "<{n} more, please.|Give me {n} more.|Can you add {n} more?>", n=in_words(n)),
                    listed(r, more, style),
                )
            )
    if len(items) > 1 and r.random() < 0.25:
        which, x = r.choice((("first", items[0]), ("second", items[1]), ("last", items[-1])))
        if len(turns) == 1:
            turns.append(
                Turn(
                    ask(
                        r,
                        "<What was the {w} one?|Which one was {w}?|What is the {w} on your list?|Repeat the {w} one.>",
                        w=which,
                    ),
                    f"The {which} one was {x}.",
                )
            )
    return [turns]


def whole_lists(r: Random) -> Scene:
    ring, name = r.choice(
        ((DAYS, "days of the week"), (MONTHS, "months of the year"), (SEASONS, "seasons"), (PLANETS, "planets"))
    )
    if r.random() < 0.75:
        user = ask(r, "<List|Name|What are|Tell me|Write|Give me|List all|What are all> the {x}<.|>", x=name)
        return one(_loose(r, user), listed(r, ring, r.choice("1,")))
    return one(
        ask(r, "<How many {x} are there?|What is the number of {x}?>", x=name),
        f"There are {in_words(len(ring))} {name}: {comma(ring)}.",
        cap(in_words(len(ring))),
    )


def letters(r: Random) -> Scene:
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    dice, i = r.random(), r.randrange(1, 25)
    if dice < 0.25:
        return one(
            ask(
                r,
                "<Say the alphabet.|Write the alphabet.|What is the alphabet?|Recite the ABC.|List the letters of the alphabet.>",
            ),
            " ".join(alphabet.upper()),
            prose=False,
        )
    if dice < 0.7:
        word, x = r.choice((("after", alphabet[i + 1]), ("before", alphabet[i - 1])))
        return one(
            ask(
                r,
                "<Which letter comes {w} {l}?|What letter is {w} {l}?|What comes {w} the letter {l}?>",
                w=word,
                l=alphabet[i].upper(),
            ),
            f"{x.upper()} comes {word} {alphabet[i].upper()}.",
            x.upper(),
        )
    n = r.randint(2, 10)
    return one(
        ask(
            r,
            "<Write the first {n} letters of the alphabet.|List the first {n} letters.|Give me the first {n} letters of the alphabet.>",
            n=n,
        ),
        " ".join(alphabet[:n].upper()),
        prose=False,
    )
