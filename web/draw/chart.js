// A line chart as SVG. The report embeds this module, and the page of web/ imports it.
import {count, svg, ticks} from './draw.js';

/**
 * A point of a chart.
 * @typedef {{x: number, y: number}} Point
 */

/**
 * A line chart over generated tokens.
 * @param {object} options
 * @param {number} [options.width]
 * @param {number} [options.height]
 * @param {number} options.most - generated tokens at the right end
 * @param {number} options.highest - value at the top
 * @param {{kind: string, points: Point[]}[]} options.lines - each with its CSS class; the area below `held` is filled
 * @param {((value: number) => string) | undefined} options.unit - what stands at the right of each line of the grid
 * @param {string} options.label - the chart in words
 */
export function chart({width = 560, height = 210, most, highest, lines, unit, label}) {
  const [left, right, top, bottom] = [46, unit ? 58 : 12, 14, 34];
  const x = (v) => left + (v / Math.max(1, most)) * (width - left - right);
  const y = (v) => height - bottom - (v / Math.max(1, highest)) * (height - top - bottom);
  const picture = svg('svg', {viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': label});
  for (const v of ticks(highest, 4)) {
    picture.append(
      svg('line', {class: 'grid', x1: left, x2: width - right, y1: y(v), y2: y(v)}),
      svg('text', {x: left - 6, y: y(v) + 4, 'text-anchor': 'end'}, count(v)));
    if (unit && v > 0) picture.append(svg('text', {x: width - right + 6, y: y(v) + 4}, unit(v)));
  }
  for (const v of ticks(most, 5)) {
    picture.append(svg('text', {x: x(v), y: height - bottom + 16, 'text-anchor': 'middle'}, count(v)));
  }
  picture.append(svg('text', {x: (left + width - right) / 2, y: height - 4, 'text-anchor': 'middle'}, 'generated tokens'));
  const path = (points) => points.map((p, i) => `${i ? 'L' : 'M'}${x(p.x).toFixed(1)} ${y(p.y).toFixed(1)}`).join('');
  for (const {kind, points} of lines) {
    if (kind === 'held' && points.length) {
      const base = `L${x(points.at(-1).x).toFixed(1)} ${y(0)}L${x(points[0].x).toFixed(1)} ${y(0)}Z`;
      picture.append(svg('path', {class: 'held-area', d: path(points) + base}));
    }
    picture.append(svg('path', {class: kind, d: path(points)}));
  }
  return {picture, x, y, height, top, bottom};
}
