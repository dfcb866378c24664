import json
import os
import shutil

from nbllm.runs.presence import Presence
from nbllm.runs.store import create, read_record


def test_a_run_is_there_until_its_folder_is_deleted_or_moved(tmp_path):
    path = create(tmp_path, "run", {})
    presence = Presence(path, read_record(path))
    assert not presence.is_gone()
    path.rename(tmp_path / "elsewhere")
    assert presence.is_gone()
    (tmp_path / "elsewhere").rename(path)
    assert not presence.is_gone()
    shutil.rmtree(path)
    assert presence.is_gone()


def test_without_its_record_it_is_gone_though_its_folder_may_be_there(tmp_path):
    path = create(tmp_path, "run", {})
    presence = Presence(path, read_record(path))
    (path / "run.json").unlink()
    assert presence.is_gone()


def test_another_run_of_the_same_name_is_another(tmp_path):
    path = create(tmp_path, "run", {})
    presence = Presence(path, read_record(path))
    shutil.rmtree(path)
    create(tmp_path, "run", {})
    assert presence.is_gone()


def test_a_record_that_was_written_anew_is_the_same_run(tmp_path):
    path = create(tmp_path, "run", {})
    record = read_record(path)
    presence = Presence(path, record)
    assert not presence.is_gone()
    (path / "new").write_text(json.dumps({**record, "note": "looked at"}))
    os.replace(path / "new", path / "run.json")
    assert not presence.is_gone()
    (path / "run.json").write_text("{")  # damaged, but nobody else's
    assert not presence.is_gone()
