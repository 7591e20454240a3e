// As api.js, in the page that is one file: answers are in the file, packed, and are unpacked when they are asked for.

const FOUND = 200;

export const keeps = false;

const index = JSON.parse(document.getElementById('index').textContent);
const unpacked = new Map();

// The JSON behind a name: base64 of gzip in a data block. The newest few stay unpacked.
async function part(name) {
  if (!unpacked.has(name)) {
    const packed = document.getElementById(name);
    if (packed === null) throw new Error('this file does not have that');
    const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    unpacked.set(name, new Response(stream).json());
    if (unpacked.size > 12) unpacked.delete(unpacked.keys().next().value);
  }
  return unpacked.get(name);
}

function numberOf(sae) {
  const number = index.saes.findIndex((one) => one.sae === sae);
  if (number < 0) throw new Error(index.left_out[sae] ?? 'this file has no SAE of that name');
  return number;
}

const ANSWERS = {
  '/api/curves': () => part('curves'),
  '/api/table': async ({ sae }) => part(`table-${numberOf(sae)}`),
  '/api/map': async ({ sae }) => part(`map-${numberOf(sae)}`),
  '/api/births': async ({ sae }) => part(`births-${numberOf(sae)}`),
  '/api/feature': async ({ sae, feature }) => {
    const number = numberOf(sae), one = index.saes[number];
    if (!(feature >= 0 && feature < one.d_sae)) throw new Error(`this SAE has features 0 to ${one.d_sae - 1}`);
    const block = await part(`features-${number}-${Math.floor(feature / index.block)}`);
    return expand(block, block.features[feature % index.block]);
  },
  '/api/latest': async () => ({ latest: null }),
  '/api/search': search,
};

// Examples have their tokens as numbers in the block's own list.
function expand(block, feature) {
  const told = (one) => (one.tokens ? { ...one, tokens: one.tokens.map((token) => block.tokens[token]) } : one);
  return { ...feature, top: feature.top?.map(told), random: feature.random?.map(told) };
}

export async function ask(path, query = {}) {
  return ANSWERS[path](query);
}

export async function send() {
  throw new Error('this is a file: pins, names and notes are kept by asys-run eye');
}

export const mark = send;

export function follow(see) {
  part('figures').then(see);
}

const plain = (text) => text.toLowerCase().replaceAll('\n', ' ').trim();

const RANK = { name: 0, proposed: 1, exact: 2, holds: 3 };
const WHERE = ['name or note', 'its proposed name', 'its very token', 'among what it fires on most'];

// Names first, then features whose very token it is, then the others; the more often firing first.
async function search({ text }) {
  const begun = performance.now(), wanted = plain(text), found = [];
  for (const [number, { sae }] of index.saes.entries()) {
    const [table, { tokens }] = await Promise.all([part(`table-${number}`), part(`tokens-${number}`)]);
    const density = table.columns.density ?? [];
    for (let feature = 0; feature < table.d_sae; feature += 1) {
      const kept = table.marks[feature], proposed = kept?.name ? null : table.names[feature] ?? null, own = [...(tokens[feature] ?? []), table.words[feature] ?? ''].map(plain);
      const rank = kept && plain(`${kept.name} ${kept.note}`).includes(wanted) ? RANK.name : proposed && plain(proposed.name).includes(wanted) ? RANK.proposed
        : own.includes(wanted) ? RANK.exact : own.some((one) => one.includes(wanted)) ? RANK.holds : null;
      if (rank !== null) found.push({ sae, feature, rank, density: density[feature] ?? 0, words: table.words[feature] ?? '', tokens: (tokens[feature] ?? []).slice(0, 6), name: kept?.name || proposed?.name || '', proposed });
    }
  }
  found.sort((a, b) => a.rank - b.rank || b.density - a.density || a.feature - b.feature);
  return {
    found: found.slice(0, FOUND).map((one) => ({ ...one, where: WHERE[one.rank] })),
    features: index.saes.reduce((sum, one) => sum + one.d_sae, 0), saes: index.saes.map((one) => one.sae), waiting: [],
    left_out: Object.keys(index.left_out), problem: '', took_ms: Math.round(performance.now() - begun),
  };
}
