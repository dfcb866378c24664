"""Weights of reference models."""

import torch


def draw_weights(model, seed=0):
    """Draw weights large enough that every part matters, biases and norms included; return the model, evaluating."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.05, generator=generator)
            else:
                weight.normal_(0.0 if name.endswith("bias") else 1.0, 0.1, generator=generator)
    return model.eval()
