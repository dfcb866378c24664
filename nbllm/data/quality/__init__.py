"""Quality of documents: published heuristics, classifiers, perplexity, importance, language; each is a step."""
