// The official OpenAI SDK on Node.

import OpenAI from "openai";
import { serve } from "./lines.mjs";

const clientOf = ({ url, key }) =>
  new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0, timeout: 60_000 });

const optionsOf = ({ model, temperature, max_tokens, extra }) =>
  ({ model, temperature, max_tokens, ...extra });

const chatOf = (asked) =>
  ({ messages: [{ role: "user", content: asked.text }], ...optionsOf(asked) });

const textOf = (asked) => ({ prompt: asked.text, ...optionsOf(asked) });

const usageOf = (usage) => ({ prompt: usage.prompt_tokens, completion: usage.completion_tokens });

async function chat(asked) {
  const { choices: [choice], usage } = await clientOf(asked).chat.completions.create(chatOf(asked));
  return { text: choice.message.content, finish: choice.finish_reason, usage: usageOf(usage) };
}

async function chat_stream(asked) {
  const stream = await clientOf(asked).chat.completions.create(
    { stream: true, stream_options: { include_usage: true }, ...chatOf(asked) });
  const told = { text: "", finish: null, usage: null, pieces: 0 };
  for await (const { choices: [choice], usage } of stream) {
    if (usage) told.usage = usageOf(usage);
    if (!choice) continue;
    told.finish = choice.finish_reason ?? told.finish;
    told.text += choice.delta.content ?? "";
    told.pieces += choice.delta.content ? 1 : 0;
  }
  return told;
}

async function completion(asked) {
  const { choices: [choice], usage } = await clientOf(asked).completions.create(textOf(asked));
  return { text: choice.text, finish: choice.finish_reason, usage: usageOf(usage) };
}

async function completion_stream(asked) {
  const stream = await clientOf(asked).completions.create({ stream: true, ...textOf(asked) });
  const told = { text: "", pieces: 0 };
  for await (const { choices: [choice] } of stream) {
    told.text += choice.text;
    told.pieces += choice.text ? 1 : 0;
  }
  return told;
}

async function leave(asked) {
  const stream = await clientOf(asked).chat.completions.create({ stream: true, ...chatOf(asked) });
  let pieces = 0;
  for await (const _ of stream) if (++pieces === 3) stream.controller.abort();
  return { pieces: Math.min(pieces, 3) };
}

await serve({ chat, chat_stream, completion, completion_stream, leave });
