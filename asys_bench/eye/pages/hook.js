// The view Hook: every feature of an SAE as a table to sort and filter, and how often features fire.

import { address, here, keep } from './address.js';
import { ask, keeps, mark } from './api.js';
import { bars } from './charts.js';
import { called, count, figure, h, link, name, share, show, trust } from './dom.js';
import { decoderMap } from './map.js';
import { VirtualTable } from './virtual.js';

const BINS_PER_DECADE = 4;
const HINTS = {
  feature: 'its number', words: 'its name, a proposed one with its detection AUC, or the token or state that it fires on most', density: 'share of rows in which it is active',
  alike: 'share of its random examples that are of this very token: about as many of its firings',
  mean: 'mean activation while active', max: 'largest activation', age: 'host steps since its life began: at the SAE\'s start, or by resampling',
  drift: '1 - cosine of its decoder row now and when its life began',
  probe: 'held-out AUC of the linear probe of this hook whose logit the feature moves most when it fires, by 0.1 or more; a sink of kind probe fits them',
};

export function saes(chosen, all, path) {
  if (all.length < 2) return null;
  return h('nav', { class: 'saes', 'aria-label': 'SAEs' }, all.map((one) =>
    h('a', { href: address(path, { sae: one }), 'aria-current': one === chosen ? 'true' : null }, name(one))));
}

export function nothing(place, title, all) {
  show(place, h('h1', { class: 'quiet' }, title), h('p', { class: 'callout' }, all.length
    ? 'Choose an SAE.' : 'No SAE of this run has a checkpoint yet. The first comes after sinks.<name>.options.checkpoint_every_s; this page fills itself then.'),
  all.length ? saes('', all, `/${title.toLowerCase()}`) : null);
  return { update: (figures) => { if (Object.keys(figures.checkpoints ?? {}).length > all.length) location.reload(); } };
}

function densities(density) {
  const fired = density.filter((value) => value > 0);
  if (!fired.length) return null;
  const low = Math.min(-1, Math.floor(Math.log10(fired.reduce((a, b) => Math.min(a, b)))));
  const size = -low * BINS_PER_DECADE, counts = new Array(size).fill(0);
  for (const value of fired) counts[Math.min(size - 1, Math.max(0, Math.floor((Math.log10(value) - low) * BINS_PER_DECADE)))] += 1;
  const edges = Array.from({ length: size + 1 }, (_, at) => low + at / BINS_PER_DECADE);
  return bars({
    title: 'Densities', unit: 'features', edges, counts, thing: 'features', told: (x) => share(10 ** x),
    below: h('p', {}, `Powers of ten of the share of rows. ${count(fired.length)} of ${count(density.length)} features fired, ${count(density.length - fired.length)} never did.`),
  });
}

