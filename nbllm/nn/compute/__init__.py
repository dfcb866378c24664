"""How this machine computes best: it is measured once, and every choice follows from that profile."""
