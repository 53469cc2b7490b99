// The page: a conversation with a model that prunes its thoughts. It uses secateur.js as any page would. If a server
// that runs the model serves the page (`secateur serve`), it uses remote.js instead, which has the same interface.
import { droppedFiles } from './drop.js';
import { fileSize, forget, kept } from './files.js';
import { bytes, count, dark, el, plural, repaint } from './draw/draw.js';
import { EXAMPLES } from './examples.js';
import { Insight } from './insight.js';
import { clearConversation, keepConversation, keptConversation } from './keep.js';
import * as remote from './remote.js';
import { Reply } from './reply.js';
import * as local from './secateur.js';

/** @typedef {import('./secateur.js').Engine | import('./remote.js').RemoteEngine} Engine */
/** @typedef {import('./secateur.js').Model} Model */
/** @typedef {import('./messages.js').Message} Message */
/** @typedef {import('./messages.js').Request} Request */

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const form = $('form');
const field = (name) => form.elements.namedItem(name);

/**
 * The engines that the page can use. `place` is the text for where the model runs, and `starting` the text until that
 * is known. `models` says whether the page chooses the model. The stylesheet hides the controls that an engine lacks.
 */
const ENGINES = {
  browser: {
    open: () => local.open(),
    starting: 'Looking for a GPU…',
    place: ({ adapter: { adapter, maxBinding, maxBuffer, f16 } }) => `GPU: ${adapter} · largest binding ${bytes(maxBinding)} · largest buffer ${bytes(maxBuffer)} · f16 arithmetic: ${f16 ? 'yes' : 'no'}`,
    models: true,
  },
  server: {
    open: () => remote.open({ askKey }),
    starting: 'Asking the server…',
    place: ({ server, info }) => `The model runs on the server at ${server.host}` + (info ? `: ${info.model}, on ${info.backend === 'cpu' ? 'the CPU' : `${info.adapter} (${info.backend})`}` : ''),
    models: false,
  },
};
/** The server of the page writes into it which engine the page uses. */
const kind = document.querySelector('meta[name="secateur-engine"]').content;
const chosen = ENGINES[kind];
document.body.dataset.engine = kind;

/** @type {Engine | undefined} */
let engine;
/** @type {Model | undefined} */
let model;
/** How the model was loaded, so that it can be loaded again. */
let loadedFrom;
/** The conversation, as templates see it: without thoughts. @type {Message[]} */
let history = [];
/** What stands on the page. @type {{question: string, replies: Reply[], turn: HTMLElement}[]} */
let turns = [];
/** The answers being written. @type {Reply[]} */
let current = [];
/** The prompt that the loaded model suggests. */
let suggested;
let stopped = false;
/**
 * Number of failures of the engine since its last answer. It ends the attempts to load a model that always crashes
 * it.
 */
let failures = 0;

const insight = new Insight($('figures'));

function setState(state) {
  document.body.dataset.state = state;
  const busy = ['starting', 'loading', 'running', 'checking'].includes(state);
  const idle = !busy && state !== 'no-engine';
  for (const id of ['files', 'gguf', 'builtin', 'fetch', 'conformance']) $(id).disabled = !idle || !chosen.models;
  $('start').disabled = !idle;
  for (const card of $('examples').children) card.disabled = !idle;
  $('reset').disabled = busy;
  $('reset').hidden = !$('turns').children.length;
  $('stop').disabled = state !== 'running';
  $('stop').hidden = state !== 'running';
  $('start').hidden = state === 'running';
  $('loading').hidden = state !== 'loading';
}
const settled = () => setState(!engine ? 'no-engine' : model ? 'loaded' : 'ready');

// --- the engine and its model ---------------------------------------------------------------------------------------

async function start() {
  engine = model = undefined;
  setState('starting');
  $('adapter').textContent = chosen.starting;
  try {
    engine = await chosen.open();
  } catch (error) {
    setState('no-engine');
    $('adapter').textContent = '';
    return fail(error);
  }
  engine.onfailure = restart;
  showPlace();
  setState('ready');
}

