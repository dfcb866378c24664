from .comparison import check_comparable as check_comparable, comparison_section as comparison_section
from .config import EvaluationConfig as EvaluationConfig
from .likelihood import Likelihoods as Likelihoods, measure_likelihoods as measure_likelihoods
from .metrics import METRICS as METRICS
from .reproduction import reproduction_section as reproduction_section
from .run_sections import run_details as run_details, run_sections as run_sections
from .runner import evaluate as evaluate
from .statistics import (
    Difference as Difference,
    Estimate as Estimate,
    difference_of_ratios as difference_of_ratios,
    ratio_of_sums as ratio_of_sums,
)
from .tasks import TASKS as TASKS
