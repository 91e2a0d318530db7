#!/usr/bin/env bash
# The OpenAI API: a question.
#   ATELIER_URL=http://127.0.0.1:8000 bash openai_chat.sh
set -euo pipefail
source "$(dirname "$0")/retry.sh"
URL=${ATELIER_URL:-http://127.0.0.1:8000}

call "$URL/v1/chat/completions" -H 'Content-Type: application/json' \
  -d '{"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64}'
echo