/** Shows where the model runs. */
function showPlace() {
  for (const place of [$('adapter'), $('place')]) place.textContent = chosen.place(engine);
}

/** Starts a new engine after a crash or the loss of the GPU, with the model that was loaded. */
async function restart(error) {
  const again = model && loadedFrom;
  const hadModel = !!model;
  failures += 1;
  current.filter((reply) => reply.running).forEach((reply) => reply.fail(error.title));
  await start();
  if (!engine) return;
  const tired = failures > 2;
  const loading = again && !tired ? load(again) : undefined;
  showError(error.title, `${error.message}\n${!hadModel ? 'It was restarted.' : tired
    ? 'It was restarted. The model was not loaded again, because this happened several times.' : 'It was restarted, and the model is loaded again.'}`);
  await loading;
}

/**
 * Loads a model: files, a folder on a server, a name on the hub or, with none of these, the built-in model.
 * @param {{files?: File[], url?: string, hub?: string, kv?: string, weights?: string, context?: number}} what
 * @param {() => void} [then] - what to do if it has to be tried again, and is loaded at last
 * @returns {Promise<boolean>}
 */
async function load(what, then) {
  hideError();
  $('model-dialog').close();
  model = undefined;
  showDefaults();
  setState('loading');
  $('loading-text').textContent = 'Loading…';
  $('model-notes').replaceChildren();
  const using = engine;
  try {
    const loaded = await using.load({ ...what, onProgress: showProgress });
    if (using !== engine) return false;
    model = loaded;
    loadedFrom = what;
  } catch (error) {
    if (using !== engine || error.kind === 'crashed' || error.kind === 'lost') return false;
    $('model').textContent = 'No model';
    settled();
    fail(error, RETRY.includes(error.kind) ? async () => (await load(what, then)) && then?.() : undefined);
    return false;
  }
  const { info } = model;
  showPlace();
  // Only the built-in model has learned to solve the examples.
  $('try').hidden = !chosen.models && info.suggested?.prompt === undefined;
  $('model').textContent = [info.model, info.context && `window ${count(info.context)}`].filter(Boolean).join(' · ');
  $('model-button').title = [info.adapter, info.backend].filter(Boolean).join(' · ');
  showPolicies(info.policies ?? []);
  suggest(info.suggested?.prompt);
  try {
    // Resolves an empty form to its settings. They do not depend on the prompt, and a prompt of ids needs no
    // tokenizer.
    showDefaults((await model.resolve({ ids: [0] })).settings);
  } catch (error) {
    fail(error);
  }
  settled();
  return true;
}

/** The options in the dialog for how a model is loaded. */
function loadOptions() {
  const options = {};
  if ($('kv').value) options.kv = $('kv').value;
  if ($('weights').value) options.weights = $('weights').value;
  if ($('context').value) options.context = Number($('context').value);
  return options;
}

function showProgress({ type, text, what, done, total }) {
  if (type === 'note') return announceLoad(text);
  if (total) $('progress').value = done / total;
  else $('progress').removeAttribute('value');
  $('loading-text').textContent = total ? `${what}: ${bytes(done)} of ${bytes(total)}` : `${what}…`;
}

/** Shows a note about how the model was fetched. */
function announceLoad(text) {
  $('model-notes').append(el('li', {}, text));
  announce(text);
}

/**
 * Offers these policies after the engine's choice, which is the first option. The chosen one stays, listed or not.
 */
function showPolicies(names) {
  for (const select of [$('policy'), $('compare')]) {
    const chosen = select.value;
    const all = new Set(chosen ? [...names, chosen] : names);
    select.replaceChildren(select.options[0], ...[...all].map((name) => new Option(name, name)));
    select.value = chosen;
  }
}

/** Replaces the prompt by the one that a model suggests, unless the user has changed it. */
function suggest(text) {
  const prompt = $('prompt');
  if (prompt.value === suggested) prompt.value = '';
  if (text !== undefined && prompt.value === '' && !history.length) prompt.value = text;
  suggested = text;
}

