// A table of any length: only the rows in sight are in the page, and they are filled anew while it scrolls.

import { h } from './dom.js';

const ROW = 34, SPARE = 4;

// columns: [{key, title, hint, cell(node, row), number}]; `cell` fills the node of a row that came into sight.
export class VirtualTable {
  constructor({ label, columns, sort }) {
    this.columns = columns;
    this.rows = [];
    this.pool = [];
    this.heads = columns.map((column) => h('div', { role: 'columnheader', class: column.number ? 'cell right' : 'cell' },
      column.key ? h('button', { type: 'button', title: column.hint, onclick: () => sort(column.key) }, column.title) : h('span', { title: column.hint }, column.title)));
    this.space = h('div', { role: 'rowgroup', class: 'space' });
    this.node = h('div', { role: 'table', class: 'virtual card', tabindex: 0, 'aria-label': label, onscroll: () => this.soon(), onkeydown: (event) => this.keys(event) },
      h('div', { role: 'rowgroup', class: 'heads' }, h('div', { role: 'row', class: 'line' }, this.heads)), this.space);
    this.node.style.setProperty('--numbers', columns.filter((one) => one.number).length - 1);  // beside its own
    this.asked = false;
    new ResizeObserver(() => this.soon()).observe(this.node);
  }

  // rows: whatever `cell` understands; key, down: how they are sorted.
  show(rows, key, down) {
    this.rows = rows;
    this.node.setAttribute('aria-rowcount', rows.length + 1);
    this.space.style.height = `${rows.length * ROW}px`;
    this.columns.forEach((column, at) => {
      const sorted = column.key && column.key === key;
      if (sorted) this.heads[at].setAttribute('aria-sort', down ? 'descending' : 'ascending');
      else this.heads[at].removeAttribute('aria-sort');
    });
    this.fill(true);
  }

  soon() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => { this.asked = false; this.fill(false); });
  }

  // Rows keep their nodes while they are in sight: node n holds rows n, n + pool, n + 2 pool, ...
  fill(all) {
    const wanted = Math.ceil((this.node.clientHeight || 600) / ROW) + 2 * SPARE;
    while (this.pool.length < wanted) {
      const cells = this.columns.map((column) => h('div', { role: 'cell', class: column.number ? 'cell right' : 'cell' }));
      const node = h('div', { role: 'row', class: 'line' }, cells);
      this.pool.push({ node, cells, at: -1 });
      this.space.append(node);
      all = true;
    }
    const size = this.pool.length;
    const first = Math.max(0, Math.min(Math.floor(this.node.scrollTop / ROW) - SPARE, this.rows.length - size));
    for (let at = first; at < first + size; at += 1) {
      const held = this.pool[at % size];
      if (!all && held.at === at) continue;
      held.at = at;
      held.node.hidden = at >= this.rows.length;
      if (held.node.hidden) continue;
      held.node.style.transform = `translateY(${at * ROW}px)`;
      held.node.setAttribute('aria-rowindex', at + 2);
      this.columns.forEach((column, which) => column.cell(held.cells[which], this.rows[at]));
    }
  }

  // Arrows lead from row to row where a row's link has the focus, through those out of sight too.
  keys(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const line = event.target.closest?.('.space .line');
    const held = this.pool.find((one) => one.node === line);
    if (!step || !held) return;
    event.preventDefault();
    const at = Math.max(0, Math.min(this.rows.length - 1, held.at + step));
    const top = at * ROW, room = this.node.clientHeight - 2 * ROW;
    if (top < this.node.scrollTop) this.node.scrollTop = top;
    else if (top > this.node.scrollTop + room) this.node.scrollTop = top - room;
    this.fill(false);
    this.pool.find((one) => one.at === at)?.node.querySelector('a')?.focus({ preventScroll: true });
  }
}
