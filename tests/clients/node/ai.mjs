// Vercel's AI SDK with its provider for servers of the OpenAI API.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, streamText } from "ai";
import { serve } from "./lines.mjs";

// A completion model is asked without tools, and the SDK warns that it cannot have any.
globalThis.AI_SDK_LOG_WARNINGS = false;

const providerOf = ({ url, key }) =>
  createOpenAICompatible({ name: "pagoda", baseURL: url, apiKey: key, includeUsage: true });

const optionsOf = ({ text, temperature, max_tokens, extra }) => ({
  prompt: text,
  temperature,
  maxOutputTokens: max_tokens,
  maxRetries: 0,
  providerOptions: { pagoda: extra },
});

const usageOf = (usage) => ({ prompt: usage.inputTokens, completion: usage.outputTokens });

async function whole(model, asked) {
  const { text, finishReason, usage } = await generateText({ model, ...optionsOf(asked) });
  return { text, finish: finishReason, usage: usageOf(usage) };
}

async function streamed(model, asked) {
  let failure;
  const answer = streamText(
    { model, ...optionsOf(asked), onError: ({ error }) => { failure = error; } });
  const told = { text: "", pieces: 0 };
  for await (const piece of answer.textStream) {
    told.text += piece;
    told.pieces += 1;
  }
  if (failure) throw failure;
  return { ...told, finish: await answer.finishReason, usage: usageOf(await answer.usage) };
}

async function leave(asked) {
  const leaving = new AbortController();
  const model = providerOf(asked).chatModel(asked.model);
  const answer = streamText({ model, ...optionsOf(asked), abortSignal: leaving.signal });
  let pieces = 0;
  for await (const _ of answer.textStream) if (++pieces === 3) leaving.abort();
  return { pieces: Math.min(pieces, 3) };
}

// An error of the provider says which call failed; its class is what applications test.
const failing = (run) => async (asked) => {
  try {
    return await run(asked);
  } catch (error) {
    if (!APICallError.isInstance(error)) throw error;
    const { statusCode: status, message, data } = error;
    return { error: ["APICallError"], status, message, code: data?.error?.code };
  }
};

await serve({
  chat: failing((asked) => whole(providerOf(asked).chatModel(asked.model), asked)),
  chat_stream: failing((asked) => streamed(providerOf(asked).chatModel(asked.model), asked)),
  completion: failing((asked) => whole(providerOf(asked).completionModel(asked.model), asked)),
  completion_stream:
    failing((asked) => streamed(providerOf(asked).completionModel(asked.model), asked)),
  leave,
});
