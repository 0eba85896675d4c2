"""Redaction of secrets in addresses, for everything that distkg writes, prints or raises."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any
from urllib.parse import quote, unquote

MASK = "***"

OPTIONS = frozenset(
    [
        "region",
        "scheme",
        "endpoint_override",
        "anonymous",
        "allow_bucket_creation",
        "allow_bucket_deletion",
        "allow_delayed_open",
        "background_writes",
        "check_directory_existence_before_creation",
        "force_virtual_addressing",
        "smart_defaults",
        "tls_ca_file_path",
        "tls_ca_dir_path",
        "tls_verify_certificates",
        "retry_limit_seconds",
        "replication",
        "buffer_size",
        "default_block_size",
        "blob_storage_authority",
        "dfs_storage_authority",
        "blob_storage_scheme",
        "dfs_storage_scheme",
        "enable_tls",
        "credential_kind",
        "use_mmap",
    ]
)
"""Options of pyarrow's file systems that are needed to open an address and are not secret."""

_WITHOUT_PORT = frozenset(["s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "wasb", "wasbs"])
_AZURE_HOST = re.compile(r"[\w-]+\.(?:dfs|blob)\.core\.", re.IGNORECASE)

# An address that was parsed as a path has one slash left of two.
_COLLAPSED = r"(?<![A-Za-z0-9])(?i:s3[an]?|gc?s|hdfs|viewfs|abfss?|wasbs?|https?|ftp|ray|rediss?):/"
_SCHEME = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]*:(?:\\?/){{2}}|{_COLLAPSED}")
_ADDRESS = re.compile(rf"(?:{_SCHEME.pattern})[^\s'\"<>]*")
_HOST_AND_PORT = re.compile(r"(?:\[[^\]]*\]|[^:]*)(?::\d*)?\W*")
_CLOSING = re.compile(r"['\"`)\]},.:;>]*\Z")

# Addresses that are percent-encoded, once or more often, as in the query of another address.
_ENCODED = r"%(?:25)*3A(?:%(?:25)*2F){2}"
_ENCODED_USER = re.compile(rf"({_ENCODED})[^\s/]*?%(?:25)*40", re.IGNORECASE)
_ENCODED_QUERY = re.compile(rf"({_ENCODED}[^\s?#&'\"]*?)%(?:25)*3F[^\s&'\"]*", re.IGNORECASE)

# user:password@host:port without a scheme, as Ray and Redis write addresses.
_PLAIN_USER = re.compile(r"(?<![\w/@.%:])[^\s/@:'\"=]*:[^\s/@'\"]+@(?=[\w.-]+:\d)")

# Names of secrets, in an environment, a configuration or the message of a library.
_CERTAIN = r"secret|passw(?:or)?d|passphrase|access[_-]?key|api[_-]?key|account[_-]?key|private[_-]?key"
_NAME = rf"[\w.-]*(?:{_CERTAIN}|signature|credential)[\w.-]*|(?:[\w.-]+[_-])?token|x-(?:amz|goog)-[\w-]+"
_VALUE = r"(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s'\",;&)\]}]+)"
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
_SECRET_VALUES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"((?<![\w.-])(?:{_NAME})\s?=\s?){_VALUE}",
        rf"((?<![\w.-])[\w.-]*(?:{_CERTAIN})[\w.-]*:[ ]){_VALUE}",
        rf"((['\"])(?:{_NAME})\2\s?:\s?){_VALUE}",
        r"(\bauthorization['\"]?\s?[:=]\s?['\"]?(?:\w+[ ])?)[^\s'\"]+",
        r"()\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    )
)


_COPIES: dict[str, tuple[re.Pattern[str], str]] = {}


def name_copies(place: str, address: str) -> None:
    """Show the address of a folder in a store wherever a text names a local copy of it, a folder in ``place``."""
    parent, name = place.rsplit("/", 2)[1:]
    pattern = re.compile(rf"[^\s'\"`(]*/{re.escape(parent)}/{re.escape(name)}/[\w-]+")
    _COPIES[place] = pattern, address


def redact(text: str, *, options: bool = False) -> str:
    """Remove the secrets of the addresses in a text: user names, passwords, tokens, query strings.

    A local path is not an address, and is not changed, unless it leads into a copy of a folder in a store
    (``name_copies``), for which the address of that folder is shown.

    Args:
        text: an address, or any text with addresses, such as the message of an exception.
        options: keep the options that are needed to open an address and are not secret (``OPTIONS``).

    >>> redact("s3://key:secret@bucket/x?region=eu-west-1&secret_key=y", options=True)
    's3://bucket/x?region=eu-west-1'
    >>> redact("cannot read 'https://host/x?sig=abc' of me@home/x?y")
    "cannot read 'https://host/x?***' of me@home/x?y"
    """
    if _ADDRESS.fullmatch(text):
        return redact_address(text, options=options)
    for pattern, address in list(_COPIES.values()):
        text = pattern.sub(address, text)
    text = _ENCODED_QUERY.sub(rf"\1{MASK}", _ENCODED_USER.sub(r"\1", _addresses_redacted(text, options)))
    text = _PLAIN_USER.sub("", text)
    for pattern in _SECRET_VALUES:
        text = pattern.sub(rf"\g<1>{MASK}", text)
    return text


def redact_address(address: str, *, options: bool = False) -> str:
    """Redact a text that is one address or one local path, whatever characters it has; see ``redact``."""
    scheme = _scheme(address)
    return scheme + _without_secrets(scheme, address[len(scheme) :], options, "") if scheme else address


