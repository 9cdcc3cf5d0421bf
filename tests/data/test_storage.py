"""Files in an object store, against a server that speaks S3: whole or not at all, failures asked again, then one line."""

import threading
from pathlib import Path

import pytest

from recipe.data import storage
from recipe.errors import UserError
from tests.object_store import BUCKET

FOLDER = f"s3://{BUCKET}/some/folder"


def put(folder: Path, name: str, content: bytes) -> bytes:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return content


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_there_and_back(tmp_path, object_store):
    content = put(tmp_path / "here", "sub/a.bin", bytes(range(256)) * 50_000)  # more than one piece of an upload
    storage.upload(tmp_path / "here", "sub/a.bin", FOLDER)
    assert object_store.names() == ["some/folder/sub/a.bin"]
    assert (tmp_path / "here" / "sub" / "a.bin").exists()
    place = storage.fetch(FOLDER, "sub/a.bin", tmp_path / "there")
    assert place == tmp_path / "there" / "sub" / "a.bin" and place.read_bytes() == content
    asked = len(object_store.requests)
    storage.fetch(FOLDER, "sub/a.bin", tmp_path / "there")
    assert len(object_store.requests) == asked, "what is there is not fetched again"


@pytest.mark.parametrize(
    "times", [2, 7]
)  # botocore asks three times by itself; beyond, it is this module that asks again
def test_a_store_that_fails_and_then_works(tmp_path, object_store, times):
    content = put(tmp_path, "a", b"text")
    object_store.fail(times, "PUT")
    storage.upload(tmp_path, "a", FOLDER)
    assert len(object_store.failures) == times and object_store.read("some/folder/a") == content
    object_store.fail(times, "GET")
    assert storage.fetch(FOLDER, "a", tmp_path / "there").read_bytes() == content
    assert len(object_store.failures) == 2 * times


def test_a_store_that_goes_on_failing_is_one_line(tmp_path, object_store):
    object_store.write("some/folder/a", b"text")
    object_store.fail(1000)
    with pytest.raises(UserError, match=f"^{FOLDER}/a: cannot be fetched: 500 .*; look at the credentials") as error:
        storage.fetch(FOLDER, "a", tmp_path)
    assert "\n" not in str(error.value) and files(tmp_path) == []
    assert len(object_store.failures) == 12, "four attempts of three requests"


def test_what_is_not_there(tmp_path, object_store):
    with pytest.raises(storage.Absent, match=f"^{FOLDER}/a: no such file in the store"):
        storage.fetch(FOLDER, "a", tmp_path)
    assert len(object_store.requests) == 2, "asked once, after the bucket was made: another time gives no other answer"
    with pytest.raises(
        UserError, match="^s3://nowhere/a: cannot be used: 404 Not Found; look at the credentials, the bucket"
    ):
        storage.check("s3://nowhere/a")
    storage.check(FOLDER)
    assert files(tmp_path) == []


def test_credentials_that_are_wrong_or_missing(tmp_path, object_store, monkeypatch):
    object_store.write("some/folder/a", b"text")
    for key, said in (("wrong", "403 Forbidden"), (None, "Unable to locate credentials")):
        storage.forget_clients()
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        if key:
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        else:
            monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
            monkeypatch.setenv("HOME", str(tmp_path))  # where there are none either
        with pytest.raises(UserError, match=f"^{FOLDER}/a: cannot be fetched: {said}; look at the credentials"):
            storage.fetch(FOLDER, "a", tmp_path)
        with pytest.raises(UserError, match=f"^{FOLDER}: cannot be used: {said}; look at the credentials"):
            storage.check(FOLDER)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    assert files(tmp_path) == []


def test_an_endpoint_where_nobody_listens(tmp_path, object_store, monkeypatch):
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=f"^{FOLDER}/a: cannot be fetched: Could not connect .*; look at .* endpoint"):
        storage.fetch(FOLDER, "a", tmp_path)


def test_many_fetch_the_same_file_at_once(tmp_path, object_store):
    content = b"0123456789" * 100_000
    object_store.write("some/folder/a", content)
    places = []
    threads = [
        threading.Thread(target=lambda: places.append(storage.fetch(FOLDER, "a", tmp_path).read_bytes()))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert places == [content] * 6 and files(tmp_path) == ["a"]


@pytest.mark.parametrize("path", ["http://host/a", "s3:///a", "S4://bucket/a", "s3://bucket/a#b", "s3://bucket/a?b"])
def test_a_url_that_is_no_store(path):
    with pytest.raises(UserError, match="known are s3:// gs:// oci:// azure:// azure-dl://"):
        storage.is_remote(path)


def test_what_is_remote():
    assert [storage.is_remote(path) for path in ("data/c4", "/data/c4", "s3://bucket/c4", "gs://bucket")] == [
        0,
        0,
        1,
        1,
    ]


def test_streaming_knows_every_scheme():
    """Both ways; Azure's two ways name a file differently, which `fetch` evens out."""
    from streaming.base.storage.download import DOWNLOADER_MAPPINGS
    from streaming.base.storage.upload import UPLOADERS

    assert set(storage.SCHEMES) <= set(DOWNLOADER_MAPPINGS) & set(UPLOADERS)


def test_azure_is_read_where_it_was_written(tmp_path, monkeypatch):
    """Both of Streaming's Azure clients, with the SDK's own calls answered here: no server that speaks Azure is at hand."""
    from azure.storage.blob import BlobClient, ContainerClient

    monkeypatch.setenv("AZURE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_ACCOUNT_ACCESS_KEY", "a2V5")
    blobs = {}

    class Blob:
        def __init__(self, content):
            self.readinto = lambda stream: stream.write(content)

    monkeypatch.setattr(ContainerClient, "exists", lambda self: True)
    monkeypatch.setattr(
        ContainerClient,
        "upload_blob",
        lambda self, name, data, **_: blobs.update({(self.account_name, self.container_name, name): data.read()}),
    )
    monkeypatch.setattr(
        BlobClient, "download_blob", lambda self: Blob(blobs[self.account_name, self.container_name, self.blob_name])
    )
    storage.forget_clients()
    content = put(tmp_path, "sub/a", b"text")
    storage.upload(tmp_path, "sub/a", "azure://container/folder")
    assert list(blobs) == [("account", "container", "folder/sub/a")]
    assert storage.fetch("azure://container/folder", "sub/a", tmp_path / "there").read_bytes() == content
    storage.forget_clients()
