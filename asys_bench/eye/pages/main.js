// Which view the address names, and what stands above all of them: the run, its state, the way to the others.

import { follow } from './api.js';
import { address, go, here, moved } from './address.js';
import { feature } from './feature.js';
import { hook } from './hook.js';
import { duration, h, show } from './dom.js';
import { run } from './run.js';
import { search } from './search.js';
import { timeline } from './timeline.js';

const VIEWS = { run, hook, feature, search, timeline };
const TITLES = { run: 'Run', hook: 'Hook', feature: 'Feature', search: 'Search', timeline: 'Timeline' };
const place = document.getElementById('view');
let view = 'run', sae = '', number = '0', shown = null, figures = null, drawn = '';

// The SAE and the feature that were looked at last go along from view to view.
function look() {
  const asked = here();
  view = asked.view in VIEWS ? asked.view : 'run';
  sae = asked.query.get('sae') ?? sessionStorage.getItem('sae') ?? '';
  number = asked.query.get('feature') ?? sessionStorage.getItem('feature') ?? '0';
  if (asked.query.has('sae')) sessionStorage.setItem('sae', sae);
  if (asked.query.has('feature')) sessionStorage.setItem('feature', number);
}

function ways(saes) {
  if (!saes.includes(sae)) sae = saes[0] ?? '';
  const now = JSON.stringify([view, sae, number]);
  if (now === drawn) return;  // who is on a link by keyboard stays there
  drawn = now;
  const asked = { run: {}, hook: { sae }, feature: { sae, feature: number }, search: {}, timeline: { sae } };
  show(document.getElementById('views'), Object.keys(VIEWS).map((one) =>
    h('a', { href: address(`/${one}`, asked[one]), 'aria-current': one === view ? 'page' : null }, TITLES[one])));
}

function state() {
  document.getElementById('run').textContent = figures.run_id ?? 'A-Sys-I';
  document.title = `${figures.run_id ?? ''} · ${TITLES[view]} · A-Sys-I`;
  const told = document.getElementById('state');
  told.className = figures.live ? 'live' : 'over';
  const since = figures.elapsed_s ? `, ${duration(figures.elapsed_s)}` : '';
  told.textContent = `${figures.live ? 'live, ' : ''}${figures.state ?? ''}${since}`;
}

function open() {
  const wanted = here().query.get('sae') ?? sae, mine = { update: () => {} };
  const room = h('div', {});  // a view that comes late does not draw over the next one
  show(place, room);
  shown = mine;
  VIEWS[view](room, { sae: wanted, feature: Number(number), saes: Object.keys(figures.checkpoints ?? {}), figures })
    .then((made) => { if (shown === mine) shown = made ?? mine; },
      (error) => show(room, h('p', { class: 'callout', role: 'alert' }, error.message)));
}

look();
ways([]);
follow((told) => {
  figures = told;
  const saes = Object.keys(figures.checkpoints ?? {});
  // Of a run that is over one wants to see what it found.
  if (shown === null && location.pathname === '/' && figures.state === 'finished' && saes.length) view = 'hook';
  state();
  ways(saes);
  if (shown === null) open();
  else shown.update?.(figures);
}, (closed) => {
  const told = document.getElementById('state');
  told.className = 'lost';
  told.textContent = closed ? 'not let in: open the address that the command printed' : 'the eyepiece has ended; waiting for it';
});

moved(() => {
  look();
  if (figures === null) return;
  ways(Object.keys(figures.checkpoints ?? {}));
  state();
  place.focus({ preventScroll: true });
  scrollTo(0, 0);
  open();
});

// "/" leads to the search from everywhere but a field.
addEventListener('keydown', (event) => {
  const typing = event.target.closest?.('input, textarea, select');
  if (event.key !== '/' || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  if (view === 'search') document.querySelector('input[type=search]')?.focus();
  else go(address('/search', {}));
});
