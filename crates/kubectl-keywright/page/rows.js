// What is in the list, and in which order: plain functions on rows.

/** Each hint, and the column that it stands under. */
export const HINTS = { "unused": "used", "no end": "expires", "any address": "status", "expires soon": "expires", "old key in use": "key" };

/** Why each matters, in the plugin's words. */
export const WHY = {};

/** A hint and how many keys have it. */
export const counted = (hint, times) =>
  `${times} ${times === 1 ? hint : hint.replace("expires", "expire").replace("key", "keys")}`;

const text = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

/** How each column sorts. Never used is the oldest use, never expiring the latest end. */
const ORDERS = {
  namespace: (a, b) => text(a.namespace, b.namespace),
  name: (a, b) => text(a.sortName, b.sortName) || text(a.name, b.name) || text(a.namespace, b.namespace),
  owner: (a, b) => text(a.owner ?? "", b.owner ?? ""),
  key: (a, b) => text(a.key ?? "", b.key ?? ""),
  created: (a, b) => a.created - b.created,
  used: (a, b) => (a.used ?? -Infinity) - (b.used ?? -Infinity) || 0,
  expires: (a, b) => (a.expires ?? Infinity) - (b.expires ?? Infinity) || 0,
  status: (a, b) => text(a.state, b.state),
};

export const COLUMNS = Object.keys(ORDERS);

/** A row from the server, with what search and order need. */
export function prepare(row) {
  row.display ??= row.name;
  row.hints ??= [];
  row.sortName = row.display.toLocaleLowerCase();
  row.words = [row.display, row.name, row.namespace, row.owner, row.key, row.description, ...(row.ips ?? []), row.state]
    .join("\n")
    .toLocaleLowerCase();
  return row;
}

/** Rows in the order of a view. */
export function sort(rows, { sort, descending }) {
  const sign = descending ? -1 : 1;
  return rows.sort((a, b) => sign * ORDERS[sort](a, b) || ORDERS.name(a, b));
}

/** Those that a view asks for. */
export function filter(rows, { search, state, owner, hints }) {
  const words = search.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  return rows.filter((row) =>
    (!state || row.state === state) &&
    (!owner || row.owner === owner) &&
    hints.every((hint) => row.hints.includes(hint)) &&
    words.every((word) => row.words.includes(word)));
}

/** How often each value of a property occurs, in the order of the values. */
export function count(rows, values) {
  const counts = new Map();
  for (const row of rows) {
    for (const value of values(row)) counts.set(value, (counts.get(value) ?? 0) + 1);
  }
  return new Map([...counts].sort(([a], [b]) => text(a, b)));
}

/** The view in a fragment, and back. What is as usual is left out. */
export function readView(fragment) {
  const given = new URLSearchParams(fragment);
  const sort = given.get("sort") ?? "name";
  return {
    namespace: given.get("namespace")?.replace("*", ""),
    search: given.get("search") ?? "",
    state: given.get("state") ?? "",
    owner: given.get("owner") ?? "",
    hints: (given.get("hints") ?? "").split(",").filter((hint) => hint in HINTS),
    sort: COLUMNS.includes(sort.replace("-", "")) ? sort.replace("-", "") : "name",
    descending: sort.startsWith("-"),
    key: given.get("key") ?? "",
  };
}

export function writeView({ namespace, search, state, owner, hints, sort, descending, key }) {
  const order = (descending ? "-" : "") + sort;
  // An address is kept: a key that somebody looks for must not be.
  if (/\w{20}/.test(search)) search = "";
  const written = { namespace: namespace || "*", search, state, owner, hints: hints.join(","), sort: order === "name" ? "" : order, key };
  return new URLSearchParams(Object.entries(written).filter(([, value]) => value)).toString();
}
