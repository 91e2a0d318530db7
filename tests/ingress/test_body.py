"""Bodies that are no proper form: always a clear 400 or 413, never anything else."""

from __future__ import annotations

import random

import httpx
import pytest

FORM = {"content-type": "multipart/form-data; boundary=edge"}
GOOD = (
    b'--edge\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na cat\r\n'
    b'--edge\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
    b"Content-Type: image/png\r\n\r\nnot really a picture\r\n--edge--\r\n"
)


async def post(url: str, content: bytes, headers: dict[str, str] = FORM) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.post(f"{url}/v1/images/edits", content=content, headers=headers)


def field(name: str, value: bytes) -> bytes:
    return b'--edge\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)


async def test_the_good_one_gets_as_far_as_its_picture(url: str) -> None:
    error = (await post(url, GOOD)).json()["error"]
    assert (error["param"], error["code"]) == ("image", "invalid_image")


@pytest.mark.parametrize(
    ("content", "headers", "says"),
    [
        (b"", FORM, "prompt"),
        (b"no form at all", FORM, "form"),
        (GOOD, {"content-type": "multipart/form-data"}, "boundary"),
        (GOOD, {"content-type": "multipart/form-data; boundary="}, "form"),
        (GOOD.replace(b'name="prompt"', b"nome=prompt"), FORM, "name"),
        (field("prompt", b"a") + field("prompt", b"b") + GOOD, FORM, "twice"),
        (b"".join(field(f"f{k}", b"x") for k in range(65)) + GOOD, FORM, "64"),
        (field("user", b"x" * 300_000) + GOOD, FORM, "256"),
        (GOOD.replace(b"a cat", b"\xff\xfe"), FORM, ""),
        (GOOD[: GOOD.index(b"really")], FORM, "image"),
    ],
)
async def test_what_is_wrong_is_said(url: str, content: bytes, headers: dict[str, str], says: str) -> None:
    answer = await post(url, content, headers)
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]["message"]


async def test_no_damage_to_a_form_is_an_unexpected_error(url: str) -> None:
    chance = random.Random(5)
    async with httpx.AsyncClient() as http:
        for _ in range(150):
            content = bytearray(GOOD)
            for _ in range(chance.randrange(1, 6)):
                where = chance.randrange(len(content))
                if chance.random() < 0.5:
                    content[where] = chance.randrange(256)
                else:
                    del content[where : where + chance.randrange(1, 30)]
            answer = await http.post(f"{url}/v1/images/edits", content=bytes(content), headers=FORM)
            assert answer.status_code == 400, (bytes(content), answer.text)
            assert answer.json()["error"]["message"]