/** Shows in each empty field the value that the engine would take; without settings, shows nothing. */
function showDefaults(settings) {
  for (const control of form.elements) {
    const { name, type, tagName } = control;
    const value = settings?.[name] ?? settings?.sampling?.[name];
    if (tagName === 'SELECT' && name) control.options[0].textContent = value === undefined ? "the engine's choice" : `${value} (default)`;
    else if (tagName === 'INPUT' && type !== 'checkbox' && name !== 'seed') control.placeholder = value === undefined ? '' : String(round(value));
  }
}
/** The number without the digits that a 32-bit number gains in JavaScript. */
const round = (value) => (typeof value === 'number' && !Number.isInteger(value) ? Number(value.toPrecision(6)) : value);

// --- a turn ---------------------------------------------------------------------------------------------------------

/** The request of the form. The engine decides about fields that are left empty. @returns {Request} */
function formRequest() {
  const request = {};
  for (const { name, type, value, checked } of form.elements) {
    if (!name || value === '' || (type === 'checkbox' && !checked)) continue;
    request[name] = type === 'checkbox' ? checked : type === 'number' ? Number(value) : value;
  }
  return request;
}

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  if ($('start').disabled) return;
  const { prompt, ...rest } = formRequest();
  if (!prompt?.trim()) return;
  // A conversation that was kept goes on with its model.
  const again = turns.length && (loadedFrom?.url || loadedFrom?.hub) ? loadedFrom : loadOptions();
  if (!model && !(await load(again))) return;
  $('prompt').value = '';
  suggested = undefined;
  await ask(prompt, rest, $('compare').value);
});

$('prompt').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});

/**
 * One question, and its answer by each policy.
 * @param {string} question
 * @param {Request} settings
 * @param {string} other - another policy to compare with; empty: none
 */
async function ask(question, settings, other = '') {
  hideError();
  $('welcome').hidden = true;
  $('insight').hidden = false;
  // The thinking of earlier turns is folded, because it is no part of the conversation.
  for (const thinking of $('turns').querySelectorAll('.thinking')) thinking.open = false;
  const raw = settings.raw === true;
  const request = raw ? { ...settings, prompt: question } : { ...settings, messages: [...history, { role: 'user', content: question }] };
  const { turn, replies } = showTurn(question);
  setState('running');
  stopped = false;
  current = [];
  const entry = { question, replies: current, turn };
  const again = async () => {
    if (!model && !(await load(loadedFrom ?? {}, again))) return;
    turn.remove();
    turns = turns.filter((each) => each !== entry);
    if ($('prompt').value === question) $('prompt').value = '';
    await ask(question, settings, other);
  };
  let resolved;
  try {
    resolved = await model.resolve(request);
  } catch (error) {
    turn.remove();
    $('prompt').value = question;
    return failTurn(error, again);
  }
  // Stop was pressed before there was a run that it could end.
  if (stopped) {
    turn.remove();
    $('prompt').value = question;
    return settled();
  }
  const { seed } = resolved.settings;
  const runs = [{ ...request, seed }];
  if (other) runs.push({ ...request, seed, policy: other });
  replies.classList.toggle('two', runs.length > 1);
  let answer;
  for (const [i, run] of runs.entries()) {
    if (stopped || (i && (!model || current[0].failed))) break;
    const { policy, budget } = i ? { ...resolved.settings, policy: other } : resolved.settings;
    const note = i ? '' : runs.length > 1 ? `The run with ${other} comes after this one: there is one engine and one model.` : '';
    const reply = newReply(current, { title: policy === 'full' ? 'full cache' : `${policy}, ${budget}`, note, settings: { policy, budget } });
    replies.append(reply.node);
    insight.show(current, model.info);
    if (!i) turn.scrollIntoView({ block: 'start', behavior: 'instant' });
    announce(`${reply.title}: thinking`);
    // A seed that the form leaves open was drawn for this turn, and both runs use it.
    const message = await generate(reply, i || settings.seed !== undefined || runs.length > 1 ? run : request, again);
    answer = i ? answer : message;
  }
  if (answer) {
    history.push({ role: 'user', content: question }, answer);
    failures = 0;
  } else if (current[0]?.result) {
    current[0].note({ text: 'No answer came: this question is left out of the conversation.' });
  }
  turns.push(entry);
  keep();
  if (document.body.dataset.state === 'running') settled();
}

