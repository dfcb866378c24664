from .attention import attention_weights as attention_weights
