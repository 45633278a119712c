"""A new file takes a free name, or none."""

import errno
import os

import pytest

from peakpoint.base.files import Staged


def test_where_hard_links_do_not_work_a_name_that_is_taken_stays(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    path = tmp_path / "a"
    for text in (b"first", b"second"):
        with Staged(path) as staged:
            staged.write(text)
            staged.sync()
            if text == b"first":
                staged.create()
            else:
                with pytest.raises(FileExistsError):
                    staged.create()
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / "no" / "a"
    with pytest.raises(FileNotFoundError) as refused:
        Staged(path)
    assert refused.value.filename == str(path)
