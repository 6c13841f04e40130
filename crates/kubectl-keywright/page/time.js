// Times as people say them. Now is the API server's clock.

import { element } from "./dom.js";

let offset = 0;

/** Takes the API server's time, in seconds. */
export function set(now) {
  offset = now - Date.now() / 1000;
}

export const now = () => Date.now() / 1000 + offset;

const DAY = 86_400;
const form = (options) => new Intl.DateTimeFormat("en-GB", options);
const DATE = { day: "numeric", month: "short", year: "numeric" };
const CLOCK = { hour: "2-digit", minute: "2-digit" };
const day = form(DATE);
const minute = form({ ...DATE, ...CLOCK, timeZoneName: "short" });
const clock = form(CLOCK);

const number = new Intl.NumberFormat("en");

export const plural = (count, word) => `${number.format(count)} ${word}${count === 1 ? "" : "s"}`;

/** A span, rounded down: `4 min`, `3 h`, `94 days`. Nothing below a minute, and beyond a year. */
function span(seconds) {
  if (seconds < 60 || seconds >= 366 * DAY) return null;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < DAY) return `${Math.floor(seconds / 3600)} h`;
  return plural(Math.floor(seconds / DAY), "day");
}

/** `just now`, `4 min ago`, `in 87 days`, `2 Nov 2025`. */
export function spoken(at, when = now()) {
  const passed = when - at;
  const length = span(Math.abs(passed));
  if (length) return passed >= 0 ? `${length} ago` : `in ${length}`;
  if (Math.abs(passed) < 60) return passed >= 0 ? "just now" : "in under 1 min";
  return date(at);
}

/** Of what has happened, also by a clock that is ahead of ours. */
export const ago = (at) => spoken(Math.min(at, now()));

const date = (at) => day.format(at * 1000).replace("Sept", "Sep");
export const full = (at) => minute.format(at * 1000).replace("Sept", "Sep");
export const hour = (at) => clock.format(at * 1000);

/** A time that somebody has waited: `1.4 s`. */
export const waited = (since) => `${((performance.now() - since) / 1000).toFixed(1)} s`;

/** An element that is kept up to date. */
export const spokenElement = (at) => element("time", { datetime: iso(at) }, ago(at));

/** The same of an end, which may be to come. */
export const endElement = (at) => element("time", { datetime: iso(at), class: "end-time" }, spoken(at));

export const fullElement = (at) => element("time", { datetime: iso(at), class: "still" }, full(at));

const iso = (at) => new Date(at * 1000).toISOString().replace(".000Z", "Z");

/** Renews what has become older. */
export function renew() {
  for (const node of document.querySelectorAll("time:not(.still)")) {
    const text = (node.className ? spoken : ago)(Date.parse(node.dateTime) / 1000);
    if (node.textContent !== text) node.textContent = text;
  }
}
