"""What stops a preparation: signals, damaged or changed files, a full disk. Finished parts stay, the same command goes on."""

import fcntl
import os
import resource
import signal

import pytest

from recipe.config import PrepareConfig, run_main
from recipe.corpus import parts
from recipe.errors import UserError
from recipe.prepare import prepare
from tests.preparing import command, config_of, same_bytes, words_of
from tests.processes import group_members, own_group, wait_for
from tests.tiny.texts import make_text, write_text, write_vocabulary


def test_a_run_that_is_stopped_three_times_ends_as_an_unbroken_one(tmp_path):
    for name, (count, seed) in {"a": (50, 0), "b": (50, 1), "c": (10_000, 2), "d": (10_000, 3)}.items():
        write_text(tmp_path / "text" / f"{name}.jsonl.gz", make_text(count, seed))
    vocabulary = write_vocabulary(tmp_path)
    state, folder = tmp_path / "out.partial" / "state", tmp_path / "out.partial" / "train"

    def begun():  # long parts without a record, whose folder every run makes anew
        long = {
            number: folder / f"part-0000{number}"
            for number in (2, 3)
            if not (state / f"train-0000{number}.json").exists()
        }
        return {(number, part.stat().st_ctime_ns) for number, part in long.items() if part.exists()}

    def in_the_middle(before):
        return all((state / f"train-0000{number}.json").exists() for number in (0, 1)) and begun() - before

    for stop, whole_group, status, processes in (
        (signal.SIGKILL, 0, -9, 2),
        (signal.SIGTERM, 0, 143, 2),
        (signal.SIGINT, 1, 130, 1),
    ):
        before = begun()
        words = command(tmp_path, processes=processes, tokenizer=vocabulary)
        with (tmp_path / "errors").open("w") as errors, own_group(words, stderr=errors) as run:
            wait_for(lambda before=before: in_the_middle(before))
            (os.killpg if whole_group else os.kill)(run.pid, stop)
            wait_for(lambda run=run: not group_members(run.pid))
        said = (tmp_path / "errors").read_text()
        assert run.returncode == status, said
        assert "Traceback" not in said and said.endswith("interrupted\n" if whole_group else "")
        assert len(list(state.glob("train-*.json"))) < 4, "the run was over before it was stopped"
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="unfinished preparation of other settings or text .`max_tokens`.; remove"):
        prepare(config_of(tmp_path, max_tokens=61, tokenizer=vocabulary))
    kept = (state / "train-00001.json").stat().st_mtime_ns
    prepare(config_of(tmp_path, tokenizer=vocabulary))
    assert not (tmp_path / "out.partial").exists()
    whole = next((tmp_path / "out" / "train" / "part-00001").iterdir()).stat().st_mtime_ns
    assert whole < kept, "a finished part was written again"
    prepare(config_of(tmp_path, out=str(tmp_path / "unbroken"), tokenizer=vocabulary))
    same_bytes(tmp_path / "out", tmp_path / "unbroken")


def test_a_run_that_was_killed_in_its_first_moment_is_not_in_the_way(tmp_path, corpus):
    (tmp_path / "out.partial/state").mkdir(parents=True)
    prepare(config_of(tmp_path))
    assert (tmp_path / "out/dataset.json").is_file() and not (tmp_path / "out.partial").exists()


