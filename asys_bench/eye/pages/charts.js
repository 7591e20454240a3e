// Charts as SVG: lines over time or steps, histograms, small strips. A table of the last values goes with lines.

import { count, duration, figure, h, s, share } from './dom.js';

const WIDTH = 400, HEIGHT = 190, LEFT = 50, RIGHT = 390, TOP = 10, BOTTOM = 164;

function ticks(low, high, wanted = 4) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((one) => one >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + 1e-9 * step; at += 1) found.push(at * step);
  return found;
}

const compact = (x) => (Math.abs(x) >= 1e6 ? `${+(x / 1e6).toPrecision(3)}M` : Math.abs(x) >= 1e4 ? `${+(x / 1e3).toPrecision(3)}k` : String(+x.toPrecision(3)));

function frame(title, unit, drawing, below) {
  return h('figure', {}, h('figcaption', {}, h('b', {}, title), unit ? h('span', { class: 'unit' }, unit) : null), drawing, below);
}

function axes(x, y, xs, ys, told) {
  return [
    ys.map((value) => [s('line', { x1: LEFT, x2: RIGHT, y1: y(value), y2: y(value), class: 'grid' }),
      s('text', { x: LEFT - 6, y: y(value) + 4, 'text-anchor': 'end' }, compact(value))]),
    xs.map((value) => s('text', { x: Math.min(x(value), RIGHT), y: BOTTOM + 15, 'text-anchor': x(value) > RIGHT - 16 ? 'end' : 'middle' }, told(value))),
    s('rect', { x: LEFT, y: TOP, width: RIGHT - LEFT, height: BOTTOM - TOP, class: 'border' }),
  ];
}

const scale = (low, high, from, to) => (value) => +(from + ((value - low) / (high - low || 1)) * (to - from)).toFixed(1);

// lines: [{name, x: [], y: []}]; marks: [{at, text, bad}] as vertical lines; over: 'time' or 'steps'.
export function lines({ title, unit = '', lines: drawn, marks = [], over = 'time' }) {
  const kept = drawn.map((line) => ({ ...line, points: line.x.map((x, at) => [x, line.y[at]]).filter(([x, y]) => x !== null && y !== null) }))
    .filter((line) => line.points.length);
  if (!kept.length) return null;
  const all = kept.flatMap((line) => line.points);
  const xs = [...all.map(([x]) => x), ...marks.map((mark) => mark.at)];
  const ys = all.map(([, y]) => y);
  const lowX = Math.min(over === 'time' ? 0 : Infinity, ...xs), highX = Math.max(...xs);
  const lowY = unit === 'share' ? 0 : Math.min(0, ...ys), highY = unit === 'share' ? 1 : Math.max(...ys) * 1.08 || 1;
  const x = scale(lowX, highX, LEFT, RIGHT), y = scale(lowY, highY, BOTTOM, TOP);
  const told = over === 'time' ? duration : compact;
  const shown = unit === 'share' ? share : figure;
  const paths = kept.map((line, at) => {
    const path = line.points.map(([px, py], first) => `${first ? 'L' : 'M'}${x(px)} ${y(py)}`).join('');
    return line.points.length > 1 ? s('path', { d: path, class: `line s${at % 6}` })
      : s('circle', { cx: x(line.points[0][0]), cy: y(line.points[0][1]), r: 3, class: `spot s${at % 6}` });
  });
  const events = marks.map((mark) => s('path', { d: `M${x(mark.at)} ${TOP}V${BOTTOM}`, class: mark.bad ? 'moment bad' : 'moment' }, s('title', {}, mark.text)));
  const drawing = s('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: 'chart', role: 'img', 'aria-label': `${title}: ${kept.map((line) => `${line.name} ${shown(line.points.at(-1)[1])} at the end`).join(', ')}` },
    axes(x, y, ticks(lowX, highX), ticks(lowY, highY), told), events, paths);
  const legend = h('ul', { class: 'legend' }, kept.map((line, at) => h('li', {},
    s('svg', { viewBox: '0 0 26 10', class: 'swatch', 'aria-hidden': 'true' }, s('line', { x1: 0, x2: 26, y1: 5, y2: 5, class: `line s${at % 6}` })),
    h('span', {}, line.name), h('span', { class: 'unit' }, shown(line.points.at(-1)[1])))));
  return frame(title, unit === 'share' ? '' : unit, drawing, legend);
}

