"""What is left of unfinished work, and who may go on with it."""

import pytest

from kogpt.checkpoint import resources
from kogpt.checkpoint.staging import Staging


@pytest.mark.parametrize(("plan", "kept"), [({"shards": 2}, True), ({"shards": 3}, False)])
def test_a_rest_is_resumed_by_the_same_work_alone(plan, kept, tmp_path):
    with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "dst", {"shards": 2}) as staging:
        (staging.folder / "part").write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "dst", plan) as staging:
        assert (staging.folder / "part").exists() is kept
        raise KeyboardInterrupt


def test_work_without_a_plan_leaves_nothing_to_resume(tmp_path):
    with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "dst") as staging:
        (staging.folder / "part").write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_the_room_of_a_container_counts_its_cache_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "Path", lambda _: tmp_path)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 100\nfile 500\nkernel 7\n")
    assert resources._cgroup_room() == 800
    (tmp_path / "memory.max").write_text("max\n")
    assert resources._cgroup_room() == 1 << 62
