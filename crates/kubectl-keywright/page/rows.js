// What is in the list, and in which order: plain functions on rows.

export const HINTS = {
  "unused": { counted: (n) => `${n} unused`, why: "Not used for 90 days. Is it still needed?" },
  "no end": { counted: (n) => `${n} no end`, why: "It never expires. If it leaks, it works until somebody revokes it." },
  "any address": { counted: (n) => `${n} any address`, why: "Whoever has the key may use it from anywhere." },
  "expires soon": { counted: (n) => `${n} expire${n === 1 ? "s" : ""} soon`, why: "Callers are refused once it has expired." },
  "old key in use": { counted: (n) => `${n} old key${n === 1 ? "" : "s"} in use`, why: "Something has not taken the new key yet." },
};

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

/** Those that a view asks for, in its order: `{ search, state, owner, hints, sort, descending }`. */
export function select(rows, { search = "", state = "", owner = "", hints = [], sort = "name", descending = false }) {
  const words = search.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  const chosen = rows.filter(
    (row) =>
      (!state || row.state === state) &&
      (!owner || row.owner === owner) &&
      hints.every((hint) => row.hints.includes(hint)) &&
      words.every((word) => row.words.includes(word)),
  );
  const order = ORDERS[sort] ?? ORDERS.name;
  const sign = descending ? -1 : 1;
  return chosen.sort((a, b) => sign * order(a, b) || ORDERS.name(a, b));
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
  const written = { namespace: namespace || "*", search, state, owner, hints: hints.join(","), sort: order === "name" ? "" : order, key };
  return new URLSearchParams(Object.entries(written).filter(([, value]) => value)).toString();
}
