"""Anthropic's SDK: asks about a picture. Its own retries honour Retry-After, so there is no loop here.

ATELIER_URL=http://127.0.0.1:8000 python anthropic_messages.py picture.png
"""

import base64
import os
import sys
from pathlib import Path

import requests
from anthropic import Anthropic

URL = os.environ.get("ATELIER_URL", "http://127.0.0.1:8000")
client = Anthropic(base_url=URL, api_key=os.environ.get("ATELIER_KEY", "none"), max_retries=5)

models = requests.get(f"{URL}/v1/models", timeout=10).json()["data"]
picture = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("picture.png")
source = {
    "type": "base64",
    "media_type": "image/png",
    "data": base64.b64encode(picture.read_bytes()).decode(),
}

message = client.messages.create(
    model=next(model["id"] for model in models if model["task"] == "vision_language"),
    max_tokens=64,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image", "source": source},
                {"type": "text", "text": "Describe the picture."},
            ],
        }
    ],
)
print(message.content[0].text)
