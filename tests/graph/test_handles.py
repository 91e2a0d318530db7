"""Which replica an image goes to."""

from __future__ import annotations

from deployments.contracts.messages import ImageSource
from serve_app.graph.handles import affinity


def test_the_same_image_has_the_same_affinity() -> None:
    url = "data:image/png;base64," + "A" * 100_000
    assert affinity(ImageSource(url=url, param="a")) == affinity(ImageSource(url=url, param="b"))
    assert affinity(ImageSource(data=b"abc")) == affinity(ImageSource(data=b"abc"))


def test_other_images_and_other_scopes_have_others() -> None:
    sources = [
        *(ImageSource(url=f"https://example.com/{i}.png") for i in range(50)),
        *(ImageSource(url="data:;base64," + "A" * i) for i in range(20_000, 20_010)),
        *(ImageSource(data=bytes(10_000) + bytes([i])) for i in range(50)),
        *(ImageSource(data=b"", scope=str(i)) for i in range(10)),
        ImageSource(url="https://example.com/\ud800.png"),
    ]
    assert len({affinity(source) for source in sources}) == len(sources)
