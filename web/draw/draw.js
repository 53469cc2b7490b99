// Elements, numbers as text, and colours, for whatever draws a run. The report embeds this module, and the page of
// web/ imports it: it depends on no data and on no element of a document.

/** Powers of ten that the colours of a map span; the same constant is in html.rs. */
export const DECADES = 4;

const SVG = 'http://www.w3.org/2000/svg';

function make(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== undefined && child !== null));
  return node;
}
export const el = (tag, attributes, ...children) => make(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => make(document.createElementNS(SVG, tag), attributes, children);

export const count = (n) => n.toLocaleString('en-US');
export const percent = (part, of) => (of ? `${((100 * part) / of).toFixed(part === of || part === 0 ? 0 : 1)} %` : '–');
export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? '' : 's'}`;
export const number = (v) => (v === 0 ? '0' : v >= 0.001 && v < 1000 ? v.toPrecision(3) : v.toExponential(2));

/** A number of bytes in binary units. */
export function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (n >= 1024 && unit + 1 < units.length) {
    n /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? n : n.toFixed(n < 10 ? 2 : n < 100 ? 1 : 0)} ${units[unit]}`;
}

/** Round steps that give about `wanted` ticks from 0 to `most`. */
export function ticks(most, wanted) {
  const raw = most / wanted;
  const power = 10 ** Math.floor(Math.log10(raw || 1));
  const step = Math.max([1, 2, 5, 10].find((m) => m * power >= raw) * power, 1);
  return Array.from({length: Math.floor(most / step) + 1}, (_, i) => i * step);
}

/** The beginning of a text on one line, of at most `most` characters. */
export function excerpt(text, most) {
  const line = [...text.replace(/\s+/g, ' ').trim()];
  return line.length > most ? `${line.slice(0, most).join('').trimEnd()}…` : line.join('');
}

export const dark = matchMedia('(prefers-color-scheme: dark)');

/** Whether the page is being printed: always in light colours. */
const paper = {printing: false};

/** Functions that redraw the parts with the colours of `ramp`. */
export const painters = new Set();

/** Redraws all these parts after a change of colours. */
export function repaint(printing = paper.printing) {
  paper.printing = printing;
  for (const paint of painters) paint();
}

// From the colour of the page to its opposite, monotone in lightness, so that the scale can be read without colours.
const RAMPS = {
  light: ['#ffffff', '#dcecec', '#a5cfd6', '#5ea6bd', '#2d7399', '#1d4778', '#121d4a'],
  dark: ['#1c2024', '#1f3947', '#235a6e', '#318193', '#5facae', '#a5d3bd', '#f4f6d2'],
};

/** The 256 colours of a map, as [red, green, blue]. */
export function ramp() {
  const stops = RAMPS[dark.matches && !paper.printing ? 'dark' : 'light'].map((hex) =>
    [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Array.from({length: 256}, (_, i) => {
    const at = (i / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    return stops[low].map((from, c) => Math.round(from + (stops[low + 1][c] - from) * (at - low)));
  });
}

/** 1st, 2nd, 3rd, 4th, … */
export function ordinal(n) {
  const end = n % 100 >= 11 && n % 100 <= 13 ? 'th' : (['th', 'st', 'nd', 'rd'][n % 10] ?? 'th');
  return `${count(n)}${end}`;
}
