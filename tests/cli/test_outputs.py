"""Where outputs go: odd names and links are found before anything is measured."""

import os
from pathlib import Path

import pytest

from condense.cli.outputs import check_file, check_folder
from condense.errors import UsageError
from condense.files import write_text


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    link, target = tmp_path / "run.json", tmp_path / "kept" / "real.json"
    link.symlink_to(target)
    for text in ("first", "second"):
        check_file(link, force=True)
        write_text(link, text)
        assert link.is_symlink() and target.read_text() == text
    with pytest.raises(UsageError, match="real.json exists and was not written by condense"):
        check_file(link, force=False)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["real.json"]


def test_links_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "gone").symlink_to(tmp_path / "no" / "folder" / "x.json")
    (tmp_path / "folder").symlink_to(tmp_path / "missing")
    for force in (True, False):
        with pytest.raises(UsageError, match="leads in a circle"):
            check_file(tmp_path / "circle", force=force)
        with pytest.raises(UsageError, match="leads in a circle"):
            check_folder(tmp_path / "circle", force=force)
        with pytest.raises(UsageError, match="whose folder is not there"):
            check_file(tmp_path / "gone", force=force)
        with pytest.raises(UsageError, match="which is not there"):
            check_folder(tmp_path / "folder", force=force)


def test_a_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    check_folder(tmp_path / "link", force=False)
    check_file(tmp_path / "link" / "run.json", force=False)
    write_text(tmp_path / "link" / "run.json", "text")
    assert (tmp_path / "real" / "run.json").read_text() == "text"


@pytest.mark.parametrize("name", ["x" * 250 + ".json", "é" * 125 + ".json", "x" * 255])
def test_the_longest_names_are_written(tmp_path: Path, name: str) -> None:
    check_file(tmp_path / name, force=False)
    write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["x" * 256, "é" * 130, "x" * 5000])
def test_longer_names_are_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises((UsageError, OSError), match="(?i)name"):
        check_file(tmp_path / name, force=False)


def test_a_name_that_is_no_utf8_is_written(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.json")
    check_file(path, force=False)
    write_text(path, "text of caf\udce9")
    assert os.listdir(os.fsencode(str(tmp_path))) == [b"caf\xe9.json"] and path.read_text().startswith("text of caf")
