#!/usr/bin/env bash
# The image service: paints a prompt into picture.png.
#   ATELIER_URL=http://127.0.0.1:8000 bash image_service.sh
set -euo pipefail
source "$(dirname "$0")/retry.sh"
URL=${ATELIER_URL:-http://127.0.0.1:8000}

call "$URL/api/generate" -H 'Content-Type: application/json' \
  -d '{"prompt": "a red circle on a blue background", "aspect_ratio": "4:3", "num_steps": 20, "seed": 7}' >picture.png
echo "picture.png"
