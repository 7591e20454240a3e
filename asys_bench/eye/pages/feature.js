// The view Feature: what one feature fires on, how, since when, with which others, and what it writes.

import { address } from './address.js';
import { ask, keeps, mark } from './api.js';
import { bars, heat, lines } from './charts.js';
import { called, count, figure, h, link, name, section, share, show, tree, trust, visible } from './dom.js';
import { nothing, saes } from './hook.js';

const LEVELS = 4;

// Tokens in their context: the deeper the colour, the stronger it fires; the row's own token is underlined.
export function coloured(example, most) {
  return example.tokens.map((token, at) => {
    const level = example.levels[at], shown = token.replace(/\n/g, '↵');
    const hit = at === example.at;
    if (!(level > 0) && !hit) return shown;
    const deep = most > 0 ? Math.min(LEVELS, 1 + Math.floor(LEVELS * (level ?? 0) / most)) : 1;
    return h('mark', { class: `fires h${deep}${hit ? ' hit' : ''}`, title: `activation ${figure(level)}` }, shown);
  });
}

const sentence = (example, most, random) => h('li', {}, h('p', { class: 'sentence' }, coloured(example, most)), h('p', { class: 'facts-line' }, facts(example, random)));

const facts = (example, random) => [
  h('span', {}, figure(example.activation)),
  random && example.quantile !== undefined && example.quantile !== null ? h('span', {}, `fifth ${example.quantile + 1} of 5 of its firings`) : null,
  h('span', {}, `host step ${count(example.step)}`),
];

function examples(title, how, found, random = false) {
  if (!found?.length) return null;
  const most = Math.max(...found.map((one) => one.activation ?? 0));
  const texts = found.filter((one) => one.tokens);
  const body = texts.length ? h('ul', { class: 'sentences card' }, texts.map((one) => sentence(one, most, random)))
    : h('ul', { class: 'looks card' }, found.map((one) => h('li', {}, one.picture ? tree(one.picture) : null, h('span', { class: 'facts-line' }, facts(one, random)))));
  return section(title, how, body);
}

function others(sae, title, how, found, fact) {
  if (!found?.length) return null;
  return h('section', { class: 'card' }, h('h3', {}, title), h('p', { class: 'how' }, how), h('ol', { class: 'others' }, found.map((one) =>
    h('li', {}, link('/feature', { sae, feature: one.feature }, `${one.feature}`), h('span', { class: 'what' }, called(one.words, one)), h('span', { class: 'unit' }, fact(one))))));
}

function logits(told) {
  if (!told) return null;
  const how = told.problem ?? `Decoder row through final norm and unembedding: ${told.about}. Later layers are left out.`;
  const list = (title, found) => h('div', {}, h('h4', {}, title), h('ol', { class: 'others' }, found.map((one) =>
    h('li', {}, h('code', { class: 'what' }, visible(one.token)), h('span', { class: 'unit' }, figure(one.value))))));
  return h('section', { class: 'card' }, h('h3', {}, 'Output tokens'), h('p', { class: 'how' }, how),
    told.problem ? null : h('div', { class: 'pair' }, list('promotes', told.promoted), list('suppresses', told.suppressed)));
}

function marks(sae, number, found, changed) {
  if (!keeps) return found.note ? h('p', { class: 'card' }, found.note) : null;
  const said = h('span', { class: 'how', role: 'status' });
  async function keep(change) {
    said.textContent = 'keeping ...';
    try {
      changed(await mark({ sae, feature: number, ...change }));
      said.textContent = 'kept';
    } catch (error) { said.textContent = error.message; }
  }
  const pin = h('button', { type: 'button', class: 'pin', 'aria-pressed': found.pin, onclick: async () => {
    const on = pin.getAttribute('aria-pressed') !== 'true';
    await keep({ pin: on });
    if (said.textContent !== 'kept') return;
    pin.setAttribute('aria-pressed', on);
    pin.textContent = on ? '★ pinned' : '☆ pin';
  } }, found.pin ? '★ pinned' : '☆ pin');
  return h('form', { class: 'marks card', onsubmit: (event) => event.preventDefault() }, pin,
    h('label', {}, 'Name', h('input', { maxlength: 200, value: found.name, onchange: (event) => keep({ name: event.target.value }) })),
    h('label', { class: 'wide' }, 'Notes', h('textarea', { maxlength: 4000, rows: 2, onchange: (event) => keep({ note: event.target.value }) }, found.note)), said);
}

