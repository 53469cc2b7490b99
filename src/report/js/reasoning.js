// The list of steps: what each says, how important each probe found it, which probe evicted it and why.
import {count, el, number, ordinal, plural} from '../../../web/draw/draw.js';
import {tokensOf} from './helpers.js';

export function reasoning(trace, id) {
  const probed = trace.probes.length > 0;
  /**
   * For each step, the result of each probe.
   * @type {{probe: number, importance: number | null, rank: number | undefined, ranked: number, share: number,
   *   cached: number, evicted: number}[][]}
   */
  const seen = trace.steps.map(() => []);
  trace.probes.forEach((probe, p) => {
    const measured = probe.steps.filter((s) => s.importance !== null);
    measured.sort((a, b) => a.importance - b.importance || a.index - b.index);
    const rank = new Map(measured.map((s, i) => [s.index, i + 1]));
    const most = measured.at(-1)?.importance || 1;
    for (const {index, importance, cached, evicted} of probe.steps) {
      const share = (importance ?? 0) / most;
      seen[index]?.push({probe: p, importance, rank: rank.get(index), ranked: measured.length, share, cached, evicted});
    }
  });
  const {policy, budget} = trace.settings;
  const place = (s) => `${s.rank === 1 ? 'the lowest' : `the ${ordinal(s.rank)} lowest`} of ${plural(s.ranked, 'step')}`;
  const why = (s) => {
    const {target, thinking_tokens: thinking} = trace.probes[s.probe];
    const allowed = target === null ? budget : `${budget}, that is ${count(target)} of ${count(thinking)} thinking tokens`;
    const reason = s.importance === null
      ? `${policy} measures no importance`
      : `its importance was ${number(s.importance)}, ${place(s)}`;
    return `Probe ${s.probe + 1} cut ${s.evicted} of ${plural(s.cached, 'token')}: ${reason}; the budget was ${allowed}.`;
  };
  let written = 0; // thinking tokens before a step
  const rows = trace.steps.map((step, i) => {
    const {runs} = step;
    const tokens = tokensOf(step);
    const from = written;
    written += tokens;
    const bar = el('span', {class: 'bar'});
    const mark = el('span', {class: 'mark'});
    const texts = runs.map(({text, evicted_by: probe}, r) => {
      // White space around a step would show as empty lines and indents.
      let shown = r === runs.length - 1 ? text.trimEnd() : text;
      if (r === 0) shown = shown.trimStart();
      return probe === null ? el('span', {}, shown) : el('span', {'data-probe': probe}, shown);
    });
    const body = el('div', {class: 'say-it'}, ...texts);
    const reason = el('p', {class: 'why', hidden: true});
    const li = el('li', {class: 'step', id: `${id}-step-${i + 1}`},
      el('div', {class: 'side'}, el('span', {title: plural(tokens, 'token')}, `${i + 1}`), bar, mark), body, reason);
    const cuts = runs.filter((r) => r.evicted_by !== null).map((r) => ({probe: r.evicted_by, tokens: r.tokens}));
    return {li, bar, mark, body, reason, from, tokens, cuts, spans: texts.filter((t) => t.dataset.probe), history: seen[i]};
  });
  const list = el('ol', {class: 'steps', 'aria-label': 'Steps of the reasoning'}, ...rows.map((r) => r.li));
  list.addEventListener('click', (event) => {
    const row = rows.find((r) => r.li === event.target.closest('.step'));
    if (row && getSelection().isCollapsed) row.reason.hidden = !row.reason.hidden;
  });

  const show = (k) => {
    const now = k > 0 && k < trace.probes.length ? trace.probes[k - 1].thinking_tokens : Infinity;
    for (const row of rows) {
      row.li.classList.toggle('later', row.from >= now);
      const gone = row.cuts.filter((c) => c.probe < k).reduce((sum, c) => sum + c.tokens, 0);
      const whole = gone > 0 && gone === row.tokens;
      const latest = row.history.filter((s) => s.probe < k).at(-1);
      const known = latest && latest.importance !== null;
      row.li.classList.toggle('whole', whole);
      // The shade shows the rank, because ranks decide; the bar shows the value.
      const shade = known && !whole ? (latest.ranked > 1 ? (latest.rank - 1) / (latest.ranked - 1) : 1) : 0;
      row.body.style.setProperty('--shade', shade.toFixed(3));
      row.bar.style.width = known ? `${Math.max(2, 100 * latest.share)}%` : '0';
      row.bar.style.visibility = known && !whole ? '' : 'hidden';
      for (const span of row.spans) {
        const probe = Number(span.dataset.probe);
        span.className = probe < k ? (probe === k - 1 ? 'cut fresh' : 'cut') : '';
        span.title = probe < k ? `cut by probe ${probe + 1}` : '';
      }
      const probes = [...new Set(row.cuts.filter((c) => c.probe < k).map((c) => c.probe + 1))].sort((a, b) => a - b);
      row.mark.replaceChildren(probes.length ? `✂ ${probes.length > 2 ? `${probes[0]}–${probes.at(-1)}` : probes.join(', ')}` : '');
      const lines = row.history.filter((s) => s.probe < k && s.evicted > 0).map(why);
      if (!lines.length) {
        lines.push(known
          ? `Kept. At probe ${latest.probe + 1} its importance was ${number(latest.importance)}, ${place(latest)}; ${plural(latest.cached, 'token')} cached.`
          : probed ? `Kept. No probe has measured this step of ${plural(row.tokens, 'token')}.` : `${plural(row.tokens, 'token')}.`);
      }
      row.reason.replaceChildren(lines.join(' '));
    }
  };
  const goTo = (step) => {
    const row = rows[step];
    if (!row) return;
    for (const other of rows) other.li.classList.toggle('found', other === row);
    row.reason.hidden = false;
    row.li.scrollIntoView({block: 'center', behavior: 'instant'});
  };
  const legend = el('p', {class: 'legend quiet'});
  const swatch = (shade, text) => {
    const b = el('b', {}, text);
    b.style.background = `color-mix(in oklab, var(--tint) ${46 * shade}%, transparent)`;
    return b;
  };
  if (probed) {
    const measured = trace.probes.some((p) => p.steps.some((s) => s.importance !== null));
    legend.append(
      measured
        ? el('span', {}, swatch(0.05, 'least'), swatch(0.5, 'important'), swatch(1, 'most'), ' (shade: rank; bar: value)')
        : el('span', {}, `${policy} measures no importance`),
      el('span', {}, el('span', {class: 'cut fresh'}, 'cut by this probe'), ' ', el('span', {class: 'cut'}, 'cut before')),
      el('span', {}, el('span', {class: 'not-yet'}, 'not written yet')),
      el('span', {}, '✂ the probe that cut it', el('span', {class: 'screen'}, '; click a step for the reason')));
  }
  return {list, legend, show, goTo, open: (all) => rows.forEach((r) => { r.reason.hidden = !(all && r.cuts.length); })};
}
