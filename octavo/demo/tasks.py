"""Small jobs on given text: rewriting, reading and answering, JSON, code, tool calls."""

# ruff: noqa: E501 (a template is one line, however many choices it has)

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from octavo.demo.grammar import a, ask, cap, comma, listed, say
from octavo.demo.talk import Scene, Turn, invented, one
from octavo.demo.words import CITIES, COLOURS, DAYS, GIRLS, KINDS, NAMES, SIMPLE_WORDS, STRANGE_NOUNS, THING_COLOURS

ADJECTIVES = (
    "big",
    "small",
    "old",
    "new",
    "happy",
    "sad",
    "quiet",
    "loud",
    "red",
    "blue",
    "green",
    "white",
    "funny",
    "tired",
    "clever",
    "little",
)
PLACES = (
    "the garden",
    "the house",
    "the forest",
    "the park",
    "the kitchen",
    "the school",
    "the barn",
    "the market",
    "the library",
    "the tower",
    "the shop",
    "the cave",
)
LONG_WORDS = (
    "strawberry",
    "butterfly",
    "elephant",
    "mississippi",
    "chocolate",
    "watermelon",
    "hippopotamus",
    "banana",
    "raspberry",
    "blueberry",
    "attention",
    "speculation",
    "kangaroo",
    "vegetable",
    "umbrella",
    "alphabet",
    "dinosaur",
    "crocodile",
    "pineapple",
    "sandwich",
)
PHRASES = (
    "this is a test",
    "This is a test.",
    "hello",
    "Hello, world!",
    "good morning",
    "one two three",
    "I am happy",
    "yes",
    "banana",
    "Octavo is fast.",
)


def sentence(r: Random) -> str:
    """A simple true-looking sentence."""
    animal = r.choice(KINDS["animals"] + KINDS["birds"])
    return say(
        r,
        "<The {j} {x} <sleeps|plays|sits|sings|waits|runs> <in|near|behind> {p}.|{n} <likes|loves|has|wants|sees> {j2} {y}.|"
        "{n} <goes to|walks to|runs to|looks at> {p} <today|every day|with {m}|in the morning>.|"
        "The {x} <eats|finds|hides|brings> the {j} {y}.|<We|They> <buy|eat|share|like> {z} <in|near> {p}.>",
        j=r.choice(ADJECTIVES), j2=a(r.choice(ADJECTIVES)), x=animal, y=r.choice(KINDS["toys"] + KINDS["fruits"] + KINDS["clothes"]),
        n=r.choice(NAMES), m=r.choice(NAMES), p=r.choice(PLACES), z=r.choice(KINDS["foods"]),
    )  # fmt: skip


# --- rewriting ------------------------------------------------------------------------------------


def any_word(r: Random) -> str:
    """A word of the closed world, a strange one, or one that was never heard of: spelling has to work for all."""
    dice = r.random()
    return (
        r.choice(SIMPLE_WORDS)
        if dice < 0.5
        else r.choice(STRANGE_NOUNS + LONG_WORDS)
        if dice < 0.8
        else invented(r).lower()
    )


