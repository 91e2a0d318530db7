#!/usr/bin/env bash
# The VLM REST service: asks about a picture.
#   ATELIER_URL=http://127.0.0.1:8000 bash vlm_rest.sh picture.png
set -euo pipefail
here=$(dirname "$0")
source "$here/retry.sh"
URL=${ATELIER_URL:-http://127.0.0.1:8000}

body=$(mktemp)
trap 'rm -f "$body"' EXIT
printf '{"prompt": "Describe the picture.", "max_tokens": 64, "image": "data:image/png;base64,%s"}' \
  "$(base64 <"${1:-$here/picture.png}" | tr -d '\n')" >"$body"
call "$URL/api/v1/chat" -H 'Content-Type: application/json' -d "@$body"
echo
