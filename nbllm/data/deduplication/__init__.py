"""Deduplication: exact, near (MinHash), of substrings (suffix array) and by meaning (survey section 3.1)."""
