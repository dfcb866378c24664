"""Alignment (survey section 3.5): learning from preferences and rewards; a module a method, with its objective."""
