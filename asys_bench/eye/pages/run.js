// The view Run: is it well, how fast is it, where did every packet go, how do the SAEs learn.

import { ask } from './api.js';
import { lines } from './charts.js';
import { bytes, count, duration, figure, h, link, name, plural, section, share, show, table } from './dom.js';

const CURVES_MS = 10000;

function tiles(figures) {
  const host = figures.host ?? {}, bus = figures.bus;
  const dropped = Object.values(bus?.dropped ?? {}).reduce((a, b) => a + b, 0);
  const worst = Math.max(...(figures.saes ?? []).map((one) => one.fvu ?? -1));
  const told = [
    [count(host.steps), `${plural(figures.unit ?? 'step')}${host.rate ? `, ${figure(host.rate)}/s` : ''}`],
    ...Object.entries(host.reported ?? {}).slice(0, 2).map(([key, value]) => [figure(value), key.replaceAll('_', ' ')]),
    bus && [count(bus.produced), `packets${bus.flow ? `, ${bytes(bus.flow)}/s` : `, ${bytes(bus.bytes)}`}`],
    bus && [share(dropped / (bus.produced || 1)), 'dropped'],
    worst >= 0 && [figure(worst), 'FVU of the worst SAE, held out'],
    figures.hook_share !== undefined && [share(figures.hook_share), "of the host's time in hooks"],
    [duration(figures.elapsed_s), figures.live ? 'so far' : 'in all'],
  ].filter(Boolean);
  return h('ul', { class: 'tiles' }, told.map(([value, label]) => h('li', { class: 'tile' }, h('b', {}, value), h('span', {}, label))));
}

function notes(figures) {
  const told = [figures.problem, ...(figures.warnings ?? [])].filter(Boolean);
  const alarms = (figures.alarms ?? []).toReversed();
  return [
    told.length ? h('section', { class: 'callout v-invalid' }, h('h2', {}, 'Look into'), h('ul', {}, told.map((one) => h('li', {}, one)))) : null,
    alarms.length ? h('section', { class: 'callout' }, h('h2', {}, `Alarms: ${alarms.length}`), h('ul', { class: 'alarms' }, alarms.map((one) => h('li', {}, one.text)))) : null,
  ];
}

const reasons = (dropped) => Object.entries(dropped ?? {}).map(([reason, n]) => `${count(n)} ${reason}`).join(', ') || '0';