// What linear probes of the hook read in it: labels, what each probe is worth, and how far the feature moves it.
function probes(found) {
  if (!found?.length) return null;
  return h('section', { class: 'card' }, h('h3', {}, 'Probes'), h('p', { class: 'how' }, 'By how much it moves the logit (or number) of each linear probe when it fires.'), h('ol', { class: 'others' }, found.map((one) =>
    h('li', {}, h('span', { class: 'what' }, one.label), h('span', { class: 'unit' }, `${one.effect > 0 ? '+' : ''}${figure(one.effect)}; ${one.metric === 'auc' ? 'AUC' : 'R2'} ${figure(one.value)}`)))));
}

// Of a run that goes on: when it fired last, asked for whenever the figures have changed.
function follow(sae, number, last) {
  let asking = false;
  return async (figures) => {
    if (!figures.live || asking || document.hidden) return;
    asking = true;
    try {
      const { latest } = await ask('/api/latest', { sae, feature: number });
      last.hidden = latest === null;
      if (latest) last.textContent = `Fired last at host step ${count(latest.step)}${latest.token === null ? '' : `, on "${visible(latest.token)}"`}, with ${figure(latest.activation)}.`;
    } catch { last.hidden = true; } finally { asking = false; }
  };
}

export async function feature(place, { sae, feature: number, saes: all }) {
  if (!all.includes(sae)) return nothing(place, 'Feature', all);
  show(place, h('p', { class: 'how', role: 'status' }, `Reading feature ${number} ...`));
  const found = await ask('/api/feature', { sae, feature: number }, (told) => show(place, h('p', { class: 'how', role: 'status' }, `${told} ...`)));
  const title = h('h1', { class: 'quiet' });
  const origin = h('p', { class: 'how' });
  const head = (told) => {
    const it = called(found.words, told, found.proposed), trusted = trust(told, found.proposed);
    show(title, h('span', {}, `Feature ${number}`), it ? h('span', { class: 'what' }, it) : null);
    origin.hidden = !trusted;
    origin.textContent = trusted ? `Proposed name: ${trusted}. A name that you give comes first.` : '';
  };
  head(found.mark);
  const life = found.life;
  const tiles = [
    [share(found.density), found.rows ? `of ${count(found.rows)} rows` : 'density'], [figure(found.mean), 'mean while active'], [figure(found.max), 'largest activation'],
    life && [count(life.age), 'host steps old'], life && [figure(life.drift), !life.turned_step ? 'drift of its decoder' : `drift; turned away at step ${count(life.turned_step)}`],
    life && life.generation > 0 && [count(life.generation), `times begun anew, last at step ${count(life.born_step)}`],
  ].filter(Boolean);
  const over = found.over_time, last = h('p', { class: 'how', hidden: true });
  show(place,
    h('p', { class: 'ways' }, link('/hook', { sae }, name(sae)),
      number > 0 ? h('a', { rel: 'prev', href: address('/feature', { sae, feature: number - 1 }) }, '‹ previous') : null,
      number + 1 < found.d_sae ? h('a', { rel: 'next', href: address('/feature', { sae, feature: number + 1 }) }, 'next ›') : null),
    title, origin, saes(sae, all, '/hook'),
    h('ul', { class: 'tiles' }, tiles.map(([value, label]) => h('li', { class: 'tile' }, h('b', {}, value), h('span', {}, label)))),
    found.problem ? h('p', { class: 'callout' }, found.problem) : null,
    found.marks_problem ? h('p', { class: 'callout v-invalid' }, found.marks_problem) : null,
    last, marks(sae, number, found.mark, head),
    found.pictures?.length ? section('Where it fires', 'A map over the two inputs that explain it best; per input all states in grey, those that it fires on most in colour.', h('div', { class: 'drawn card' }, found.pictures.map((one) => tree(one)))) : null,
    examples('Fires on most', found.about ? `${found.checkpoint}; ${found.about}.` : null, found.top),
    examples('Fires on, at random', 'Rows from weak to strong: what it is like besides its extremes.', found.random, true),
    h('div', { class: 'figures spaced' },
      found.histogram && bars({ title: 'Activations', unit: 'rows in which it is active', ...found.histogram }),
      over && lines({ title: 'Density over host steps', lines: [{ name: `feature ${number}`, ...over }], over: 'steps', marks: life && life.born_step > 0 ? [{ at: life.born_step, text: 'its life began' }] : [] }),
      found.heat && heat({ title: 'Activations over host steps', ...found.heat })),
    h('div', { class: 'pair spaced' },
      others(sae, 'Fires together with', 'Lift: how many times as often as by chance.', found.cofiring, (one) => `${figure(one.lift)} x, ${count(one.count)} rows`),
      others(sae, 'Writes nearly the same', 'Cosine of decoder rows.', found.neighbours, (one) => figure(one.cosine)), logits(found.logits), probes(found.probes)),
    found.indexed || found.problem ? null : h('p', { class: 'how spaced' }, found.how));
  return { update: follow(sae, number, last) };
}
