"""How much of one document is looked at where a workspace grows with it."""

# Words, and lines, that are searched for repetition: 30 MB of workspace. Gopher's rules allow 100,000 words.
MOST_UNITS = 1 << 20
