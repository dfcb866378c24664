from .causal_lm import causal_lm_loss as causal_lm_loss
