from .answering import answer as answer
from .comparison import check_comparable as check_comparable, comparison_section as comparison_section
from .config import EvaluationConfig as EvaluationConfig
from .contamination import Overlap as Overlap, find_overlap as find_overlap, task_texts as task_texts
from .discrepancy import discrepancy as discrepancy
from .examples import Examples as Examples, Source as Source
from .harness_model import HarnessModel as HarnessModel
from .measuring import Measured as Measured, answer_examples as answer_examples, measure as measure
from .metric_list import MetricList as MetricList, list_metrics as list_metrics
from .metrics import (
    METRICS as METRICS,
    FunctionOfSums as FunctionOfSums,
    MacroAverage as MacroAverage,
    MeanOfRows as MeanOfRows,
    Metric as Metric,
    PredictionMetric as PredictionMetric,
    RatioOfSums as RatioOfSums,
    bertscore_baseline as bertscore_baseline,
)
from .modules import MetricModule as MetricModule, metric as metric
from .own_task import task as task
from .preparing import Prepared as Prepared, prepare as prepare
from .provenance import model_fingerprint as model_fingerprint
from .remote import Remote as Remote
from .reproducing import Reproduction as Reproduction, reproduce as reproduce
from .reproduction import reproduction_section as reproduction_section
from .requests import DocumentLikelihood as DocumentLikelihood, Generate as Generate, Likelihood as Likelihood
from .run_sections import run_details as run_details, run_sections as run_sections
from .runner import evaluate as evaluate
from .several import compare_reports as compare_reports
from .statistics import (
    Difference as Difference,
    Estimate as Estimate,
    difference as difference,
    estimate as estimate,
)
from .task_list import TaskList as TaskList, list_tasks as list_tasks
from .tasks import TASKS as TASKS, Task as Task
