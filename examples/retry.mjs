// Calls a server again where that may help, and only there: HTTP 429 and 503, in the image service the codes
// 3001 (loading) and 3002 (queue full). A wrong parameter stays wrong and is never sent again.
const TRIES = 6;
const MAX_WAIT_S = 120;

export async function call(url, options = {}) {
  for (let attempt = 0; ; attempt++) {
    const response = await fetch(url, options);
    if (response.ok) return response;
    const body = await fields(response.clone());
    const mayPass = [429, 503].includes(response.status) || [3001, 3002].includes(body.code);
    if (!mayPass || attempt === TRIES - 1) return response;
    await new Promise((done) => setTimeout(done, 1000 * waitSeconds(response, body, attempt)));
  }
}

export const post = (url, body) =>
  call(url, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

// What the server says, else 0.5, 1, 2, ... seconds, give or take a quarter.
function waitSeconds(response, body, attempt) {
  const told = Number(response.headers.get("retry-after") ?? body.retry_after ?? NaN);
  if (Number.isFinite(told)) return Math.min(Math.max(told, 0), MAX_WAIT_S);
  return Math.min(0.5 * 2 ** attempt, 30) * (0.75 + Math.random() / 2);
}

async function fields(response) {
  try {
    return (await response.json()) ?? {};
  } catch {
    return {};
  }
}

// The data of server-sent events, each parsed, to the end of the stream.
export async function* events(response) {
  let text = "";
  for await (const part of response.body.pipeThrough(new TextDecoderStream())) {
    text += part;
    const frames = text.split("\n\n");
    text = frames.pop();
    for (const frame of frames) {
      if (!frame.startsWith("data: ")) continue;
      const data = frame.slice("data: ".length);
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
