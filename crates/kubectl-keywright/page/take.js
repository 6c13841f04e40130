// The second step of creating a key: the key, shown once, or the Secret that it is in.

import { button, copy, copyable, element, fail, say, show } from "./dom.js";
import { waited } from "./time.js";

/** `made`: `{ uid, display, prefix, key, secret, entry, snippet, manifest }`, asked for at `started`; `wait` settles once every verifier knows the key. */
export function take(box, made, started, wait) {
  const progress = element("p", { class: "progress mute", role: "status" }, "Waiting until every verifier accepts it...");
  const done = button("Done", () => box.tryToClose(), { class: made.key ? "" : "primary" });
  const end = [element("details", {}, element("summary", {}, "The same, for Git"), copyable("Manifest", "", made.manifest).made), element("div", { class: "end" }, progress, done)];
  box.made.classList.add("narrow");
  wait(made, (words) => (progress.textContent = words)).then(
    () => (progress.textContent = `Every verifier accepts it (${waited(started)})`),
    ({ message }) => fail(progress, message));
  if (made.key) once(box, made, end, done);
  else delivered(box, made, end);
}

function delivered(box, made, end) {
  box.heading.textContent = `${made.display} is created`;
  box.open(
    element("p", {}, "The key goes into Secret ", element("code", {}, made.secret), ", entry ", element("code", {}, made.entry), "."),
    copyable("Snippet", "A container takes it like this:", made.snippet).made, ...end);
  box.heading.focus();
}

function once(box, made, end, done) {
  // The only place that holds the key. Emptied before the dialog is.
  let key = made.key;
  delete made.key;
  let taken = false;
  const took = () => {
    taken = true;
    show(warning, false);
    copyKey.className = "";
    done.className = "primary";
  };
  const masked = made.prefix + "•".repeat(16);
  const shown = element("input", { readonly: true, "aria-label": "Key", class: "mono", value: masked, copy: took });
  const copied = element("p", { role: "status", class: "mute" });
  const remain = button("Stay", () => {
    show(warning, false);
    copyKey.focus();
  });
  const warning = element("div", { class: "note warn ask", role: "alert", hidden: true },
    "Close? You cannot see this key again.", remain, button("Close", box.close));
  const reveal = button("Show", () => {
    const hidden = shown.value === masked;
    shown.value = hidden ? key : masked;
    reveal.textContent = hidden ? "Hide" : "Show";
  });
  const copyKey = button("Copy key", async () => {
    if (await copy(key, shown, copied)) return took();
    shown.value = key;
    shown.select();
    reveal.textContent = "Hide";
  }, { class: "primary" });
  const stay = (event) => {
    if (!taken) event.preventDefault();
  };
  addEventListener("beforeunload", stay);
  const forget = () => {
    key = "";
    shown.value = "";
    removeEventListener("beforeunload", stay);
  };
  box.made.addEventListener("close", forget);
  box.mayClose(() => {
    if (taken) return true;
    show(warning, true);
    remain.focus();
  });
  box.heading.textContent = `Key for ${made.display}`;
  box.open(
    element("p", {}, "Copy it now: this is the only time. Only its digest is kept."),
    element("div", { class: "taken" }, shown, reveal, copyKey),
    copied, warning, ...end);
  copyKey.focus();
  say("The key is made.");
}
