"""What is read from a data URL at once, and what is left to a decoding process."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.contracts.errors import AtelierError, InvalidImage, PayloadTooLarge
from deployments.engines.data_urls import is_data_url, payload, plain_bytes
from deployments.engines.image_files import from_base64

MOST = 64


@given(st.binary(max_size=MOST))
def test_plain_base64_is_read(data: bytes) -> None:
    assert plain_bytes("data:image/png;base64," + base64.b64encode(data).decode(), MOST) == data


@given(st.text(alphabet="QUJDQg=+/-_ \n%2B", max_size=40))
def test_what_is_read_is_what_a_decoding_process_would_read(text: str) -> None:
    url = f"DATA:;base64,{text}"
    if (read := plain_bytes(url, MOST)) is not None:
        assert read == from_base64(payload(url, MOST).encode(), MOST)


@pytest.mark.parametrize("text", ["QUJD\n", "QUJ", "A-_B", "QUJD%3D", "QUJÐ", "QUJD QUJD", "Q=Q=", "=" * 8])
def test_other_spellings_are_left_alone(text: str) -> None:
    assert plain_bytes(f"data:;base64,{text}", MOST) is None


@pytest.mark.parametrize("url", ["https://example.com/;base64,QUJD", "data:image/png,QUJD", "data:;base64"])
def test_other_urls_are_left_alone(url: str) -> None:
    assert plain_bytes(url, MOST) is None
    if is_data_url(url):
        with pytest.raises(InvalidImage, match="must read"):
            payload(url, MOST)


def test_far_too_long_ones_are_refused_before_anything_copies_them() -> None:
    url = "data:;base64," + "A" * 10 * MOST + "A" * 2048
    assert plain_bytes(url, MOST) is None
    with pytest.raises(PayloadTooLarge):
        payload(url, MOST)


def test_one_that_is_slightly_too_long_says_so_later() -> None:
    url = "data:;base64," + base64.b64encode(bytes(MOST + 1)).decode()
    assert len(plain_bytes(url, MOST) or b"") == MOST + 1
    with pytest.raises(AtelierError):
        from_base64(payload(url, MOST).encode(), MOST)
