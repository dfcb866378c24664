from .report import Report as Report
from .sections import (
    Chart as Chart,
    KeyValues as KeyValues,
    Metric as Metric,
    Metrics as Metrics,
    Sample as Sample,
    Samples as Samples,
    Section as Section,
    Table as Table,
    Text as Text,
)
