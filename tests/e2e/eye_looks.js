// For test_eye_browser.py: what of the page a person could not read, and what could have run.
(() => {
  const ink = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (colour) => {
    ink.clearRect(0, 0, 1, 1);
    ink.fillStyle = colour;
    ink.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = ink.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, under) => top.slice(0, 3).map((value, at) => top[3] * value + (1 - top[3]) * under[at]);
  const light = (colour) => colour.slice(0, 3).map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
  const contrast = (a, b) => {
    const [low, high] = [light(a), light(b)].sort((one, other) => one - other);
    return (high + 0.05) / (low + 0.05);
  };
  function ground(element) {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.push(rgba(getComputedStyle(one).backgroundColor));
    return layers.reduceRight((under, layer) => over(layer, under), matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18] : [255, 255, 255]);
  }
  function opacity(element) {
    let found = 1;
    for (let one = element; one; one = one.parentElement) found *= Number(getComputedStyle(one).opacity);
    return found;
  }
  const faint = [];
  let texts = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    const box = element?.getBoundingClientRect();
    if (!text || !box || !box.width || !box.height || ['SCRIPT', 'STYLE', 'NOSCRIPT', 'TITLE', 'title'].includes(element.tagName)) continue;
    if (element.closest('[disabled]') || getComputedStyle(element).visibility === 'hidden') continue;
    const style = getComputedStyle(element), svg = element instanceof SVGElement;
    const under = ground(svg ? element.closest('svg').parentElement : element);
    const colour = rgba(svg ? style.fill : style.color);
    colour[3] *= opacity(element);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = contrast(over(colour, under), under);
    texts += 1;
    if (ratio < (large ? 3 : 4.5) - 0.02) faint.push(`${ratio.toFixed(2)} ${element.tagName}.${element.getAttribute('class') ?? ''} ${text.slice(0, 40)}`);
  }
  return {
    texts,
    faint: [...new Set(faint)],
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    planted: [...document.querySelectorAll('img, iframe, object, embed, base, form[action], link[rel=stylesheet], script:not([type="text/plain"]):not([type="application/json"])')]
      .filter((one) => !/^\/static\/[0-9a-f]{16}\/(eye\.css|main\.js)$/.test(one.getAttribute('href') ?? one.getAttribute('src') ?? '')
        && !(one.tagName === 'SCRIPT' && one.type === 'module' && document.currentScript === null && location.protocol === 'file:')).map((one) => one.outerHTML.slice(0, 120)),
    inline: [...document.querySelectorAll('*')].flatMap((one) => [...one.attributes].filter(({ name }) => name.startsWith('on')).map(({ name }) => `${one.tagName} ${name}`)),
    ran: String(globalThis.ran),
  };
})()
