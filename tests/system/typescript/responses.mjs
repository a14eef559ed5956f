// The Vercel AI SDK and OpenAI's SDK with the Responses API against a proxy in front of the
// scripted upstream. One case a run; what came of it goes to standard output as a JSON document;
// tests/system/test_responses_node.py looks at it.
import { createOpenAI } from "@ai-sdk/openai";
import { generateObject, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";

const [url, token, name] = process.argv.slice(2);
const model = "claude-sonnet-5-5";
const baseURL = `${url}/openai/v1`;
const ai = createOpenAI({ baseURL, apiKey: token })(model);
const openai = new OpenAI({ baseURL, apiKey: token, maxRetries: 0 });

const numbers = {
  type: "object",
  properties: { a: { type: "number" }, b: { type: "number" } },
  required: ["a", "b"],
  additionalProperties: false,
};
const add_numbers = tool({
  description: "Add two numbers.",
  inputSchema: jsonSchema(numbers),
  execute: async ({ a, b }) => String(a + b),
});
const asked = {
  model: ai,
  prompt: "What is 2 + 3?",
  tools: { add_numbers },
  stopWhen: stepCountIs(3),
  maxRetries: 0,
};
const inFull = { providerOptions: { openai: { store: false } } };

async function generated(options) {
  const { text, reasoningText, finishReason, usage, steps } = await generateText(options);
  return { text, finishReason, total: usage.totalTokens, thought: steps[0].reasoningText };
}

async function streamed(options) {
  const result = streamText(options);
  let text = "";
  const kinds = new Set();
  for await (const part of result.fullStream) {
    kinds.add(part.type);
    if (part.type === "text-delta") text += part.text;
    if (part.type === "error") throw part.error;
  }
  return { text, finishReason: await result.finishReason, kinds: [...kinds] };
}

async function refused(work) {
  try {
    await work();
  } catch (error) {
    return [error.constructor.name, error.statusCode ?? error.status, error.message];
  }
}

const tools = [{ type: "function", name: "add_numbers", parameters: numbers, strict: false }];

const cases = {
  "ai generate": () => generated(asked),
  "ai generate store:false": () => generated({ ...asked, ...inFull }),
  "ai stream": () => streamed(asked),
  "ai stream store:false": () => streamed({ ...asked, ...inFull }),
  "ai object": async () => {
    const schema = jsonSchema({
      type: "object",
      properties: { total: { type: "number" } },
      required: ["total"],
      additionalProperties: false,
    });
    return (await generateObject({ model: ai, prompt: "2 + 3", schema, maxRetries: 0 })).object;
  },
  "ai refused": () => refused(() => generateText({ model: ai, prompt: "Hi", maxRetries: 0 })),
  "openai loop": async () => {
    const input = [{ role: "user", content: "What is 2 + 3?" }];
    const first = await openai.responses.create({ model, input, tools });
    const call = first.output.find((item) => item.type === "function_call");
    const { a, b } = JSON.parse(call.arguments);
    const output = { type: "function_call_output", call_id: call.call_id, output: String(a + b) };
    const second = await openai.responses.create({
      model,
      tools,
      input: [output],
      previous_response_id: first.id,
    });
    return { text: second.output_text, status: second.status };
  },
  "openai stream": async () => {
    const stream = openai.responses.stream({ model, input: "What is 2 + 3?", tools });
    const kinds = [];
    for await (const event of stream) kinds.push(event.type);
    const final = await stream.finalResponse();
    return {
      first: kinds[0],
      last: kinds.at(-1),
      text: final.output_text,
      items: final.output.map((item) => item.type),
      total: final.usage.total_tokens,
    };
  },
  "openai refused": () => refused(() => openai.responses.create({ model, input: "Hi" })),
};

console.log(JSON.stringify(await cases[name]()));
