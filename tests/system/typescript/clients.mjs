// Both SDKs against a proxy in front of the scripted upstream. What came of it goes to standard
// output as one JSON document; tests/test_typescript.py looks at it.
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const [url, token] = process.argv.slice(2);
const model = "claude-sonnet-5-5";
const hello = [{ role: "user", content: "Hello" }];
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    parameters: { type: "object", properties: { city: { type: "string" } } },
  },
};
const told = {};

const anthropic = new Anthropic({ baseURL: url, apiKey: token, maxRetries: 0 });
const message = await anthropic.messages.create({ model, max_tokens: 100, messages: hello });
told.message = message.content[0].text;
const stream = anthropic.messages.stream({ model, max_tokens: 100, messages: hello });
told.messageStream = (await stream.finalMessage()).content[0].text;
told.tokens = (await anthropic.messages.countTokens({ model, messages: hello })).input_tokens;

const bearer = new Anthropic({ baseURL: url, apiKey: null, authToken: token, maxRetries: 0 });
told.bearer = (await bearer.messages.create({ model, max_tokens: 100, messages: hello })).type;
const twice = new Anthropic({
  baseURL: url,
  apiKey: "dummy",
  defaultHeaders: { "x-api-key": token },
  maxRetries: 0,
});
told.defaultHeaders = (await twice.messages.create({ model, max_tokens: 100, messages: hello })).type;

const stranger = new Anthropic({ baseURL: url, apiKey: "somebody-else", maxRetries: 0 });
try {
  await stranger.messages.create({ model, max_tokens: 100, messages: hello });
} catch (error) {
  told.anthropicRefusal = [error.constructor.name, error.status, Boolean(error.requestID)];
}

const openai = new OpenAI({ baseURL: `${url}/openai/v1`, apiKey: token, maxRetries: 0 });
const completion = await openai.chat.completions.create({ model, messages: hello });
told.completion = completion.choices[0].message.content;
told.chunks = "";
for await (const chunk of await openai.chat.completions.create({
  model,
  messages: hello,
  stream: true,
  stream_options: { include_usage: true },
})) {
  told.chunks += chunk.choices[0]?.delta.content ?? "";
  told.usage = chunk.usage?.total_tokens;
}
const runner = openai.chat.completions.stream({
  model,
  messages: [{ role: "user", content: "tool: Bern" }],
  tools: [weather],
});
const call = (await runner.finalChatCompletion()).choices[0].message.tool_calls[0];
told.call = [call.function.name, JSON.parse(call.function.arguments)];
const answered = await openai.chat.completions.create({
  model,
  messages: [
    { role: "user", content: "tool: Bern" },
    { role: "assistant", content: null, tool_calls: [call] },
    { role: "tool", tool_call_id: call.id, content: "sunny" },
  ],
  tools: [weather],
});
told.answered = answered.choices[0].finish_reason;
told.models = [];
for await (const each of openai.models.list()) told.models.push(each.id);
try {
  await openai.chat.completions.create({ model, messages: hello, n: 2 });
} catch (error) {
  told.openaiRefusal = [error.constructor.name, error.status, error.param, Boolean(error.requestID)];
}

console.log(JSON.stringify(told));
