// Which features fire on a text that somebody types, by the model that the command was started with.

import { ask, keeps, send } from './api.js';
import { called, count, figure, h, link, section, share, show, trust } from './dom.js';
import { coloured } from './feature.js';

const AGAIN_MS = 1000;
const WITHOUT = 'With asys-run eye RUN --model FOLDER a text that you type here goes through the model. Without it, search above for a token: it is looked for among the examples that features fire on most.';

export async function typed(place, { sae, saes }) {
  if (!keeps) return;
  const said = h('p', { class: 'how', role: 'status' });
  const list = h('ul', { class: 'found' });
  const field = h('textarea', { rows: 3, maxlength: 4000, 'aria-label': 'A text', placeholder: 'a sentence' });
  const which = h('select', { 'aria-label': 'SAE' }, saes.map((one) => h('option', { value: one, selected: one === sae }, one)));
  const button = h('button', { type: 'submit' }, 'Which features fire?');
  let asked = null;

  async function look(event) {
    event.preventDefault();
    if (!field.value) return;
    asked?.abort();
    const mine = asked = new AbortController();
    said.textContent = 'The model reads it ...';
    try {
      const found = await send('/api/typed', { sae: which.value, text: field.value }, mine.signal);
      if (asked !== mine) return;
      said.textContent = `${count(found.features.length)} features by their largest activation, on ${count(found.tokens.length)} tokens${found.cut ? ' (the text is longer; the rest was left out)' : ''}; SAE ${found.checkpoint}, ${found.model.about}.`;
      show(list, found.features.map((one) => line(found, one)));
    } catch (error) { if (asked === mine) said.textContent = error.message; }
  }

  const about = h('p', { class: 'how' });
  const warning = h('p', { class: 'callout', hidden: true });
  const form = h('form', { class: 'typed marks', onsubmit: look }, h('label', { class: 'wide' }, 'Text', field),
    saes.length > 1 ? h('label', {}, 'SAE', which) : null, button);
  show(place, section('Fires on this text', null, about, warning, form, said, list));

  async function state() {
    const model = await ask('/api/model');
    form.hidden = !model.there || model.state === 'failed';
    about.textContent = !model.there ? WITHOUT : model.state === 'loading' ? 'The model is being loaded; a text waits for it.' : model.state === 'failed' ? '' : `Weights: ${model.about}.`;
    warning.hidden = !(model.warning || model.problem);
    warning.textContent = model.problem || model.warning || '';
    if (model.there && model.state === 'loading') setTimeout(() => state().catch(() => {}), AGAIN_MS);
  }
  await state();
}

function line(found, one) {
  const most = Math.max(...one.levels.map((level) => level ?? 0));
  const trusted = trust(one, one.proposed);
  const part = one.max > 0 ? `, ${share(one.activation / one.max)} of its largest` : '';
  return h('li', { class: 'card' },
    link('/feature', { sae: found.sae, feature: one.feature }, `feature ${one.feature}`),
    h('span', { class: 'what', title: trusted }, called(one.words, one, one.proposed), one.proposed ? ` (${figure(one.proposed.score)})` : ''),
    h('span', { class: 'unit' }, `${figure(one.activation)}${part}`),
    h('p', { class: 'sentence whole' }, coloured({ tokens: found.tokens, levels: one.levels, at: -1 }, most)));
}
