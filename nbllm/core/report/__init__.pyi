from .figures import Change as Change, Measurement as Measurement, Subject as Subject
from .report import Report as Report
from .sections import (
    Changes as Changes,
    Chart as Chart,
    KeyValues as KeyValues,
    Measurements as Measurements,
    Rows as Rows,
    Sample as Sample,
    Samples as Samples,
    Section as Section,
    Table as Table,
    Text as Text,
)
