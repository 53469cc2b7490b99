// Clients from npm, against the server with the built-in model on the CPU: OpenAI's own package and Vercel's AI SDK.
//
//     npm ci --prefix tests/clients && SECATEUR=target/quick/secateur node --test tests/clients/
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, jsonSchema, Output, stepCountIs, streamText, tool } from 'ai';
import OpenAI from 'openai';

const EXAMPLE =
  'We count modulo 10. #1 d is 3. #2 r exceeds d by 9. #3 e equals r plus 7. #4 r drops by d. #5 c is r minus e. #6 h is 4. #7 c rises by 2. What is c?';
const messages = [{ role: 'user', content: EXAMPLE }];

const servers = [];
let address;
// The address of a server whose model calls tools; see tests/fixtures/make_caller.py.
let caller;

const start = async (...options) => {
  const binary = process.env.SECATEUR ?? 'target/quick/secateur';
  const args = ['serve', '--port', '0', '--device', 'cpu', '--sequences', '2', '--quiet', ...options];
  const server = spawn(binary, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  servers.push(server);
  const [line] = await once(createInterface(server.stderr), 'line');
  assert.match(line, /listening on /);
  return line.split(' ').at(-1);
};

before(async () => {
  address = await start();
  caller = await start('--model', fileURLToPath(new URL('../fixtures/caller', import.meta.url)), '--served-name', 'caller');
});

after(async () => {
  for (const server of servers) {
    server.kill('SIGTERM');
    const [code] = await once(server, 'exit');
    assert.equal(code, 0);
  }
});

const openai = () => new OpenAI({ baseURL: `${address}/v1`, apiKey: 'none', maxRetries: 0 });
const sdk = () => createOpenAICompatible({ name: 'secateur', baseURL: `${address}/v1`, includeUsage: true })('built-in');

test('openai: a stream is the answer in pieces', async () => {
  const whole = await openai().chat.completions.create({ model: 'built-in', messages, temperature: 0 });
  const { content, reasoning_content: thinking } = whole.choices[0].message;
  assert.ok(content && thinking);
  const stream = await openai().chat.completions.create({ model: 'built-in', messages, temperature: 0, stream: true });
  let [said, thought] = ['', ''];
  for await (const chunk of stream) {
    said += chunk.choices[0]?.delta.content ?? '';
    thought += chunk.choices[0]?.delta.reasoning_content ?? '';
  }
  assert.deepEqual([said, thought], [content, thinking]);
});

test('openai: an abort ends the request on the server', async () => {
  const stream = await openai().chat.completions.create({
    model: 'built-in',
    messages,
    stream: true,
    max_tokens: 4000,
    ignore_eos: true,
    secateur: { policy: 'full' },
  });
  for await (const chunk of stream) {
    if (chunk.choices[0].delta.reasoning_content) break;
  }
  stream.controller.abort();
  for (let tries = 0; ; tries++) {
    const { running } = await (await fetch(`${address}/slots`)).json();
    if (running === 0) break;
    assert.ok(tries < 100, 'it still runs');
    await new Promise((done) => setTimeout(done, 100));
  }
});

test('AI SDK: text and reasoning come apart', async () => {
  const whole = await generateText({ model: sdk(), prompt: EXAMPLE, temperature: 0 });
  assert.ok(whole.text && whole.reasoningText);
  assert.equal(whole.finishReason, 'stop');
  const stream = streamText({ model: sdk(), prompt: EXAMPLE, temperature: 0 });
  let [said, thought] = ['', ''];
  for await (const part of stream.fullStream) {
    if (part.type === 'error') throw part.error;
    if (part.type === 'text-delta') said += part.text;
    if (part.type === 'reasoning-delta') thought += part.text;
  }
  assert.deepEqual([said, thought], [whole.text, whole.reasoningText]);
  assert.ok((await stream.usage).outputTokens > 0);
});

test('AI SDK: settings of pruning go through providerOptions', async () => {
  const pruned = { secateur: { secateur: { budget: 'tokens:24', probe_every: 20, window: 8 } } };
  const whole = await generateText({ model: sdk(), prompt: EXAMPLE, temperature: 0, providerOptions: pruned });
  assert.ok(whole.text);
  const refused = { secateur: { secateur: { bugdet: 'tokens:24' } } };
  await assert.rejects(generateText({ model: sdk(), prompt: EXAMPLE, maxRetries: 0, providerOptions: refused }), /bugdet/);
});

test('AI SDK: an answer is an object of a schema', async () => {
  const options = { name: 'secateur', baseURL: `${address}/v1`, supportsStructuredOutputs: true };
  const properties = { value: { type: 'integer', minimum: 0, maximum: 9 }, sure: { type: 'boolean' } };
  const schema = jsonSchema({ type: 'object', properties, required: ['value', 'sure'], additionalProperties: false });
  const whole = await generateText({
    model: createOpenAICompatible(options)('built-in'),
    prompt: EXAMPLE,
    temperature: 0,
    output: Output.object({ schema }),
  });
  assert.ok(Number.isInteger(whole.output.value) && typeof whole.output.sure === 'boolean', JSON.stringify(whole.output));
  assert.ok(whole.reasoningText);
});

test('openai: calls of tools come in deltas', async () => {
  const client = new OpenAI({ baseURL: `${caller}/v1`, apiKey: 'none' });
  const parameters = { type: 'object', properties: { city: { type: 'string' } } };
  const tools = ['get_weather', 'get_time'].map((name) => ({ type: 'function', function: { name, parameters } }));
  const asked = { model: 'caller', messages: [{ role: 'user', content: 'How warm is it in Paris?' }], tools };
  const whole = (await client.chat.completions.create(asked)).choices[0];
  const streamed = (await client.chat.completions.stream(asked).finalChatCompletion()).choices[0];
  for (const { finish_reason: reason, message } of [whole, streamed]) {
    assert.equal(reason, 'tool_calls');
    assert.equal(message.content, 'Let me look.');
    const calls = message.tool_calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]);
    assert.deepEqual(calls, [
      ['get_weather', { city: 'Paris', days: 2 }],
      ['get_time', { zone: 'Europe/Paris' }],
    ]);
  }
});

