// What a page asks the server, and the stream of the run's figures.

export async function ask(path, query = {}) {
  const told = new URLSearchParams(query).toString();
  return answer(await fetch(told ? `${path}?${told}` : path));
}

export async function mark(change) {
  const headers = { 'Content-Type': 'application/json' };
  return answer(await fetch('/api/mark', { method: 'POST', headers, body: JSON.stringify(change) }));
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
