"""The VLM service: asks about a picture, whole and streamed.

ATELIER_URL=http://127.0.0.1:8000 python vlm_service.py picture.png
"""

import base64
import json
import os
import sys
from pathlib import Path

from retry import call

URL = os.environ.get("ATELIER_URL", "http://127.0.0.1:8000")

picture = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("picture.png")
body = {
    "input_type": "text_image",
    "text": "Describe the picture.",
    "image_base64": base64.b64encode(picture.read_bytes()).decode(),
    "max_new_tokens": 64,
}

response = call("POST", f"{URL}/v1/chat", json=body)
answer = response.json()
if not answer["success"]:
    sys.exit(f"HTTP {response.status_code}: {answer['message']} ({answer['request_id']})")
print(answer["result"], answer["usage"])

response = call("POST", f"{URL}/v1/chat/stream", json=body, stream=True)
response.raise_for_status()
for line in response.iter_lines():
    if line.startswith(b"data: "):
        event = json.loads(line.removeprefix(b"data: "))
        if "error" in event:
            sys.exit(event["error"])
        print(event["chunk"], end="", flush=True)
print()
