// The list: rows in memory, at most as many of them in the DOM as were asked for, each touched only where it changed.

import { by, button, element, show, write } from "./dom.js";
import { COLUMNS, HINTS, WHY, count, counted, filter, prepare, sort } from "./rows.js";
import { endElement, plural, renew, spokenElement } from "./time.js";

const PAGE = 100;
/** Rows that have left the DOM and are kept for when they come back. */
const SPARE = 500;
/** A state as a word with border and tint. */
export const chip = ({ state, tone }) => element("span", { class: `chip ${tone}` }, state);

const title = (column) => (column === "used" ? "Last used" : column[0].toUpperCase() + column.slice(1));

export class List {
  /** `view` is what is asked for; `changed` is called when a person changes it, `open` to open a row. */
  constructor(view, { changed, open, create }) {
    Object.assign(this, { view, changed, open, create });
    this.table = document.querySelector("#list table");
    this.body = this.table.tBodies[0];
    this.makeHead();
    this.body.addEventListener("click", (event) => this.clicked(event));
    this.body.addEventListener("keydown", (event) => this.moved(event));
    by("filters").addEventListener("submit", (event) => event.preventDefault());
    by("search").addEventListener("input", () => this.change({ search: by("search").value }));
    by("state").addEventListener("change", () => this.change({ state: by("state").value }));
    by("owner").addEventListener("change", () => this.change({ owner: by("owner").value }));
    by("more").lastElementChild.addEventListener("click", () => this.showMore());
    by("news").lastElementChild.addEventListener("click", () => {
      this.arrange();
      by("search").focus();
    });
    this.clear();
  }

  clear() {
    this.rows = new Map();
    this.drawn = new Map();
    this.spare = new Map();
    this.sorted = this.counts = null;
    this.news = new Set();
    this.own = new Set();
    this.limit = PAGE;
    this.chosen = [];
    this.ready = false;
    this.body.replaceChildren();
    by("search").value = this.view.search;
    for (const part of [this.table, by("filters"), by("hints"), by("more"), by("news")]) show(part, false);
  }

  makeHead() {
    const heads = COLUMNS.map((column) =>
      element("th", { role: "columnheader", scope: "col", class: column },
        element("button", { type: "button", click: () => this.sortBy(column) }, title(column), element("span", { "aria-hidden": "true" }))));
    this.table.tHead.rows[0].append(...heads);
    this.heads = new Map(COLUMNS.map((column, index) => [column, heads[index]]));
    by("hints").append(...Object.keys(HINTS).map((hint) => button("", () => this.toggle(hint), { "data-hint": hint })));
  }

  /** The first rows, as they come in. */
  add(rows) {
    for (const row of rows) this.keep(row);
  }

  keep(row) {
    this.rows.set(row.uid, prepare(row));
    this.forget(row.uid);
  }

  /** What was sorted, counted and drawn of a row is so no longer. */
  forget(uid) {
    this.spare.delete(uid);
    this.sorted = this.counts = null;
  }

  /** All rows are in. Half of a page is drawn first: two short tasks. */
  complete() {
    this.ready = true;
    this.limit = PAGE / 2;
    this.arrange();
    this.limit = PAGE;
    setTimeout(() => this.arrange());
  }

  /** A row is new, or has changed. Nothing moves: a changed row stays where it is, a new one waits to be asked for. */
  put(row) {
    const known = this.rows.get(row.uid);
    this.keep(row);
    if (!this.ready) return;
    const isOwn = this.own.has(`${row.namespace}/${row.name}`) || this.rows.size === 1;
    if (!known && isOwn) return this.arrange();
    if (!known) this.news.add(row.uid);
    else if (this.drawn.has(row.uid)) this.draw(row, this.drawn.get(row.uid));
    this.summarise();
  }

  /** A row is gone: it is marked, and goes when the list is next arranged. */
  remove(uid) {
    const row = this.rows.get(uid);
    const drawn = this.drawn.get(uid);
    this.rows.delete(uid);
    this.news.delete(uid);
    this.forget(uid);
    if (this.own.has(uid)) return this.arrange();
    if (!drawn) return this.summarise();
    this.draw({ ...row, state: "Revoked", tone: "quiet", hints: [] }, drawn);
    drawn.classList.add("past");
    drawn.querySelector("button").setAttribute("aria-disabled", "true");
    this.summarise();
  }