function tables(figures) {
  const checkpoints = figures.checkpoints ?? {};
  const saeName = (one) => (one.sae in checkpoints ? link('/hook', { sae: one.sae }, name(one.sae)) : name(one.sae));
  return [
    figures.saes?.length ? section('SAEs', 'FVU is the share of variance unexplained on held-out rows; a name leads to the SAE\'s features once it has a checkpoint.', table('SAEs', [
      ['SAE', saeName], ['rows', (o) => count(o.rows), 1], ['rows/s', (o) => figure(o.rate), 1], ['steps', (o) => count(o.steps), 1],
      ['loss', (o) => figure(o.loss), 1], ['FVU', (o) => figure(o.fvu), 1], ['L0', (o) => figure(o.l0), 1],
      ['dead', (o) => share(o.dead_ratio), 1], ['dense', (o) => share(o.dense_ratio), 1], ['worker', (o) => o.worker],
    ], figures.saes)) : null,
    figures.hooks?.length ? section('Hooks', 'Captured calls, and the time that one held the host up.', table('Hooks', [
      ['hook', (o) => name(o.hook)], ['captured', (o) => count(o.captured), 1], ['/s', (o) => figure(o.rate), 1], ['bytes/s', (o) => bytes(o.flow), 1],
      ['sampling', (o) => share(o.sampling), 1], ['sampled out', (o) => count(o.sampled_out), 1], ['dropped', (o) => count(o.dropped), 1],
      ['failed', (o) => count(o.failed), 1], ['p50 us', (o) => figure(o.p50_us), 1], ['p99 us', (o) => figure(o.p99_us), 1],
    ], figures.hooks)) : null,
    figures.bus ? section('Packets', `${count(figures.bus.produced)} offered to the bus, ${bytes(figures.bus.bytes)}; dropped: ${reasons(figures.bus.dropped)}. Each group sees every packet.`, table('Groups', [
      ['group', (o) => o.group], ['delivered', (o) => count(o.delivered), 1], ['/s', (o) => figure(o.rate), 1], ['ready', (o) => count(o.ready), 1],
      ['lost', (o) => count(o.lost), 1], ['missed', (o) => count(o.missed), 1], ['unaccounted for', (o) => count(o.off ?? null), 1],
    ], figures.groups ?? [])) : null,
    figures.processes?.length ? section('Processes', null, table('Processes', [
      ['process', (o) => o.name], ['state', (o) => h('span', { class: `state-${o.state}` }, o.state)], ['restarts', (o) => count(o.restarts), 1],
      ['heartbeat', (o) => (o.heartbeat_s === undefined || o.heartbeat_s === null ? '-' : `${figure(o.heartbeat_s)} s`), 1],
      ['CPU', (o) => share(o.cpu), 1], ['memory', (o) => bytes(o.memory), 1], ['pid', (o) => o.pid ?? '-', 1],
    ], figures.processes)) : null,
    figures.ranks?.length ? section('Other ranks', null, table('Ranks', [
      ['rank', (o) => o.name], ['state', (o) => o.state], ['steps', (o) => count(o.steps), 1], ['/s', (o) => figure(o.rate), 1],
    ], figures.ranks)) : null,
    figures.forwarders?.length ? section('Other machines', 'What forwarders took is what receivers acknowledged, what was dropped, and what is in flight.', table('Forwarders', [
      ['forwarder', (o) => o.worker], ['receiver', (o) => o.receiver || '-'], ['taken', (o) => count(o.taken), 1], ['acknowledged', (o) => count(o.acked), 1],
      ['in flight', (o) => count(o.in_flight), 1], ['dropped', (o) => reasons(o.dropped), 1], ['unaccounted for', (o) => count(o.off), 1],
    ], figures.forwarders)) : null,
    figures.receiver ? section('Receiver', `${count(figures.receiver.connections)} connected, ${count(figures.receiver.accepted)} accepted, ${count(figures.receiver.duplicates)} twice, lag ${figure(figures.receiver.lag_s)} s; refused: ${reasons(figures.receiver.refused)}.`) : null,
  ];
}

// Figures are drawn anew every second: focus and sideways scrolling stay where they were.
function keepPlace(place, draw) {
  const all = () => [...place.querySelectorAll('a, [tabindex]')];
  const focused = all().indexOf(document.activeElement);
  const scrolled = [...place.querySelectorAll('.scroll')].map((one) => one.scrollLeft);
  draw();
  place.querySelectorAll('.scroll').forEach((one, at) => { one.scrollLeft = scrolled[at] ?? 0; });
  if (focused >= 0) all()[focused]?.focus({ preventScroll: true });
}

export async function run(place, { figures }) {
  const now = h('div', {}), curves = h('div', { class: 'figures' });
  const over = section('Over time', 'Seconds since the run began.', curves);
  over.hidden = true;
  show(place, now, over);
  let drawn = -Infinity, live = null;
  async function draw() {
    drawn = performance.now();
    const charts = (await ask('/api/curves')).map((chart) => lines(chart)).filter(Boolean);
    over.hidden = !charts.length;
    show(curves, charts);
  }
  async function update(told) {
    keepPlace(now, () => show(now, h('h1', { class: 'quiet' }, 'Run'), tiles(told), notes(told), tables(told)));
    if (live !== told.live || (told.live && performance.now() - drawn > CURVES_MS)) {
      live = told.live;
      await draw().catch((error) => { show(curves, h('p', {}, error.message)); });
    }
  }
  await update(figures);
  return { update };
}
