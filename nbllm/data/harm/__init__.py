"""Harm: toxic text, and whom a preparation of text leaves out (survey section 3.1)."""
