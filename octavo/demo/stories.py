"""Short stories from a dozen plots, questions about them, rhymes, and plain text without a chat around it."""

# ruff: noqa: E501 (a template is one line, however many choices it has)

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from octavo.demo.about import TOPICS
from octavo.demo.grammar import a, ask, cap, comma, say
from octavo.demo.sums import in_words
from octavo.demo.talk import JOKES, Scene, Turn, one
from octavo.demo.tasks import function_text, sentence
from octavo.demo.words import BOYS, CAPITALS, DAYS, GIRLS, KINDS, MONTHS, SOUNDS

CREATURES = (
    "fox", "bear", "rabbit", "mouse", "cat", "dog", "owl", "frog", "duck", "hedgehog", "squirrel", "octopus", "turtle", "lion", "elephant", "penguin",
    "dragon", "robot", "wolf", "goat", "bee", "crow", "whale", "snail", "knight", "wizard", "princess", "pirate", "giant", "fairy", "king", "baker",
)  # fmt: skip
TRAITS = (
    "little",
    "brave",
    "shy",
    "curious",
    "kind",
    "clever",
    "lonely",
    "cheerful",
    "young",
    "old",
    "tiny",
    "friendly",
    "sleepy",
    "gentle",
)
TREASURES = (
    "lantern", "red kite", "silver key", "golden ring", "blue ball", "old map", "drum", "book", "wooden boat", "green hat", "music box", "warm scarf",
    "magic stone", "teddy bear", "bell", "paper star", "compass", "yellow boot", "feather", "puzzle", "mirror", "flute", "shiny coin", "strawberry cake",
)  # fmt: skip
SETTINGS = (
    ("forest", "in a deep forest", "under a tall tree"), ("village", "in a small village", "behind the old mill"), ("sea", "by the blue sea", "between two rocks"),
    ("mountain", "on a high mountain", "in a small cave"), ("garden", "in a big garden", "under the roses"), ("city", "in a busy city", "behind the bakery"),
    ("island", "on a quiet island", "on the warm sand"), ("farm", "on a sunny farm", "in the barn"), ("castle", "in an old castle", "at the top of the tower"),
    ("lake", "near a clear lake", "in the tall grass"), ("library", "in a quiet library", "behind a heavy book"), ("river", "by a long river", "under the bridge"),
)  # fmt: skip

