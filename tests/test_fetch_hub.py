"""Pulling by way of the Hub, redirects and proxies: who is asked, and who gets the token."""

from __future__ import annotations

import io
from urllib.request import Request

import pytest

from streamsink.errors import FetchError, UsageError
from streamsink.registry import fetch, web
from streamsink.registry.entries import Entry
from streamsink.registry.sources import HfSource, UrlSource
from tests.pulls import BODY, FileServer, entry_at, left, sha256

pytestmark = pytest.mark.usefixtures("bare_home")


def test_the_hub_is_asked_at_hf_endpoint_with_the_token(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch.pull(Entry("m", HfSource("me/it", "a b/m.gguf", "refs/pr/1")))
    path, headers = server.requests[0]
    assert path == "/me/it/resolve/refs%2Fpr%2F1/a%20b/m.gguf"
    assert headers["authorization"] == "Bearer hf_secret"


def test_the_token_stays_with_the_hub(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with FileServer() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.says = [
            (307, {"Location": "/renamed/m.gguf"}),
            (302, {"Location": f"{server.url}/storage?signed=1"}),
        ]
        server.says = [(308, {"Location": f"{server.url}/further"})]
        fetch.pull(Entry("m", HfSource("me/it", "m.gguf")))
        assert [headers.get("authorization") for _, headers in hub.requests] == [
            "Bearer hf_secret",
            "Bearer hf_secret",
        ]
    assert [path for path, _ in server.requests] == ["/storage?signed=1", "/further"]
    assert all("authorization" not in headers for _, headers in server.requests)
    fetch.pull(Entry("n", UrlSource(f"{server.url}/n.gguf")))
    assert "authorization" not in server.requests[-1][1]


def test_a_range_survives_the_redirect(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileServer() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.says = [(302, {"Location": f"{server.url}/{n}"}) for n in range(2)]
        server.cuts = [1_000_000]
        assert fetch.pull(Entry("m", HfSource("me/it", "m.gguf"))).read_bytes() == BODY
    assert server.starts == [None, "bytes=1000000-"]


def test_the_hub_s_own_checksum_is_checked(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Entry("m", HfSource("me/it", "m.gguf"))
    with FileServer() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        to_storage = {"Location": f"{server.url}/storage"}
        hub.says = [(302, {**to_storage, "X-Linked-ETag": f'"{"0" * 64}"'})]
        with pytest.raises(FetchError, match=f"not the expected {'0' * 64}"):
            fetch.pull(entry)
        hub.says = [(302, {**to_storage, "X-Linked-ETag": f'"{sha256(BODY)}"'})]
        assert fetch.pull(entry).read_bytes() == BODY


def test_a_gated_repository_is_explained(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.says = [(401, {})]
    with pytest.raises(FetchError, match=r"gated, private or not there.*HF_TOKEN"):
        fetch.pull(Entry("m", HfSource("me/it", "m.gguf")))


def test_a_bad_hf_endpoint_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")
    with pytest.raises(UsageError, match=r"HF_ENDPOINT is 'huggingface\.co'"):
        fetch.pull(Entry("m", HfSource("me/it", "m.gguf")))


@pytest.mark.parametrize("to", ["ftp://127.0.0.1/m.gguf", "file:///etc/hosts", "//[bad/"])
def test_redirects_off_the_web_are_not_followed(server: FileServer, to: str) -> None:
    server.says = [(302, {"Location": to})]
    with pytest.raises(FetchError):
        fetch.pull(entry_at(server))
    assert left() == []


def test_a_redirect_from_https_to_http_is_not_followed() -> None:
    with pytest.raises(FetchError, match="redirects to http://"):
        web._Redirects().redirect_request(
            Request("https://a/m"),
            io.BytesIO(),
            302,
            "",
            {},
            "http://a/m",
        )


def test_the_environment_s_proxy_is_used(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    fetch.pull(Entry("m", UrlSource("http://models.invalid/m.gguf")))
    assert server.requests[0][0] == "http://models.invalid/m.gguf"
