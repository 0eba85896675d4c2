"""Folder of objects in S3 or in a store that speaks its protocol, by boto3."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from distkg.data.errors import StoreError
from distkg.data.storage.location import without_secrets
from distkg.data.storage.objects import FIRST_SECONDS, ObjectInfo, Seen, TransientError, persist
from distkg.redaction import redact

PART_BYTES = 16 << 20
_MOST_PARTS = 9000
_PARTS_AT_ONCE = 4
_KEYS_AT_ONCE = 1000
CONNECT_SECONDS, READ_SECONDS = 5.0, 60.0

_PASSING = {
    "SlowDown",
    "RequestTimeout",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "RequestLimitExceeded",
    "RequestTimeTooSkewed",  # until the clock of this machine is set right
}
_ABSENT = {"NoSuchKey", "404", "NotFound", "NoSuchUpload"}
_NOT_MET = {"PreconditionFailed", "412", "ConditionalRequestConflict"}
_OPTIONS = {"region", "scheme", "endpoint_override", "anonymous", "force_virtual_addressing", "tls_ca_file_path"}
_READ_BY_PYARROW = {
    "allow_bucket_creation",
    "allow_bucket_deletion",
    "allow_delayed_open",
    "background_writes",
    "check_directory_existence_before_creation",
    "smart_defaults",
    "retry_limit_seconds",
}

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")

T = TypeVar("T")


class _NotMetError(Exception):
    """The condition of a conditional write does not hold."""


class S3Objects:
    """Folder ``s3://[KEY:SECRET@]bucket/prefix[?region=…&scheme=…&endpoint_override=…]``, as pyarrow writes addresses.

    Credentials that the address does not hold come from where boto3 looks for them: the environment, a profile, the
    role of the machine.
    """

    conditional = True

    def __init__(self, address: str) -> None:
        """Open a client; the first request is sent by the first method that is called.

        Raises:
            StoreError: boto3 is not installed, the address is malformed, or there are no credentials.
        """
        parts = urlsplit(address)
        self.address = without_secrets(address)
        self._bucket, self._prefix = parts.netloc.rpartition("@")[2], parts.path.strip("/")
        if not _BUCKET.fullmatch(self._bucket) or not self._prefix:
            raise StoreError(
                f"{self.address!r} names no folder: write s3://bucket/folder; in credentials of an address, write / as "
                "%2F and @ as %40"
            )
        self._client = _client(address, self.address)
        self._reached = False

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def _request(self, work: Callable[[], T], what: str) -> T:
        """Send a request until it is served; an absent object raises FileNotFoundError."""
        patience = None if self._reached else FIRST_SECONDS
        value = persist(lambda: self._once(work, what), f"{self.address}: to {what}", patience)
        self._reached = True
        return value

    def _once(self, work: Callable[[], T], what: str) -> T:
        from botocore import exceptions

        try:
            return work()
        except exceptions.ClientError as error:
            raise self._judged(error.response, what) from None
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
            raise StoreError(
                f"there are no credentials for {self.address} ({error}). Set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, name a profile in AWS_PROFILE, or give the machine a role"
            ) from None
        except (
            exceptions.ParamValidationError,
            exceptions.ProfileNotFound,
            exceptions.CredentialRetrievalError,
        ) as error:
            raise StoreError(f"{self.address} cannot be used: {redact(str(error))}") from None
        except (exceptions.BotoCoreError, exceptions.HTTPClientError, ConnectionError, TimeoutError) as error:
            raise TransientError(str(error)) from None

    def _judged(self, response: dict[str, Any], what: str) -> Exception:
        """Return the error for an answer that is not a success: absent, condition not met, may pass, or a mistake."""
        code = str(response.get("Error", {}).get("Code", ""))
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        message = redact(str(response.get("Error", {}).get("Message", "")))
        if code == "NoSuchBucket":
            return StoreError(
                f"there is no bucket {self._bucket!r} at {self.address}. Create it, or correct the address"
            )
        if code in _ABSENT:
            return FileNotFoundError(f"{self.address}: there is nothing to {what}")
        if code in _NOT_MET:
            return _NotMetError()
        if status >= 500 or status == 429 or code in _PASSING:
            return TransientError(f"{code} {message}".strip())
        return StoreError(
            f"{self.address} refuses to {what}: {code} {message}".rstrip(". ")
            + ". Check the credentials, their permissions, and the region"
        )

    def entries(self, under: str = "") -> list[ObjectInfo]:
        start, found, token = len(self._prefix) + 1, list[ObjectInfo](), ""
        while True:
            page = self._request(partial(self._page, under, token), "list it")
            found += [ObjectInfo(entry["Key"][start:], entry["Size"]) for entry in page.get("Contents", [])]
            token = page.get("NextContinuationToken", "")
            if not token:
                return [info for info in found if not info.name.endswith("/")]

    def _page(self, under: str, token: str) -> dict[str, Any]:
        more = {"ContinuationToken": token} if token else {}
        page: dict[str, Any] = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._key(under), **more)
        return page

    def read(self, name: str) -> bytes | None:
        seen = self.look(name)
        return None if seen is None else seen.content

    def look(self, name: str) -> Seen | None:
        def work() -> Seen:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name))
            content = answer["Body"].read()
            now = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
            written = answer["LastModified"]
            age = (parsedate_to_datetime(now) - written).total_seconds() if now else 0.0
            return Seen(content, answer["ETag"], age)

        try:
            return self._request(work, f"read {name}")
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        self._request(
            lambda: self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=content), f"write {name}"
        )

    def create(self, name: str, content: bytes) -> bool:
        return self._conditional(name, content, IfNoneMatch="*")

    def replace(self, name: str, content: bytes, version: str) -> bool:
        return self._conditional(name, content, IfMatch=version)

    def _conditional(self, name: str, content: bytes, **condition: str) -> bool:
        """Write an object if a condition holds; True as well if an attempt whose answer was lost has written it."""
        try:
            self._request(
                lambda: self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=content, **condition),
                f"write {name}",
            )
        except (_NotMetError, FileNotFoundError):
            return self.read(name) == content
        return True

    def upload(self, name: str, path: Path) -> None:
        size = path.stat().st_size
        if size <= PART_BYTES:
            self.write(name, path.read_bytes())
            return
        part_bytes = max(PART_BYTES, math.ceil(size / _MOST_PARTS))
        place = {"Bucket": self._bucket, "Key": self._key(name)}
        upload = self._request(lambda: self._client.create_multipart_upload(**place), f"write {name}")["UploadId"]

        def send(number: int) -> dict[str, Any]:
            with path.open("rb") as file:
                file.seek((number - 1) * part_bytes)
                body = file.read(part_bytes)
            answer = self._request(
                lambda: self._client.upload_part(**place, UploadId=upload, PartNumber=number, Body=body),
                f"write part {number} of {name}",
            )
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            with ThreadPoolExecutor(_PARTS_AT_ONCE) as threads:
                parts = list(threads.map(send, range(1, math.ceil(size / part_bytes) + 1)))
            self._complete(place, upload, parts, size, name)
        except BaseException:
            with suppress(Exception):  # those that stay are dropped by the next writer
                self._client.abort_multipart_upload(**place, UploadId=upload)
            raise

    def _complete(self, place: dict[str, str], upload: str, parts: list[dict[str, Any]], size: int, name: str) -> None:
        try:
            self._request(
                lambda: self._client.complete_multipart_upload(
                    **place, UploadId=upload, MultipartUpload={"Parts": parts}
                ),
                f"write {name}",
            )
        except FileNotFoundError:  # an attempt whose answer was lost has completed it
            if self._request(lambda: self._client.head_object(**place), f"look at {name}")["ContentLength"] != size:
                raise

    def download(self, name: str, path: Path) -> None:
        with path.open("wb") as file:
            version, total = "", 1

            def work() -> None:
                """Write what one answer brings; an answer that ends early is continued by the next call."""
                nonlocal version, total
                done = file.tell()
                rest = {"Range": f"bytes={done}-", "IfMatch": version} if done else {}
                try:
                    answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name), **rest)
                    version, total = answer["ETag"], done + answer["ContentLength"]
                    for piece in answer["Body"].iter_chunks(1 << 20):
                        file.write(piece)
                except Exception:
                    if file.tell() == done:
                        raise
                if file.tell() == done < total:
                    raise TransientError("the answer is empty")

            while file.tell() < total:
                try:
                    self._request(work, f"read {name}")
                except _NotMetError:  # another object was written in its place
                    file.seek(0)
                    file.truncate()

    def delete(self, names: Iterable[str]) -> None:
        for keys in _groups([self._key(name) for name in names], _KEYS_AT_ONCE):
            listed = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
            answer = self._request(
                lambda listed=listed: self._client.delete_objects(Bucket=self._bucket, Delete=listed),  # type: ignore[misc]
                f"delete {len(keys)} objects",
            )
            for error in answer.get("Errors", []):
                if error.get("Code") not in _ABSENT:
                    self._request(
                        lambda key=error["Key"]: self._client.delete_object(Bucket=self._bucket, Key=key),  # type: ignore[misc]
                        "delete an object",
                    )

    def drop_unfinished(self, under: str) -> None:
        def uploads() -> Any:
            return self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=self._key(under))

        for upload in self._request(uploads, "list its unfinished uploads").get("Uploads", []):
            with suppress(FileNotFoundError):
                self._request(
                    lambda upload=upload: self._client.abort_multipart_upload(  # type: ignore[misc]
                        Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    ),
                    "end an unfinished upload",
                )


def _client(address: str, shown: str) -> Any:
    """Return a boto3 client for an address.

    Raises:
        StoreError: boto3 is not installed, or an option is unknown or malformed.
    """
    try:
        import boto3
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise StoreError(f"{shown} needs boto3, which is not installed: pip install 'distkg[s3]'") from None
    botocore_log = logging.getLogger("botocore")
    if botocore_log.level == logging.NOTSET:  # it tells where each client found credentials and endpoint
        botocore_log.setLevel(logging.WARNING)
    parts = urlsplit(address)
    options = {key: values[-1] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
    if unknown := options.keys() - _OPTIONS - _READ_BY_PYARROW:
        raise StoreError(
            f"{shown} has unknown options {', '.join(sorted(unknown))}; known are {', '.join(sorted(_OPTIONS))}"
        )
    key, colon, secret = (unquote(part) for part in parts.netloc.rpartition("@")[0].partition(":"))
    endpoint = options.get("endpoint_override")
    if endpoint and "://" not in endpoint:
        endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
    anonymous = options.get("anonymous") == "true" or (key == "anonymous" and not colon)
    own_endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    virtual = options.get("force_virtual_addressing") == "true" or not own_endpoint
    settings: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": READ_SECONDS,
        "retries": {"mode": "standard", "total_max_attempts": 1},  # `persist` repeats
        "s3": {"addressing_style": "auto" if virtual else "path"},
        "max_pool_connections": 2 * _PARTS_AT_ONCE,
    }
    if own_endpoint:  # other stores than Amazon's may not know the checksums that boto3 adds by itself
        settings |= {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    if anonymous:
        settings["signature_version"] = UNSIGNED
    try:
        session = botocore.session.get_session()
        session.register_component("data_loader", _loader())
        return boto3.session.Session(botocore_session=session).client(
            "s3",
            endpoint_url=endpoint,
            region_name=options.get("region") or os.environ.get("AWS_REGION") or None,
            aws_access_key_id=key if colon else None,
            aws_secret_access_key=secret if colon else None,
            verify=options.get("tls_ca_file_path"),
            config=Config(**settings),
        )
    except (BotoCoreError, ValueError) as error:
        raise StoreError(f"{shown} is not an address that boto3 can open: {redact(str(error))}") from None


@cache
def _loader() -> Any:
    """Return the loader of boto3's descriptions of services, which it reads in a tenth of a second and keeps."""
    from botocore.loaders import create_loader

    return create_loader()


def _groups(items: list[str], size: int) -> Iterator[list[str]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
