"""Model runners: they compute the logits of a step that the scheduler has chosen, each in its own way."""
