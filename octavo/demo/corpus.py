"""The text on which the demo model is trained: an endless, seeded stream of documents, written by this package.

`documents(seed, split)` yields rendered documents: chats in the model's own chat format, and some plain text. The same
seed gives the same stream. A document belongs to the training split or to the held-out split by a checksum of its text,
so no held-out document is ever trained on, whatever the seeds.
"""

# ruff: noqa: E501 (a template is one line, however many choices it has)

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from random import Random
from typing import Any, Literal

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from octavo.demo import about, facts, stories, sums, talk, tasks
from octavo.demo.grammar import a, ask, say
from octavo.demo.talk import Scene, Turn
from octavo.demo.words import CITIES, KINDS, NAMES

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END, START, STOP)  # token ids 0, 1, 2
TOOL_MARKS = ("<tool_call>", "</tool_call>")  # single tokens too, but part of the visible text
MAX_CHARS = 6000  # of a document: about 1,800 tokens, so that a whole chat fits in the context of 2,048

CHAT_TEMPLATE = """\
{%- macro text(content) -%}
  {%- if content is string %}{{ content }}
  {%- elif content %}{% for part in content %}{{ part.text }}{% endfor %}
  {%- endif %}
{%- endmacro %}
{%- set first = messages[0] if messages and messages[0].role == 'system' else none %}
{%- if tools or first %}
  {{- '<|im_start|>system\n' }}
  {%- if first %}{{ text(first.content) }}{% endif %}
  {%- if tools %}
    {{- ('\n\n' if first else '') + 'You have tools. To use one, answer with its call.\nTools:' }}
    {%- for tool in tools %}{{ '\n' + ((tool.function if tool.function else tool) | tojson) }}{% endfor %}
  {%- endif %}
  {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
  {%- if not (loop.first and first) %}
    {{- '<|im_start|>' + message.role + '\n' + text(message.content) }}
    {%- for call in message.tool_calls or [] %}
      {%- set call = call.function if call.function else call %}
      {{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
      {{- call.arguments if call.arguments is string else call.arguments | tojson }}
      {{- '}\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""


@cache
def _template() -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(CHAT_TEMPLATE)


Message = dict[str, Any]


def render(messages: list[Message], tools: list[Message] | None = None, generate: bool = False) -> str:
    """The chat as the model reads it; with `generate`, up to where its answer begins."""
    return _template().render(messages=messages, tools=tools, add_generation_prompt=generate)


def without(text: str, markers: tuple[str, ...]) -> list[str]:
    """The stretches of the text between markers: what the tokenizer may learn merges from."""
    return re.split("|".join(map(re.escape, markers)), text)


# --- conversations --------------------------------------------------------------------------------

Skill = Callable[[Random], Scene]
SKILLS: dict[Skill, float] = {
    talk.greet: 4, talk.how_are_you: 2, talk.fine: 2, talk.goodbye: 2, talk.thanks: 2, talk.praise: 1.5, about.who: 4,
    about.about_me: 4, about.octavo: 6, talk.unknown: 6, talk.strange: 12, talk.opinions: 3, talk.foreign: 2, talk.nonsense: 1, talk.joke: 3, talk.advice: 2, talk.note: 2,
    talk.describe: 3, talk.check: 1.5, talk.replies: 2.5, talk.how_to: 2.5,
    sums.arithmetic: 16, sums.too_large: 1, sums.sums_of_three: 1.5, sums.word_problem: 4, sums.counting: 3, sums.sequence: 2,
    sums.next_number: 1.5, sums.sorting: 6, sums.comparing: 2, sums.properties: 3, sums.clock: 1.5,
    facts.capitals: 5, facts.animals: 3, facts.colours: 2, facts.words: 4, facts.languages: 2.5, facts.emoji: 1.5,
    facts.calendar: 2.5, facts.shapes: 0.7, facts.trivia: 2.5, facts.belongs: 2, facts.lists: 7, facts.whole_lists: 1, facts.letters: 1.5,
    tasks.rewriting: 9, tasks.reading: 10, tasks.sentiment: 1.5, tasks.json_objects: 6, tasks.code: 3, tasks.coloured: 1,
    stories.storytelling: 6, stories.poem: 2, stories.offered: 0.5,
}  # fmt: skip

PLAIN_SYSTEM = (
    "You are <a|the> <helpful|friendly|kind|polite|concise|small|useful> <assistant|helper|chat model|AI assistant|chatbot>.<| Answer the user's questions.| Be <kind|brief|clear|honest>.| Help the user.>",
    "<You are an AI assistant.|You are Octavo.|You are the Octavo demo model.|Help the user.|Be helpful.|You help people.|Answer in simple English.>",
)
TERSE_SYSTEM = (
    "<Answer|Reply|Respond> <in one word|with one word|with one word only|as briefly as you can|with the answer only>.",
    "You are <a helpful|an> assistant. <Answer|Reply> <in one word|only with the answer|with the answer only>.",
    "<Be very brief.|Give only the answer.|One word answers only.|Only the answer, please.|Give short answers.>",
)
PIRATE = {"you": "ye", "You": "Ye", "your": "yer", "Your": "Yer", "my": "me", "My": "Me", "is": "be", "are": "be", "am": "be", "Hello": "Ahoy",
          "Hi": "Ahoy", "Yes": "Aye", "yes": "aye", "friend": "matey", "friend!": "matey!"}  # fmt: skip


def pirate(r: Random, text: str) -> str:
    words = " ".join(PIRATE.get(word, word) for word in text.split(" "))
    return say(r, "<Arr!|Ahoy!|Yo ho ho!|Aye!|Avast!> ") + words + say(r, "< Arr!| Matey!| Yo ho!|>")


def butler(r: Random, text: str) -> str:
    return say(r, "<Certainly, sir.|Of course, sir.|Very well, sir.|With pleasure, sir.> ") + text


def shout(r: Random, text: str) -> str:
    return text.upper()


def sparkle(r: Random, text: str) -> str:
    return text + " " + r.choice(("😊", "🎉", "⭐", "🌈", "🐙"))


Voice = Callable[[Random, str], str]
VOICES: dict[Voice, str] = {
    pirate: "<You are a pirate.|Talk like a pirate.|You are a <friendly|funny|old> pirate.|Answer like a pirate.|Speak as a pirate would.|You are Captain Redbeard, a pirate.>",
    butler: "<You are a butler.|You are a polite butler.|Answer like a butler.|You are my butler. Be very polite.>",
    shout: "<Always answer in capital letters.|Write in capitals.|Use only capital letters.|Shout!|You shout. Use capital letters.|ANSWER IN CAPITALS.>",
    sparkle: "<End every answer with an emoji.|Use an emoji.|Add an emoji to each answer.|You love emoji.|Be cheerful and use emoji.>",
}


def persona(r: Random) -> tuple[str, Scene]:
    """A system prompt that gives the model a name and a job, and a question about them."""
    name, job = r.choice(NAMES), r.choice(KINDS["jobs"])
    adjective = r.choice(("friendly", "old", "young", "kind", "funny", "clever", "happy"))
    system = say(
        r,
        "You are {n}, {a}<.|. Answer as {n}.| from {c}.>",
        n=name,
        a=a(f"{adjective} {job}"),
        c=r.choice(CITIES),
    )
    question, answer, short = r.choice((
        ("<Who are you?|What is your name?|Hello, who are you?|Introduce yourself.>", "I am {n}, {j}.", name),
        ("<What do you do?|What is your job?|What's your job?>", "I am {j}.", job.capitalize()),
        ("<Hello!|Hi!|Good morning!>", "Hello! I am {n}, {j}. How can I help you?", ""),
    ))  # fmt: skip
    return system, talk.one(ask(r, question), answer.format(n=name, j=a(f"{adjective} {job}")), short)


def _length(r: Random) -> int:
    """Scenes in a chat: mostly one to four, now and then a long chat that fills the context."""
    return r.choice((1, 1, 1, 2, 2, 3, 4, 5)) if r.random() < 0.9 else r.randint(6, 40)


def _pick(r: Random, keep: Callable[[Turn], bool] | None = None) -> Scene:
    skills, weights = tuple(SKILLS), _WEIGHTS
    while True:
        scene = r.choices(skills, cum_weights=weights)[0](r)
        if keep is None or all(keep(turn) for segment in scene for turn in segment):
            return scene


def _cumulative(weights: dict[Skill, float]) -> list[float]:
    total, sums = 0.0, []
    for weight in weights.values():
        total += weight
        sums.append(total)
    return sums


_WEIGHTS = _cumulative(SKILLS)


def _weave(r: Random, scenes: list[Scene]) -> list[Turn]:
    """The segments of all scenes in one order, each scene's own order kept."""
    slots = [i for i, scene in enumerate(scenes) for _ in scene]
    if any(len(scene) > 1 for scene in scenes):
        r.shuffle(slots)
    rest = [iter(scene) for scene in scenes]
    return [turn for i in slots for turn in next(rest[i])]


