// Where a page is and how it leads to another: here by the path of the address, in a file by its fragment (file_address.js).

export function address(path, query) {
  const told = new URLSearchParams(query).toString();
  return told ? `${path}?${told}` : path;
}

export const here = () => ({ view: location.pathname.slice(1) || 'run', query: new URLSearchParams(location.search) });
export const go = (there) => location.assign(there);
export const keep = (there) => history.replaceState(null, '', there);

// Calls `again` when the address leads elsewhere without a new page.
export const moved = () => {};
