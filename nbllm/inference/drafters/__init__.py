"""Drafters: they propose tokens that a sequence may go on with, which a model runner then verifies in one pass."""
