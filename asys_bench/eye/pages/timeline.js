// The view Timeline: when features were born and died, and alarms, against the host's own curves.

import { ask } from './api.js';
import { bars, lines, strip } from './charts.js';
import { called, count, figure, h, link, name, plural, section, share, show, table } from './dom.js';
import { nothing, saes } from './hook.js';

export async function timeline(place, { sae, saes: all, figures }) {
  if (!all.includes(sae)) return nothing(place, 'Timeline', all);
  show(place, h('p', { class: 'how', role: 'status' }, 'Reading ...'));
  const found = await ask('/api/births', { sae });
  const births = found.lives.filter((one) => one.verdict === 'born' && one.born !== null);
  const deaths = found.lives.filter((one) => one.died !== null);
  const alarms = found.alarms.filter((one) => one.step !== null);
  const marks = [
    ...births.map((one) => ({ at: one.born, text: `${one.name} born at step ${count(one.born)}` })),
    ...deaths.map((one) => ({ at: one.died, text: `${one.name} gone at step ${count(one.died)}`, bad: true })),
    ...alarms.map((one) => ({ at: one.step, text: one.text, bad: true })),
  ];
  const anew = found.resampled;
  const curves = found.curves.map((curve) => lines({ ...curve, over: 'steps', marks })).filter(Boolean);
  show(place,
    h('h1', { class: 'quiet' }, 'Timeline'), h('p', { class: 'how' }, name(sae), found.about ? `: ${found.about}` : ''), saes(sae, all, '/timeline'),
    found.problem ? h('p', { class: 'callout' }, found.problem) : null,
    curves.length ? section("The host's curves", `Over ${plural(figures.unit ?? 'host step')}. Dashed: ${count(births.length)} births of features; red: ${count(deaths.length)} deaths and ${count(alarms.length)} alarms.`, h('div', { class: 'figures' }, curves)) : null,
    alarms.length ? section('Alarms', null, h('ul', { class: 'alarms card' }, alarms.map((one) => h('li', {}, one.text)))) : null,
    found.lives.length ? section('Lives of features', Object.entries(found.counts).map(([verdict, n]) => `${count(n)} ${verdict}`).join(', '), table('Lives of features', [
      ['feature', (o) => (o.unread ? o.name : link('/feature', { sae, feature: o.feature }, `${o.feature}`))], ['fires on', (o) => called(o.words) || '-'],
      ['born', (o) => count(o.born), 1], ['95 %', (o) => (o.low === null ? '-' : `${count(o.low)} to ${count(o.high)}`), 1], ['gone', (o) => count(o.died), 1],
      ['rate since', (o) => share(o.rate), 1], ['useful', (o) => share(o.useful), 1], ['rate over the run', (o) => strip(o.rates, `rate of ${o.name} over the run`)],
      ['why', (o) => o.cause || o.verdict],
    ], found.lives)) : null,
    anew ? section('Begun anew by the trainer', anew.features ? `${count(anew.features)} features died in training and were begun anew at other directions (resampling); by the host step of their last beginning.` : 'No feature of this SAE was begun anew (resampled).',
      anew.features ? h('div', { class: 'figures' }, bars({ title: 'Last beginnings', unit: 'features', edges: anew.edges, counts: anew.counts, thing: 'features', told: count })) : null) : null);
  return null;
}
