"""Time to find personal data: twice the text against once, for the worst bait of every kind; and megabytes a second.

python tests/bench/bench_privacy.py
"""

import time

import pyarrow as pa

from nbllm.core.text_table import text_table
from nbllm.data import load
from nbllm.data.arrow_text import Texts
from nbllm.data.pii.detector import DETECTORS
from nbllm.data.pii.finding import KINDS, find_personal_data
from tests.data.pii.generated import documents
from tests.data.pii.test_finding import BAIT

SIZE = 400_000  # bytes of bait


def seconds(function, times=3):
    """Return the shortest of several times, of the processor: others may use it too."""
    found = []
    for _ in range(times):
        begin = time.process_time()
        function()
        found.append(time.process_time() - begin)
    return min(found)


def main():
    rows = [("kind", "worst bait", "seconds", "twice the text / once")]
    for kind in DETECTORS:

        def read(bait, size, find=DETECTORS[kind].find):
            text = bait.encode("latin-1") * (size // len(bait))
            return seconds(lambda: sum(1 for _ in find(text, 0, len(text))))

        once = {bait: read(bait, SIZE) for bait in BAIT}
        worst = max(once, key=once.__getitem__)
        rows.append(
            (kind, repr(worst), f"{once[worst]:.3f}", f"{read(worst, 2 * SIZE) / read(worst, SIZE):.2f}")
        )
    print(text_table(rows))
    kinds = tuple(kind for kind in KINDS if kind != "name")
    for name, texts in [("pydocs", load("pydocs")["text"]), ("planted", documents(2000)[0])]:
        batch = Texts.of(pa.array(texts))
        find_personal_data(batch, kinds)
        took = seconds(lambda batch=batch: find_personal_data(batch, kinds))
        print(
            f"{name}: {batch.data.size / took / 1e6:.1f} MB/s, {batch.num_documents / took:,.0f} documents/s"
        )


if __name__ == "__main__":
    main()
