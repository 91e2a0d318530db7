// The OpenAI API: asks about a picture, streamed.
//   ATELIER_URL=http://127.0.0.1:8000 node openai_chat.mjs picture.png
import { readFile } from "node:fs/promises";
import { events, post } from "./retry.mjs";

const base = process.env.ATELIER_URL ?? "http://127.0.0.1:8000";

const picture = await readFile(process.argv[2] ?? new URL("picture.png", import.meta.url));
const url = `data:image/png;base64,${picture.toString("base64")}`;
const content = [
  { type: "image_url", image_url: { url } },
  { type: "text", text: "Describe the picture." },
];

const body = { messages: [{ role: "user", content }], max_tokens: 64, stream: true };
const response = await post(`${base}/v1/chat/completions`, body);
if (!response.ok) {
  const { error } = await response.json();
  console.error(`${error.code}: ${error.message}`);
  process.exit(1);
}
for await (const event of events(response)) {
  if (event.error) throw new Error(event.error.message);
  process.stdout.write(event.choices[0]?.delta.content ?? "");
}
console.log();