def conversation(r: Random) -> list[Message]:
    system, dice = "", r.random()
    scenes: list[Scene]
    if dice < 0.08:
        system = say(r, r.choice(TERSE_SYSTEM))
        scenes = [_pick(r, lambda turn: bool(turn.short)) for _ in range(_length(r))]
        turns = [Turn(turn.user, turn.short) for turn in _weave(r, scenes)]
    elif dice < 0.18:
        voice = r.choice(tuple(VOICES))
        system = say(r, VOICES[voice])
        scenes = [_pick(r, lambda turn: turn.prose and len(turn.answer) < 300) for _ in range(_length(r))]
        turns = [Turn(turn.user, voice(r, turn.answer)) for turn in _weave(r, scenes)]
    elif dice < 0.22:
        system, first = persona(r)
        scenes = [first] + [_pick(r, lambda turn: "demo model" not in turn.answer) for _ in range(_length(r) - 1)]
        turns = _weave(r, scenes)
    else:
        if dice < 0.42:
            system = say(r, r.choice(PLAIN_SYSTEM))
        scenes = [_pick(r) for _ in range(_length(r))]
        if r.random() < 0.12:
            scenes.insert(0, talk.memory(r))
        elif r.random() < 0.03:
            scenes.insert(r.randint(0, len(scenes)), talk.forgotten(r))
        turns = [_in_short(r, turn) for turn in _weave(r, scenes)]
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        messages += ({"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.answer})
    return messages


def _in_short(r: Random, turn: Turn) -> Turn:
    """Now and then the user asks for the bare answer."""
    if not turn.short or r.random() > 0.06:
        return turn
    wish = r.choice(
        (
            "Answer in one word: {q}",
            "{q} Answer in one word.",
            "{q} Only the answer, please.",
            "Briefly: {q}",
            "{q} One word only.",
        )
    )
    return Turn(wish.replace("{q}", turn.user), turn.short)


# --- documents ------------------------------------------------------------------------------------

Split = Literal["train", "heldout"]
HELD_OUT = 64  # one document in this many is held out


def split_of(text: str) -> Split:
    return "heldout" if zlib.crc32(text.encode()) % HELD_OUT == 0 else "train"


def _document(r: Random) -> str:
    dice = r.random()
    if dice < 0.08:
        return stories.plain(r)
    if dice < 0.14:
        return render(*tasks.tool_chat(r, _weave(r, [_pick(r, lambda turn: len(turn.answer) < 300)])))
    return render(conversation(r))


def documents(seed: int, split: Split = "train") -> Iterator[str]:
    """The documents of one seed that belong to the split, without end."""
    r = Random(seed)
    while True:
        text = _document(r)
        if len(text) <= MAX_CHARS and split_of(text) == split:
            yield text