def test_damaged_files_are_named_and_cost_no_other_part(tmp_path, corpus, capsys):
    files = [tmp_path / "text" / name for name in ("a.jsonl.gz", "b.jsonl.gz", "c.jsonl.gz")]
    good = [file.read_bytes() for file in files]
    vocabulary = write_vocabulary(tmp_path)
    words = words_of(tmp_path, tokenizer=vocabulary)
    files[0].write_bytes(good[0][:-20])
    files[1].write_bytes(good[1][:400] + bytes(40) + good[1][440:])
    assert run_main(PrepareConfig, prepare, words) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors and "2 failed" in errors
    for file in files[:2]:
        assert f"failed: {file}: cannot be read to its end" in errors
    assert errors.splitlines()[-1].startswith(f"error: {files[0]}: cannot be read to its end")
    assert "(and 1 more, named above); then run the same command again" in errors
    assert not (tmp_path / "out").exists()
    whole = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.partial").rglob("part-00002/*")}
    assert len(whole) == 4, "the index and one shard, in two splits"

    files[0].write_bytes(good[0])
    assert run_main(PrepareConfig, prepare, words) == 2
    captured = capsys.readouterr()
    assert "1 of 3 parts are there already" in captured.out and "2/3 parts (1 before)" in captured.err
    files[1].write_bytes(good[1])
    assert run_main(PrepareConfig, prepare, words) == 0
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("part-00002/*")}
    assert sorted(now.values()) == sorted(whole.values())
    prepare(config_of(tmp_path, tokenizer=vocabulary, out=str(tmp_path / "unbroken")))
    same_bytes(tmp_path / "out", tmp_path / "unbroken")


def test_a_corpus_of_damaged_files_is_given_up(tmp_path, monkeypatch):
    for number in range(6):
        write_text(tmp_path / "text" / f"{number}.jsonl.gz", [])
        (tmp_path / "text" / f"{number}.jsonl.gz").write_bytes(b"no gzip")
    monkeypatch.setattr(parts, "_MOST_FAILURES", 3)
    state = tmp_path / "out.partial" / "state"
    state.mkdir(parents=True)
    (state / "lock").touch()
    with (state / "train-00005.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a process at work on it would; the run has no way but to give up
        with pytest.raises(UserError, match=r"\d.jsonl.gz: cannot be read to its end.*and \d more, named above"):
            prepare(config_of(tmp_path, tokenizer=write_vocabulary(tmp_path)))
    assert not (tmp_path / "out.partial").exists(), "there is no part to go on with"


@pytest.fixture
def begun(tmp_path, corpus):
    """An unfinished preparation: of three parts the last is missing, its file was damaged. Returns its settings."""
    file = tmp_path / "text" / "c.jsonl.gz"
    good = file.read_bytes()
    file.write_bytes(good[:-20])
    settings = dict(tokenizer=write_vocabulary(tmp_path))
    with pytest.raises(UserError, match="c.jsonl.gz: cannot be read to its end"):
        prepare(config_of(tmp_path, **settings))
    file.write_bytes(good)
    return settings


def test_a_file_that_changes_between_two_runs_is_read_again(tmp_path, corpus, begun):
    write_text(tmp_path / "text" / "a.jsonl.gz", [*corpus["a.jsonl.gz"], "one more"])
    info = prepare(config_of(tmp_path, **begun))
    assert sum(split.documents for split in info.splits.values()) == 401
    prepare(config_of(tmp_path, out=str(tmp_path / "unbroken"), **begun))
    same_bytes(tmp_path / "out", tmp_path / "unbroken")


@pytest.mark.parametrize("what", ["is missing or has changed", "is new"])
def test_files_that_vanish_or_appear_between_two_runs_are_refused_by_name(tmp_path, begun, what):
    if what == "is new":
        file = tmp_path / "text" / "aa.jsonl.gz"
        write_text(file, ["new"])
    else:
        file = tmp_path / "text" / "a.jsonl.gz"
        file.unlink()
    with pytest.raises(UserError, match=f"other settings or text .`text`: {file} {what}.; remove .*out.partial, or"):
        prepare(config_of(tmp_path, **begun))
    assert len(list((tmp_path / "out.partial" / "state").glob("train-*.json"))) == 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: write_text(file, ["other text"]), "has changed while it was read; wait until it is whole"),
        (lambda file: file.unlink(), "cannot be read: No such file or directory; bring it back"),
    ],
)
def test_a_file_that_changes_or_vanishes_while_it_is_read(tmp_path, corpus, monkeypatch, spoil, message):
    file, tokenizers = tmp_path / "text" / "b.jsonl.gz", []

    def encoder(folder, really=parts.tokenizer.encoder):
        tokenizers.append(folder)
        if len(tokenizers) == 2:  # the second part is about to be read, its size is known
            spoil(file)
        return really(folder)

    monkeypatch.setattr(parts.tokenizer, "encoder", encoder)
    with pytest.raises(UserError, match=f"{file}: .*(?:{message}|No such file)"):
        prepare(config_of(tmp_path, tokenizer=write_vocabulary(tmp_path)))
    records = sorted(path.name for path in (tmp_path / "out.partial" / "state").glob("train-*.json"))
    assert records == ["train-00000.json", "train-00002.json"]


# bytes of a file: too few for the tokenizer, for a shard, for the picture at the end
@pytest.mark.parametrize(("limit", "parts_there"), [(2_000, 0), (5_000, 2), (12_000, 3)])
def test_a_full_disk_is_one_line_and_finished_parts_stay(tmp_path, corpus, limit, parts_there, capsys):
    vocabulary = write_vocabulary(tmp_path)
    words = words_of(tmp_path, tokenizer=vocabulary)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # the system itself refuses to write more into a file
    try:
        assert run_main(PrepareConfig, prepare, words) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        f"error: {tmp_path / 'out.partial'}: File too large; free some space and run the same command"
    )
    assert len(list((tmp_path / "out.partial" / "state").glob("train-*.json"))) == parts_there
    assert run_main(PrepareConfig, prepare, words) == 0
    prepare(config_of(tmp_path, tokenizer=vocabulary, out=str(tmp_path / "unbroken")))
    same_bytes(tmp_path / "out", tmp_path / "unbroken")


def test_a_folder_that_has_become_read_only_is_one_line_and_another_file_is_not_it(
    tmp_path, corpus, monkeypatch, capsys
):
    def refuses(folder):
        raise PermissionError(13, "Permission denied", str(folder / "part"))

    monkeypatch.setattr(parts, "read_vocabulary", refuses)
    words = words_of(tmp_path, tokenizer=write_vocabulary(tmp_path))
    assert run_main(PrepareConfig, prepare, words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        f"error: {tmp_path / 'out.partial'}: Permission denied; make it writable and run the same command"
    )
    assert parts.not_written(PermissionError(13, "Permission denied", "elsewhere"), tmp_path) is None
