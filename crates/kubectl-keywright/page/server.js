// The plugin's server: the only one that this page talks to.

/** It said no; `fields` say which field is wrong. */
export class Refused extends Error {
  constructor(status, { message = "", fields = [] }) {
    super(message || `The plugin answered ${status}.`);
    this.fields = fields;
  }
}

/** There is nobody. */
export class Gone extends Error {
  message = "The plugin has ended. Run kubectl keywright ui again.";
}

/** Nobody says what has come of it. */
export class Lost extends Gone {
  message = "The plugin did not answer. What was asked for may be done: look at the key. If this stays, run kubectl keywright ui again.";
}

async function reach(path, { headers, ...options } = {}) {
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", headers: { ...headers, "X-Keywright-Session": sessionStorage.proof }, ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw options.method ? new Lost() : new Gone();
  }
  if (!answer.ok) throw new Refused(answer.status, await answer.json().catch(() => ({})));
  return answer;
}

const json = async (answer) => (answer.status === 204 ? null : answer.json());

export const get = async (path, signal) => json(await reach(path, { signal }));

export const post = async (path, body, signal) =>
  json(await reach(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal }));

/** Trades the token of the address for a session. What proves it stays in this tab: cookies go to every port, storage to one. */
export const begin = async (token) => Object.assign(sessionStorage, await post("/session", { token }));

/** The path of an ApiKey. */
export const pathOf = ({ namespace, name }) => `/api/keys/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}`;

/** What happens to the ApiKeys of a namespace (or of all: ""), as messages, until `signal`. */
export async function* feed(namespace, signal) {
  const answer = await reach(`/api/feed?${new URLSearchParams({ namespace })}`, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      throw new Gone();
    }
    if (part.done) throw new Gone();
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}