// Bars between edges. told: an edge as text.
export function bars({ title, unit = '', edges, counts, told = figure, below = null, thing = 'rows' }) {
  if (!counts?.length) return null;
  const high = Math.max(...counts, 1);
  const x = scale(edges[0], edges.at(-1), LEFT, RIGHT), y = scale(0, high * 1.08, BOTTOM, TOP);
  const drawn = counts.map((n, at) => n > 0 && s('rect', {
    x: x(edges[at]) + 0.4, y: y(n), width: Math.max(0.6, x(edges[at + 1]) - x(edges[at]) - 0.8), height: Math.max(0.8, BOTTOM - y(n)), class: 'column firing',
  }, s('title', {}, `${count(n)} ${thing} from ${told(edges[at])} to ${told(edges[at + 1])}`)));
  const label = `${title}: ${count(counts.reduce((a, b) => a + b, 0))} ${thing} from ${told(edges[0])} to ${told(edges.at(-1))}, at most ${count(high)} in a bar`;
  const drawing = s('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: 'chart', role: 'img', 'aria-label': label },
    axes(x, y, ticks(edges[0], edges.at(-1)), ticks(0, high * 1.08), told), drawn);
  return frame(title, unit, drawing, below);
}

// Cells: a column per part of the run, a line per octave of activations; the deeper the colour, the larger its share of the column.
export function heat({ title, x: begins, edges, counts }) {
  const sums = counts.map((column) => column.reduce((a, b) => a + b, 0));
  if (!sums.some((sum) => sum > 0)) return null;
  const rows = edges.length - 1, last = begins.at(-1) + (begins.length > 1 ? begins.at(-1) - begins.at(-2) : 1);
  const x = scale(begins[0], last, LEFT, RIGHT), y = scale(0, rows, BOTTOM, TOP);
  const drawn = counts.flatMap((column, at) => column.map((n, row) => {
    if (!(n > 0)) return null;
    const part = n / sums[at], to = begins[at + 1] ?? last;
    return s('rect', { x: x(begins[at]), y: y(row + 1), width: Math.max(0.6, x(to) - x(begins[at]) - 0.5), height: y(row) - y(row + 1) - 0.5, class: `cell c${Math.min(6, 1 + Math.floor(6 * part))}` },
      s('title', {}, `steps ${count(begins[at])} to ${count(to)}: ${share(part)} of its activations from ${figure(edges[row])} to ${figure(edges[row + 1])}`));
  }));
  const middle = (column) => edges[column.indexOf(Math.max(...column))];
  const told = counts.filter((column, at) => sums[at] > 0);
  const label = `${title}: most often from ${figure(middle(told[0]))} up at the beginning, from ${figure(middle(told.at(-1)))} up at the end`;
  const drawing = s('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: 'chart', role: 'img', 'aria-label': label },
    axes(x, (row) => y(row), ticks(begins[0], last), [], compact),
    edges.map((edge, row) => s('text', { x: LEFT - 6, y: y(row) + 4, 'text-anchor': 'end' }, compact(edge))), drawn);
  return frame(title, 'activation, by octaves', drawing);
}

// A small line without axes.
export function strip(values, label) {
  const known = values.filter((value) => value !== null);
  if (known.length < 2) return '';
  const high = Math.max(...known) || 1;
  const path = values.map((value, at) => `${at ? 'L' : 'M'}${(120 * at / (values.length - 1)).toFixed(1)} ${(24 - 22 * (value ?? 0) / high).toFixed(1)}`).join('');
  return s('svg', { viewBox: '0 0 120 26', class: 'spark', role: 'img', 'aria-label': label }, s('path', { d: path, class: 'line s0' }));
}
