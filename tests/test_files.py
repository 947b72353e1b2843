"""A file is whole or absent, whatever goes wrong while it is written."""

import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fer_utils.files import expanded, held_alone, make_writable, printable, replacing, sha256, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_new_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.csv"
    write_text(path, "old")
    with replacing(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
        assert aside.parent == path.parent
        assert aside.suffix == ".csv"
    assert path.read_text() == "new"
    assert names(path.parent) == ["a.csv"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def interrupted() -> None:
        with replacing(path) as aside:
            aside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_block_that_writes_nothing_fails_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "old"


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
    # The outer block ends last.
    assert path.read_text() == "first"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="processes cannot be killed like this on Windows")
def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from fer_utils.files import replacing
        with replacing(Path(sys.argv[1])) as aside:
            aside.write_text("{")
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode != 0
    assert json.loads(path.read_text()) == {"old": 1}


def test_text_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    text, path = "48×48 ±2 – 測", tmp_path / "a.txt"
    program = (
        f"import pathlib; from fer_utils.files import write_text; write_text(pathlib.Path({str(path)!r}), {text!a})"
    )
    # Python would make UTF-8 of a locale without an encoding of its own.
    plain = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", program], check=True, env=plain)
    assert path.read_bytes() == text.encode()


def test_json_is_for_people_too(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Zoë 測", "of": [1]})
    lines = (tmp_path / "a.json").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 3
    assert lines[1].strip() == '"name": "Zoë 測",'


def test_a_digest_is_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180's first example
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_utf8_cannot_hold_is_written_out() -> None:
    assert printable("Zoë\udce9.png").encode() == b"Zo\xc3\xab\\udce9.png"


def test_a_folder_is_made_and_left_empty_or_refused(tmp_path: Path) -> None:
    make_writable(tmp_path / "deep" / "er")
    make_writable(tmp_path / "deep" / "er")
    assert names(tmp_path / "deep" / "er") == []
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_writable(tmp_path / "file")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no folder that not even root can write to")
def test_a_folder_that_takes_no_files_is_told() -> None:
    with pytest.raises(OSError, match="/proc"):
        make_writable(Path("/proc"))


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [1.0, -math.inf]}, object()])
def test_json_that_others_cannot_read_is_refused(tmp_path: Path, value: object) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"kept": True})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, value)
    assert json.loads(path.read_text()) == {"kept": True}
    assert names(tmp_path) == ["a.json"]


def test_a_lock_holds_until_its_block_ends_however_it_does(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.lock"
    with held_alone(path) as first:
        assert first
        with held_alone(path) as second, held_alone(path.with_name("b.lock")) as other:
            assert not second
            assert other
        with held_alone(path) as third:
            assert not third, "who was refused must not free what it does not hold"
    with pytest.raises(KeyError), held_alone(path):
        raise KeyError
    with held_alone(path) as again:
        assert again


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    program = "import pathlib, sys, time; from fer_utils.files import held_alone\n"
    program += "with held_alone(pathlib.Path(sys.argv[1])) as mine: print(mine, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with held_alone(path) as mine:
            assert not mine
        other.kill()
    with held_alone(path) as mine:
        assert mine


def test_a_home_directory_is_put_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert expanded("~/run") == tmp_path / "run"
    assert expanded("~nobody-of-this-name/run") == Path("~nobody-of-this-name/run")
    assert expanded("there/~") == Path("there/~")
