from .figures import Change as Change, Metric as Metric, PerDocument as PerDocument, Subject as Subject
from .report import Report as Report
from .sections import (
    Changes as Changes,
    Chart as Chart,
    KeyValues as KeyValues,
    Metrics as Metrics,
    Sample as Sample,
    Samples as Samples,
    Section as Section,
    Table as Table,
    Text as Text,
)