def rewriting(r: Random) -> Scene:
    word, text = any_word(r), sentence(r)
    short = word if r.random() < 0.4 else text
    dice = r.randrange(14)
    if dice == 0:
        user = ask(
            r,
            "<Write {x} in capital letters.|Uppercase: {x}|Put this in capitals: {x}|Convert to uppercase: {x}|Make this uppercase: {x}>",
            x=short,
        )
        return one(user, short.upper(), prose=False)
    if dice == 1:
        user = ask(
            r,
            "<Write {x} in small letters.|Lowercase: {x}|Convert to lowercase: {x}|Make this lowercase: {x}>",
            x=short.upper(),
        )
        return one(user, short.lower(), prose=False)
    if dice in (2, 3):
        user = ask(
            r,
            "<Reverse the word {x}.|Spell {x} backwards.|Write {x} backwards.|Reverse: {x}|What is {x} backwards?>",
            x=word,
        )
        return one(user, word[::-1], word[::-1], prose=False)
    if dice in (4, 5):
        user = ask(r, "<Spell {x}.|Spell the word {x}.|How do you spell {x}?|What are the letters of {x}?>", x=word)
        return one(user, "-".join(word), "-".join(word), prose=False)
    if dice == 6:
        which, x = r.choice((("first", word[0]), ("last", word[-1])))
        user = ask(
            r,
            "<What is the {w} letter of {x}?|Which letter is {w} in {x}?|{c} letter of {x}?>",
            w=which,
            c=cap(which),
            x=word,
        )
        return one(user, f"The {which} letter of {word} is {x}.", x)
    if dice == 7:
        user = ask(
            r, "<How many letters are in {x}?|How many letters does {x} have?|Count the letters in {x}.>", x=word
        )
        return one(user, f"{'-'.join(word)}: {len(word)} letters.", str(len(word)))
    if dice == 8:
        n = r.randint(2, 8)
        user = ask(r, "<Write {x} {n} times.|Repeat {x} {n} times.|Say {x} {n} times.>", x=word, n=n)
        return one(user, " ".join([word] * n), prose=False)
    if dice == 9:
        text = text if r.random() < 0.5 else r.choice((*PHRASES, r.choice(NAMES), word))
        user = ask(
            r,
            "<Repeat after me: {x}|Say: {x}|Say {x}|Repeat this: {x}|Copy this: {x}|Write exactly this: {x}|Echo {x}>",
            x=text,
        )
        return one(user, text, prose=False)
    if dice == 13:
        letter = r.choice(word) if r.random() < 0.85 else r.choice("aeirst")
        user = ask(
            r,
            "<How many times does the letter {l} occur in {x}?|How many {l}'s are in {x}?|How many {l}s are there in {x}?|Count the letter {l} in {x}.>",
            l=letter,
            x=word,
        )
        n = word.count(letter)
        return one(user, f"{'-'.join(word)}: the letter {letter} is there {n} time{'' if n == 1 else 's'}.", str(n))
    if dice == 10:
        old = r.choice(text.rstrip(".").split())
        user = ask(r, "Replace {o} with {w}: {x}", o=old, w=word, x=text)
        return one(
            user, " ".join(word if bare == old else bare for bare in text.rstrip(".").split()) + ".", prose=False
        )
    if dice == 11:
        user = ask(r, "<How many words are in this sentence: {x}|Count the words: {x}>", x=text)
        return one(user, f"There are {len(text.split())} words.", str(len(text.split())))
    items = r.sample(SIMPLE_WORDS, r.randint(3, 7))
    user = ask(
        r,
        "<Sort these words: {x}.|Sort {x} from A to Z.|Put these words in alphabetical order: {x}.>",
        x=", ".join(items),
    )
    return one(user, ", ".join(sorted(items)), prose=False)


# --- reading and answering ------------------------------------------------------------------------


def reading(r: Random) -> Scene:
    """Two to four facts, and questions whose answers stand in them."""
    names = r.sample(NAMES, r.randint(2, 4))
    dice = r.randrange(4)
    if dice == 0:
        things = [
            (r.choice(COLOURS), thing)
            for thing in r.sample(KINDS["toys"] + KINDS["clothes"] + KINDS["vehicles"], len(names))
        ]
        facts = [f"{n} has {a(c)} {t}." for n, (c, t) in zip(names, things, strict=True)]
        i = r.randrange(len(names))
        (c, t), n = things[i], names[i]
        asked = [
            (f"What does {n} have?", f"{n} has {a(c)} {t}.", cap(t)),
            (f"Who has the {t}?", f"{n} has the {t}.", n),
            (f"What colour is the {t}?", f"The {t} is {c}.", cap(c)),
        ]
    elif dice == 1:
        places = r.sample(PLACES, len(names))
        facts = [f"{n} is in {p}." for n, p in zip(names, places, strict=True)]
        i = r.randrange(len(names))
        n, p = names[i], places[i]
        asked = [(f"Where is {n}?", f"{n} is in {p}.", cap(p)), (f"Who is in {p}?", f"{n} is in {p}.", n)]
    elif dice == 2:
        ages = r.sample(range(3, 90), len(names))
        facts = [f"{n} is {x} years old." for n, x in zip(names, ages, strict=True)]
        i = r.randrange(len(names))
        old, young = names[ages.index(max(ages))], names[ages.index(min(ages))]
        asked = [
            (f"How old is {names[i]}?", f"{names[i]} is {ages[i]} years old.", str(ages[i])),
            ("Who is the oldest?", f"{old} is the oldest.", old),
            ("Who is the youngest?", f"{young} is the youngest.", young),
        ]
    else:
        word, back = r.choice(
            (("taller", "shorter"), ("older", "younger"), ("faster", "slower"), ("stronger", "weaker"))
        )
        x, y = names[:2]
        facts = [f"{x} is {word} than {y}."]
        asked = [(f"Who is {back}?", f"{y} is {back}.", y), (f"Who is {word}?", f"{x} is {word}.", x), (f"Is {y} {word} than {x}?", f"No, {x} is {word} than {y}.", "No"),
                 (f"Is {x} {word} than {y}?", f"Yes, {x} is {word} than {y}.", "Yes")]  # fmt: skip
    r.shuffle(facts)
    text = " ".join(facts)
    r.shuffle(asked)
    question, answer, short = asked[0]
    user = ask(r, "<{t} {q}|{t}\n{q}|Read this: {t} {q}|Text: {t}\nQuestion: {q}>", t=text, q=question)
    return [[Turn(user, answer, short)] + [Turn(q, ans, s) for q, ans, s in asked[1:] if r.random() < 0.35]]


