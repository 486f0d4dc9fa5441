"""Files and folders that appear whole or not at all, and the cache."""

import os
import stat
from pathlib import Path

import pytest

from trimtab.files import atomic_directory, atomic_file, cache_directory


def test_a_file_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "new" / "report.json"
    with atomic_file(target) as temporary:
        temporary.write_text("{}")
        assert not target.exists()
    assert target.read_text() == "{}"
    assert os.listdir(target.parent) == ["report.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "report.json"
    target.write_text("old")

    def write_and_fail():
        with atomic_file(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_file_has_the_permissions_that_the_user_gives_new_files(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    with atomic_file(tmp_path / "ours") as temporary:
        temporary.write_text("")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_folder_replaces_the_old_one_whole(tmp_path):
    target = tmp_path / "program"
    target.mkdir()
    (target / "stale").write_text("")
    with atomic_directory(target) as temporary:
        (temporary / "fresh").write_text("x")
        assert (target / "stale").exists()
    assert os.listdir(target) == ["fresh"]
    assert os.listdir(tmp_path) == ["program"]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    target = tmp_path / "program"
    target.mkdir()
    (target / "kept").write_text("")

    def write_and_fail():
        with atomic_directory(target) as temporary:
            (temporary / "half").write_text("")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert os.listdir(target) == ["kept"]
    assert os.listdir(tmp_path) == ["program"]


def test_a_folder_has_the_permissions_that_the_user_gives_new_folders(tmp_path):
    (tmp_path / "plain").mkdir()
    with atomic_directory(tmp_path / "ours"):
        pass
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")}
    assert len(modes) == 1


def test_the_cache_is_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "here"))
    assert cache_directory("machine", "old") == tmp_path / "here" / "machine" / "old"
    assert (tmp_path / "here" / "machine" / "old").is_dir()


def test_the_cache_is_the_users_by_default(tmp_path, monkeypatch):
    monkeypatch.delenv("TRIMTAB_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Path(tmp_path) in cache_directory().parents
