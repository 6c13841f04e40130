// Elements are made here, and only here. Text becomes text nodes, never markup.

/** An element: `attributes` that are functions listen, `true` is a bare attribute, `false` and `null` are none. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.flat(2).filter((child) => child != null && child !== false));
  return made;
}

export const by = (id) => document.getElementById(id);

export const button = (text, click, attributes = {}) =>
  element("button", { type: "button", click, ...attributes }, text);

/** Shows or hides, and says whether it is shown. */
export function show(node, shown) {
  node.hidden = !shown;
  return shown;
}

/** Sets a text only where it differs, so that nothing is announced or laid out twice. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Says in the place of a progress why there is none. */
export function fail(progress, words) {
  progress.className = "progress problem";
  progress.setAttribute("role", "alert");
  progress.textContent = words;
}

/** Says something to screen readers, politely. */
export function say(text) {
  const said = by("said");
  said.textContent = "";
  requestAnimationFrame(() => (said.textContent = text));
}

/** A dialog on top of everything. It goes from the DOM, with all that it held, when it is closed. */
export function dialog(title, { role, narrow, closed = () => {} }) {
  let mayClose = () => true;
  const heading = element("h2", { id: "dialog-title", tabindex: "-1" }, title);
  const made = element("dialog", { "aria-labelledby": "dialog-title", role, class: narrow && "narrow" }, heading);
  const close = () => made.open && made.close();
  const tryToClose = () => mayClose() && close();
  const slip = (event) => {
    event.preventDefault();
    event.stopPropagation();
    tryToClose();
  };
  made.addEventListener("cancel", slip);
  // Chromium closes at the second Escape whatever is said to the first.
  made.addEventListener("keydown", (event) => event.key === "Escape" && slip(event));
  made.addEventListener("close", () => {
    made.replaceChildren();
    made.remove();
    closed();
  });
  return {
    made,
    heading,
    close,
    tryToClose,
    mayClose: (judge) => (mayClose = judge),
    open(...content) {
      made.replaceChildren(heading, ...content);
      if (!made.isConnected) {
        document.body.append(made);
        made.showModal();
      }
    },
  };
}

/** A text under a title, to read or copy. */
export function copyable(label, title, words = "") {
  const text = element("pre", { tabindex: "0", role: "region", "aria-label": label }, words);
  const said = element("span", { role: "status", class: "mute" });
  const copies = element("span", {}, said, " ", button("Copy", () => copy(text.textContent, text, said)));
  return { text, made: element("div", { class: "manifest" }, element("div", {}, title, copies), text) };
}

/** Copies a text, or selects the field that it is in; says which. */
export async function copy(text, field, said) {
  try {
    await navigator.clipboard.writeText(text);
    said.textContent = "Copied";
    return true;
  } catch {
    field.focus();
    if (field.select) field.select();
    else getSelection().selectAllChildren(field);
    said.textContent = "Could not copy. Selected: press Ctrl+C.";
    return false;
  }
}

/** Waits for a pause in calls. */
export function pause(milliseconds, then) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(then, milliseconds);
  };
}
