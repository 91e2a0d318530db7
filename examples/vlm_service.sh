#!/usr/bin/env bash
# The VLM service: asks about a picture.
#   ATELIER_URL=http://127.0.0.1:8000 bash vlm_service.sh picture.png
set -euo pipefail
here=$(dirname "$0")
source "$here/retry.sh"
URL=${ATELIER_URL:-http://127.0.0.1:8000}

body=$(mktemp)
trap 'rm -f "$body"' EXIT
printf '{"input_type": "text_image", "text": "Describe the picture.", "max_new_tokens": 64, "image_base64": "%s"}' \
  "$(base64 <"${1:-$here/picture.png}" | tr -d '\n')" >"$body"
call "$URL/v1/chat" -H 'Content-Type: application/json' -d "@$body"
echo