/** A question on the page, with a place for its replies. */
function showTurn(question) {
  const replies = el('div', { class: 'replies' });
  const turn = el('li', { class: 'turn' }, el('p', { class: 'question' }, question), replies);
  $('turns').append(turn);
  return { turn, replies };
}

/** Adds a reply to a turn. Its report shows all replies of the turn. */
function newReply(among, options) {
  const onReport = () => showReport(among);
  const reply = new Reply({ ...options, onSave: saveTrace, onReport });
  among.push(reply);
  return reply;
}

function keep() {
  const { files, ...from } = loadedFrom ?? {};
  keepConversation({ history, from: files ? undefined : from, turns: turns.map(({ question, replies }) => ({ question, replies: replies.map((reply) => reply.save()) })) });
}

/** Shows the conversation of an earlier visit. */
function resume() {
  const kept = keptConversation();
  if (!kept?.turns.length) return;
  ({ history } = kept);
  loadedFrom = kept.from;
  for (const { question, replies: saved } of kept.turns) {
    const replies = [];
    const { turn, replies: place } = showTurn(question);
    place.classList.toggle('two', saved.length > 1);
    for (const one of saved) {
      const reply = newReply(replies, { title: one.title, settings: one.settings });
      reply.show(one);
      place.append(reply.node);
    }
    turns.push({ question, replies, turn });
  }
  $('welcome').hidden = true;
}

/**
 * Runs a request into a reply.
 * @param {Reply} reply
 * @param {Request} request
 * @param {() => void} again - asks the question again
 * @returns {Promise<Message | null | undefined>}
 */
async function generate(reply, request, again) {
  try {
    for await (const event of model.generate(request)) {
      event.at = performance.now();
      reply.take(event);
      // Drawn once per frame, because tokens come faster than frames.
      schedule(reply);
    }
  } catch (error) {
    if (error.kind === 'crashed' || error.kind === 'lost') return undefined; // `restart` says so
    reply.fail(error.title ?? 'failed');
    failTurn(error, again, reply.promptTokens > 0);
    return undefined;
  } finally {
    draw();
  }
  const { result } = reply;
  // A run that a server had not begun yet has no events.
  if (!result) reply.fail('you stopped it');
  announce(`${reply.title}: ${plural(reply.generated, 'token')}, ${result?.thinking_unfinished ? 'no answer' : 'done'}`);
  return result?.message;
}

/** @type {Set<Reply>} */
const waiting = new Set();
function schedule(reply) {
  waiting.add(reply);
  if (waiting.size > 1) return;
  // A hidden page has no frames; there a timer draws.
  if (document.hidden) setTimeout(draw, 250);
  else requestAnimationFrame(draw);
}
function draw() {
  if (!waiting.size) return;
  const follow = innerHeight + scrollY > document.documentElement.scrollHeight - 80;
  for (const reply of waiting) reply.draw();
  waiting.clear();
  insight.draw();
  if (follow) scrollTo({ top: document.documentElement.scrollHeight, behavior: 'instant' });
}
// Without this, an update that waits for a frame when the page is hidden would wait until the page is shown.
document.addEventListener('visibilitychange', draw);

let reportOpened; // ends the wait of an earlier report
/** Announces each change of state once, so that screen readers are not flooded with tokens. */
const announce = (text) => ($('status').textContent = text);

$('stop').addEventListener('click', () => {
  stopped = true;
  $('stop').disabled = true;
  model?.stop();
});

