"""The VLM REST service: asks about a picture, then about the answer, then reads the picture's text.

ATELIER_URL=http://127.0.0.1:8000 python vlm_rest.py picture.png
"""

import base64
import os
import sys
from pathlib import Path
from typing import Any

from retry import call

URL = os.environ.get("ATELIER_URL", "http://127.0.0.1:8000")


def ask(**body: Any) -> dict[str, Any]:
    """`data` of the answer; ends the program with the error's code and message otherwise."""
    answer = call("POST", f"{URL}/api/v1/chat", json=body).json()
    if answer["code"] != 0:
        sys.exit(f"{answer['code']}: {answer['message']}")
    return answer["data"]


picture = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("picture.png")
image = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()

first = ask(image=image, prompt="Describe the picture.", max_tokens=64)
print(first["response"], first["token_usage"])

history = [
    {"role": "user", "content": "Describe the picture.", "image": image},
    {"role": "assistant", "content": first["response"]},
]
print(ask(prompt="What color is the background?", history=history, max_tokens=64)["response"])

for line in ask(image=image, output="ocr", max_tokens=64)["lines"]:
    print(line["text"], line["box"])
