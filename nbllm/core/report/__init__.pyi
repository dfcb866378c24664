from .figures import (
    Change as Change,
    Comparison as Comparison,
    Measurement as Measurement,
    Subject as Subject,
)
from .provenance import Provenance as Provenance, TaskRecord as TaskRecord
from .report import Report as Report
from .sections import (
    Bar as Bar,
    Bars as Bars,
    Changes as Changes,
    Chart as Chart,
    Comparisons as Comparisons,
    KeyValues as KeyValues,
    Measurements as Measurements,
    Rows as Rows,
    Sample as Sample,
    Samples as Samples,
    Section as Section,
    Table as Table,
    Text as Text,
)
