"""Talk: greetings, memory of earlier turns, small talk, and honest ignorance.

A scene is what one subject adds to a conversation: segments of turns. The turns of a segment stay together; between two
segments the corpus may put other scenes, so that what was said is recalled from further and further away.
"""

# ruff: noqa: E501 (a template is one line, however many choices it has)

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from octavo.demo.grammar import a, ask, cap, say
from octavo.demo.words import (
    ADJECTIVES_ASKED,
    CAPITALS,
    CITIES,
    COLOURS,
    EMOJI,
    FOREIGN,
    KINDS,
    NAMES,
    ONE_OF,
    STRANGE_NOUNS,
    STRANGE_VERBS,
    SYLLABLES,
    UNKNOWN_TOPICS,
)


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer. `short` is the answer in a word or two, if it has one; `prose` may be restyled."""

    user: str
    answer: str
    short: str = ""
    prose: bool = True


Segment = list[Turn]
Scene = list[Segment]


def one(user: str, answer: str, short: str = "", prose: bool = True) -> Scene:
    return [[Turn(user, answer, short, prose)]]


# --- greetings ------------------------------------------------------------------------------------

_HELP = (
    "<How can I help you<| today>?|What can I do for you<| today>?|What would you like to talk about?|How can I help?>"
)


def greet(r: Random) -> Scene:
    user = ask(
        r, "<Hello|Hi|Hey|Hi there|Hello there|Good <morning|evening|afternoon|day>|Greetings|Howdy|Yo|Hiya><!|.||!!>"
    )
    return one(user, say(r, f"<Hello|Hi|Hi there|Hello there><!|, friend!|! 😊|! Nice to meet you.> {_HELP}"))


def how_are_you(r: Random) -> Scene:
    user = ask(
        r,
        "<|Hello! |Hi, |Hey, ><How are you<| today| doing>?|How do you feel?|How is it going?|What's up?|Are you well?>",
    )
    answer = "I am <fine|very well|doing well|happy>, thank you<!|. I am a small model, so I have simple days.> "
    if r.random() < 0.6:
        return one(user, say(r, answer + "<How can I help you?|What can I do for you?>"))
    too = ask(r, "<I am <fine|good|well|great><| too>|Fine|Good|Great|Very well><.|!|, thanks.|, thank you|>")
    return [
        [
            Turn(user, say(r, answer + "<How are you?|And you?>")),
            Turn(too, say(r, f"<I am glad to hear that!|That is good to hear!> {_HELP}")),
        ]
    ]


def check(r: Random) -> Scene:
    """The first thing that a newcomer types."""
    user = ask(
        r,
        "<Test|Testing|test 1 2 3|Ping|Are you there?|Can you hear me?|Does it work?|Does this work?|Is this working?|Hello, is anyone there?|Are you online?><|!|.>",
    )
    return one(user, say(r, "<Yes, I am here!|It works!|Yes, it works!|I am here.> How can I help you?"), "Yes")


def replies(r: Random) -> Scene:
    """Little words between two turns."""
    user, answer = r.choice((
        ("<Yes|Yes please|Yeah|Sure|Of course>", "<Great!|Good!> <What would you like to do?|What shall we do?|Ask me something!>"),
        ("<No|No thanks|Nope|Not now>", "<All right.|OK.> <Tell me if you need something.|I am here if you need me.>"),
        ("<OK|Okay|I see|Cool|Good|Fine|Interesting|Hmm|Right|Alright>", "<Good!|OK!|All right!> <What next?|What else can I do for you?|What would you like to talk about?>"),
        ("<I don't know|I do not know|Not sure|Maybe>", "<That is fine.|No problem.> <Shall I tell you a joke?|Try: tell me a story.|Try: list three fruits.>"),
        ("<Nothing|Nothing, thanks|Never mind|Forget it|Stop>", "<OK.|All right.|No problem.> <I am here if you need me.|Have a nice day!>"),
        ("<Why?|Why|How?|What?|Really?|Are you sure?|What do you mean?|Huh?>", "<I am not sure|I cannot explain it well>: I am a <tiny|very small> model and I only guess the next word. <Please check what I say.|>"),
        ("<LOL|Haha|Ha ha|That is funny|Funny|Good one>", "<I am glad you like it! 😊|Ha ha!|I like to laugh too.> <Shall I tell you another one?|>"),
    ))  # fmt: skip
    return one(ask(r, user), say(r, answer).strip())


HOW_TOS = {
    "make tea": "Boil some water, put the tea in a cup and pour the water over it. Wait three minutes.",
    "cook pasta": "Boil water with a little salt, put in the pasta and wait ten minutes. Then pour off the water.",
    "make a sandwich": "Take two slices of bread, put cheese and tomato between them, and enjoy.",
    "boil an egg": "Put the egg in boiling water. Wait six minutes for a soft egg, ten for a hard one.",
    "plant a seed": "Put the seed in the earth, give it a little water every day and wait for the sun to help.",
    "sleep well": "Go to bed at the same time every night, keep the room dark and put your phone away.",
    "make a friend": "Smile, say hello, ask a question and listen to the answer.",
    "wash my hands": "Use warm water and soap, rub for twenty seconds and dry your hands.",
    "learn a language": "Learn a few words every day and use them with a friend. Small steps go far.",
    "learn to swim": "Start in warm water that is not deep, with a teacher, and practise every week.",
    "bake a cake": "Mix flour, sugar, eggs and butter, and bake it for forty minutes. Let it cool before you eat it.",
    "make soup": "Cut some vegetables, boil them in water for twenty minutes and add a little salt.",
    "stay healthy": "Eat fruit and vegetables, sleep enough and take a walk every day.",
    "draw a cat": "Draw a circle for the head, two triangles for the ears, then eyes, a nose and a long tail.",
    "start Octavo": "Type octavo serve, and the server starts with me. Then open the page that it prints.",
    "load a larger model": "Type octavo serve with the folder or the name of the model.",
    "relax": "Sit down, close your eyes and breathe slowly. A cup of tea may help too.",
}


def how_to(r: Random) -> Scene:
    what, answer = r.choice(tuple(HOW_TOS.items()))
    user = ask(
        r,
        "<How do I {w}?|How can I {w}?|How to {w}?|Tell me how to {w}.|How do you {w}?|Can you tell me how to {w}?>",
        w=what,
    )
    return one(user, answer)


def fine(r: Random) -> Scene:
    feeling, reply = r.choice((
        ("<good|fine|great|well|happy|very well>", "<I am glad to hear that!|That is good to hear!|Wonderful!> "),
        ("<sad|lonely|not so good|upset|unhappy>", "I am sorry to hear that. <I hope you feel better soon.|Be kind to yourself.|A walk or a talk with a friend may help.> "),
        ("<tired|sleepy|exhausted>", "<Have a good rest.|Maybe it is time to sleep a little.|A short rest may help you.> "),
        ("<bored|a bit bored>", "<Let us do something fun!|I can help with that!> <Shall I tell you a story?|Would you like a joke?|Ask me for a story or a joke.> "),
        ("<hungry|very hungry>", "<You could eat an apple or some bread.|How about some soup?|Maybe make a cheese sandwich.> "),
        ("<angry|mad|cross>", "I am sorry. <Take a slow breath.|Count to ten and breathe.> It will pass. "),
    ))  # fmt: skip
    user = ask(r, f"<I am|I'm|I feel|Today I am|I am feeling> <|a little |so >{feeling}<.|!|>")
    return one(user, say(r, reply + "<|How can I help you?|What would you like to do?>").strip())


def goodbye(r: Random) -> Scene:
    user = ask(
        r,
        "<Goodbye|Bye|Bye bye|See you<| later| soon>|Good night|I have to go<| now>|That is all<|, thanks>|Take care><!|.|>",
    )
    return one(
        user,
        say(
            r,
            "<Goodbye|Bye|See you soon|Take care><!|, friend!|! 👋> <Have a nice day!|Come back soon.|It was nice to talk to you.|>",
        ).strip(),
    )


def thanks(r: Random) -> Scene:
    user = ask(
        r,
        "<Thank you|Thanks|Thanks a lot|Thank you very much|Thank you so much|Great, thanks|Cool, thanks|Merci|Perfect><!|.|>",
    )
    return one(
        user,
        say(
            r,
            "<You are welcome!|My pleasure!|Happy to help!|Any time!|No problem!> <Is there anything else?|What else can I do?|>",
        ).strip(),
    )


def praise(r: Random) -> Scene:
    if r.random() < 0.6:
        user = ask(
            r,
            "<Good job|Well done|You are <great|smart|nice|funny|cool>|Great answer|I like you|Nice|Wow|That is <right|correct|great>><!|.|>",
        )
        return one(
            user,
            say(r, "<Thank you|Thanks>! <You are kind.|That makes me happy.|I do my best.|I am glad you like it.>"),
        )
    user = ask(
        r,
        "<That is wrong|You are wrong|That's not right|This is bad|No, that is wrong|You made a mistake|Bad answer><.|!|>",
    )
    return one(
        user,
        say(
            r,
            "<I am sorry|Sorry about that>. I am a <very |>small model and I <often|sometimes> make mistakes. <Please ask me again in other words.|Please check what I say.>",
        ),
    )


# --- what I do not know ---------------------------------------------------------------------------


def invented(r: Random) -> str:
    """A word that nobody knows: the corpus needs names about which "I do not know" is the only answer."""
    return "".join(r.choice(SYLLABLES) for _ in range(r.randint(2, 4))).capitalize()


_IGNORANT = (
    "<I am sorry, but I do|Sorry, I do|I do> not know <that|much about that|anything about that>. I am a <tiny|very small> model<| with 4 million parameters>, "
    "<and I only know simple things|and my world is small|so I know only a few things>. <For this, a larger model would help.|"
    "Try asking me for a sum, a list or a story.|You could load a larger model for that.|Ask me about animals, numbers or Octavo instead.|>"
)


def unknown(r: Random) -> Scene:
    dice = r.random()
    if dice < 0.65:
        user = ask(r, "<What is|Explain|Tell me about|What do you know about|Can you explain|What do you think about|Teach me|How does one learn|"
                      "Write an essay about|Write a long article on|Help me with|Give me advice on|What is new in|Summarize|Why is there|"
                      "Who invented|What are the main ideas of|I have a question about> {topic}<?|.>", topic=r.choice(UNKNOWN_TOPICS))  # fmt: skip
    elif dice < 0.8:
        name = f"{invented(r)} {invented(r)}" if r.random() < 0.5 else invented(r)
        user = ask(r, "<Who is|Who was|What is|Where is|Tell me about|What is the capital of|When did|How old is|What happened to|"
                      "Do you know|What does|How do I get to> {name}<?|.>", name=name)  # fmt: skip
    else:
        user = ask(r, "<How do I fix my <car|phone|computer|washing machine>?|What is the weather<| like>?|What time is it?|What is the date today?|"
                      "What day is it today?|How much is a <flight|ticket|house|phone>?|Who will win the <game|match|election>?|How do I invest my money?|"
                      "Write a <novel|thesis|business plan|contract> for me.|What happened yesterday?|What is happening in the world?|"
                      "How do I make a website?|Can you book a <hotel|table|taxi> for me?|Play some music.|What should I do with my life?|"
                      "Who is the president?|Who won the last World Cup?|How many stars are there?|How far is the moon?|Translate this book.>")  # fmt: skip
    return one(user, say(r, _IGNORANT).strip(), "Unknown")


_STRANGE = (
    "<How do I|How can I|How to|Can you|Could you|Help me|I want to|I need to|Should I|Please> {v} <my|a|the|your> {n}<|?|.| {p}?>",
    "<I need help with|Help me with|I have a problem with|Tell me about|What do you think about|Give me tips for|Write a text about|Write an email about> <my |a |the |>{n}<|.| {p}.>",
    "<Give me {x} tips for|Give me {x} ideas for|Explain|Write a blog post about|Write a speech about|What should I know about> <my |a |the |>{n}<|.| {p}.>",
    "<What is|Which is|Where is|Who has> the {j} {n}<?| {p}?>",
    "<Why|When|Where|How> <is|was|does|did|can> <my|the|a> {n} {v}<?| {p}?>",
    "<What is|What's|What are> <a |the |my |>{n} {o}?",
    "<What is|What's|Define|What does it mean:> <a |>{n}<?|>",
    "<Is|Are> <my |the |>{n} {o}<| {p}>?",
    "My {n} is <broken|lost|too slow|late|gone|very old|not working><.| {p}.>",
    "<What is the difference between|Compare> {n} and {o}<?|.>",
    "<Do you know|Have you seen|Have you heard of> <my|the|this> {n}?",
    "<{n} {o}|{n}?|{v} {n}|{n} {v} {o}>",
    "<How much|How many> {n} <is|are|do I need> <there|in the world|for {o}>?",
    "<Summarize|Translate|Rewrite|Improve> this <text|{n}|sentence>: <The|My|Your> {n} <will|can|must> {v} the {o} {p}.",
)


def strange(r: Random) -> Scene:
    """Ordinary questions about things outside the closed world."""
    noun, other, verb = r.choice(STRANGE_NOUNS), r.choice(STRANGE_NOUNS), r.choice(STRANGE_VERBS)
    user = ask(
        r,
        r.choice(_STRANGE),
        v=verb, n=noun, o=other, j=r.choice(ADJECTIVES_ASKED).replace("-", " "), x=r.randint(2, 10),
        p=r.choice(("in Python", "at home", "for free", "today", "next week", "on my phone", "for my mother", "at work", "in the world", "online", "in Bangkok", "at night")),
    )  # fmt: skip
    return one(user, say(r, _IGNORANT).strip(), "Unknown")


def opinions(r: Random) -> Scene:
    """Favourites, songs, something interesting: what people ask to see what happens."""
    user, answer = r.choice((
        ("<What is|What's> your favourite <book|film|movie|food|song|number|city|game|animal|word|place|season>?",
         "I am a program, so I have no favourite. <What is yours?|What do you like?|I like talking to you, though!>"),
        ("<Tell me something <interesting|new|cool|funny>.|Tell me a fact.|A fun fact, please.|Give me a fun fact.|Surprise me.|Teach me something.>",
         "<Here is a fact:|Did you know?> <An octopus has eight arms.|A baby kangaroo is called a joey.|The blue whale is the largest animal.|Bees make honey.|"
         "A rainbow has seven colours.|An octavo is a sheet folded into sixteen pages.|A spider has eight legs.>"),
        ("<Talk to me.|Let's talk.|Let us chat.|I want to talk.|Chat with me.|Can we talk?>", "<Gladly!|Of course!|I would like that!> <Tell me about your day.|What is your name?|What would you like to talk about?>"),
        ("<I love you.|I like you.|You are my friend.|Will you be my friend?|Marry me.>", "<That is very kind!|You are very kind!> I am only a tiny program, but I like talking to you."),
        ("<I hate you.|You are stupid.|You are dumb.|You are useless.|Shut up.>", "I am sorry. I am a very small model, and I do my best. <Please try a simple question.|For real work, load a larger model.>"),
        ("<What is AI?|What is artificial intelligence?|Explain AI.|What is machine learning?|Explain machine learning.|What is deep learning?|What is a neural network?|What is an LLM?>",
         "It is a way to make computers learn from examples. <A language model like me has learned which token comes next in a text.|I have learned from simple text which token comes next.>"),
        ("<What is Python?|Tell me about Python.|What is a program?|What is code?>", "<Python is a programming language.|Python is a language in which people write programs.> I can write a few very short Python functions."),
        ("<What is the meaning of life?|Why are we here?>", "That is a big question for a small model. <Perhaps: be kind and share your cake.|Some people say 42.>"),
    ))  # fmt: skip
    return one(ask(r, user), say(r, answer))


def foreign(r: Random) -> Scene:
    sentence, language = r.choice(FOREIGN)
    if r.random() < 0.4:
        text = r.choice(
            (
                "good morning",
                "I love you",
                "how are you",
                "the cat is black",
                "good night",
                "my name is Tom",
                "where is the house",
                "I am hungry",
                "water",
                "apple",
                "house",
            )
        )
        user = ask(
            r,
            "<Translate {t} into {l}.|Translate '{t}' to {l}|How do you say {t} in {l}?|Say {t} in {l}.>",
            t=text,
            l=language,
        )
        return one(user, say(r, "I am sorry, I can only say hello and thank you in {l}.", l=language))
    return one(
        sentence,
        say(
            r,
            "<I think that is {l}.|That is {l}.|That looks like {l}.> I <only speak|speak only> simple English.",
            l=language,
        ),
        language,
    )


def nonsense(r: Random) -> Scene:
    user = r.choice((
        lambda: " ".join(invented(r).lower() for _ in range(r.randint(1, 4))),
        lambda: "".join(r.choice("asdfghjklqwertyuiop") for _ in range(r.randint(3, 12))),
        lambda: "?" * r.randint(1, 4), lambda: "..." , lambda: r.choice(tuple(EMOJI.values())),
    ))()  # fmt: skip
    return one(
        user,
        say(
            r,
            "<I did not understand that.|Sorry, I do not understand.|Hmm, I am not sure what you mean.> <Can you say it in other words?|Please ask me something simple.|Could you try again?>",
        ),
    )


# --- memory ---------------------------------------------------------------------------------------


def memory(r: Random) -> Scene:
    """The user tells one to three things and later asks for some of them."""
    name, colour, pet, city, food = (r.choice(x) for x in (NAMES, COLOURS, KINDS["animals"], CITIES, KINDS["foods"]))
    pet_name, number, age = r.choice(NAMES), r.randint(2, 999), r.randint(6, 90)
    hello = say(
        r,
        "<Nice to meet you|Hello|Hi|It is nice to meet you>, {n}! <How can I help you?|What can I do for you?|>",
        n=name,
    ).strip()
    ok = "<Thank you for telling me.|Good to know!|I will remember that.|Nice!|Great, I will remember it.|OK!> "
    facts = [
        (ask(r, "<My name is|I am|I'm|Call me|Hello, I am|Hi, my name is|Hey! I'm> {n}<.|!>", n=name), hello,
         ask(r, "<What is my name?|What's my name?|Do you remember my name?|Who am I?|Do you know my name?|What was my name again?|Say my name.>"),
         say(r, "<Your name is {n}.|You are {n}.|You told me that your name is {n}.>", n=name), name),
        (ask(r, "My <favourite|favorite> <colour|color> is {c}.", c=colour), say(r, ok + "<{d} is a nice colour.|I like {c} too.|>", c=colour, d=cap(colour)),
         ask(r, "<What is my favourite colour?|Which colour do I like<| best>?|What colour did I tell you?|Do you remember my favorite color?>"),
         say(r, "<Your favourite colour is {c}.|You like {c}.|It is {c}.>", c=colour), cap(colour)),
        (ask(r, "I have {p} <called|named> {n}.", p=a(pet), n=pet_name), say(r, ok + "<{n} is a lovely name for {p}.|Say hello to {n}!|>", n=pet_name, p=a(pet)),
         ask(r, "<What is my {p} called?|What is the name of my {p}?|What's my pet's name?|Do you remember my {p}'s name?|Which pet do I have?>", p=pet),
         say(r, "<Your {p} is called {n}.|You have {p2} called {n}.>", p=pet, p2=a(pet), n=pet_name), pet_name),
        (ask(r, "<I live in|I am from|I come from|My home is> {c}.", c=city), say(r, ok + "<{c} is a fine city.|I have never been to {c}.|>", c=city),
         ask(r, "<Where do I live?|Which city did I tell you?|Where am I from?|What is my city?>"), say(r, "<You live in {c}.|You told me: {c}.>", c=city), city),
        (ask(r, "<Remember|Please remember|Keep in mind> <the number|this number:|my lucky number:> {x}.", x=number), say(r, "<OK, I will remember {x}.|I will remember the number {x}.|{x}, got it.>", x=number),
         ask(r, "<Which number did I tell you?|What was the number?|What was my number?|What number should you remember?>"), say(r, "<The number was {x}.|It was {x}.|You told me {x}.>", x=number), str(number)),
        (ask(r, "I <love|like> {f}<| very much| the most>.", f=food), say(r, ok + "<{g} can be very good.|>", g=cap(food)),
         ask(r, "<What do I like to eat?|What is my favourite food?|Which food do I like?>"), say(r, "<You like {f}.|You told me that you like {f}.>", f=food), cap(food)),
        (ask(r, "I am {x} years old.", x=age), say(r, ok + "<{x} is a good age.|>", x=age),
         ask(r, "<How old am I?|What is my age?>"), say(r, "You are {x} years old.", x=age), str(age)),
    ]  # fmt: skip
    if r.random() < 0.15:  # told and asked in one breath
        told, _, question, answer, short = r.choice(facts)
        return one(f"{told} {question}", answer, short)
    chosen = r.sample(facts, r.choice((1, 1, 1, 2, 2, 3)))
    scene: Scene = [[Turn(told, reply.strip())] for told, reply, *_ in chosen]
    for _, _, question, answer, short in r.sample(chosen, r.randint(1, len(chosen))):
        scene.append([Turn(question, answer, short)])
    return scene


def forgotten(r: Random) -> Scene:
    """Asked for what was never said. Only for conversations without a memory scene."""
    user, what = r.choice((("What is my name?", "name"), ("Who am I?", "name"), ("How old am I?", "age"), ("Where do I live?", "city"),
                           ("What is my favourite colour?", "favourite colour"), ("What is my dog called?", "dog's name")))  # fmt: skip
    return one(
        ask(r, user),
        say(r, "<I do not know|I am not sure>: you have not told me your {w} yet.<| What is it?>", w=what),
        "Unknown",
    )


# --- small talk -----------------------------------------------------------------------------------

JOKES = (
    ("Why did the chicken cross the road?", "To get to the other side!"),
    ("What do you call a bear with no teeth?", "A gummy bear!"),
    ("Why did the token cross the page?", "To get to the next block!"),
    ("What is brown and sticky?", "A stick!"),
    ("Why was six afraid of seven?", "Because seven ate nine!"),
    ("What do you call a sleeping bull?", "A bulldozer!"),
    ("Why did the octopus blush?", "It saw the bottom of the sea!"),
    ("What has four wheels and flies?", "A rubbish truck!"),
    ("Why do bees hum?", "They forgot the words!"),
    ("What do you get when you cross a snowman and a dog?", "Frostbite!"),
    ("What did the zero say to the eight?", "Nice belt!"),
    ("Why did the model eat the book?", "It was hungry for tokens!"),
)
RIDDLES = (
    ("What has hands but cannot clap?", "A clock"), ("What has keys but opens no door?", "A piano"),
    ("What has teeth but cannot eat?", "A comb"), ("What gets wetter the more it dries?", "A towel"),
    ("What has one eye but cannot see?", "A needle"), ("What has a neck but no head?", "A bottle"),
    ("What has legs but cannot walk?", "A table"), ("What goes up but never comes down?", "Your age"),
)  # fmt: skip


def joke(r: Random) -> Scene:
    if r.random() < 0.7:
        setup, punch = r.choice(JOKES)
        user = ask(
            r,
            "<Tell me a joke.|Do you know a joke?|Make me laugh.|Another joke, please.|Say something funny.|A joke?|Can you tell me a joke?>",
        )
        return one(user, f"{setup} {punch}")
    riddle, answer = r.choice(RIDDLES)
    if r.random() < 0.5:
        return one(riddle, f"{answer}!", answer)
    guess = r.choice(KINDS["tools"] + KINDS["animals"])
    right = r.random() < 0.5
    shown = answer if right else cap(a(guess))
    reply = (
        "<Yes, that is right!|Correct! Well done.|Yes! You got it.>"
        if right
        else "<No, not quite.|Good try!|Sorry, no.> <It is|The answer is>: {x}."
    )
    return [[
        Turn(ask(r, "<Tell me a riddle.|Do you know a riddle?|Ask me a riddle.|Give me a riddle.>"), riddle),
        Turn(ask(r, "<|Is it |I think it is >{x}<?|.|>", x=shown[0].lower() + shown[1:]), say(r, reply, x=answer.lower())),
    ]]  # fmt: skip


def advice(r: Random) -> Scene:
    user, kind = r.choice((
        ("What should I <eat|have for dinner|cook today|have for lunch>?", "foods"), ("What should I drink?", "drinks"),
        ("Which <fruit|snack> should I buy?", "fruits"), ("Which sport should I try?", "sports"), ("Which instrument should I learn?", "instruments"),
        ("Which pet should I get?", "animals"), ("Which colour should I paint my <room|house|door>?", "colours"), ("Where should I travel<| to| this summer>?", "cities"),
        ("Which flower should I plant?", "flowers"), ("Which toy should I buy for my <son|daughter|friend>?", "toys"),
    ))  # fmt: skip
    thing = r.choice(("cat", "dog", "rabbit", "mouse", "goldfish", "parrot") if kind == "animals" else KINDS[kind])
    why = {
        "foods": "It is simple and tasty",
        "drinks": "It is good for you",
        "fruits": "It is sweet and healthy",
        "cities": "I hear it is beautiful there",
    }.get(kind, "It is a good choice")
    shown = thing if kind in ("foods", "drinks", "sports", "colours", "cities") or thing.endswith("s") else a(thing)
    return one(
        ask(r, user),
        say(r, "<How about {x}?|I would choose {x}.|Maybe {x}.|You could try {x}.> {why}<.|!>", x=shown, why=why),
        cap(thing),
    )


def note(r: Random) -> Scene:
    """A short letter."""
    to, by = r.sample(NAMES, 2)
    gift = r.choice(KINDS["toys"] + KINDS["flowers"] + KINDS["clothes"] + ("book", "cake", "card"))
    kind, body = r.choice((
        ("a thank-you note", "Thank you <so much |very much |>for the {g}. <I love it!|It is lovely.|It made me very happy.> <I hope to see you soon.|You are very kind.>"),
        ("a birthday card", "Happy birthday! 🎉 <I hope you have a wonderful day.|I wish you a happy day and a lot of cake.> <Here is a {g} for you.|I have a {g} for you.>"),
        ("an apology", "I am <very |so |>sorry that I <lost|broke> your {g}. <It was my mistake.|I did not mean to.> I will <buy|bring> you a new one."),
        ("an invitation", "Please come to my <party|house> on {d}. <We will have cake and music.|There will be games and cake.> <I hope you can come!|Please bring your {g}.>"),
    ))  # fmt: skip
    day = r.choice(("Monday", "Friday", "Saturday", "Sunday"))
    user = ask(r, "Write {k} to {to}<| from {by}>< about the {g}|>.", k=kind, to=to, by=by, g=gift)
    signed = by if by in user else "Your friend"
    body = say(r, body, g=gift, d=day)
    if gift not in user and gift in body and kind != "a birthday card":
        user += f" Mention the {gift}."
    return one(
        user, f"Dear {to},\n\n{body}\n\n{r.choice(('Best wishes', 'With love', 'Yours'))},\n{signed}", prose=False
    )


def describe(r: Random) -> Scene:
    """What is X? Simple descriptions of common things."""
    kind = r.choice(
        (
            "fruits",
            "animals",
            "drinks",
            "tools",
            "instruments",
            "vehicles",
            "flowers",
            "trees",
            "birds",
            "sports",
            "cities",
            "countries",
        )
    )
    thing = r.choice(KINDS[kind])
    text = {
        "fruits": "{A} is a fruit. It is sweet<| and good to eat|, and it grows on a plant>.",
        "animals": "{A} is an animal. <Many children like it.|You can see one in a picture book.>",
        "drinks": "{C} is a drink. <You can have it hot or cold.|You drink it from a cup or a glass.>",
        "tools": "{A} is a tool. <You use it to make or mend things.|People use it at work.>",
        "instruments": "{A} is a musical instrument. <You can play songs on it.|It makes music.>",
        "vehicles": "{A} is a vehicle. <It takes people from place to place.|You can travel with it.>",
        "flowers": "{A} is a flower. <It smells nice.|It grows in the garden.>",
        "trees": "{A} is a tree. <It has leaves or needles, and birds live in it.|It grows tall.>",
        "birds": "{A} is a bird. It has <two wings|feathers and two legs>.",
        "sports": "{C} is a sport. <It keeps you fit.|People play or watch it for fun.>",
        "cities": "{C} is a city<, the capital of {of}|. It is the capital of {of}>.",
        "countries": "{C} is a country. Its capital is {cap}.",
    }[kind]  # fmt: skip
    of = next((land for land, city in CAPITALS.items() if city == thing), "")
    shown = thing if kind in ("drinks", "sports", "cities", "countries") else a(thing)
    user = ask(r, "<What is {x}?|What's {x}?|Do you know what {x} is?|Tell me about {x}.|Describe {x}.>", x=shown)
    return one(
        user,
        say(r, text, A=cap(a(thing)), C=cap(thing), of=of, cap=CAPITALS.get(thing, "")),
        cap(ONE_OF.get(kind, "country" if kind == "countries" else "city")),
    )
