"""Instructions of our own, embedded: a small skill whose answers can be checked, and everyday questions.

`reminders` turns a note in everyday words into JSON: {"what": "call Anna", "day": "Monday", "time": "15:30"}. What its
notes ask for never occurs in `reminders-test`, so that the latter measures the skill and not memory. `everyday` has
general questions and short answers, to be mixed in where a model should stay as it is otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np

from nbllm.core.registry import Registry
from nbllm.core.seeding import derive

Row = dict[str, str]
INSTRUCTION_SETS: Registry[Callable[[], list[Row]]] = Registry("embedded instruction set")
ASKED = "Turn the note into a reminder, as JSON with what, day and time."

_ACTIONS = (
    "call Anna", "water the plants", "pay the rent", "buy milk", "feed the cat", "book a table", "clean the kitchen",
    "return the books", "send the invoice", "visit grandma", "fix the bike", "write to Tom", "order new shoes",
    "renew my passport", "pick up the parcel", "wash the car", "print the tickets", "meet Sara", "bake a cake",
    "take the train", "charge the camera", "call the bank", "walk the dog", "change the tyres", "check the oven",
    "answer the letter", "pack my suitcase", "buy flowers", "see the dentist", "finish the report", "empty the bins",
    "update the website", "ring the plumber", "collect the keys", "iron the shirts", "book the flight",
)  # fmt: skip
_HELD_OUT = (
    "call Peter", "repair the lamp", "buy bread", "mow the lawn", "send the photos", "meet Julia", "visit the museum",
    "pay the phone bill", "feed the rabbits", "order a taxi", "clean the windows", "write to Maria", "cancel the tour",
    "pick up the laundry", "return the drill",
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "today", "tomorrow")
_NOTES = (
    "Remind me to {what} {day} {time}.",
    "{day} {time} I have to {what}.",
    "Please do not let me forget to {what} {day} {time}.",
    "I need to {what} {day} {time}, can you note that?",
    "Note for me: {what}, {day} {time}.",
    "I must {what} {time} {day}.",
)
_HOURS = "twelve one two three four five six seven eight nine ten eleven".split()


@INSTRUCTION_SETS.register("reminders")
def reminders() -> list[Row]:
    """Return 240 notes and their reminders."""
    return _reminders(_ACTIONS, 240, "reminders")


@INSTRUCTION_SETS.register("reminders-test")
def reminders_test() -> list[Row]:
    """Return 60 notes whose actions do not occur in `reminders`."""
    return _reminders(_HELD_OUT, 60, "reminders-test")


@INSTRUCTION_SETS.register("everyday")
def everyday() -> list[Row]:
    """Return everyday questions with short answers."""
    return [{"instruction": asked, "input": "", "output": answer} for asked, answer in _EVERYDAY]


def _reminders(actions: tuple[str, ...], count: int, name: str) -> list[Row]:
    rng = np.random.default_rng(derive(0, name))
    rows: dict[str, Row] = {}
    while len(rows) < count:
        what, day, note = (options[rng.integers(len(options))] for options in (actions, _DAYS, _NOTES))
        clock, spoken = _time(
            int(rng.integers(7, 22)), int(rng.choice([0, 15, 30, 45])), int(rng.integers(3))
        )
        on = day if day in ("today", "tomorrow") else f"on {day}"
        text = note.format(what=what, day=on, time=f"at {spoken}")
        answer = json.dumps({"what": what, "day": day, "time": clock})
        rows[text] = {"instruction": ASKED, "input": text[0].upper() + text[1:], "output": answer}
    return list(rows.values())


def _time(hour: int, minute: int, way: int) -> tuple[str, str]:
    """Return a time as HH:MM and as it is said in one of three ways."""
    clock = f"{hour:02}:{minute:02}"
    if way == 0:
        return clock, clock
    half = "am" if hour < 12 else "pm"
    if way == 1:
        return clock, f"{(hour - 1) % 12 + 1}{f':{minute}' if minute else ''} {half}"
    part = "in the morning" if hour < 12 else "in the afternoon" if hour < 18 else "in the evening"
    words = {0: "{now}", 15: "a quarter past {now}", 30: "half past {now}", 45: "a quarter to {then}"}[minute]
    return clock, f"{words.format(now=_HOURS[hour % 12], then=_HOURS[(hour + 1) % 12])} {part}"


_EVERYDAY = (
    ("Why is the sky blue?", "Air scatters blue light more than red light, so blue reaches us from all sides."),
    ("How do I boil an egg?", "Put it into boiling water: six minutes for a soft yolk, ten for a hard one."),
    ("What is the capital of Italy?", "Rome."),
    ("Name three primary colours.", "Red, yellow and blue."),
    ("How many minutes are in two hours?", "120."),
    ("What does a thermometer measure?", "Temperature."),
    ("Give me a synonym for happy.", "Glad."),
    ("Translate into French: good morning.", "Bonjour."),
    ("What is photosynthesis?", "Plants use light to turn water and carbon dioxide into sugar and oxygen."),
    ("How can I fall asleep faster?", "Keep the room dark and cool, and rise at a fixed time."),
    ("What is the opposite of cold?", "Hot."),
    ("Write a short greeting for a birthday card.", "Happy birthday! I wish you a year full of good surprises."),
    ("What is a noun?", "A word that names a person, a place, a thing or an idea."),
    ("How far is the moon?", "About 384,000 kilometres on average."),
    ("Who wrote Romeo and Juliet?", "William Shakespeare."),
    ("What should I wear in the rain?", "A waterproof jacket and shoes that keep water out."),
    ("How do plants drink?", "Their roots take up water, which rises through fine tubes in the stem."),
    ("What is 15 percent of 200?", "30."),
    ("Suggest a name for a grey cat.", "Misty."),
    ("Why do we have seasons?", "The Earth's axis is tilted, so each half gets more sun for a part of the year."),
    ("How long should I cook spaghetti?", "Eight to ten minutes in salted boiling water."),
    ("What is the largest ocean?", "The Pacific Ocean."),
    ("Explain recursion in one sentence.", "A recursive function calls itself on a smaller part of the problem."),
    ("Which animal is the fastest on land?", "The cheetah."),
    ("How do I thank a colleague?", "Say what they did and how it helped you."),
    ("What is gravity?", "The force by which masses attract each other; it keeps us on the ground."),
    ("Give an example of a renewable energy source.", "Wind."),
    ("How many legs does a spider have?", "Eight."),
    ("What is the past tense of go?", "Went."),
    ("How do I remove a coffee stain?", "Rinse it with cold water, rub in a little dish soap, and wash as usual."),
    ("What do bees make?", "Honey and wax."),
    ("Name a country in South America.", "Peru."),
    ("What is an atom?", "The smallest part of a chemical element: a nucleus with electrons around it."),
    ("Is a tomato a fruit?", "To a botanist it is a fruit; cooks treat it as a vegetable."),
    ("Write one sentence about autumn.", "In autumn the leaves turn gold and drift slowly to the ground."),
    ("What is the boiling point of water?", "100 degrees Celsius at sea level."),
    ("How can I save electricity at home?", "Switch off what you do not use, and replace old bulbs by LEDs."),
    ("What is a prime number?", "A whole number above one that only one and itself divide."),
    ("Which planet is closest to the sun?", "Mercury."),
    ("What does a librarian do?", "A librarian collects and orders books and helps people to find them."),
)  # fmt: skip
