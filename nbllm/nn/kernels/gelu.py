"""The constants of GELU's tanh form, x/2 (1 + tanh(C0 (x + C1 x^3))), which the kernels and other modules read."""

import math

C0 = math.sqrt(2 / math.pi)
C1 = 0.044715