  change(changes) {
    Object.assign(this.view, changes);
    this.limit = PAGE;
    this.arrange();
    this.changed();
  }

  sortBy(column) {
    this.change({ sort: column, descending: this.view.sort === column && !this.view.descending });
  }

  reset() {
    by("search").value = "";
    this.change({ search: "", state: "", owner: "", hints: [] });
    by("search").focus();
  }

  showMore() {
    const first = this.limit;
    this.limit += PAGE;
    this.arrange();
    this.focus(this.chosen[first]?.uid);
  }

  /** Selects, sorts and draws anew. */
  arrange() {
    if (!this.ready) return;
    this.news.clear();
    const order = `${this.view.sort} ${this.view.descending}`;
    if (!this.sorted || this.order !== order) this.sorted = sort([...this.rows.values()], this.view);
    this.order = order;
    this.chosen = filter(this.sorted, this.view);
    const wanted = this.chosen.slice(0, this.limit);
    const wantedOnes = new Set(wanted.map((row) => row.uid));
    if (this.spare.size > SPARE) this.spare.clear();
    for (const [uid, node] of this.drawn) {
      if (wantedOnes.has(uid)) continue;
      node.remove();
      this.drawn.delete(uid);
      if (this.rows.has(uid)) this.spare.set(uid, node);
    }
    let next = this.body.firstElementChild;
    for (const row of wanted) {
      const node = this.drawn.get(row.uid) ?? this.fetchRow(row);
      if (node === next) next = next.nextElementSibling;
      else this.body.insertBefore(node, next);
    }
    renew();
    this.keepOneTabStop();
    this.summarise();
  }

