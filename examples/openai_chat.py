"""OpenAI's SDK: paints a picture and asks what is on it.

Its own retries honour Retry-After, so there is no loop here.

    ATELIER_URL=http://127.0.0.1:8000 python openai_chat.py
"""

import os

from openai import OpenAI

URL = os.environ.get("ATELIER_URL", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("ATELIER_KEY", "none"), max_retries=5)

painted = client.images.generate(prompt="a red circle on a blue background", extra_body={"seed": 7})
picture = "data:image/png;base64," + painted.data[0].b64_json

stream = client.chat.completions.create(
    model=next(model.id for model in client.models.list() if model.task == "vision_language"),
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": picture}},
                {"type": "text", "text": "Describe the picture."},
            ],
        }
    ],
    max_tokens=64,
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
