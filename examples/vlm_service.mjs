// The VLM service: asks about a picture, whole and streamed.
//   ATELIER_URL=http://127.0.0.1:8000 node vlm_service.mjs picture.png
import { readFile } from "node:fs/promises";
import { events, post } from "./retry.mjs";

const base = process.env.ATELIER_URL ?? "http://127.0.0.1:8000";

const picture = await readFile(process.argv[2] ?? new URL("picture.png", import.meta.url));
const body = {
  input_type: "text_image",
  text: "Describe the picture.",
  image_base64: picture.toString("base64"),
  max_new_tokens: 64,
};

const answer = await (await post(`${base}/v1/chat`, body)).json();
if (!answer.success) {
  console.error(`${answer.message} (${answer.request_id})`);
  process.exit(1);
}
console.log(answer.result, answer.usage);

for await (const event of events(await post(`${base}/v1/chat/stream`, body))) {
  if (event.error) throw new Error(event.error);
  process.stdout.write(event.chunk);
}
console.log();
