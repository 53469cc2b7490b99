// The page: a section for each trace, and the bar that moves all of them from probe to probe.
import {bytes, count, dark, el, percent, plural, repaint} from '../../../web/draw/draw.js';
import {cacheFigure, keptFigure, mapFigure, memoryFigure, stepsFigure} from './figures.js';
import {traces} from './helpers.js';
import {reasoning} from './reasoning.js';

function facts(trace) {
  const t = trace.totals;
  const fact = (name, value, more) => el('div', {}, el('dt', {}, name), el('dd', {}, value, more && el('small', {}, more)));
  // The first token comes from the prefill. Each other token takes a decode step.
  const decoded = Math.max(t.generated_tokens - 1, 0);
  const rate = `${(decoded / (t.decode_us / 1e6)).toFixed(1)} tok/s`;
  const all = t.prompt_tokens + decoded;
  return el('dl', {class: 'facts'},
    fact('generated', count(t.generated_tokens), `tokens, ${count(t.thinking_tokens)} of them thinking; the prompt has ${count(t.prompt_tokens)}`),
    fact('steps', count(trace.steps.length), trace.steps.length ? `${(t.thinking_tokens / trace.steps.length).toFixed(1)} tokens each` : ''),
    !trace.probes.length ? undefined : fact('evicted', percent(t.evicted_tokens, t.thinking_tokens), `${count(t.evicted_tokens)} tokens, ${plural(trace.probes.length, 'probe')}`),
    !t.peak_cached ? undefined : fact('most slots', count(t.peak_cached), `${count(t.final_cached)} at the end; without pruning ${count(all)}`),
    t.peak_kv_bytes ? fact('KV cache', bytes(t.peak_kv_bytes), 'on the device at its largest') : undefined,
    !t.decode_us ? undefined : fact('decode', rate, `probes take ${percent(t.probe_us, t.decode_us + t.probe_us)} of the time`));
}

function table(trace, jump) {
  if (!trace.probes.length) return undefined;
  const head = ['probe', 'at token', 'cached', 'after', 'evicted', 'budget', 'probe ms', 'plan ms', 'gather ms', 'reserved'];
  const ms = (us) => (us / 1000).toFixed(1);
  const rows = trace.probes.map((p, i) => el('tr', {},
    el('td', {}, el('button', {class: 'link', type: 'button', onclick: () => jump(i + 1)}, `${i + 1}`)),
    ...[count(p.at_token), count(p.cached_before), count(p.cached_after), count(p.evicted),
      p.infeasible ? `${count(p.infeasible.asked)} not reached: ${count(p.infeasible.kept)} stay` : (p.target === null ? 'met' : count(p.target)),
      ms(p.timings.probe_us), ms(p.timings.plan_us), ms(p.timings.gather_us),
      p.bytes_after.reserved ? bytes(p.bytes_after.reserved) : '–'].map((text) => el('td', {}, text))));
  const body = el('tbody', {}, ...rows);
  const node = el('details', {}, el('summary', {}, 'Every probe in numbers'),
    el('div', {class: 'scroll'}, el('table', {},
      el('thead', {}, el('tr', {}, ...head.map((h) => el('th', {scope: 'col'}, h)))), body)));
  return {node, show: (k) => rows.forEach((r, i) => r.classList.toggle('current', i === k - 1))};
}

/** The settings that few runs change, as text, if they differ from the default. */
function unusual({scope, layers, normalise, positions, steps, changed}) {
  const words = {scope: `a kept set for each ${scope}`, layers: `layers ${layers}`, normalise: `normalised ${normalise}`,
    positions: `${positions} positions`, steps: `steps are cut at ${steps}`};
  return Object.keys(words).filter((name) => changed.includes(name)).map((name) => `${words[name]}; `).join('');
}

const sentence = (note) => `${note[0].toUpperCase()}${note.slice(1)}.`;

