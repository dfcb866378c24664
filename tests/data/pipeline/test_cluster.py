import pytest

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.data.pipeline.pipeline import Pipeline
from tests.data.deduplication.conftest import generated
from tests.data.pipeline.example_steps import STEPS, Length, documents
from tests.data.pipeline.test_interrupted import folder as folder
from tests.data.pipeline.test_pipeline import contents

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client():
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        yield client


def test_two_workers_write_the_same_bytes(client, folder, tmp_path):
    pipeline = Pipeline(STEPS, part_bytes=1500)
    pipeline.run(folder, tmp_path / "here")
    spread = pipeline.run(folder, tmp_path / "there", on=client)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert len(spread.files) > 1


def test_a_data_set_is_written_where_the_workers_can_read_it(client, tmp_path):
    texts = documents(9000)
    here = Pipeline(STEPS, part_bytes=50_000).run(texts, tmp_path / "here")
    there = Pipeline(STEPS, part_bytes=50_000).run(texts, tmp_path / "there", on=client)
    assert contents(here.folder) == contents(there.folder)
    assert len(here.files) > 2


def test_workers_exchange_the_keys_of_bands(client, tmp_path):
    """Each column of keys is brought together by a worker, from the tables that all have written."""
    texts = generated(600, seed=5)
    pipeline = Pipeline([nb.data.dedup(threshold=0.7, sample=100)], part_bytes=20_000)
    here = pipeline.run(texts, tmp_path / "here")
    submitted = []
    with pytest.MonkeyPatch.context() as patch:
        submit = client.submit
        patch.setattr(
            client,
            "submit",
            lambda work, *given, **named: (submitted.append(given), submit(work, *given, **named))[1],
        )
        there = pipeline.run(texts, tmp_path / "there", on=client)
    assert contents(here.folder) == contents(there.folder)
    assert 100 < len(there.ledger) < 300
    assert {given[0] for given in submitted if given} >= {"set", "band 0", "band 1"}


def test_errors_of_workers_come_back(client, tmp_path):
    class Bad(Length):
        def signals(self, texts):
            raise UserError("This step is broken.")

    with pytest.raises(UserError, match="This step is broken"):
        Pipeline([Bad()]).run(["a"], tmp_path, on=client)
