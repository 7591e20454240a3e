// As address.js, in the page that is one file: the view and what it asks for stand behind the `#`.

export function address(path, query) {
  const told = new URLSearchParams(query).toString();
  return `#${told ? `${path}?${told}` : path}`;
}

export function here() {
  const [path, query = ''] = location.hash.slice(1).split('?', 2);
  return { view: path.slice(1) || 'run', query: new URLSearchParams(query) };
}

export const go = (there) => location.assign(there);
export const keep = (there) => history.replaceState(null, '', there);
export const moved = (again) => addEventListener('hashchange', () => { if (location.hash.startsWith('#/')) again(); });