def sentiment(r: Random) -> Scene:
    thing = r.choice(KINDS["foods"] + KINDS["toys"] + ("film", "book", "song", "hotel", "game", "phone", "shop"))
    good = r.random() < 0.5
    text = say(
        r,
        "<I <love|like|enjoyed> this {x}.|This {x} is <great|wonderful|very good|lovely>.|The {x} was <excellent|fantastic|nice>!|What a <lovely|great> {x}!>"
        if good
        else "<I <hate|do not like> this {x}.|This {x} is <bad|terrible|awful|very poor>.|The {x} was <horrible|boring|broken>.|What a <bad|terrible> {x}!>",
        x=thing,
    )
    user = ask(
        r,
        "<Is this positive or negative: {t}|Positive or negative? {t}|What is the sentiment of this text: {t}|Classify as positive or negative: {t}>",
        t=text,
    )
    word = "positive" if good else "negative"
    return one(user, say(r, "<This is {w}.|The text is {w}.|{c}.>", w=word, c=cap(word)), cap(word))


# --- JSON -----------------------------------------------------------------------------------------


def _person(r: Random) -> dict[str, Any]:
    return {
        "name": r.choice(NAMES), "age": r.randint(3, 90), "city": r.choice(CITIES), "colour": r.choice(COLOURS),
        "job": r.choice(KINDS["jobs"]), "pet": r.choice(KINDS["animals"]), "likes": r.choice(KINDS["foods"]), "happy": r.random() < 0.5,
    }  # fmt: skip


def _dump(r: Random, value: Any, pretty: bool = False) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2 if pretty else None)


def json_objects(r: Random) -> Scene:
    person = _person(r)
    keys = ["name", *r.sample([k for k in person if k != "name"], r.randint(1, 3))]
    value = {k: person[k] for k in keys}
    pretty = r.random() < 0.15
    wish = " on several lines" if pretty else ""
    dice = r.random()
    if dice < 0.3:
        user = ask(
            r,
            "<Give me|Write|Make|Create|Show me> <a JSON object|JSON|an example JSON object|a JSON> with {k}{w}<.|>",
            k=comma(keys),
            w=wish,
        )
        return one(user, _dump(r, value, pretty), prose=False)
    if dice < 0.6:
        spoken = ", ".join(f"{k} {str(v).lower() if isinstance(v, bool) else v}" for k, v in value.items())
        user = ask(
            r,
            "<Make JSON{w}: {s}|Write as JSON{w}: {s}|Turn this into JSON{w}: {s}|JSON{w}, please: {s}|Convert to JSON{w}: {s}>",
            s=spoken,
            w=wish,
        )
        return one(user, _dump(r, value, pretty), prose=False)
    if dice < 0.8:
        he = "She" if person["name"] in GIRLS else "He"
        told = {
            "age": "is {v} years old",
            "city": "lives in {v}",
            "job": "works as {v2}",
            "likes": "likes {v}",
            "pet": "has {v2}",
        }
        keys = ["name", *r.sample(list(told), r.randint(1, 3))]
        parts = [told[k].format(v=person[k], v2=a(str(person[k]))) for k in keys[1:]]
        text = f"{person['name']} {parts[0]}." + "".join(f" {he} {part}." for part in parts[1:])
        user = ask(
            r,
            "<Extract JSON: {t}|Turn this into JSON: {t}|Give me the facts as JSON: {t}|JSON with {k} from this text: {t}>",
            t=text,
            k=comma(keys),
        )
        return one(user, _dump(r, {k: person[k] for k in keys}), prose=False)
    if dice < 0.9:
        kind = r.choice(tuple(KINDS))
        n = min(r.randint(2, 5), len(KINDS[kind]))
        user = ask(r, "<Give me|Write|Make> <a JSON array|a JSON list|a list in JSON> of {n} {k}<.|>", n=n, k=kind)
        return one(user, _dump(r, r.sample(KINDS[kind], n)), prose=False)
    key = r.choice(keys)
    v = person[key]
    shown = str(v).lower() if isinstance(v, bool) else str(v)
    user = ask(
        r,
        "<{j} What is the {k}?|Read this JSON: {j} What is the {k}?|What is the value of {k} in {j}?>",
        j=_dump(r, value),
        k=key,
    )
    return one(user, f"The {key} is {shown}." if r.random() < 0.7 else shown, shown)