export async function hook(place, { sae, saes: all }) {
  if (!all.includes(sae)) return nothing(place, 'Hook', all);
  const reading = h('p', { class: 'how', role: 'status' }, 'Reading the features ...');
  show(place, h('h1', { class: 'quiet' }, name(sae)), reading);
  let found = await ask('/api/table', { sae }, (told) => { reading.textContent = `${told} ...`; });
  const { query } = here();
  const state = {
    key: query.get('sort') ?? (found.columns.alike ? 'alike' : 'density'), down: query.get('down') !== '0', text: query.get('text') ?? '',
    fired: query.get('fired') !== '0', pinned: query.get('pinned') === '1',
  };
  const said = h('p', { class: 'how', role: 'status' });
  const columnOf = (key) => found.columns[key], way = address('/feature', { sae });
  const words = (feature) => called(found.words[feature], found.marks[feature], found.names[feature]);
  const trusted = (feature) => trust(found.marks[feature], found.names[feature]);

  const text = (key, told) => (node, feature) => { node.textContent = columnOf(key) ? told(columnOf(key)[feature]) : '-'; };
  const columns = [
    { title: 'pin', hint: 'pinned features are kept in the run\'s folder', key: 'pin', cell: (node, feature) => pin(node, feature) },
    { title: 'feature', key: 'feature', number: true, cell: (node, feature) => {
      const there = node.firstChild ?? node.appendChild(h('a', {}));
      there.textContent = feature;
      there.href = `${way}&feature=${feature}`;
    } },
    { title: 'fires on', key: 'words', cell: (node, feature) => {
      const proposed = trusted(feature);
      node.textContent = proposed ? `${words(feature)} (${figure(found.names[feature].score)})` : words(feature) || '-';
      node.title = found.marks[feature]?.note || proposed || node.textContent;
      node.classList.toggle('proposed', Boolean(proposed));
      node.classList.toggle('named', Boolean(found.marks[feature]?.name));
    } },
    { title: 'on it', key: 'alike', number: true, cell: text('alike', share) },
    { title: 'density', key: 'density', number: true, cell: text('density', share) },
    { title: 'mean', key: 'mean', number: true, cell: text('mean', figure) },
    { title: 'max', key: 'max', number: true, cell: text('max', figure) },
    { title: 'age', key: 'age', number: true, cell: text('age', count) },
    { title: 'drift', key: 'drift', number: true, cell: text('drift', figure) },
    ...(found.probes?.length ? [{ title: 'probe AUC', key: 'probe', cell: (node, feature) => {
      const auc = columnOf('probe')?.[feature] ?? null;
      node.textContent = auc === null ? '-' : `${auc.toFixed(2)} ${found.probes[found.columns.probe_of[feature]]}`;
      node.title = auc === null ? '' : `moves the logit of ${found.probes[found.columns.probe_of[feature]]} by ${figure(found.columns.probe_effect[feature])} when it fires`;
    } }] : []),
  ].filter(({ key }) => key !== 'alike' || found.columns.alike).map((column) => ({ hint: HINTS[column.key], ...column }));

  function pin(node, feature) {
    const button = node.firstChild ?? node.appendChild(h('button', { type: 'button', class: 'pin', onclick: () => toggle(Number(button.dataset.feature)), disabled: !keeps }));
    const on = Boolean(found.marks[feature]?.pin);
    button.dataset.feature = feature;
    button.textContent = on ? '★' : '☆';
    button.setAttribute('aria-pressed', on);
    button.setAttribute('aria-label', `pin feature ${feature}`);
  }

  async function toggle(feature) {
    try {
      found.marks[feature] = await mark({ sae, feature, pin: !found.marks[feature]?.pin });
      grid.fill(true);
    } catch (error) { said.textContent = error.message; }
  }

  const grid = new VirtualTable({ label: `Features of ${sae}`, columns, sort: (key) => {
    state.down = state.key === key ? !state.down : !['feature', 'words'].includes(key);
    state.key = key;
    order();
  } });

  function order() {
    const wanted = state.text.trim().toLowerCase();
    const density = columnOf('density');
    let rows = Array.from({ length: found.d_sae }, (_, feature) => feature);
    if (state.fired && density) rows = rows.filter((feature) => density[feature] > 0);
    if (state.pinned) rows = rows.filter((feature) => found.marks[feature]?.pin);
    if (wanted) rows = rows.filter((feature) => String(feature) === wanted || (words(feature) || '').toLowerCase().includes(wanted));
    const value = state.key === 'words' ? words : state.key === 'pin' ? (feature) => Number(Boolean(found.marks[feature]?.pin))
      : state.key === 'feature' ? (feature) => feature : (feature) => columnOf(state.key)?.[feature] ?? -Infinity;
    const values = new Array(found.d_sae), sign = state.down ? -1 : 1;
    for (const feature of rows) values[feature] = value(feature);
    rows.sort((a, b) => {
      const one = values[a], other = values[b];
      return (one < other ? -sign : one > other ? sign : 0) || (density ? density[b] - density[a] : 0) || a - b;
    });
    said.textContent = `${count(rows.length)} of ${count(found.d_sae)} features`;
    grid.show(rows, state.key, state.down);
    const told = { sae, sort: state.key, down: state.down ? '1' : '0', fired: state.fired ? '1' : '0', ...(state.pinned ? { pinned: '1' } : {}), ...(state.text ? { text: state.text } : {}) };
    keep(address('/hook', told));
  }

  const check = (key, label) => h('label', {}, h('input', { type: 'checkbox', checked: state[key], onchange: (event) => { state[key] = event.target.checked; order(); } }), ` ${label}`);
  const fresh = h('p', { class: 'how', hidden: true, role: 'status' });
  const histogram = h('div', { class: 'figures' });
  show(place,
    h('h1', { class: 'quiet' }, name(sae)), saes(sae, all, '/hook'),
    h('p', { class: 'how' }, `${count(found.d_in)} values in, ${count(found.d_sae)} features, ${found.checkpoint}. ${found.about ? `Figures: ${found.about}.` : ''}`),
    found.problem ? h('p', { class: 'callout' }, found.problem) : null,
    found.marks_problem ? h('p', { class: 'callout v-invalid' }, found.marks_problem) : null,
    found.indexed ? null : h('p', { class: 'how' }, found.how), fresh,
    h('form', { class: 'tools', role: 'search', onsubmit: (event) => event.preventDefault() },
      h('label', {}, 'Filter ', h('input', { type: 'search', value: state.text, placeholder: 'number, name, token', oninput: (event) => { state.text = event.target.value; order(); } })),
      check('fired', 'only those that fire'), check('pinned', 'only pinned'), said),
    grid.node, histogram);
  const map = h('div', {});
  const draw = () => {
    const density = columnOf('density');
    show(histogram, density ? densities(density) : null, map);
    ask('/api/map', { sae }).then((told) => show(map, decoderMap({ ...told, density, sae, words })), (error) => show(map, h('p', { class: 'how' }, error.message)));
  };
  order();
  draw();

  let newest = found.checkpoint;
  return {
    update(figures) {
      const now = figures.checkpoints?.[sae];
      if (!now || now === newest || now === found.checkpoint) return;
      newest = now;
      fresh.hidden = false;
      show(fresh, `A newer checkpoint is there (${now}). `, h('button', { type: 'button', onclick: again }, 'Read it'));
    },
  };

  async function again() {
    show(fresh, 'Reading ...');
    try {
      found = await ask('/api/table', { sae });
      fresh.hidden = newest === found.checkpoint;
      show(fresh, fresh.hidden ? '' : h('button', { type: 'button', onclick: again }, 'It is being read; look again'));
      order();
      draw();
    } catch (error) { show(fresh, error.message); }
  }
}
