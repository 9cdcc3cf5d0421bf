"""A server that speaks S3, on loopback, that fails when it is told to: Streaming's own clients meet a real protocol."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import BaseWSGIServer, make_server
from werkzeug.wrappers import Request, Response

BUCKET = "texts"
Answer = Callable[[Callable[[], Response]], Response]  # of what makes the true one
LONG_AGO = "Sat, 01 Jan 2000 00:00:00 GMT"
REFUSAL = (
    "<?xml version='1.0'?><Error><Code>InvalidAccessKeyId</Code>"
    "<Message>The AWS Access Key Id you provided does not exist in our records.</Message></Error>"
)


def status(code: int, **headers: str) -> Answer:
    return lambda true: Response("try again", code, {name.replace("_", "-"): value for name, value in headers.items()})


def late(seconds: float) -> Answer:
    def answer(true: Callable[[], Response]) -> Response:
        time.sleep(seconds)
        return true()

    return answer


def other(content: bytes) -> Answer:
    """As an older object would be."""
    return lambda true: Response(content, 200, {"Content-Length": str(len(content)), "Last-Modified": LONG_AGO})


def half(true: Callable[[], Response]) -> Response:
    """As many bytes announced as there are, and then the connection ends."""
    found = true()
    content = found.get_data()
    return Response([content[: len(content) // 2]], found.status, found.headers)


class ObjectStore:
    """moto's application behind a gate. `requests` are all that came, as "GET /texts/a"; `failures` those that got something else
    than the true answer."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would log every request
        self.requests: list[str] = []
        self.failures: list[str] = []
        self._fail, self._matching, self._how, self._known_key = 0, "", status(500), "test"
        s3_backends.reset()  # moto keeps its buckets in the process
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._servers: list[BaseWSGIServer] = []
        self.url = self.serve("127.0.0.1")
        self.environment = {
            "S3_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self._known_key,
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.client = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self._known_key,
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket=BUCKET)

    def fail(self, times: int, matching: str = "", how: Answer | None = None) -> None:
        """Answer the next requests, of those whose "METHOD /path" holds `matching`, with 500, or as `how` says."""
        self._fail, self._matching, self._how = times, matching, how or status(500)

    def put(self, dataset: Path) -> None:
        """A prepared dataset as `corpus/`, as preparation would have uploaded it; what was asked until then is forgotten."""
        for file in dataset.rglob("*"):
            if file.is_file() and file.suffix not in (".mds", ".lock"):
                self.write(f"corpus/{file.relative_to(dataset)}", file.read_bytes())
        self.requests.clear()

    def names(self, prefix: str = "") -> list[str]:
        """What lies in the bucket."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return sorted(file["Key"] for page in pages for file in page.get("Contents", []))

    def read(self, name: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()

    def write(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=name, Body=content)

    def serve(self, address: str) -> str:
        """Answer at this address too; returns its URL."""
        server = make_server(address, 0, self._answer, threaded=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self._servers.append(server)
        return f"http://{address}:{server.server_port}"

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _answer(self, environ, start_response):
        request = Request(environ)
        what = f"{request.method} {request.path}"
        with self._lock:
            self.requests.append(what)
            failing = self._fail > 0 and self._matching in what
            if failing:
                self._fail -= 1
                self.failures.append(what)
        if failing:
            return self._how(lambda: Response.from_app(self._moto, environ))(environ, start_response)
        if f"Credential={self._known_key}/" not in request.headers.get("Authorization", ""):
            return Response(REFUSAL, 403, content_type="application/xml")(environ, start_response)
        return self._moto(environ, start_response)


@contextmanager
def object_store_for(monkeypatch) -> Iterator[ObjectStore]:
    """A store with an empty bucket, which the clients of this process and of its children find."""
    store = ObjectStore()
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    try:
        yield store
    finally:
        store.close()