test('openai: a streamed response is the response', async () => {
  const asked = { model: 'built-in', input: EXAMPLE, temperature: 0 };
  const whole = await openai().responses.create(asked);
  const [reasoning, message] = whole.output;
  assert.deepEqual([reasoning.type, message.type, whole.status], ['reasoning', 'message', 'completed']);
  let [said, thought] = ['', ''];
  for await (const event of await openai().responses.create({ ...asked, stream: true })) {
    if (event.type === 'response.output_text.delta') said += event.delta;
    if (event.type === 'response.reasoning_text.delta') thought += event.delta;
  }
  assert.deepEqual([said, thought], [whole.output_text, reasoning.content[0].text]);
  // The package itself puts the events together.
  const final = await openai().responses.stream(asked).finalResponse();
  assert.deepEqual([final.status, final.output_text], ['completed', said]);
  const answered = await openai().chat.completions.create({ model: 'built-in', messages, temperature: 0 });
  const { content, reasoning_content: thinking } = answered.choices[0].message;
  assert.deepEqual([said, thought], [content, thinking]);
});

test('openai: responses call functions, and their results are answered', async () => {
  const client = new OpenAI({ baseURL: `${caller}/v1`, apiKey: 'none', maxRetries: 0 });
  const parameters = { type: 'object', properties: { city: { type: 'string' } } };
  const tools = ['get_weather', 'get_time'].map((name) => ({ type: 'function', name, parameters, strict: false }));
  const input = [{ role: 'user', content: 'How warm is it in Paris?' }];
  const whole = await client.responses.create({ model: 'caller', input, tools });
  const streamed = await client.responses.stream({ model: 'caller', input, tools }).finalResponse();
  for (const { output } of [whole, streamed]) {
    const calls = output.filter((item) => item.type === 'function_call').map((item) => [item.name, JSON.parse(item.arguments)]);
    assert.deepEqual(calls, [
      ['get_weather', { city: 'Paris', days: 2 }],
      ['get_time', { zone: 'Europe/Paris' }],
    ]);
  }
  const results = whole.output
    .filter((item) => item.type === 'function_call')
    .map((item) => ({ type: 'function_call_output', call_id: item.call_id, output: '21' }));
  const answer = await client.responses.create({ model: 'caller', input: [...input, ...whole.output, ...results], tools });
  assert.match(answer.output_text, /^It is 21 °C/);
  await assert.rejects(client.responses.create({ model: 'caller', input, background: true }), /background/);
});

test('AI SDK: tools are run, and their results answered', async () => {
  const model = createOpenAICompatible({ name: 'secateur', baseURL: `${caller}/v1` })('caller');
  const inputSchema = jsonSchema({ type: 'object', properties: {} });
  const run = [];
  const tools = Object.fromEntries(
    ['get_weather', 'get_time'].map((name) => [
      name,
      tool({
        description: 'What it says.',
        inputSchema,
        execute: async (input) => {
          run.push([name, input]);
          return { degrees: 21 };
        },
      }),
    ]),
  );
  const options = { model, tools, prompt: 'How warm is it in Paris?', stopWhen: stepCountIs(3) };
  const called = [
    ['get_weather', { city: 'Paris', days: 2 }],
    ['get_time', { zone: 'Europe/Paris' }],
  ];
  const whole = await generateText(options);
  assert.deepEqual(run.splice(0), called);
  assert.match(whole.text, /^It is 21 °C/);
  assert.deepEqual(
    whole.steps.map((step) => step.finishReason),
    ['tool-calls', 'stop'],
  );
  const stream = streamText(options);
  assert.equal(await stream.text, whole.text);
  assert.deepEqual(run, called);
});
