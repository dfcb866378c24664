"""`python -m nbllm` is the command line."""

import sys

from nbllm.cli import main

sys.exit(main())
