// The page of `kubectl keywright ui`: begins a session, follows the keys of a namespace, and opens what is asked for.

import { create } from "./create.js";
import { Details } from "./details.js";
import { by, button, element, pause, show, write } from "./dom.js";
import { List } from "./list.js";
import { WHY, readView, writeView } from "./rows.js";
import { Gone, begin as beginSession, feed, get } from "./server.js";
import * as time from "./time.js";

let session;
let view = readView("");
let following;
let lost;
const watchers = new Map();

const list = new List(view, {
  changed: pause(200, () => keep()),
  open: (uid) => list.rows.has(uid) && openDetails(list.rows.get(uid)),
  create: () => session.may.create && button("Create API key", openCreate),
});

const details = new Details({
  may: () => session.may,
  closed: (uid) => {
    keep({ key: "" });
    list.mark(null);
    list.focus(uid, list.next);
  },
  gone: pluginGone,
  /** Tells the progress of a revocation, until the key is gone. */
  revoking(row, tell) {
    list.own.add(row.uid);
    list.next = list.neighbour(row.uid);
    return new Promise((done) => watchers.set(row.uid, (now) => (now ? tell(now.pending) : done())));
  },
});

/** Settles once every verifier accepts a new key, or fails with the reason why none will. */
function wait({ uid }, tell) {
  return new Promise((done, failed) => {
    const look = (row) => {
      if (row?.pending) return tell(`${row.pending}...`);
      watchers.delete(uid);
      if (row && !row.failed) done();
      else failed(new Error(row?.failed ?? "It was revoked."));
    };
    watchers.set(uid, look);
    if (list.rows.has(uid)) look(list.rows.get(uid));
  });
}

function keep(changes = {}) {
  Object.assign(view, changes);
  history.replaceState(null, "", `#${writeView(view)}`);
}

function openDetails(row) {
  keep({ key: `${row.namespace}/${row.name}` });
  list.mark(row.uid);
  details.open(row);
}

const openCreate = () => create({ session, view, list, wait, gone: pluginGone });

/** Nothing works any more, and a dialog may still hold a key: it stays. */
function pluginGone(box, { message } = new Gone()) {
  following?.abort();
  handlers.found();
  if (box?.made.open) box.made.append(element("p", { class: "note bad", role: "alert" }, message));
  notice(message, "bad");
  show(by("create"), false);
}

/** A line above the list; nothing: none. */
function notice(words, tone = "warn") {
  by("age").className = `note ${tone}`;
  write(by("age"), words ?? "");
  show(by("age"), Boolean(words));
}

/** In place of the list. */
function instead(words) {
  list.clear();
  by("empty").replaceChildren(element("p", {}, words));
  show(by("empty"), true);
}

async function begin() {
  const fragment = location.hash.slice(1);
  try {
    if (/^[\w-]{32,}$/.test(fragment)) {
      history.replaceState(null, "", "#");
      await beginSession(fragment);
    } else {
      Object.assign(view, readView(fragment));
    }
    session = await get("/api/session");
    Object.assign(WHY, session.hints);
  } catch (error) {
    return instead(error.message);
  }
  view.namespace ??= session.namespace;
  time.set(session.now);
  write(by("who"), `${session.user ?? "You"} at ${session.cluster}`);
  offerNamespaces();
  by("create").addEventListener("click", openCreate);
  setInterval(time.renew, 20_000);
  await enter(view.namespace);
}

function offerNamespaces() {
  const changed = () => {
    keep({ namespace: control.value, key: "" });
    enter(view.namespace);
  };
  const { namespaces } = session;
  let control;
  if (namespaces) {
    const option = (value, text = value) => element("option", { value, selected: value === view.namespace }, text);
    const offered = [...new Set([...namespaces, view.namespace])].filter(Boolean);
    control = element("select", { change: changed }, offered.map((one) => option(one)), option("", "All namespaces"));
  } else {
    // What is no name, as a key that somebody pastes, goes nowhere.
    control = element("input", { value: view.namespace, size: "14", autocomplete: "off", pattern: "[a-z0-9\\-]+" });
  }
  by("namespace").replaceChildren(element("label", {}, "Namespace ", control));
  by("namespace").addEventListener("submit", (event) => {
    event.preventDefault();
    if (control.reportValidity() && control.value) changed();
  });
}

/** Follows a namespace. */
async function enter(namespace) {
  following?.abort();
  const { signal } = (following = new AbortController());
  details.hide();
  list.view = view;
  handlers.found();
  instead("Loading...");
  try {
    session = await get(`/api/session?${new URLSearchParams({ namespace })}`, signal);
    show(by("create"), session.may.create);
    write(by("rights"), session.words ?? "");
    show(by("rights"), Boolean(session.words));
    for await (const message of feed(namespace, signal)) {
      listen();
      for (const [kind, content] of Object.entries(message)) handlers[kind](content);
      // So that many rows make many short tasks.
      if (message.rows) await new Promise((next) => setTimeout(next));
    }
  } catch (error) {
    if (signal.aborted) return;
    if (error instanceof Gone) return pluginGone();
    handlers.refused(error.message);
  }
}

let silence;
let isSilent;

/** The plugin says the time every 10 s. Where it says nothing, what is shown may be old. */
function listen() {
  if (isSilent) notice();
  isSilent = false;
  clearTimeout(silence);
  silence = setTimeout(() => {
    isSilent = true;
    notice("The plugin is silent: this may be old. If this stays, run kubectl keywright ui again.");
  }, 40_000);
}

const handlers = {
  now: (now) => time.set(now),
  rows(rows) {
    list.add(rows);
    if (!list.ready) write(by("empty").firstElementChild, `Loading... ${list.rows.size.toLocaleString("en")}`);
  },
  complete() {
    list.complete();
    const row = view.key && [...list.rows.values()].find(({ namespace, name }) => `${namespace}/${name}` === view.key);
    if (row) openDetails(row);
    else keep({ key: "" });
  },
  row(row) {
    list.put(row);
    if (details.uid === row.uid) details.changed(row);
    watchers.get(row.uid)?.(row);
  },
  gone(uid) {
    list.remove(uid);
    watchers.get(uid)?.(null);
    watchers.delete(uid);
    if (details.uid === uid && !document.querySelector("dialog")) details.close();
  },
  lost({ at, next, words }) {
    clearInterval(lost);
    const until = Date.now() + next * 1000;
    const tell = () => notice(`As of ${time.hour(at)}. Next try in ${Math.max(0, Math.ceil((until - Date.now()) / 1000))} s. ${words ?? ""}`.trim());
    tell();
    lost = setInterval(tell, 1000);
  },
  found() {
    clearInterval(lost);
    clearTimeout(silence);
    notice();
  },
  refused(words) {
    following.abort();
    handlers.found();
    show(by("rights"), false);
    instead(words);
  },
};

begin();
