"""The image service: paints a prompt into picture.png.

ATELIER_URL=http://127.0.0.1:8000 python image_service.py "a red circle on a blue background"
"""

import os
import sys
from pathlib import Path

from retry import call

URL = os.environ.get("ATELIER_URL", "http://127.0.0.1:8000")

prompt = sys.argv[1] if len(sys.argv) > 1 else "a red circle on a blue background"
body = {"prompt": prompt, "aspect_ratio": "4:3", "num_steps": 20, "seed": 7}

print("queue:", call("GET", f"{URL}/api/queue/status").json())
response = call("POST", f"{URL}/api/generate", json=body)
if response.status_code != 200:
    error = response.json()
    sys.exit(f"{error['code']}: {error['message']} {error.get('suggested_fix', '')} ({error['request_id']})")
Path("picture.png").write_bytes(response.content)
print(f"picture.png, seed {response.headers['x-seed']}, request {response.headers['x-request-id']}")
