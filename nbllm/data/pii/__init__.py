"""Personal data in text: found, proved, replaced (survey section 3.1).

A kernel marks the windows of each document in which something may stand; expressions of bounded length run on these
alone, and a check (check digits, lengths, ranges, a plan of numbers, entropy) has to prove what they find.
"""
