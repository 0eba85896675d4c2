import re
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distkg.redaction import is_remote, redact, redact_tree

CANARY = "c4n4ry"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://key:word@bucket/x?secret_key=y&region=z", "s3://bucket/x"),
        ("S3://KEY:WORD@bucket/x", "S3://bucket/x"),
        ("s3://key:a@b@bucket/x", "s3://bucket/x"),
        ("s3://key:a/b+c@bucket/x", "s3://bucket/x"),
        ("s3://key:12/b@bucket/x", "s3://bucket/x"),
        ("s3://key:a?b#c@bucket/x", "s3://bucket/x"),
        ("s3://key:a%40b%2Fc@bucket/x", "s3://bucket/x"),
        ("s3://key:a word@bucket/x", "s3://bucket/x"),
        ("s3://token@bucket/x#access_token=a", "s3://bucket/x"),
        ("s3:/key:word@bucket/x?a=b", "s3:/bucket/x"),
        ("files3:/a@b/c?d", "files3:/a@b/c?d"),
        ("hdfs://ada@host:8020/x?user=ada", "hdfs://host:8020/x"),
        ("https://host/x.tsv?X-Amz-Signature=a&X-Amz-Credential=b", "https://host/x.tsv"),
        ("https://account.blob.core.windows.net/x?sp=r&sig=a%3D", "https://account.blob.core.windows.net/x"),
        ("ray://:word@head:10001", "ray://head:10001"),
        ("redis://ada:word@[::1]:6379/0", "redis://[::1]:6379/0"),
        ("abfss://graphs:word@account.dfs.core.windows.net/x", "abfss://graphs@account.dfs.core.windows.net/x"),
        ("gs://anonymous@bucket/x", "gs://anonymous@bucket/x"),
        ("s3://bucket/a@b/c", "s3://bucket/a@b/c"),
        ("hdfs://host:9000/a@b", "hdfs://host:9000/a@b"),
        ("http://[::1]:9000/a@b", "http://[::1]:9000/a@b"),
        ("file:///home/ada@work/x", "file:///home/ada@work/x"),
        ("runs/ada@home:x@y/what?=1&sig=2", "runs/ada@home:x@y/what?=1&sig=2"),
        (r"C:\graphs\a@b?c", r"C:\graphs\a@b?c"),
        ("", ""),
    ],
)
def test_an_address_keeps_only_what_names_the_place(address: str, shown: str) -> None:
    assert redact(address) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no file 's3://k:s@b/x', sorry", "no file 's3://b/x', sorry"),
        ("(see https://h/x?sig=a&b=c).", "(see https://h/x?***)."),
        ("run folder 's3:/k:s@b/x' is", "run folder 's3:/b/x' is"),
        ("['s3://a:b@x','s3://c:d@y/z']", "['s3://x','s3://y/z']"),
        ('{"store": "s3:\\/\\/k:s@b\\/x"}', '{"store": "s3:\\/\\/b\\/x"}'),
        ("store: s3://k:a word@b/x\nseed: 0", "store: s3://b/x\nseed: 0"),
        ("GET /?next=s3%3A%2F%2Fk%3As%40b%2Fx%3Fsig%3Da", "GET /?next=s3%3A%2F%2Fb%2Fx***"),
        ("GET /?next=s3%253A%252F%252Fk%253As%2540b", "GET /?next=s3%253A%252F%252Fb"),
        ("see h://a?endpoint_override=http://u:p@h:9&sig=a", "see h://a?***http://h:9?***"),
        ("no Ray answers at ada:word@head:6379.", "no Ray answers at head:6379."),
        ("export AWS_SECRET_ACCESS_KEY=abc/def+g", "export AWS_SECRET_ACCESS_KEY=***"),
        ("aws_secret_access_key: abc", "aws_secret_access_key: ***"),
        ("{'AWS_SESSION_TOKEN': 'a b', 'x': 1}", "{'AWS_SESSION_TOKEN': ***, 'x': 1}"),
        ('password="a b" user', "password=*** user"),
        ("Authorization: Bearer abc.d-e", "Authorization: Bearer ***"),
        ("the key AKIAIOSFODNN7EXAMPLE is unknown", "the key *** is unknown"),
        ("'http://a.org/ns#type' and 'http://a.org/x'", "'http://a.org/ns#type' and 'http://a.org/x'"),
        ("token 3 is none of the codebook's; tokens: 8", "token 3 is none of the codebook's; tokens: 8"),
        ("RAY_AUTH_MODE=token, ada@home, a?b=c", "RAY_AUTH_MODE=token, ada@home, a?b=c"),
        ("set optimizer.learning_rate=0.1: see s3://b/x:3", "set optimizer.learning_rate=0.1: see s3://b/x:3"),
    ],
)
def test_addresses_and_secrets_inside_a_text_are_redacted(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://k:s@b/x?region=eu&secret_key=y&scheme=http", "s3://b/x?region=eu&scheme=http"),
        ("s3://b/x?endpoint_override=http%3A%2F%2Fh%3A9", "s3://b/x?endpoint_override=http%3A%2F%2Fh%3A9"),
        ("s3://b/x?endpoint_override=http%3A%2F%2Fu%3Ap%40h%3A9", "s3://b/x?endpoint_override=http%3A%2F%2Fh%3A9"),
        ("s3://b/x?endpoint_override=u:p@h:9&region=eu", "s3://b/x?endpoint_override=h%3A9&region=eu"),
        ("s3://b/x?%73ecret_key=y;region=eu", "s3://b/x?region=eu"),
        ("s3://b/x?y", "s3://b/x"),
    ],
)
def test_options_that_open_a_store_and_are_not_secret_can_be_kept(address: str, shown: str) -> None:
    assert redact(address, options=True) == shown
    assert redact_tree({"data": {"store": address, "graphs": [address, "a/b@c"]}}) == {
        "data": {"store": shown, "graphs": [shown, "a/b@c"]}
    }


