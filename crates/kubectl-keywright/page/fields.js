// Fields of the dialogs.

import { element, show } from "./dom.js";
import { WHY } from "./rows.js";
import { full } from "./time.js";

let numbers = 0;

/** A field with a label, a help text and a place for its problem. */
export function field(label, control, { help = "", required = false } = {}) {
  const id = `field-${++numbers}`;
  control.id = id;
  control.setAttribute("aria-describedby", `${id}-help ${id}-problem`);
  if (required) control.setAttribute("aria-required", "true");
  const helping = element("p", { class: "help", id: `${id}-help` }, help);
  const problem = element("p", { class: "problem", id: `${id}-problem`, hidden: true });
  const star = required && element("span", { "aria-hidden": "true" }, " *");
  const made = element("div", { class: "field" }, element("label", { for: id }, label, star), control, helping, problem);
  return { made, control, helping, problem };
}

/** One of a few, as buttons. `choices`: `[value, text]`. */
export function choice(legend, choices, chosen, change) {
  const name = `choice-${++numbers}`;
  const inputs = choices.map(([value, text]) =>
    element("label", {}, element("input", { type: "radio", name, value, checked: value === chosen, change }), text));
  const made = element("fieldset", { class: "field" }, element("legend", {}, legend), element("div", { class: "choices" }, inputs));
  return { made, value: () => made.querySelector(":checked").value };
}

const ENDS = [["1d", "1 day"], ["30d", "30 days"], ["90d", "90 days"], ["Never", "Never"], ["Date", "Date"]];

/** When a key ends. `value()` is a duration, `Never`, or a time. */
export function expiry(chosen, changed, ...more) {
  const control = element("input", { type: "datetime-local", "aria-label": "Date and time", hidden: true, input: changed });
  const { made, value: picked } = choice("Expires", [...more, ...ENDS], chosen, () => {
    if (show(control, picked() === "Date")) control.focus();
    changed();
  });
  const words = element("p", { class: "help" });
  const problem = element("p", { class: "problem", hidden: true });
  made.append(control, words, problem);
  const value = () => {
    const at = new Date(control.value);
    if (picked() !== "Date") return picked();
    return isNaN(at) ? "" : at.toISOString().replace(".000Z", "Z");
  };
  const explain = (at) => {
    words.textContent = picked() === "Never" ? WHY["no end"] : at ? `Refused from ${full(at)} on` : "";
  };
  return { made, control, problem, value, explain };
}

const SEEN = "As the verifier sees them, behind NAT and proxies.";

/** Allowed addresses, separated by commas. */
export function addresses(text, changed) {
  const help = () => (made.helping.textContent = control.value.trim() ? SEEN : WHY["any address"]);
  const control = element("textarea", {
    rows: Math.min(12, 2 + text.split("\n").length), spellcheck: "false", placeholder: "192.0.2.0/24, 2001:db8::1", class: "mono",
    input: () => {
      help();
      changed();
    },
  });
  control.value = text;
  const made = field("Allowed addresses", control);
  help();
  return made;
}
