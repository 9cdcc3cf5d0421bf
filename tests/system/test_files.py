"""Files that are whole or not there, whoever writes, fails or is killed meanwhile."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from recipe.system import files
from recipe.system.files import locked, write_whole

ROOT = Path(__file__).resolve().parents[2]


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    file = tmp_path / "run.json"
    write_whole(file, "old, ä")

    def fails(draft):
        draft.write_text("half")
        assert file.read_text("utf-8") == "old, ä"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_whole(file, fails)
    assert file.read_text("utf-8") == "old, ä" and os.listdir(tmp_path) == ["run.json"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    write_whole(tmp_path / "run.json", "old")
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom recipe.system.files import write_whole\n"
        "write_whole(Path(sys.argv[1]), lambda draft: (draft.write_text('half'), os.kill(os.getpid(), signal.SIGKILL)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run.json")], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL and (tmp_path / "run.json").read_text() == "old"


def test_a_killed_writer_s_draft_goes_and_one_at_work_stays(tmp_path):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom recipe.system.files import write_whole, write_whole_folder\n"
        "def die(draft): (draft / 'half').touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_whole_folder(Path(sys.argv[1]), lambda draft: write_whole(draft.parent / 'file', lambda _: die(draft)))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], cwd=ROOT)
    (killed,) = tmp_path.glob(".out.*.tmp")
    (tmp_path / "file.12.34.tmp").touch()
    (tmp_path / "other.tmp").touch()
    assert [one.name for one in files.entries(tmp_path)] == ["other.tmp"]

    def write(draft):
        assert not killed.exists()
        threads = [threading.Thread(target=files.write_whole_folder, args=(tmp_path / "out", Path.touch))]
        threads[0].start()
        threads[0].join()
        assert draft.exists(), "another writer of the same folder took it for a killed one's"

    files.write_whole_folder(tmp_path / "out", write)
    files.remove_drafts(tmp_path, tmp_path / "nowhere")
    assert sorted(os.listdir(tmp_path)) == ["other.tmp", "out"]


def test_threads_write_the_same_file_at_once(tmp_path):
    both = threading.Barrier(2)

    def write(letter):
        def in_two_steps(draft):
            with draft.open("a") as stream:
                stream.write(letter * 3)
                stream.flush()
                both.wait(10)
                stream.write(letter * 3)

        write_whole(tmp_path / "a", in_two_steps)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "xy"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_text() in ("xxxxxx", "yyyyyy") and os.listdir(tmp_path) == ["a"]


def test_a_lock_is_waited_for_and_ends_with_its_process(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom recipe.system.files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    lock, waited = tmp_path / "a.lock", []
    holder = subprocess.Popen([sys.executable, "-c", code, str(lock)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"

        def give_up():
            raise InterruptedError

        with pytest.raises(InterruptedError), locked(lock, give_up):
            raise AssertionError("it is held")

        def kill():
            waited.append(holder.poll())
            holder.kill()
            holder.wait()

        with locked(lock, kill):
            assert waited == [None]
            with pytest.raises(BlockingIOError), lock.open("w") as other:  # as `ownership` would, or an older version
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert lock.exists()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_folder_is_one_process_s_until_it_ends(tmp_path, monkeypatch):
    """Also of its children's, which outlive it when it is killed."""
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    program = (
        "import os, sys, time; from pathlib import Path; from recipe.system.files import held\n"
        "with held(Path(sys.argv[1])) as mine:\n"
        "    child = os.fork()\n"
        "    if child: print(mine, child, flush=True)\n"
        "    time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    mine, child = holder.stdout.readline().split()
    assert mine == "True"
    with files.held(tmp_path) as ours:
        assert not ours
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with files.held(tmp_path) as ours:
        assert not ours
    os.kill(int(child), signal.SIGKILL)
    monkeypatch.setattr(files, "PATIENCE", 30)
    with files.held(tmp_path) as ours:
        assert ours
    assert list(tmp_path.iterdir()) == []


def test_nothing_makes_drafts_by_hand():
    """Two renames are of folders: a dataset's, and its tokenizer's."""
    by_hand = re.compile(r"\.tmp\b|os\.(replace|rename)\(|\.rename\(|draft\.replace\(")
    found = [file.name for file in (ROOT / "recipe").rglob("*.py") if by_hand.search(file.read_text("utf-8"))]
    assert sorted(found) == ["files.py", "prepare.py"]
