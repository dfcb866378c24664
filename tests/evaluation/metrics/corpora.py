"""Texts that metrics are tested with: predictions and references that a fixed seed draws, also hostile ones."""

import random

WORDS = (
    "the cat sat on a mat and The dog's naïve, 日本 देश café 3.5% don't (run) U.S. — end! is it? No.".split()
)


def sentences(count, seed, low=1, high=25):
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(WORDS, k=chooser.randint(low, high))) for _ in range(count)]


def perturbed(text, chooser):
    """A text with words left out, exchanged and moved."""
    words = text.split()
    for _ in range(chooser.randint(0, 6)):
        place = chooser.randrange(len(words) + 1)
        change = chooser.choice(["insert", "delete", "swap"])
        if change == "insert" or not words:
            words.insert(place, chooser.choice(WORDS))
        elif change == "delete":
            words.pop(place - 1)
        else:
            words.append(words.pop(place - 1))
    return " ".join(words)


def pairs(count=60, num_references=2, seed=0):
    """Predictions, and for each as many references, or from 1 to that many where it is negative."""
    chooser = random.Random(seed)
    predictions = sentences(count, seed)
    low, high = (num_references, num_references) if num_references > 0 else (1, -num_references)
    references = [
        [perturbed(text, chooser) for _ in range(chooser.randint(low, high))] for text in predictions
    ]
    return ["", *predictions[1:]], references
