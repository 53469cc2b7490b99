// The shortest page that runs a model: it writes what the model thinks, and what stays cached of it.
import { load } from './secateur.js';

const output = document.querySelector('pre');
const model = await load(); // the built-in model; load({ files }) or load({ url }) take another one
const request = { prompt: model.info.suggested.prompt, budget: 'ratio:0.5', max_new_tokens: 48 };

for await (const event of model.generate(request)) {
  switch (event.type) {
    case 'token':
      output.append(event.text);
      break;
    case 'probe':
      output.append(`\n[${event.cached_after} of ${event.cached_before} tokens are cached]\n`);
      break;
  }
}
document.body.dataset.done = 'true';
model.close();
