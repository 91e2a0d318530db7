# For bash: `call URL [curl options]` prints the body of the answer and fails unless that is 200.
#
# It calls again where that may help, and only there: HTTP 429 and 503, which is how the image service sends its
# codes 3001 (loading) and 3002 (queue full). A wrong parameter stays wrong and is never sent again.
call() {
  local url=$1 answer status wait attempt
  shift
  answer=$(mktemp -d)
  for attempt in 0 1 2 3 4 5; do
    status=$(curl --silent --show-error --max-time 600 --dump-header "$answer/head" --output "$answer/body" \
      --write-out '%{http_code}' "$@" "$url") || break
    [[ $status == 429 || $status == 503 ]] && ((attempt < 5)) || break
    # What the server says, else 1, 2, 4, ... seconds.
    wait=$(tr -d '\r' <"$answer/head" | awk 'tolower($1) == "retry-after:" { print $2 }')
    [[ $wait =~ ^[0-9]+$ ]] || wait=$((1 << attempt))
    sleep $((wait > 120 ? 120 : wait))
  done
  if [[ $status == 200 ]]; then cat "$answer/body"; else
    echo "HTTP $status $(cat "$answer/body" 2>/dev/null)" >&2
  fi
  rm -rf "$answer"
  [[ $status == 200 ]]
}