$('reset').addEventListener('click', () => {
  history = [];
  turns = [];
  current = [];
  clearConversation();
  $('turns').replaceChildren();
  $('insight').hidden = true;
  $('welcome').hidden = false;
  announce('');
  settled();
  $('prompt').focus();
});

// --- steps: why each was kept or cut --------------------------------------------------------------------------------

const tip = $('tip');
let tipped;
function showTip(node) {
  if (!node) {
    tip.hidden = true;
    tipped?.removeAttribute('aria-describedby');
    tipped = undefined;
    return;
  }
  const { step } = node;
  tipped?.removeAttribute('aria-describedby');
  tipped = node;
  node.setAttribute('aria-describedby', 'tip');
  tip.textContent = step.of.why(step);
  tip.hidden = false;
  const box = node.getClientRects()[0];
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - width - 8))}px`;
  tip.style.top = `${box.top > height + 12 ? box.top - height - 6 : box.bottom + 6}px`;
}
const stepOf = (target) => target.closest?.('.step');
$('turns').addEventListener('pointerover', ({ target }) => showTip(stepOf(target)));
$('turns').addEventListener('pointerleave', () => showTip());
$('turns').addEventListener('focusin', ({ target }) => showTip(stepOf(target)));
$('turns').addEventListener('focusout', () => showTip());
$('turns').addEventListener('keydown', (event) => {
  const { key, target } = event;
  if (key === 'Escape') return showTip();
  const box = target.closest?.('.thoughts');
  const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[key];
  if (!box || !move) return;
  const steps = [...box.querySelectorAll('.step')];
  if (!steps.length) return;
  const at = steps.indexOf(target);
  steps[Math.max(0, Math.min(steps.length - 1, at < 0 ? (move > 0 ? 0 : steps.length - 1) : at + move))].focus();
  event.preventDefault();
});
addEventListener('scroll', () => tip.hidden || showTip(), { passive: true, capture: true });

// --- trace and report -----------------------------------------------------------------------------------------------

function download(name, type, text) {
  const link = el('a', { download: name, href: URL.createObjectURL(new Blob([text], { type })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const saveTrace = (reply) => download('trace.json', 'application/json', reply.json);

async function showReport(replies) {
  const traces = replies.filter((reply) => reply.json).map((reply) => ({ name: reply.title, trace: reply.json }));
  try {
    const html = await engine.report(traces);
    URL.revokeObjectURL($('report-save').href);
    $('report-save').href = URL.createObjectURL(new Blob([html], { type: 'text/html' }));
    const frame = $('report');
    reportOpened?.abort();
    const opened = (reportOpened = new AbortController());
    addEventListener('message', ({ source }) => {
      if (source !== frame.contentWindow) return;
      frame.contentWindow.postMessage(html, '*');
      opened.abort();
    }, { signal: opened.signal });
    frame.src = 'report.html';
    $('report-dialog').showModal();
  } catch (error) {
    fail(error);
  }
}
$('report-close').addEventListener('click', () => $('report-dialog').close());
$('report-dialog').addEventListener('close', () => $('report').removeAttribute('src'));

// --- choosing a model -----------------------------------------------------------------------------------------------

$('model-button').addEventListener('click', () => {
  $('model-dialog').showModal();
  if (chosen.models) showKept();
});

/** Asks for the key of the server; nothing if none is given. @type {import('./remote.js').AskKey} */
function askKey(wrong) {
  $('key-wrong').hidden = !wrong;
  $('key').value = '';
  $('key-dialog').showModal();
  return new Promise((resolve) => {
    $('key-dialog').addEventListener('close', () => {
      resolve($('key-dialog').returnValue === 'key' ? $('key').value.trim() || undefined : undefined);
      $('key').value = $('key-dialog').returnValue = '';
    }, { once: true });
  });
}
$('key-form').addEventListener('submit', (event) => {
  event.preventDefault();
  $('key-dialog').close('key');
});
$('key-cancel').addEventListener('click', () => $('key-dialog').close());

/** Lists the fetched models that are kept in this browser, each with a way to load it and to remove it. */
async function showKept() {
  const models = await kept();
  $('kept').hidden = !models.length;
  $('kept-list').replaceChildren(
    ...models.map(({ url, bytes, size, complete }) => {
      const button = (text, action) => Object.assign(document.createElement('button'), { type: 'button', textContent: text, onclick: action, ariaLabel: `${text} ${url}` });
      const item = document.createElement('li');
      const text = document.createElement('span');
      text.textContent = `${url.replace(/^https?:\/\//, '')}: ${complete ? fileSize(bytes) : `${fileSize(bytes)} of ${fileSize(size)}`}`;
      const open = button(complete ? 'Load' : 'Go on', () => load({ url, ...loadOptions() }));
      open.disabled = $('builtin').disabled;
      const remove = button('Remove', async () => {
        remove.disabled = true;
        await forget(url).catch(fail);
        await showKept();
      });
      item.append(text, ' ', open, ' ', remove);
      return item;
    }),
  );
}
$('model-close').addEventListener('click', () => $('model-dialog').close());
$('builtin').addEventListener('click', () => load(loadOptions()));

