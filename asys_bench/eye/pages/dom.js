// Pages are built node by node: text stays text. The page's policy forbids turning text into markup.

import { address } from './address.js';

const SVG = 'http://www.w3.org/2000/svg';
const SVG_NAMES = new Set(['svg', 'g', 'path', 'rect', 'circle', 'line', 'polyline', 'polygon', 'text', 'title']);
const NAMES = new Set([...SVG_NAMES, 'ul', 'li', 'span', 'b', 'i', 'p', 'div', 'wbr']);
const ATTRIBUTES = new Set(['class', 'viewBox', 'd', 'x', 'y', 'x1', 'x2', 'y1', 'y2', 'cx', 'cy', 'r', 'rx', 'width',
  'height', 'points', 'transform', 'role', 'title', 'preserveAspectRatio', 'text-anchor', 'aria-hidden', 'aria-label']);

function add(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined) continue;
    if (key.startsWith('aria-')) node.setAttribute(key, String(value));
    else if (value === false) continue;
    else if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else if (key in node && typeof value === 'boolean') node[key] = value;
    else node.setAttribute(key, value === true ? '' : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

// h('p', {class: 'how'}, 'text', h('b', {}, 'more')): attributes that begin with `on` are listeners.
export const h = (name, attributes, ...children) => add(document.createElement(name), attributes, children);
export const s = (name, attributes, ...children) => add(document.createElementNS(SVG, name), attributes, children);

// A picture that the server drew: [name, {attribute: value}, [children]] (eye/pictures.py).
export function tree(one, inside = false) {
  if (typeof one === 'string') return document.createTextNode(one);
  const [name, attributes, children] = one;
  if (!NAMES.has(name)) return document.createTextNode('');
  const drawn = inside || name === 'svg';
  const kept = Object.fromEntries(Object.entries(attributes).filter(([key]) => ATTRIBUTES.has(key)));
  const make = drawn && SVG_NAMES.has(name) ? s : h;
  return make(name, kept, children.map((child) => tree(child, drawn)));
}

export function show(place, ...children) {
  place.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
}

export const link = (path, query, ...children) => h('a', { href: address(path, query) }, children);

// Numbers as people read them; '-' for what is not known. A format is made once: it takes a hundred times as long as its use.
const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const exact = new Intl.NumberFormat('en', { maximumFractionDigits: 8 });

export function count(n) {
  if (n === null || n === undefined) return '-';
  if (Math.abs(n) < 1e7) return whole.format(Math.round(n));
  return Math.abs(n) < 1e9 ? `${(n / 1e6).toPrecision(3)}M` : `${(n / 1e9).toPrecision(3)}G`;
}

export function figure(x) {
  if (x === null || x === undefined) return '-';
  if (x === 0) return '0';
  const size = Math.abs(x);
  if (size >= 1e6 || size < 1e-4) return x.toExponential(1);
  return exact.format(Number(x.toPrecision(3)));
}

export function share(x) {
  if (x === null || x === undefined) return '-';
  const percent = 100 * x;
  return percent === 0 || percent >= 9.95 ? `${Math.round(percent)} %` : `${Number(percent.toPrecision(2))} %`;
}

export function bytes(n) {
  if (n === null || n === undefined) return '-';
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let at = 0;
  while (Math.abs(n) >= 1000 && at < units.length - 1) { n /= 1000; at += 1; }
  return `${at ? n.toPrecision(3) : Math.round(n)} ${units[at]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return '-';
  const passed = Math.floor(seconds);
  const two = (n) => String(n).padStart(2, '0');
  const hours = Math.floor(passed / 3600), minutes = Math.floor(passed / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(passed % 60)}` : `${minutes}:${two(passed % 60)}`;
}

// Several of a host's step unit.
export const plural = (unit) => (/(s|x|z|ch|sh)$/.test(unit) ? `${unit}es` : `${unit}s`);

// A module's name may break after its dots.
export function name(text) {
  return text.split(/(?<=\.)/).flatMap((part, at) => (at ? [h('wbr'), part] : [part]));
}

// What a feature is called: the name that a person gave, a proposed one, what it fires on, or its number alone.
export function called(words, mark, proposed) {
  return mark?.name || proposed?.name || visible(words ?? '');
}

// How well a proposed name tells texts in which its feature fires from others; null where a person named it.
export function trust(mark, proposed) {
  if (!proposed || mark?.name) return null;
  return `detection AUC ${figure(proposed.score)} on ${count(proposed.texts)} texts it was not made from; its top token alone ${figure(proposed.baseline)}; by ${proposed.model}, weights ${proposed.checkpoint}`;
}

// Spaces and line ends of a token, to be seen.
export const visible = (token) => token.replace(/\n/g, '↵').replace(/\t/g, '⇥').replace(/^ | $/g, '·');

export function section(title, how, ...children) {
  return h('section', {}, h('h2', {}, title), how ? h('p', { class: 'how' }, how) : null, children);
}

// columns: [title, value of a row, is it a number?]
export function table(label, columns, rows) {
  const kind = (number) => (number ? 'right' : null);
  return h('div', { class: 'scroll card', tabindex: 0, role: 'region', 'aria-label': label },
    h('table', { 'aria-label': label },
      h('thead', {}, h('tr', {}, columns.map(([title, , number]) => h('th', { scope: 'col', class: kind(number) }, title)))),
      h('tbody', {}, rows.map((row) => h('tr', {}, columns.map(([, value, number]) => h('td', { class: kind(number) }, value(row))))))));
}
