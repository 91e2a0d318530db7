// The image service: paints a prompt into picture.png.
//   ATELIER_URL=http://127.0.0.1:8000 node image_service.mjs "a red circle on a blue background"
import { writeFile } from "node:fs/promises";
import { post } from "./retry.mjs";

const URL = process.env.ATELIER_URL ?? "http://127.0.0.1:8000";

const prompt = process.argv[2] ?? "a red circle on a blue background";
const response = await post(`${URL}/api/generate`, { prompt, aspect_ratio: "4:3", num_steps: 20, seed: 7 });
if (!response.ok) {
  const { code, message, suggested_fix, request_id } = await response.json();
  console.error(`${code}: ${message} ${suggested_fix ?? ""} (${request_id})`);
  process.exit(1);
}
await writeFile("picture.png", Buffer.from(await response.arrayBuffer()));
console.log(`picture.png, seed ${response.headers.get("x-seed")}`);
