"""Published models by name: which there are, where each can be downloaded, which are on this machine."""
