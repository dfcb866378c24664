from .report import Report as Report
from .sections import (
    Chart as Chart,
)
from .sections import (
    KeyValues as KeyValues,
)
from .sections import (
    Metric as Metric,
)
from .sections import (
    Metrics as Metrics,
)
from .sections import (
    Sample as Sample,
)
from .sections import (
    Samples as Samples,
)
from .sections import (
    Section as Section,
)
from .sections import (
    Table as Table,
)
from .sections import (
    Text as Text,
)
