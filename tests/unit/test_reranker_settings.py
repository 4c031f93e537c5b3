"""Where a reranker may be: questions and passages leave a private network encrypted only."""

from __future__ import annotations

import pytest

from apex_memory.config import load_settings
from apex_memory.errors import Misconfigured


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://127.0.0.1:8080/rerank",
        "http://localhost:8080/rerank",
        "http://[::1]:8080/rerank",
        "http://10.0.0.7/rerank",
        "http://[fd00::7]/rerank",
        "http://reranker:80/rerank",
        "http://tei.models.svc.cluster.local/rerank",
        "https://api.example.com/v1/rerank",
    ],
)
def test_it_may_be_there(url: str) -> None:
    assert load_settings(reranker=url).reranker == url


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/rerank",
        "http://93.184.216.34/rerank",
        "http://[2606:2800:220:1::1]/rerank",
        "http://0.0.0.0/rerank",
        "http://local.example.com/rerank",
        "https://me:secret@api.example.com/rerank",
        "https://api.example.com/rerank#x",
        "ftp://10.0.0.7/rerank",
        "reranker:8080",
        "http://reranker:99999/rerank",
        "http://reranker:abc/rerank",
        "http://134744072/rerank",
        "http://0x08080808/rerank",
        "https:///rerank",
    ],
)
def test_it_may_not_be_there(url: str) -> None:
    with pytest.raises(Misconfigured, match="reranker") as refused:
        load_settings(reranker=url)
    assert "secret" not in f"{refused.value} {refused.value.remedy}"
