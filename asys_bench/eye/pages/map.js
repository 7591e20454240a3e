// The decoder map: a point per feature on the two principal axes of the unit decoder rows. Near each other means
// that they write nearly the same. The table beside it says the same to who does not see it.

import { address, go } from './address.js';
import { h, share } from './dom.js';

const SIZE = 380, EDGE = 12, REACH = 12;

// 0 (never) to 5 (above a tenth of the rows), as in the report.
const heat = (density) => (density > 0 ? Math.max(1, Math.min(5, 5 + Math.floor(Math.log10(density) + 1 + 1e-9))) : 0);

export function decoderMap({ x, y, explained, density, sae, words }) {
  if (!x.length) return null;
  const most = 1.05 * Math.max(...x.map(Math.abs), ...y.map(Math.abs)) || 1;
  const place = (value) => EDGE + (SIZE - 2 * EDGE) * (0.5 + value / most / 2);
  const points = x.map((value, feature) => ({ feature, x: place(value), y: place(-y[feature]), level: density ? heat(density[feature]) : 2 }));
  const canvas = h('canvas', { class: 'map', role: 'img', 'aria-label': `Decoder map: ${x.length} features on their two principal axes` });
  const said = h('p', {}, `Principal axes of the unit decoder rows; they hold ${explained.map(share).join(' and ')} of the variance. Warmer and larger: fires more often.`);
  const first = said.textContent;

  function draw() {
    const ratio = devicePixelRatio || 1, ink = canvas.getContext('2d');
    canvas.width = canvas.height = SIZE * ratio;
    ink.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    const colours = ['--track', '--heat1', '--heat2', '--heat3', '--heat4', '--heat5'].map((one) => style.getPropertyValue(one));
    const many = points.length > 4000;
    for (const [level, colour] of colours.entries()) {  // a path per colour: 24,576 of their own take 100 ms
      const size = many ? 1 + 0.3 * level : 1.6 + 0.8 * level;
      ink.fillStyle = colour;
      ink.beginPath();
      for (const point of points) {
        if (point.level !== level) continue;
        if (many) { ink.rect(point.x - size, point.y - size, 2 * size, 2 * size); continue; }
        ink.moveTo(point.x + size, point.y);
        ink.arc(point.x, point.y, size, 0, 2 * Math.PI);
      }
      ink.fill();
    }
  }

  function nearest(event) {
    const box = canvas.getBoundingClientRect(), zoom = SIZE / box.width;
    const atX = (event.clientX - box.left) * zoom, atY = (event.clientY - box.top) * zoom;
    let best = null, least = REACH ** 2;
    for (const point of points) {
      const gap = (point.x - atX) ** 2 + (point.y - atY) ** 2;
      if (gap <= least) { least = gap; best = point; }
    }
    return best;
  }

  canvas.addEventListener('mousemove', (event) => {
    const found = nearest(event);
    canvas.classList.toggle('there', found !== null);
    said.textContent = found ? `feature ${found.feature}: ${words(found.feature) || '-'}${density ? `, ${share(density[found.feature])} of rows` : ''}` : first;
  });
  canvas.addEventListener('click', (event) => {
    const found = nearest(event);
    if (found) go(address('/feature', { sae, feature: found.feature }));
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
  draw();
  return h('figure', {}, h('figcaption', {}, h('b', {}, 'Decoder map')), canvas, said);
}
