// Which view the address names, and what stands above all of them: the run, its state, the way to the others.

import { follow } from './api.js';
import { feature } from './feature.js';
import { hook } from './hook.js';
import { address, duration, h, show } from './dom.js';
import { run } from './run.js';
import { search } from './search.js';
import { timeline } from './timeline.js';

const VIEWS = { run, hook, feature, search, timeline };
const TITLES = { run: 'Run', hook: 'Hook', feature: 'Feature', search: 'Search', timeline: 'Timeline' };
const view = location.pathname.slice(1) || 'run';
const query = new URLSearchParams(location.search);
const place = document.getElementById('view');

// The SAE that was looked at last goes along from view to view.
let sae = query.get('sae') ?? sessionStorage.getItem('sae') ?? '';
const number = query.get('feature') ?? sessionStorage.getItem('feature') ?? '0';
if (query.has('sae')) sessionStorage.setItem('sae', sae);
if (query.has('feature')) sessionStorage.setItem('feature', number);

function ways(saes) {
  if (!saes.includes(sae)) sae = saes[0] ?? '';
  const asked = { run: {}, hook: { sae }, feature: { sae, feature: number }, search: {}, timeline: { sae } };
  show(document.getElementById('views'), Object.keys(VIEWS).map((one) =>
    h('a', { href: address(`/${one}`, asked[one]), 'aria-current': one === view ? 'page' : null }, TITLES[one])));
}

function state(figures) {
  document.getElementById('run').textContent = figures.run_id ?? 'A-Sys-I';
  document.title = `${figures.run_id ?? ''} · ${TITLES[view]} · A-Sys-I`;
  const told = document.getElementById('state');
  told.className = figures.live ? 'live' : 'over';
  const since = figures.elapsed_s ? `, ${duration(figures.elapsed_s)}` : '';
  told.textContent = `${figures.live ? 'live, ' : ''}${figures.state ?? ''}${since}`;
}

function fail(error) {
  show(place, h('p', { class: 'callout', role: 'alert' }, error.message));
}

let shown = null;
ways([]);
follow((figures) => {
  const saes = Object.keys(figures.checkpoints ?? {});
  state(figures);
  ways(saes);
  if (shown === null) {
    shown = { update: () => {} };
    const wanted = query.get('sae') ?? sae;
    VIEWS[view](place, { sae: wanted, feature: Number(number), saes, figures })
      .then((made) => { shown = made ?? shown; }, fail);
  } else shown.update?.(figures);
}, (closed) => {
  const told = document.getElementById('state');
  told.className = 'lost';
  told.textContent = closed ? 'not let in: open the address that the command printed' : 'the eyepiece has ended; waiting for it';
});

// "/" leads to the search from everywhere but a field.
addEventListener('keydown', (event) => {
  const typing = event.target.closest?.('input, textarea, select');
  if (event.key !== '/' || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  if (view === 'search') document.querySelector('input[type=search]')?.focus();
  else location.assign('/search');
});