  summarise() {
    const { view, rows, ready } = this;
    const all = this.chosen.length;
    show(this.heads.get("namespace"), view.namespace === "");
    for (const [column, head] of this.heads) {
      const sorted = view.sort === column;
      if (sorted) head.setAttribute("aria-sort", view.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
      write(head.querySelector("span"), sorted ? (view.descending ? "↓" : "↑") : "");
    }
    this.table.setAttribute("aria-rowcount", all + 1);
    show(by("filters"), ready && rows.size > 0);
    show(this.table, ready && all > 0);
    this.offerFilters();
    const part = show(by("more").lastElementChild, this.limit < all) ? `${this.limit} of ` : "";
    write(by("more").firstElementChild, part + plural(all, "key"));
    show(by("more"), ready && all > 0);
    show(by("news"), this.news.size > 0);
    write(by("news").firstElementChild, `${plural(this.news.size, "new key")}.`);
    this.explainEmptiness();
  }

  offerFilters() {
    const of = (values) => count([...this.rows.values()], values);
    this.counts ??= [of((row) => [row.state]), of((row) => (row.owner ? [row.owner] : [])), of((row) => row.hints)];
    const [states, owners, hints] = this.counts;
    offer(by("state"), states, this.view.state);
    offer(by("owner"), owners, this.view.owner);
    let isAny = false;
    for (const chip of by("hints").children) {
      const { hint } = chip.dataset;
      const isChosen = this.view.hints.includes(hint);
      write(chip, counted(hint, hints.get(hint) ?? 0));
      chip.title = WHY[hint];
      chip.setAttribute("aria-pressed", isChosen);
      isAny = show(chip, hints.has(hint) || isChosen) || isAny;
    }
    show(by("hints"), this.ready && isAny);
  }

  toggle(hint) {
    const { hints } = this.view;
    this.change({ hints: hints.includes(hint) ? hints.filter((other) => other !== hint) : [...hints, hint] });
  }

  explainEmptiness() {
    const empty = by("empty");
    if (!this.ready || !show(empty, this.chosen.length === 0)) return;
    if (this.rows.size > 0) {
      empty.replaceChildren(element("p", {}, "No key matches."), button("Clear", () => this.reset()));
    } else {
      const where = this.view.namespace === "" ? "yet" : `in ${this.view.namespace} yet`;
      empty.replaceChildren(element("p", {}, `No API keys ${where}.`), this.create() ?? "");
    }
  }

  fetchRow(row) {
    const node = this.spare.get(row.uid) ?? this.draw(row, element("tr", { role: "row", "data-uid": row.uid }));
    node.classList.toggle("chosen", row.uid === this.marked);
    node.querySelector("th button").tabIndex = -1;
    this.drawn.set(row.uid, node);
    return node;
  }

  draw(row, node) {
    const hint = (column) => row.hints.filter((hint) => HINTS[hint] === column).map((hint) => element("span", { class: "hint" }, hint));
    const cell = (column, ...content) => element("td", { role: "cell", class: column }, ...content, ...hint(column));
    const said = (label, at, otherwise, spoken = spokenElement) =>
      [(at || otherwise === "Never") && element("span", { class: "label" }, label), at ? spoken(at) : element("span", { class: "word" }, otherwise)];
    const several = this.view.namespace === "";
    const name = element("th", { role: "rowheader", scope: "row", class: "name" },
      element("button", { type: "button", tabindex: "-1" }, row.display),
      several && element("span", { class: "under who" }, row.namespace),
      element("span", { class: "under" }, row.name),
      row.owner && element("span", { class: "under who" }, row.owner));
    const cells = [
      name,
      cell("owner", row.owner),
      cell("key", element("span", { class: "mono" }, row.key)),
      cell("created", spokenElement(row.created)),
      cell("used", said("Used ", row.used, row.key ? "Never used" : "")),
      cell("expires", said("Expires ", row.expires, "Never", endElement)),
      cell("status", chip(row), row.lagging && element("span", { class: "hint" }, "not yet everywhere")),
    ];
    if (several) cells.unshift(cell("namespace", row.namespace));
    const focused = node.contains(document.activeElement);
    const tab = node.querySelector("th button")?.tabIndex ?? -1;
    node.replaceChildren(...cells);
    const made = node.querySelector("th button");
    made.tabIndex = tab;
    if (focused) made.focus();
    return node;
  }

  /** Marks the row whose details are open. */
  mark(uid) {
    this.marked = uid;
    this.body.querySelector(".chosen")?.classList.remove("chosen");
    this.drawn.get(uid)?.classList.add("chosen");
  }

  /** Focuses a row; where it is not there, the one that `instead` names, or the search. */
  focus(uid, instead) {
    const node = this.drawn.get(uid) ?? this.drawn.get(instead) ?? this.body.querySelector("tr");
    if (node) this.roveTo(node);
    else if (!by("filters").hidden) by("search").focus();
    else by("create").focus();
  }

  /** The row after this one, or before it at the end. */
  neighbour(uid) {
    const node = this.drawn.get(uid);
    return (node?.nextElementSibling ?? node?.previousElementSibling)?.dataset.uid;
  }

  clicked(event) {
    const node = event.target.closest("tr");
    if (!node || node.classList.contains("past") || String(getSelection())) return;
    this.roveTo(node);
    this.open(node.dataset.uid);
  }

  moved(event) {
    if (event.key === "/") {
      event.preventDefault();
      by("search").focus();
    }
    const node = event.target.closest("tr");
    const to = {
      ArrowDown: node?.nextElementSibling,
      ArrowUp: node?.previousElementSibling,
      Home: this.body.firstElementChild,
      End: this.body.lastElementChild,
    }[event.key];
    if (!to) return;
    event.preventDefault();
    this.roveTo(to);
  }

  roveTo(node) {
    const from = this.body.querySelector('th button[tabindex="0"]');
    if (from) from.tabIndex = -1;
    const to = node.querySelector("th button");
    to.tabIndex = 0;
    to.focus();
  }

  keepOneTabStop() {
    if (this.body.querySelector('th button[tabindex="0"]')) return;
    const first = this.body.querySelector("th button");
    if (first) first.tabIndex = 0;
  }
}

/** Fills a select with counted values, if they differ, and keeps what is chosen even where it does not occur. */
function offer(node, counts, chosen) {
  if (chosen && !counts.has(chosen)) counts.set(chosen, 0);
  const options = [...counts].map(([value, times]) => element("option", { value }, `${value} (${times})`));
  const texts = options.map(({ text }) => text).join();
  if (node.dataset.texts !== texts) node.replaceChildren(element("option", { value: "" }, "Any"), ...options);
  node.dataset.texts = texts;
  node.value = chosen;
}
