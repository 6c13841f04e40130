// One key: everything about it, and what may be done with it.

import { by, button, element, say, show } from "./dom.js";
import { edit } from "./edit.js";
import { revoke } from "./revoke.js";
import { chip } from "./list.js";
import { WHY } from "./rows.js";
import { Gone, get, pathOf, post } from "./server.js";
import { endElement, fullElement, spokenElement } from "./time.js";

export class Details {
  constructor({ may, closed, gone, revoking }) {
    Object.assign(this, { may, closed, gone, revoking });
    this.place = by("details");
    this.place.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.close();
    });
  }

  get uid() {
    return this.row?.uid;
  }

  open(row) {
    this.hide();
    this.row = row;
    this.unfolded = new Set();
    this.draw();
    show(this.place, true);
    this.place.parentElement.classList.add("open");
    by("details-title").focus();
    this.load();
  }

  close() {
    if (!this.row) return;
    const { uid } = this.row;
    this.hide();
    this.closed(uid);
  }

  hide() {
    this.loading?.abort();
    this.row = null;
    this.answer = null;
    this.place.replaceChildren();
    show(this.place, false);
    this.place.parentElement.classList.remove("open");
  }

  /** The row that is open has changed. */
  changed(row) {
    this.row = row;
    if (row.state === "Revoking") this.draw();
    else this.load();
  }

  async load() {
    this.loading?.abort();
    const { signal } = (this.loading = new AbortController());
    try {
      this.answer = await get(pathOf(this.row), signal);
      if (!signal.aborted) this.draw();
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Gone) return this.gone();
      this.draw(error.message);
    }
  }

  draw(problem) {
    const { row, answer } = this;
    const focused = this.place.contains(document.activeElement) ? document.activeElement.dataset.part : null;
    const parts = [
      element("header", {},
        element("h2", { id: "details-title", tabindex: "-1", "data-part": "title" }, row.display),
        chip(row),
        button("×", () => this.close(), { class: "icon", "aria-label": "Close", "data-part": "close" })),
      element("p", { class: "sentence" }, row.pending ?? answer?.sentence ?? (problem ? "" : "Loading...")),
      problem && element("p", { class: "note bad", role: "alert" }, problem),
      ...(answer ? this.facts(answer) : []),
      this.actions(),
    ];
    this.place.replaceChildren(...parts.filter(Boolean));
    if (focused) this.focus(focused);
  }

  focus(part) {
    (this.place.querySelector(`[data-part="${part}"]`) ?? by("details-title"))?.focus();
  }

  facts(answer) {
    const { row } = this;
    const may = this.may();
    const change = (what) =>
      may.edit && row.state !== "Revoking" && button("Change", () => edit(what, row, this), { class: "link", "aria-label": `Change ${what}`, "data-part": `change ${what}` });
    const why = (hint) => row.hints.includes(hint) && element("p", { class: "why" }, WHY[hint]);
    const both = (at, spoken = spokenElement) => [spoken(at), mute(", ", fullElement(at))];
    const fact = (name, content, change) => [element("dt", {}, name), element("dd", {}, element("div", {}, content), change)];
    const list = [
      fact("Name", [element("code", {}, row.name), mute(` in ${row.namespace}`)]),
      fact("Key", row.key ? [element("code", {}, row.key), answer.serial && mute(`, no. ${answer.serial}`)] : "None yet"),
      fact("Owner", row.owner ?? "Nobody"),
      fact("Used", [row.used ? both(row.used) : "Never", why("unused")]),
      fact("Expires", [row.expires ? both(row.expires, endElement) : "Never", why("no end"), why("expires soon")], change("expiry")),
      fact("From", [row.ips?.length ? addresses(row.ips) : "Any address", why("any address")], change("addresses")),
      answer.scopes.length && fact("Scopes", answer.scopes.join(", ")),
      fact("About", row.description || mute("No description"), change("description")),
      fact("Delivery", answer.delivery),
      answer.rotation && fact("Rotation", answer.rotation),
      fact("Created", [both(row.created), answer.created_by && mute(` by ${answer.created_by}`)]),
    ];
    return [
      element("dl", {}, list.filter(Boolean).flat()),
      answer.retiring.length && element("ul", { class: "plain" }, answer.retiring.map(oldKey)),
      answer.in_force_words && element("p", { class: answer.in_force ? "force" : "force why" }, answer.in_force_words),
      this.fold("Conditions", answer.conditions.map(condition), "None yet."),
      this.fold("Events", answer.events.map(happening), answer.events_words),
    ];
  }

  fold(title, items, otherwise) {
    const toggled = (event) => (event.target.open ? this.unfolded.add(title) : this.unfolded.delete(title));
    return element("details", { open: this.unfolded.has(title), toggle: toggled },
      element("summary", { "data-part": title }, title),
      items.length ? element("ul", { class: "plain" }, items) : element("p", { class: "mute" }, otherwise));
  }

  actions() {
    const { row, answer } = this;
    const may = this.may();
    if (!answer || row.state === "Revoking") return null;
    const { suspended } = answer;
    const made = [
      may.edit && answer.rotates && button("Rotate", () => this.do("rotate", {}, "A new key is being made"), { "data-part": "rotate" }),
      may.edit && button(suspended ? "Resume" : "Suspend", () => this.do("edit", { suspended: !suspended }, suspended ? "Resumed" : "Suspended"), { "data-part": "suspend" }),
      may.revoke && button("Revoke...", () => revoke(row, this), { class: "careful", "data-part": "revoke" }),
    ].filter(Boolean);
    return made.length && element("div", { class: "actions" }, made);
  }

  /** Asks for a change of the open key; its row follows by the feed. */
  async do(what, body, said) {
    try {
      await post(`${pathOf(this.row)}/${what}`, { uid: this.uid, ...body });
      say(said);
    } catch (error) {
      if (error instanceof Gone) this.gone();
      else this.draw(error.message);
    }
  }
}

const mute = (...content) => element("span", { class: "mute" }, ...content);

function addresses(ips) {
  const all = ips.join(", ");
  return ips.length <= 8 ? all : element("details", {}, element("summary", {}, `${ips.length} addresses`), all);
}

const oldKey = ({ key, ends, in_use: inUse }) =>
  element("li", {}, "Old key ", element("code", {}, key), " ends ", endElement(ends), inUse && element("span", { class: "why" }, ": still in use"));

const condition = ({ type, status, reason, message, since }) =>
  element("li", {},
    element("strong", {}, `${type}: ${status}`), mute(` ${reason}, `), spokenElement(since),
    message && element("div", {}, message));

const happening = ({ at, reason, note, warning }) =>
  element("li", {},
    element("strong", {}, reason), warning && element("span", { class: "why" }, " warning"), " ", at && spokenElement(at),
    note && element("div", {}, note));
