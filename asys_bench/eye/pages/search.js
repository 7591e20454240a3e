// The view Search: features by name, note, words or token, and by a text that somebody types.

import { address, here, keep } from './address.js';
import { ask } from './api.js';
import { count, figure, h, link, name, share, show, visible } from './dom.js';
import { typed } from './typed.js';

const PAUSE_MS = 150, AGAIN_MS = 1000;

export async function search(place, { sae, saes }) {
  const { query } = here();
  const said = h('p', { class: 'how', role: 'status' }, 'The tokens that features fire on most, their words, your names and notes.');
  const list = h('ul', { class: 'found' });
  const below = h('div', {});
  const field = h('input', { type: 'search', value: query.get('text') ?? '', 'aria-label': 'Search features', placeholder: 'a token, a name', maxlength: 200, oninput: () => soon() });
  show(place, h('h1', { class: 'quiet' }, 'Search'), h('form', { role: 'search', class: 'tools', onsubmit: (event) => { event.preventDefault(); look(); } }, field, h('button', { type: 'submit' }, 'Search')), said, list, below);
  field.focus();
  let waiting = 0, newest = 0;
  function soon() {
    clearTimeout(waiting);
    waiting = setTimeout(look, PAUSE_MS);
  }
  async function look() {
    const text = field.value.trim();
    keep(address('/search', text ? { text } : {}));
    if (!text) { show(list); return; }
    newest += 1;
    const mine = newest;
    if (!list.childElementCount) said.textContent = 'Searching ...';
    try {
      const found = await ask('/api/search', { text });
      if (mine !== newest) return;
      if (found.waiting.length) setTimeout(() => { if (mine === newest) look(); }, AGAIN_MS);
      const left = found.left_out.length ? ` Not searched: ${found.left_out.join(', ')}; open its Hook view first.` : '';
      const reading = found.waiting.map((one) => ` ${one} ...`).join('');
      said.textContent = `${count(found.found.length)} of ${count(found.features)} features, in ${found.took_ms} ms.${left} ${found.problem}${reading}`;
      show(list, found.found.map((one) => h('li', { class: 'card' },
        link('/feature', { sae: one.sae, feature: one.feature }, `feature ${one.feature}`, one.name ? `: ${one.name}` : '', one.proposed ? ` (${figure(one.proposed.score)})` : ''),
        h('span', { class: 'what' }, one.tokens?.length ? one.tokens.map((token) => [h('code', {}, visible(token)), ' ']) : one.words ?? ''),
        h('span', { class: 'unit' }, `${share(one.density)} of rows, ${one.where}${saes.length > 1 ? ', ' : ''}`, saes.length > 1 ? name(one.sae) : null))));
    } catch (error) { if (mine === newest) said.textContent = error.message; }
  }
  if (saes.length) typed(below, { sae, saes }).catch((error) => { below.textContent = error.message; });
  if (field.value) await look();
  return null;
}