$('remote').addEventListener('submit', (event) => {
  event.preventDefault();
  const where = $('address').value.trim();
  if (!where || $('builtin').disabled) return;
  // A name has one slash and no scheme: ORG/NAME, ORG/NAME/FILE.gguf or ORG/NAME:KIND.
  const isName = /^[\w.-]+\/[\w.-]+(\/[\w./-]+\.gguf|:[\w.-]+)?$/.test(where);
  load({ ...(isName ? { hub: where } : { url: new URL(where, location.href).href }), ...loadOptions() });
});

for (const id of ['files', 'gguf']) $(id).addEventListener('change', ({ target }) => {
  // Files of the chosen folder itself, not of folders below it.
  const files = [...target.files].filter((file) => file.webkitRelativePath.split('/').length <= 2);
  if (files.length) load({ files, ...loadOptions() });
  target.value = ''; // so that choosing the same folder again is a change
});

addEventListener('dragover', (event) => {
  event.preventDefault();
  if (chosen.models) document.body.classList.add('dragging');
});
addEventListener('dragleave', (event) => {
  if (!event.relatedTarget) document.body.classList.remove('dragging');
});
addEventListener('drop', async (event) => {
  event.preventDefault();
  document.body.classList.remove('dragging');
  if ($('files').disabled) return;
  try {
    const files = await droppedFiles(event.dataTransfer);
    if (files.length) load({ files, ...loadOptions() });
  } catch (error) {
    showError('These files cannot be read', String(error));
  }
});

// --- examples -------------------------------------------------------------------------------------------------------

async function tryExample({ prompt, fields = {}, context, compare = '' }) {
  for (const control of form.elements) {
    if (control.name && control.name !== 'prompt' && control.type !== 'checkbox') control.value = '';
  }
  for (const [name, value] of Object.entries(fields)) choose(field(name), String(value));
  choose($('compare'), compare);
  $('context').value = context ?? '';
  const needs = { context };
  const has = loadedFrom && !loadedFrom.files && !loadedFrom.url && !loadedFrom.hub && loadedFrom.context === context;
  if ((!model || !has) && !(await load(context ? needs : {}))) return;
  const { prompt: _, ...rest } = formRequest();
  $('prompt').value = '';
  suggested = undefined;
  await ask(prompt, rest, compare);
}
$('examples').append(...EXAMPLES.filter(({ context }) => chosen.models || !context).map((example) => el('button', { type: 'button', class: 'card', onclick: () => tryExample(example) },
  el('strong', {}, example.title), el('span', {}, example.text))));

/** Sets a control. A choice that is not offered yet is added: the list of policies comes with a model. */
function choose(control, value) {
  if (control.tagName === 'SELECT' && value && ![...control.options].some((option) => option.value === value)) control.add(new Option(value, value));
  control.value = value;
}

