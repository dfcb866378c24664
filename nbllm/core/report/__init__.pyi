from .report import Report as Report
from .sections import (
    Change as Change,
    Changes as Changes,
    Chart as Chart,
    KeyValues as KeyValues,
    Metric as Metric,
    Metrics as Metrics,
    PerDocument as PerDocument,
    Sample as Sample,
    Samples as Samples,
    Section as Section,
    Subject as Subject,
    Table as Table,
    Text as Text,
)