# --- code -----------------------------------------------------------------------------------------

# A wish, a function name, its parameters and its body.
FUNCTIONS = (
    ("adds two numbers", "add", "a, b", "return a + b"),
    ("subtracts two numbers", "subtract", "a, b", "return a - b"),
    ("multiplies two numbers", "multiply", "a, b", "return a * b"),
    ("divides two numbers", "divide", "a, b", "return a / b"),
    ("doubles a number", "double", "x", "return 2 * x"),
    ("squares a number", "square", "x", "return x * x"),
    ("checks if a number is even", "is_even", "n", "return n % 2 == 0"),
    ("checks if a number is odd", "is_odd", "n", "return n % 2 == 1"),
    ("returns the larger of two numbers", "larger", "a, b", "return a if a > b else b"),
    ("returns the smaller of two numbers", "smaller", "a, b", "return a if a < b else b"),
    ("reverses a string", "reverse", "text", "return text[::-1]"),
    ("counts the words in a text", "count_words", "text", "return len(text.split())"),
    ("makes a text uppercase", "shout", "text", "return text.upper()"),
    ("sums a list", "total", "numbers", "return sum(numbers)"),
    ("finds the largest number in a list", "largest", "numbers", "return max(numbers)"),
    ("sorts a list", "in_order", "items", "return sorted(items)"),
    ("greets a person", "greet", "name", 'return f"Hello, {name}!"'),
    ("says hello", "hello", "", 'print("Hello, world!")'),
    ("counts to n", "count", "n", "for i in range(1, n + 1):\n        print(i)"),
    ("computes the factorial", "factorial", "n", "return 1 if n < 2 else n * factorial(n - 1)"),
    ("computes Fibonacci numbers", "fib", "n", "return n if n < 2 else fib(n - 1) + fib(n - 2)"),
    ("computes the average of a list", "average", "numbers", "return sum(numbers) / len(numbers)"),
    ("computes the area of a rectangle", "area", "width, height", "return width * height"),
    ("converts Celsius to Fahrenheit", "to_fahrenheit", "c", "return c * 9 / 5 + 32"),
    ("checks if a word is a palindrome", "is_palindrome", "word", "return word == word[::-1]"),
    ("removes the spaces from a text", "squeeze", "text", 'return text.replace(" ", "")'),
    ("returns the first item of a list", "first", "items", "return items[0]"),
    ("returns the last item of a list", "last", "items", "return items[-1]"),
)
HELLO_WORLDS = {
    "Python": 'print("Hello, world!")', "JavaScript": 'console.log("Hello, world!");', "C": '#include <stdio.h>\n\nint main(void) {\n    printf("Hello, world!\\n");\n    return 0;\n}',
    "Rust": 'fn main() {\n    println!("Hello, world!");\n}', "Go": 'package main\n\nimport "fmt"\n\nfunc main() {\n    fmt.Println("Hello, world!")\n}',
    "bash": 'echo "Hello, world!"', "Ruby": 'puts "Hello, world!"', "HTML": "<h1>Hello, world!</h1>",
}  # fmt: skip


def function_text(r: Random) -> tuple[str, str]:
    wish, name, parameters, body = r.choice(FUNCTIONS)
    return wish, f"def {name}({parameters}):\n    {body}"


