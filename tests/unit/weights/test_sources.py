"""`model.source` in all its forms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_weights.failing import WeightsError
from moefleet_weights.source import (
    BucketSource,
    FileSource,
    HubSource,
    OciSource,
    PvcSource,
    Source,
    WebSource,
    parse_source,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("source", "parsed"),
    [
        ("file:///models/tiny", FileSource("/models/tiny")),
        ("file:///a%20b", FileSource("/a b")),
        ("pvc://weights/deepseek/v2", PvcSource("weights", "deepseek/v2")),
        ("pvc://weights", PvcSource("weights", "")),
        ("hf://deepseek-ai/DeepSeek-V2", HubSource("deepseek-ai/DeepSeek-V2", "main")),
        (f"hf://deepseek-ai/DeepSeek-V2@{COMMIT}", HubSource("deepseek-ai/DeepSeek-V2", COMMIT)),
        ("s3://weights/deepseek-v2-fp8", BucketSource("s3", "weights", "deepseek-v2-fp8")),
        ("s3://weights", BucketSource("s3", "weights", "")),
        ("gs://weights/a/b/", BucketSource("gs", "weights", "a/b")),
        ("https://models.example/deepseek/v2/", WebSource("https://models.example/deepseek/v2")),
        ("https://models.example:8443/a%20b", WebSource("https://models.example:8443/a%20b")),
        ("oci://registry.example:5000/models/v2:fp8", OciSource("registry.example:5000/models/v2:fp8")),
        ("oci://registry.example/v2@sha256:" + "a" * 64, OciSource("registry.example/v2@sha256:" + "a" * 64)),
    ],
)
def test_every_form_is_one_type(source: str, parsed: Source) -> None:
    assert parse_source(source) == parsed


def test_folders_of_mounts_and_pins() -> None:
    assert PvcSource("w", "a/b").folder == "/var/lib/moefleet/claims/w/a/b"
    assert PvcSource("w", "").folder == "/var/lib/moefleet/claims/w"
    assert OciSource("x").folder == "/var/lib/moefleet/image"
    assert HubSource("a/b", COMMIT).pinned
    assert not HubSource("a/b", "main").pinned


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "one of hf, s3"),
        ("/models/tiny", "one of hf, s3"),
        ("ftp://host/a", "instead of 'ftp'"),
        ("http://host/a", "instead of 'http'"),
        ("file://models/tiny", "three slashes"),
        ("pvc://Weights/a", "name of a claim"),
        ("pvc:///a", "name of a claim"),
        ("pvc://weights/../secrets", "without"),
        ("pvc://weights/%2e%2e/secrets", "without"),
        ("file:///a/./b", "without"),
        ("hf://deepseek-ai", "organisation/name"),
        ("hf://deepseek-ai/a/b", "organisation/name"),
        ("hf://a/b@refs/pr/1", "organisation/name|revision"),
        ("s3:///path", "bucket/path"),
        ("s3://B/path", "bucket/path"),
        ("s3://bucket/p?versionId=1", "no \\?"),
        ("https:///a", "https://host"),
        ("https://host/a?X-Amz-Signature=secret", "no \\?"),
        ("https://host:port/a", "an address"),
        ("https://[::1/a", "an address"),
        ("https://user:secret@host/a", "no user or password"),
        ("s3://key:secret@bucket/a", "no user or password"),
        ("oci://UPPER/a", "registry/repository"),
        ("oci://a/b:tag:tag", "registry/repository"),
    ],
)
def test_what_names_no_weights_is_refused(source: str, says: str) -> None:
    with pytest.raises(WeightsError, match=says) as caught:
        parse_source(source)
    assert caught.value.reason == "ModelSourceInvalid"
    assert "secret@" not in caught.value.message


@given(st.text(max_size=40).map(lambda t: "https://" + t) | st.text(max_size=40))
def test_any_text_is_a_source_or_one_error(text: str) -> None:
    try:
        parse_source(text)
    except WeightsError as error:
        assert error.reason == "ModelSourceInvalid"  # noqa: PT017 - either outcome is right
