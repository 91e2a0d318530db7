// The VLM REST service: asks about a picture, streamed.
//   ATELIER_URL=http://127.0.0.1:8000 node vlm_rest.mjs picture.png
import { readFile } from "node:fs/promises";
import { events, post } from "./retry.mjs";

const base = process.env.ATELIER_URL ?? "http://127.0.0.1:8000";

const picture = await readFile(process.argv[2] ?? new URL("picture.png", import.meta.url));
const image = `data:image/png;base64,${picture.toString("base64")}`;
const body = { image, prompt: "Describe the picture.", max_tokens: 64, stream: true };

const response = await post(`${base}/api/v1/chat`, body);
if (!response.ok) {
  const { code, message } = await response.json();
  console.error(`${code}: ${message}`);
  process.exit(1);
}
for await (const { code, message, data } of events(response)) {
  if (code !== 0) throw new Error(`${code}: ${message}`);
  process.stdout.write(data.delta);
  if (data.done) console.log("", data.token_usage);
}