def code(r: Random) -> Scene:
    dice = r.random()
    if dice < 0.7:
        wish, text = function_text(r)
        user = ask(r, "<Write|Give me|Show me|Can you write> a <Python |>function that {w}<.| in Python.>", w=wish)
        answer = say(r, "<Here is a function that {w}:\n\n|Here you are:\n\n|>", w=wish) + f"```python\n{text}\n```"
    elif dice < 0.9:
        language = r.choice(tuple(HELLO_WORLDS))
        user = ask(
            r,
            "<Write hello world in {l}.|Hello world in {l}?|Show me a hello world program in {l}.|How do I print hello world in {l}?>",
            l=language,
        )
        answer = f"```{language.lower()}\n{HELLO_WORLDS[language]}\n```"
    else:
        n = r.randint(2, 20)
        body, meaning = r.choice((
            (f"for i in range({n}):\n    print(i)", f"It prints the numbers from 0 to {n - 1}."), (f"x = {n}\nprint(x + 1)", f"It prints {n + 1}."),
            (f"print({n} * 2)", f"It prints {n * 2}."), (f"print(list(range({min(n, 8)})))", f"It prints {list(range(min(n, 8)))}."),
            (f'print("ha" * {min(n, 5)})', f"It prints {'ha' * min(n, 5)}."),
        ))  # fmt: skip
        user, answer = (
            ask(r, "<What does this code print?|What does this do?|Explain this code:>") + f"\n```python\n{body}\n```",
            meaning,
        )
    return one(user, answer, prose=False)


# --- tools ----------------------------------------------------------------------------------------


def _tool(name: str, description: str, /, **parameters: str) -> dict[str, Any]:
    properties = {k: {"type": v} for k, v in parameters.items()}
    return {"type": "function", "function": {"name": name, "description": description,
            "parameters": {"type": "object", "properties": properties, "required": list(properties)}}}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call:
    """A question that needs a tool: the arguments of the call, what the tool returns and what is said about it."""

    tool: dict[str, Any]
    user: str
    arguments: dict[str, Any]
    result: dict[str, Any]
    answer: str


WEATHER = _tool("get_weather", "The weather in a city", city="string")
TIME = _tool("get_time", "The time in a city", city="string")
ADD = _tool("add", "Add two numbers", a="integer", b="integer")
TIMER = _tool("set_timer", "Start a timer", minutes="integer")
STOCK = _tool("get_stock", "How many of an item are in stock", item="string")
MAIL = _tool("send_message", "Send a message", to="string", text="string")


def _weather(r: Random) -> Call:
    city, degrees = r.choice(CITIES), r.randint(-10, 38)
    sky = r.choice(("sunny", "cloudy", "rainy", "windy", "snowy", "foggy"))
    user = ask(
        r,
        "<What is the weather in {c}?|How is the weather in {c}?|Weather in {c}?|Is it cold in {c}?|What's the weather like in {c}?|What is the weather like in {c} today?>",
        c=city,
    )
    return Call(
        WEATHER,
        user,
        {"city": city},
        {"temperature": degrees, "sky": sky},
        f"In {city} it is {sky} and {degrees} degrees.",
    )


def _time(r: Random) -> Call:
    city, clock = r.choice(CITIES), f"{r.randrange(24):02}:{r.randrange(60):02}"
    user = ask(
        r, "<What time is it in {c}?|Time in {c}?|Tell me the time in {c}.|What is the time in {c} now?>", c=city
    )
    return Call(TIME, user, {"city": city}, {"time": clock}, f"It is {clock} in {city}.")


def _calculator(r: Random) -> Call:
    x, y = r.randrange(10000), r.randrange(10000)
    user = ask(r, "<What is {x} + {y}?|Add {x} and {y}.|{x} plus {y}?>", x=x, y=y)
    return Call(ADD, user, {"a": x, "b": y}, {"result": x + y}, f"{x} + {y} = {x + y}.")


def _timer(r: Random) -> Call:
    n = r.randint(2, 90)
    user = ask(r, "<Set a timer for {n} minutes.|Timer, {n} minutes.|Wake me in {n} minutes.>", n=n)
    return Call(TIMER, user, {"minutes": n}, {"ok": True}, f"OK, the timer is set for {n} minutes.")


def _stock(r: Random) -> Call:
    thing, n = r.choice(KINDS["fruits"] + KINDS["tools"]), r.randint(2, 200)
    user = ask(r, "<How many of the item {x} do we have?|How many {x} are in stock?|Do we have {x} in stock?>", x=thing)
    return Call(STOCK, user, {"item": thing}, {"count": n}, f"We have {n} of the item {thing}.")


