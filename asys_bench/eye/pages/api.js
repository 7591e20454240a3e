// What a page asks the server, and the stream of the run's figures.

const AGAIN_MS = 700;
const pause = () => new Promise((go) => { setTimeout(go, AGAIN_MS); });

// Whether pins, names and notes can be kept.
export const keeps = true;

// The answer. While the server is still reading what it takes, `waiting` gets how far it is, and it is asked again.
export async function ask(path, query = {}, waiting = () => {}) {
  const told = new URLSearchParams(query).toString();
  return again(() => fetch(told ? `${path}?${told}` : path), waiting);
}

export const mark = (change) => send('/api/mark', change);

// signal: of an AbortController; the server then stops working on it.
export async function send(path, document, signal) {
  const headers = { 'Content-Type': 'application/json' };
  return again(() => fetch(path, { method: 'POST', headers, body: JSON.stringify(document), signal }), () => {});
}

async function again(asked, waiting) {
  for (;;) {
    const found = await answer(await asked());
    if (found.waiting !== true) return found;
    waiting(found.problem);
    await pause();
  }
}

async function answer(response) {
  const type = response.headers.get('Content-Type') ?? '';
  const found = type.startsWith('application/json') ? await response.json() : { problem: await response.text() };
  if (!response.ok) throw new Error(found.problem || `the server answered ${response.status}`);
  return found;
}

// Calls `see` with the figures whenever they change; the browser connects again by itself.
export function follow(see, lost) {
  const events = new EventSource('/api/events');
  events.onmessage = (event) => see(JSON.parse(event.data));
  events.onerror = () => lost(events.readyState === EventSource.CLOSED);
  return events;
}
