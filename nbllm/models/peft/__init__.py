"""Adapters: few parameters trained beside a model's own, attached to any architecture."""