function section(trace, index, jump) {
  const steps = reasoning(trace, `t${index + 1}`);
  const {policy, budget, window: latest, probe_every: every} = trace.settings;
  // A trace of text that was generated elsewhere has no cache to show.
  const cache = trace.totals.peak_cached ? cacheFigure(trace) : undefined;
  const lengths = stepsFigure(trace, steps.goTo);
  const map = mapFigure(trace, steps.goTo);
  const kept = keptFigure(trace, steps.goTo);
  const numbers = table(trace, jump);
  const state = el('p', {class: 'quiet', role: 'status'});
  const device = `${trace.model} · ${trace.device}`;
  const node = el('section', {class: 'trace', 'aria-label': trace.name},
    el('div', {class: 'about'}, el('h2', {}, trace.name),
      el('p', {class: 'quiet'}, device),
      el('p', {class: 'quiet'},
        (every ? `${policy}, ${budget}; window ${latest}; a probe every ${every} thinking tokens; ` : '') +
        unusual(trace.settings) + `stopped: ${trace.stop}`),
      trace.sampling_note && el('p', {class: 'quiet'}, sentence(trace.sampling_note)),
      facts(trace)),
    el('div', {class: 'pictures'}, cache?.node, map?.node, kept?.node, lengths?.node, memoryFigure(trace)),
    el('div', {class: 'reasoning'},
      trace.prompt && el('details', {}, el('summary', {}, 'The prompt'), el('div', {class: 'text', dir: 'auto'}, trace.prompt)),
      el('div', {}, el('h3', {}, 'The reasoning'), state,
        trace.step_note && el('p', {class: 'quiet'}, sentence(trace.step_note)), steps.legend, steps.list),
      trace.answer.trim() && el('div', {}, el('h3', {}, 'The answer'), el('div', {class: 'text', dir: 'auto'}, trace.answer.trim()))),
    el('div', {class: 'more'}, numbers?.node));
  const show = (k) => {
    k = Math.min(k, trace.probes.length);
    steps.show(k);
    cache?.show(k);
    lengths?.show(k);
    map?.show(k);
    kept?.show(k);
    numbers?.show(k);
    const probe = trace.probes[k - 1];
    const text = probe
      ? `After probe ${k} of ${trace.probes.length}, at ${count(probe.thinking_tokens)} thinking tokens: ${count(probe.cached_after)} of ` +
        `${count(trace.totals.prompt_tokens + probe.at_token)} tokens are cached.`
      : trace.probes.length ? 'Before the first probe: everything is cached.' : 'There was no probe.';
    state.replaceChildren(text);
    return text;
  };
  return {node, show, open: steps.open};
}

const $ = (id) => document.getElementById(id);
const most = Math.max(...traces.map((t) => t.probes.length));
let probe = most;

const sections = traces.map((trace, i) => section(trace, i, (k) => show(k)));
$('main').className = traces.length > 1 ? 'two' : 'one';
$('main').append(...sections.map((s) => s.node));
$('lead').append('What a model thought, what its KV cache kept of that, and why the rest was evicted.');

function show(k) {
  probe = Math.max(0, Math.min(most, k));
  sections.forEach((s) => s.show(probe));
  $('probe').value = probe;
  $('probe').setAttribute('aria-valuetext', `probe ${probe} of ${most}`);
  $('back').disabled = probe === 0;
  $('on').disabled = probe === most;
  $('where').value = probe ? `after probe ${probe} of ${most}` : 'before the first probe';
}

let timer;
function play(on) {
  clearInterval(timer);
  timer = undefined;
  $('play').setAttribute('aria-pressed', String(on));
  $('play').textContent = on ? 'Pause' : 'Play';
  if (!on) return;
  if (probe === most) show(0);
  timer = setInterval(() => (probe < most ? show(probe + 1) : play(false)), 900);
}

$('bar').hidden = most === 0;
$('probe').max = most;
$('probe').addEventListener('input', () => { play(false); show(Number($('probe').value)); });
$('back').addEventListener('click', () => { play(false); show(probe - 1); });
$('on').addEventListener('click', () => { play(false); show(probe + 1); });
$('play').addEventListener('click', () => play(timer === undefined));

dark.addEventListener('change', () => repaint());
addEventListener('beforeprint', () => { play(false); show(most); repaint(true); });
addEventListener('afterprint', () => repaint(false));

show(most);
document.body.dataset.state = 'drawn';