def test_values_of_a_configuration_that_are_no_addresses_stay() -> None:
    tree = {"train": {"seed": 3, "tokens": ["text"]}, "data": {"store": "runs/token=5/x"}, "none": None}
    assert redact_tree(tree) == tree
    assert redact_tree({"options": {"api_key": "a", "s3://k:s@b": 1}}) == {"options": {"api_key": "***", "s3://b": 1}}


def test_what_is_private() -> None:
    assert is_remote("s3://bucket/x")
    assert is_remote("hdfs://ada@host/x")
    assert not any(map(is_remote, ("", "runs/x", "file:///x", "s3://bucket/x?anonymous=true", "gs://anonymous@b/x")))


# What stands in an address where a person may write anything: quoted as the standard wants it, or not at all.
part = st.text(st.sampled_from("aZ0%/+=@:.-_~!'()*$,;&?# "), max_size=6)
word = st.builds(lambda before, after: before + CANARY + after, part, part)
quoted = word.map(lambda text: quote(text, safe=""))
# Of a password with @ and one of /?#, or with //, not encoded, nobody can tell where the bucket begins.
raw = word.filter(lambda text: not re.search(r"[ ']|//|@.*[/?#]|[/?#].*@", text))
place = st.sampled_from(["bucket/x", "b/y@2/z", "b"])
scheme = st.sampled_from(["s3", "S3", "gs", "hdfs", "https", "abfss", "ray", "x+y-z.1"])
key = st.sampled_from(["secret_key", "X-Amz-Signature", "sig", "access_key", "user", "x", "%72egion2"])
address = st.one_of(
    st.builds("{}://key:{}@{}".format, scheme, quoted, place),
    st.builds("{}://{}:{}@{}".format, scheme, quoted, quoted, place),
    st.builds("s3://key:{}@{}".format, raw, place),
    st.builds("{}://{}?region=eu&{}={}".format, scheme, place, key, quoted),
    st.builds("{}://{}?{}".format, scheme, place, quoted),
    st.builds("{}://{}#token={}".format, scheme, place, quoted),
    st.builds("{}://{}?endpoint_override=http%3A%2F%2Fkey%3A{}%40host&region=eu".format, scheme, place, quoted),
)
around = st.sampled_from(
    [
        "{}",
        "'{}'",
        "cannot open {}: no such file",
        '{{"store":"{}","x":1}}',
        "[{}]",
        "store: {}\nseed: 1",
        "({}).",
        "a={}",
    ]
)


@settings(max_examples=500)
@given(address, around, st.booleans())
def test_no_secret_is_left_wherever_an_address_stands(address: str, around: str, options: bool) -> None:
    text = redact(around.format(address), options=options)
    assert CANARY not in text
    assert redact(text, options=options) == text
    assert "://" in text


@given(st.text(st.characters(exclude_characters="/=:%"), max_size=40))
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text