OPENINGS = (
    "<Once upon a time|Once|Long ago|One day|A long time ago>, {where}, there lived {a_trait_kind} <named|called> {name}.",
    "{cap_where} lived {a_trait_kind} <named|called> {name}.",
    "{name} was {a_trait_kind} who lived {where}.",
    "<Once upon a time|Once> there was {a_trait_kind} <named|called> {name}, who lived {where}.",
)
PLOTS = {
    "lost": (
        "{name} had {a_thing} and <loved it very much|took it everywhere|played with it every day>.",
        "<One day|One morning|One windy day> the {thing} was gone. {name} <was very sad|looked everywhere|cried a little>.",
        "{friend} the {fkind} <heard this|saw the tears|came by> and said, \"<Do not cry|Do not worry|Do not be sad>. <I will help you|Let us look together>.\"",
        "They <looked|searched> <all day|everywhere|in every corner>. At last they found the {thing} {spot}.",
        "{name} <laughed|smiled|was so happy> and <hugged {friend}|thanked {friend}|danced with {friend}>.",
        "<From that day on they were best friends.|They shared some cake and went home.|That night {name} slept very well.>",
    ),
    "found": (
        "<One day|One sunny morning|One evening>, {name} found {a_thing} {spot}.",
        "\"Whose is this?\" {he} <asked|wondered>. {name} <could keep it, but that did not feel right|wanted to find the owner>.",
        "{name} <asked everyone|walked from door to door|went from house to house>. At last {friend} the {fkind} <came running|called out>.",
        "\"My {thing}!\" said {friend}. \"I <looked|searched> for it <everywhere|for days>. <Thank you so much|Thank you>!\"",
        "{friend} gave {name} <a warm hug|a big apple|a sweet cake|a bunch of flowers>.",
        "<{name} went home with a light heart.|It feels good to be honest.|And so {name} found a new friend.>",
    ),
    "storm": (
        "<One night|One evening> a big storm came. The wind <howled|blew> and the rain <fell|poured>.",
        "{name} <was safe at home|sat by the fire> with {a_thing} when there was a knock at the door.",
        "It was {friend} the {fkind}, <cold and wet|all wet|cold and hungry>. \"<May I come in?|Can I stay here?|My home is full of water.>\"",
        "\"Of course,\" said {name}. {He} made <hot soup|warm tea|hot cocoa> and gave {friend} a <soft blanket|dry coat>.",
        "They <told stories|sang songs|played games> until the storm was over.",
        "<In the morning the sun was shining.|In the morning there was a rainbow.> {name} and {friend} <were friends for ever|went out to play>.",
    ),
    "learn": (
        "{name} wanted to learn to <fly|swim|sing|dance|read|paint>, but {he} <always fell down|made many mistakes|did not know how>.",
        "<The others laughed.|Everybody said it was too hard.> {name} was <sad|ready to give up>.",
        "{friend} the {fkind} said, \"<Try a little every day|Do not give up|One small step at a time>. <I will show you|I will help you>.\"",
        "So they practised <every morning|every day|day after day> {where}.",
        "<After a month|After many days|At last> {name} could do it. <Everybody clapped|Everybody cheered|The whole {place} came to see>!",
        "{friend} gave {name} {a_thing} <as a prize|as a present>. <Practice makes perfect.|Small steps go far.>",
    ),
    "share": (
        "{name} had {a_thing} and did not want to share it with anyone.",
        "{friend} the {fkind} asked, \"May I <see|hold|try> it?\" \"No,\" said {name}, \"it is mine.\"",
        "So {friend} went away and {name} was alone. <It was not much fun.|The day was long and dull.|Soon {name} was bored.>",
        "{name} <thought about it|felt sorry> and <ran after|went to find> {friend}. \"I am sorry. <Let us share it|You can have it first>.\"",
        "They <played|laughed> together <until the stars came out|all day long|until it was dark>.",
        "<Now {name} knows: sharing is more fun.|Things are nicer with a friend.>",
    ),
    "dark": (
        "{name} was afraid of the dark. Every night {he} <hid under the blanket|could not sleep>.",
        "One night {he} heard a <small sound|strange noise> {spot}. <Tap, tap, tap.|Scratch, scratch.|Knock, knock.>",
        "{name} took {a_thing} and went to look, step by step.",
        "It was only {friend} the {fkind}, who <could not sleep either|was afraid of the dark too|was looking for the moon>.",
        "They sat down and <counted the stars|looked at the moon|whispered until late>.",
        "<The dark is not so bad with a friend.|After that night {name} was not afraid any more.>",
    ),
    "race": (
        "<One day|One Sunday|In summer> there was a <big |great >race {where}. The prize was {a_thing}.",
        "{name} was not very fast, but {he} wanted to try. {friend} the {fkind} was the fastest of all.",
        "<Ready, steady, go!|They all began to run.> {friend} was soon far in front.",
        "But {friend} <fell|slipped> and hurt a foot. {name} stopped to help. \"<Lean on me|Take my hand>,\" {he} said.",
        "They <crossed the line|finished> together, last of all, and everybody <cheered|clapped>.",
        "\"You two shall share the {thing},\" said the judge. <Helping is better than winning.|Kindness won the race.>",
    ),
    "gift": (
        "It was {friend}'s birthday. {name} wanted to give {friend} the {fkind} something special, but {he} had no money.",
        "{name} <thought and thought|walked up and down|asked the wise owl>. Then {he} had an idea.",
        "{He} <took some wood and paint|worked all night|sat down and worked for hours> and made {a_thing}.",
        "At the party {friend} opened the box. \"{cap_a_thing}! <It is beautiful|I love it|It is the best present of all>!\"",
        "<They danced and ate cake until late.|Everybody sang a happy song.|They all played together.>",
        "<A gift from the heart is the best gift.|{name} was the happiest of all.>",
    ),
    "way": (
        "<One day|One autumn day> {name} went for a long walk and lost the way home. <It was getting dark.|Fog came up.>",
        "{He} sat down {spot} and <wanted to cry|did not know what to do>. Then {he} saw a light.",
        "It was {friend} the {fkind} with {a_thing}. \"<Are you lost?|Where do you want to go?>\"",
        "\"I want to go home,\" said {name}. \"<Come with me|Follow me>,\" said {friend}. \"<I know the way|I know every path here>.\"",
        "They walked <past the lake and over the hill|through the trees|along the river> until they saw a <small house|warm window>.",
        "\"Home!\" {name} <cried|shouted>. <They had soup together by the fire.|And {friend} stayed for supper.>",
    ),
    "seed": (
        "{name} found a tiny seed {spot} and <put it in the ground|planted it>. {He} gave it water every day.",
        "<For a long time|For many days> nothing happened. \"<Wait and see|Be patient>,\" said {friend} the {fkind}.",
        "Then <one morning|one day in spring> there was a small green leaf. It grew and grew.",
        "In summer it was <a tall sunflower|a big tree|a bush full of berries>, and at its top hung {a_thing}!",
        "\"How did that get there?\" {name} <laughed|asked>. <Nobody knew.|\"It is magic,\" said {friend}.>",
        "<Good things take time.|They sat in its shade and were happy.>",
    ),
    "moon": (
        "Every night {name} looked at the moon. \"I wish I could <visit you|touch you|fly to you>,\" {he} said.",
        "{friend} the {fkind} built a <rocket|ladder|balloon> from <old boxes|wood and string|paper and glue>.",
        "They flew up, up, up, past the clouds. The moon was <round and silver|quiet and bright|soft as cheese>.",
        "There they found {a_thing}. \"<Somebody was here before us|A present from the moon>!\" said {name}.",
        "Then they were <tired|hungry> and flew home <again|before breakfast>.",
        "<Nobody believed them, but the {thing} shone in the dark.|And each night the moon smiled at them.>",
    ),
    "pages": (
        "{name} had a magic book with sixteen pages. Each page <held one story|told one small story>.",
        "<One day|One night> the wind blew all the pages away. {name} <ran after them|was very sad>.",
        "{friend} the {fkind} wrote a list that said where every page was: <one {spot}, one on the roof, one in the well|one {spot}, one in a nest, one in the pond>.",
        "<With the list they found them all|They followed the list> and put them <back|in order>.",
        "\"<I do not need all pages in one place|The pages can be anywhere>,\" said {name}, \"<I only need|as long as I have> the list.\"",
        "And {friend} got {a_thing} as a thank-you. <The end of the story was the best page.|They read until morning.>",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Story:
    """A story told, and what questions about it may ask for."""

    text: str
    name: str
    kind: str
    friend: str
    fkind: str
    thing: str
    place: str
    where: str


def story(r: Random, kind: str = "", thing: str = "", name: str = "", ending: bool = True) -> Story:
    kind, fkind = kind or r.choice(CREATURES), r.choice(CREATURES)
    girl = name in GIRLS if name else r.random() < 0.5
    girl = girl or kind in ("princess", "fairy")
    girl = girl and kind not in ("king", "wizard")
    name = name or r.choice(GIRLS if girl else BOYS)
    friend = r.choice([n for n in GIRLS + BOYS if n != name])
    thing = thing or r.choice(TREASURES)
    place, where, spot = r.choice(SETTINGS)
    he = "she" if girl else "he"
    slots = {
        "name": name, "kind": kind, "friend": friend, "fkind": fkind, "thing": thing, "a_thing": a(thing), "cap_a_thing": cap(a(thing)), "place": place,
        "where": where, "cap_where": cap(where), "spot": spot, "he": he, "He": cap(he), "a_trait_kind": a(f"{r.choice(TRAITS)} {kind}"),
    }  # fmt: skip
    sentences = [say(r, r.choice(OPENINGS), **slots)] + [
        say(r, line, **slots) for line in r.choice(tuple(PLOTS.values()))
    ]
    if r.random() < 0.25:
        middle = r.randint(2, 3)
        text = "\n\n".join((" ".join(sentences[:middle]), " ".join(sentences[middle:5]), " ".join(sentences[5:])))
    else:
        text = " ".join(sentences)
    if ending and r.random() < 0.3:
        text += " The end."
    return Story(text, name, kind, friend, fkind, thing, place, where)


def _questions(r: Random, told: Story) -> list[Turn]:
    s = told
    pool = [
        Turn(ask(r, "<Who is the story about?|Who was the hero?|What was the name of the {k}?|What was the {k} called?>", k=s.kind), f"The story is about {s.name} the {s.kind}.", s.name),
        Turn(ask(r, "<Where did {n} live?|Where does the story happen?|Where was it?>", n=s.name), f"{s.name} lived {s.where}.", cap(s.place)),
        Turn(ask(r, "<Who was the friend?|Who helped {n}?|What was the friend called?|Who was the other one?>", n=s.name), f"{s.friend} the {s.fkind}.", s.friend),
        Turn(ask(r, "<What kind of animal was {n}?|What was {n}?|Who was {n}?>", n=s.name), f"{s.name} was {a(s.kind)}.", cap(s.kind)),
        Turn(ask(r, "<Summarize the story.|Sum it up in one sentence.|What is the story about?|Give me a summary.|Give it a title.>"), f"It is about {s.name} the {s.kind}, {s.friend} the {s.fkind} and {a(s.thing)}."),
    ]  # fmt: skip
    return r.sample(pool, r.randint(1, 3))


def storytelling(r: Random) -> Scene:
    dice = r.random()
    if dice < 0.4:
        told = story(r)
        user = ask(
            r,
            "<Tell me a <|short |nice |funny |little |bedtime |good >story.|Write a <|short |little >story.|Can you tell me a story?|A story, please.|Another story!|I want a story.|Once upon a time>",
        )
    elif dice < 0.65:
        told = story(r, kind=r.choice(CREATURES))
        user = ask(r, "<Tell me|Write|Can you write> a <short |>story <about|with> {k}<.|>", k=a(told.kind))
    elif dice < 0.8:
        told = story(r)
        user = ask(r, "<Tell me|Write|Make up> a <short |>story about {k} and {t}<.|>", k=a(told.kind), t=a(told.thing))
    elif dice < 0.9:
        told = story(r, name=r.choice(GIRLS + BOYS))
        user = ask(
            r,
            "<Tell me|Write> a <short |>story about <{n}|{n} the {k}|{k2} called {n}><.|>",
            n=told.name,
            k=told.kind,
            k2=a(told.kind),
        )
    else:
        told = story(r)
        start = told.text.split(". ")[0] + "."
        user = ask(r, "<Continue this story: {s}|Finish the story: {s}|What happens next? {s}>", s=start)
        return [[Turn(user, told.text.removeprefix(start).strip())]]
    turns = [Turn(user, told.text)]
    if r.random() < 0.35:
        turns += _questions(r, told)
    return [turns]


def offered(r: Random) -> Scene:
    """The user is bored, the model offers, the user agrees."""
    bored = ask(
        r, "<I am bored.|I'm bored|Entertain me.|What can we do?|I have nothing to do.|Let's do something fun.>"
    )
    yes = ask(r, "<Yes|Yes please|Yes, please!|Sure|OK|Of course|Yeah, go on|Please do>")
    if r.random() < 0.6:
        return [
            [
                Turn(bored, say(r, "<Shall I tell you a story?|Would you like a story?|How about a story?>")),
                Turn(yes, story(r).text),
            ]
        ]
    return [
        [
            Turn(bored, say(r, "<Shall I tell you a joke?|Would you like a joke?|How about a joke?>")),
            Turn(yes, " ".join(r.choice(JOKES))),
        ]
    ]


# --- rhymes ---------------------------------------------------------------------------------------

COUPLETS = {
    "cat": "A cat sat down upon a mat\nand wore a very pointed hat.", "dog": "A happy dog jumped on a log\nand said good morning to a frog.",
    "sun": "The morning sun comes up to say:\nget up, it is a lovely day.", "moon": "The quiet moon looks down at night\nand paints the garden silver white.",
    "star": "A little star so very far\nis riding in a golden car.", "sea": "I built a boat beside the sea\nand sailed away with you and me.",
    "tree": "Above my house there is a tree,\nand in it hums a busy bee.", "rain": "I love the drumming of the rain\nupon the roof, upon the train.",
    "snow": "The garden sleeps below the snow,\nand soft and cold the north winds blow.", "bird": "A bird sat singing in the sky\nand asked the clouds to teach it to fly.",
    "mouse": "A mouse once built a tiny house\nand shared it with another mouse.", "bear": "There was a bear upon a chair\nwho ate an apple and a pear.",
    "king": "There lived a very merry king\nwho loved to dance and loved to sing.", "boat": "A little goat sat in a boat\nand wore a yellow winter coat.",
    "book": "Come sit with me and take a look\nat all the pictures in my book.", "friend": "A friend is someone kind and true,\nand I am glad my friend is you.",
    "flower": "A flower opens in the spring\nand hears the early robins sing.", "night": "The stars are out, the moon is bright,\nso close your eyes and say good night.",
    "octopus": "An octopus beneath the sea\nhas seven arms more than you see.", "fox": "A clever fox in woolly socks\nkept all his treasures in a box.",
    "robot": "A robot counted up to ten,\nthen smiled and counted back again.", "love": "My love is warm, my love is true,\nand all my songs are songs for you.",
    "winter": "When winter comes and days are cold,\nthe best old stories must be told.", "summer": "In summer when the days are long\nthe crickets sing their evening song.",
    "model": "I am a model, very small,\nand yet I like to talk to all.", "page": "I turn the page, and there I see\nanother page that waits for me.",
    "river": "The river runs, the river sings\nof many old and distant things.", "cake": "My mother baked a chocolate cake,\nand we all ate it by the lake.",
}  # fmt: skip


HAIKUS = (
    "An old quiet pond.\nA small frog thinks for a while,\nthen jumps in: a splash.", "Snow on the red roof.\nA cat looks out of the house\nand goes back to sleep.",
    "Morning in the park.\nOne leaf falls, and then one more.\nThe bench is waiting.", "Sixteen little words\nsit together on a page.\nThe next page is blank.",
    "The moon in my cup.\nI drink a little moonlight\nand the tea is gone.", "Rain on the window.\nInside, a lamp and a book.\nNobody is cold.",
)  # fmt: skip


def poem(r: Random) -> Scene:
    if r.random() < 0.15:
        return one(
            ask(r, "<Write|Tell me|Give me|Can you write> a haiku<| about nature| about anything><.|>"),
            r.choice(HAIKUS),
            prose=False,
        )
    themes = r.sample(list(COUPLETS), r.choice((1, 2, 2, 2, 3)))
    if r.random() < 0.35:
        user = ask(
            r,
            "<<Write|Tell me|Make|Give me> a <|short |little |nice ><poem|rhyme|verse>.|Sing me a song.|Sing a song.|Write a song.|Can you sing?|Can you rhyme?>",
        )
    else:
        user = ask(
            r,
            "<Write|Tell me|Give me|Can you write> a <|short |little ><poem|rhyme|verse|song> about {t}<.|>",
            t=themes[0]
            if themes[0] in ("love", "snow", "rain", "winter", "summer")
            else say(r, "<{x}|the {y}>", x=a(themes[0]), y=themes[0]),
        )
    return one(user, "\n".join(COUPLETS[t] for t in themes), prose=False)


# --- plain text -----------------------------------------------------------------------------------


def plain(r: Random) -> str:
    """A document that is no chat, for models that are asked to complete a text."""
    dice = r.random()
    if dice < 0.5:
        told = story(r)
        title = (
            say(
                r,
                "<{n} and the {t}|The {k} and the {t}|{n} the {k}>\n\n",
                n=told.name,
                k=cap(told.kind),
                t=told.thing.title(),
            )
            if r.random() < 0.3
            else ""
        )
        return title + told.text
    if dice < 0.62:
        return " ".join(sentence(r) for _ in range(r.randint(2, 10)))
    if dice < 0.72:
        return "\n\n\n".join(function_text(r)[1] for _ in range(r.randint(1, 3)))
    if dice < 0.8:
        lands = r.sample(list(CAPITALS), r.randint(2, 8))
        return " ".join(f"The capital of {land} is {CAPITALS[land]}." for land in lands)
    if dice < 0.86:
        start, step = r.randint(0, 50), r.choice((1, 1, 1, 2, 5, 10))
        return ", ".join(str(start + i * step) for i in range(r.randint(5, 30)))
    if dice < 0.9:
        pairs = [(r.randint(0, 99), r.randint(0, 99)) for _ in range(r.randint(3, 12))]
        return "\n".join(f"{x} + {y} = {x + y}" for x, y in pairs)
    if dice < 0.94:
        topics = r.sample(list(TOPICS), r.randint(1, 3))
        return "\n\n".join(say(r, " ".join(TOPICS[topic])) for topic in topics)
    if dice < 0.97:
        kinds = r.sample(list(KINDS), r.randint(1, 3))
        return "\n".join(f"{cap(k)}: {comma(r.sample(KINDS[k], min(len(KINDS[k]), r.randint(3, 6))))}." for k in kinds)
    return say(
        r,
        "<There are seven days in a week: {d}.|There are {t} months in a year: {m}.|{s}>",
        d=comma(DAYS), m=comma(MONTHS), t=in_words(12),
        s=" ".join(f"{cap(a(x))} says {y}." for x, y in r.sample(list(SOUNDS.items()), r.randint(3, 8))),
    )  # fmt: skip