def redact_tree(tree: Any) -> Any:
    """Redact every string in nested dicts and lists, such as a configuration; options of addresses are kept."""
    if isinstance(tree, dict):
        return {redact_tree(key): _redacted_entry(key, value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redact_tree(value) for value in tree]
    return _redacted_value(tree) if isinstance(tree, str) else tree


def is_remote(address: str) -> bool:
    """Return True for an address that is not on a local file system and is not public."""
    scheme = _SCHEME.match(address)
    anonymous = "anonymous=true" in address.lower() or "://anonymous@" in address.lower()
    return scheme is not None and not address.lower().startswith("file:") and not anonymous


def _redacted_value(value: str) -> str:
    """Redact a configuration value; a local path is unchanged, even if a part of it reads like an assignment."""
    if _SCHEME.match(value) and len(_SCHEME.findall(value)) == 1:
        return redact_address(value, options=True)
    looks_local = not _SCHEME.search(value) and not _PLAIN_USER.search(value) and "%" not in value
    return value if looks_local else redact(value, options=True)


def _redacted_entry(key: Any, value: Any) -> Any:
    secret = isinstance(key, str) and isinstance(value, str) and value and _SECRET_NAME.fullmatch(key)
    return MASK if secret else redact_tree(value)


def _scheme(text: str) -> str:
    match = _SCHEME.match(text)
    return match[0] if match else ""


def _addresses_redacted(text: str, options: bool) -> str:
    parts, position = [], 0
    starts = [found.start() for found in _SCHEME.finditer(text) if not text.endswith("//", 0, found.start())]
    for start, following in pairwise([*starts, len(text)]):
        if start < position:
            continue  # inside the password of the previous address
        scheme = _scheme(text[start:])
        body = re.match(r"\S*", text[start + len(scheme) : following])
        end = _end(text, scheme, start + len(scheme), body[0] if body else "")
        closing = _CLOSING.search(text, start, end)
        last = closing.start() if closing else end
        address = text[start + len(scheme) : last]
        parts += [text[position:start], scheme, _without_secrets(scheme, address, options, f"?{MASK}"), text[last:end]]
        position = end
    return "".join(parts) + text[position:]


def _end(text: str, scheme: str, begin: int, body: str) -> int:
    """Return the end of an address that begins at ``begin``; a password may hold white space."""
    end = begin + len(body)
    if "@" in body or not _holds_password(scheme, body):
        return end
    rest = re.match(r"[^\n@]*@\S*", text[end:])
    return end + rest.end() if rest else end


def _holds_password(scheme: str, body: str) -> bool:
    """Return True if the part after the scheme begins with user:password rather than host:port."""
    authority = re.split(r"[/\\?#]", body, maxsplit=1)[0]
    user, colon, password = authority.partition(":")
    if not colon or user.startswith("[") or ("@" not in body and _CLOSING.fullmatch(password)):
        return False
    return scheme.partition(":")[0].lower() in _WITHOUT_PORT or not _HOST_AND_PORT.fullmatch(authority)


def _without_secrets(scheme: str, body: str, options: bool, mask: str) -> str:
    """Remove the secrets of the part of an address after its scheme; ``mask`` replaces a removed query."""
    place = _without_user(scheme, body)
    host = re.match(r"[^/?#&]*", place)
    low = host.end() if host else 0
    separator = re.compile(r"[?#]" if place[low : low + 1] != "&" else "&").search(place, low)
    if not separator:
        return place
    query, hash_sign, fragment = place[separator.end() :].partition("#")
    if separator[0] == "#":
        query, fragment, hash_sign = "", place[separator.end() :], "#"
    kept = _harmless(query) if options else ""
    shown = f"?{kept}" if kept else mask if query else ""
    # A fragment without an assignment is the last part of a name, as in RDF; in a lone address it has no meaning.
    name = f"{hash_sign}{fragment}" if mask and not re.search(r"[=@]", fragment) else ""
    return place[: separator.start()] + shown + name


def _without_user(scheme: str, body: str) -> str:
    authority = re.split(r"[/\\?#]", body, maxsplit=1)[0]
    if "@" in authority:
        user, _, _ = authority.rpartition("@")
        return _needed_user(scheme, user, body[len(user) + 1 :]) + body[len(user) + 1 :]
    return body.rpartition("@")[2] if _holds_password(scheme, body) else body


def _needed_user(scheme: str, user: str, place: str) -> str:
    """Return the part before @ if it is not a user: an Azure container, or an anonymous user."""
    name = user.partition(":")[0]
    container = scheme.lower().startswith(("abfs", "wasb")) and _AZURE_HOST.match(place)
    return f"{name}@" if name and (container or user == "anonymous") else ""


def _harmless(query: str) -> str:
    """Return the options of a query that are not secret, as written."""
    pairs = [pair.partition("=") for pair in re.split(r"[&;]", query)]
    named = [(unquote(key).strip(), value) for key, _, value in pairs]
    return "&".join(f"{key}={_without_owner(key, value)}" for key, value in named if key.lower() in OPTIONS)


def _without_owner(key: str, value: str) -> str:
    """Return the value of an option; remove user and password from that of ``endpoint_override``."""
    plain = unquote(value)
    if "@" not in plain or key.lower().endswith("_path"):
        return value
    return quote(_scheme(plain) + plain.rpartition("@")[2], safe="")