def _mail(r: Random) -> Call:
    to, text = (
        r.choice(NAMES),
        r.choice(("Hello!", "See you soon.", "I am late.", "Happy birthday!", "Thank you.", "Call me, please.")),
    )
    user = ask(r, '<Send {n} the message "{t}"|Tell {n}: "{t}"|Write to {n}: "{t}">', n=to, t=text)
    return Call(MAIL, user, {"to": to, "text": text}, {"sent": True}, f"I sent your message to {to}.")


VERBS = (
    "open",
    "find",
    "check",
    "show",
    "book",
    "order",
    "start",
    "stop",
    "delete",
    "create",
    "buy",
    "rent",
    "play",
    "read",
    "print",
    "close",
)
OBJECTS = (
    "room",
    "door",
    "song",
    "file",
    "ticket",
    "user",
    "light",
    "car",
    "book",
    "table",
    "order",
    "page",
    "lamp",
    "train",
    "hotel",
    "note",
    "photo",
    "game",
    "flight",
    "shop",
)


def _anything(r: Random) -> Call:
    """A tool that was never seen before: the name and the parameter have to be read from its description."""
    verb, thing = r.choice(VERBS), r.choice(OBJECTS)
    key, kind, value = r.choice((
        ("name", "string", r.choice(NAMES)), ("id", "integer", r.randrange(1000)), ("city", "string", r.choice(CITIES)), ("day", "string", r.choice(DAYS)),
        ("colour", "string", r.choice(COLOURS)), ("number", "integer", r.randrange(100)), ("title", "string", r.choice(SIMPLE_WORDS)),
    ))  # fmt: skip
    name = r.choice(("{v}_{t}", "{t}_{v}", "{v}{T}")).format(v=verb, t=thing, T=cap(thing))
    tool = _tool(name, f"{cap(verb)} {a(thing)}", **{key: kind})
    user = ask(
        r,
        "<{V} the {t} with the {k} {x}.|Please {v} the {t} with {k} {x}|Can you {v} {a} with the {k} {x}?|{V} {a}, {k} {x}.>",
        V=cap(verb),
        v=verb,
        t=thing,
        a=a(thing),
        k=key,
        x=value,
    )
    if r.random() < 0.8:
        return Call(tool, user, {key: value}, {"ok": True}, f"OK, that is done: {verb} {thing}, {key} {value}.")
    return Call(
        tool, user, {key: value}, {"error": "not found"}, f"Sorry, I could not find the {thing} with the {key} {value}."
    )


MAKERS = (_weather, _weather, _time, _calculator, _timer, _stock, _mail, _anything, _anything, _anything)


def tool_chat(r: Random, others: list[Turn]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The messages and the tools of a chat in which some questions need a tool and `others` do not."""
    calls = [maker(r) for maker in r.choices(MAKERS, k=r.choice((1, 1, 2, 3)))]
    by_name = {call.tool["function"]["name"]: call.tool for call in calls}
    for maker in r.choices(MAKERS, k=r.choice((0, 0, 1, 2))):  # tools that nobody needs
        tool = maker(r).tool
        by_name.setdefault(tool["function"]["name"], tool)
    tools = list(by_name.values())
    r.shuffle(tools)
    messages: list[dict[str, Any]] = []
    for call in calls:
        name = call.tool["function"]["name"]
        if by_name[name] != call.tool:
            continue  # an invented tool of the same name, with another parameter
        if others and r.random() < 0.4:
            turn = others.pop(0)
            messages += ({"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.answer})
        messages += (
            {"role": "user", "content": call.user},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": name, "arguments": call.arguments}}],
            },
            {"role": "tool", "content": json.dumps(call.result)},
            {"role": "assistant", "content": call.answer},
        )
    return messages, tools


def coloured(r: Random) -> Scene:
    """A filter: which of these are red?"""
    colour = r.choice(("red", "white", "black", "yellow", "green"))
    hits = [t for t, c in THING_COLOURS.items() if c == colour]
    others = [t for t, c in THING_COLOURS.items() if c != colour]
    chosen = r.sample(hits, min(2, len(hits)))
    shown = [*chosen, *r.sample(others, 3)]
    r.shuffle(shown)
    user = ask(r, "<Which of these are {c}: {s}?|Which things are {c}? {s}>", c=colour, s=", ".join(shown))
    return one(user, listed(r, [t for t in shown if t in chosen], ","))
