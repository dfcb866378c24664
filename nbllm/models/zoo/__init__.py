"""Published models by name: what there is, where each can be had, what is here."""
