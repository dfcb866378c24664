"""Alignment (survey section 3.5): preferences, and reinforcement learning from rewards."""