// --- conformance, errors --------------------------------------------------------------------------------------------

$('conformance').addEventListener('click', async () => {
  hideError();
  $('conformance-json').textContent = '';
  $('conformance-details').hidden = $('conformance-table').hidden = true;
  setState('checking');
  try {
    showConformance(await engine.conformance(({ kernel, done, total }) => {
      $('conformance-status').textContent = `${kernel}: case ${done} of ${total}`;
    }));
  } catch (error) {
    fail(error);
  }
  if (document.body.dataset.state === 'checking') settled();
});

/** @param {import('./messages.js').ConformanceTable} table */
function showConformance(table) {
  const rows = table.kernels.map(({ kernel, cases, worst_error, bound, passed }) => {
    const row = document.createElement('tr');
    const worst = typeof worst_error === 'number' ? worst_error.toPrecision(2) : worst_error;
    for (const value of [kernel, cases, worst, bound]) row.insertCell().textContent = String(value);
    const result = row.insertCell();
    result.textContent = passed ? 'ok' : 'wrong';
    result.className = passed ? '' : 'failed';
    return row;
  });
  $('conformance-table').tBodies[0].replaceChildren(...rows);
  $('conformance-table').hidden = $('conformance-details').hidden = false;
  $('conformance-json').textContent = JSON.stringify(table, null, 1);
  $('conformance-status').textContent = `${table.adapter} (${table.backend}): ${table.passed} cases passed, ${table.failed} failed`;
}

/** Kinds of failures after which another attempt may succeed. */
const RETRY = ['unreachable', 'busy', 'key'];

/**
 * @param {Error} error
 * @param {() => void} [again] - tries again what failed
 */
function fail(error, again) {
  if (error?.kind === 'closed') return;
  showError(error?.title ?? 'Something failed', error?.message ?? String(error), again);
}
/**
 * Handles a question that failed, perhaps after its run had begun. A server that did not answer may have another
 * model later.
 */
function failTurn(error, again, begun = false) {
  if (error.kind === 'unreachable') model = undefined;
  settled();
  fail(error, begun || RETRY.includes(error.kind) ? again : undefined);
}
function showError(title, text, again) {
  $('error-title').textContent = title;
  $('error-text').textContent = text.trim();
  $('error-retry').hidden = !again;
  $('error-retry').onclick = () => {
    hideError();
    again();
  };
  $('error').hidden = false;
  if (matchMedia('(prefers-reduced-motion: no-preference)').matches) $('error').scrollIntoView({ block: 'nearest' });
}
const hideError = () => ($('error').hidden = true);
$('error-close').addEventListener('click', hideError);

dark.addEventListener('change', () => repaint());
addEventListener('beforeprint', () => repaint(true));
addEventListener('afterprint', () => repaint(false));
// After back or forward, a page that the browser kept may have lost its GPU, which the engine reports. Its worker
// continues.
addEventListener('pageshow', ({ persisted }) => persisted && draw());

// The address can set every control: ?prompt=…&policy=random&budget=tokens:128&kv=f32&compare=full
for (const [name, value] of query) {
  const control = field(name) ?? (['kv', 'weights', 'context', 'compare'].includes(name) ? $(name) : undefined);
  if (control?.type === 'checkbox') control.checked = value !== 'false';
  else if (control) choose(control, value);
}

// For the console: `secateur.model.generate({prompt: '…'})`.
Object.defineProperty(window, 'secateur', {
  value: {
    get engine() { return engine; },
    get model() { return model; },
    get history() { return history; },
    get replies() { return current; },
  },
});

resume();
await start();
const url = chosen.models ? query.get('model') : undefined;
if (!chosen.models) await load({});
// The welcome offers the built-in model. A failure shows when that model is loaded.
else if (engine && !url && !loadedFrom?.url && !loadedFrom?.hub) engine.prepare().catch(() => undefined);
if (engine && url) await load({ url: new URL(url, location.href).href, ...loadOptions() });
