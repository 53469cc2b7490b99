// Clients from npm, against the server with the built-in model on the CPU: OpenAI's own package and Vercel's AI SDK.
//
//     npm ci --prefix tests/clients && SECATEUR=target/quick/secateur node --test tests/clients/
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';

import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, streamText } from 'ai';
import OpenAI from 'openai';

const EXAMPLE =
  'We count modulo 10. #1 d is 3. #2 r exceeds d by 9. #3 e equals r plus 7. #4 r drops by d. #5 c is r minus e. #6 h is 4. #7 c rises by 2. What is c?';
const messages = [{ role: 'user', content: EXAMPLE }];

let server;
let address;

before(async () => {
  const binary = process.env.SECATEUR ?? 'target/quick/secateur';
  server = spawn(binary, ['serve', '--port', '0', '--device', 'cpu', '--sequences', '2', '--quiet'], { stdio: ['ignore', 'ignore', 'pipe'] });
  const [line] = await once(createInterface(server.stderr), 'line');
  assert.match(line, /listening on /);
  address = line.split(' ').at(-1);
});

after(async () => {
  server.kill('SIGTERM');
  const [code] = await once(server, 'exit');
  assert.equal(code, 0);
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
