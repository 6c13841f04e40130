// Revocation: what stops working, the question, and the progress of the fence.

import { button, dialog, element, fail, say, show } from "./dom.js";
import { Gone, get, pathOf, post } from "./server.js";
import { ago, plural, waited } from "./time.js";

/** Asks whether to revoke, by its typed name where the key is in use. */
export async function revoke(row, details) {
  let gone = false;
  const box = dialog(`Revoke ${row.display} in ${row.namespace}?`, {
    role: "alertdialog",
    narrow: true,
    closed: () => (gone ? details.close() : details.focus("revoke")),
  });
  let answer;
  const consequences = element("p", { id: "dialog-text" }, "Looking for what uses it...");
  box.made.setAttribute("aria-describedby", "dialog-text");
  const judge = () => (submit.disabled = !answer || !(answer.idle || typed.value === row.name));
  const typed = element("input", { autocomplete: "off", spellcheck: "false", class: "mono", "aria-label": `Type ${row.name} to revoke it`, input: judge });
  const ask = element("p", { class: "ask", hidden: true }, element("span", {}, "Type ", element("code", {}, row.name)), typed);
  const progress = element("p", { class: "progress", role: "status" });
  const keep = button("Keep", box.close);
  const submit = element("button", { type: "submit", class: "danger" }, "Revoke key");
  judge();
  box.open(element("p", {}, "At once and for good."), consequences,
    element("form", { submit: send }, ask, element("div", { class: "end" }, progress, keep, submit)));
  keep.focus();

  try {
    answer = await get(`${pathOf(row)}/users`);
    consequences.textContent = said(row, answer);
    if (show(ask, !answer.idle)) typed.focus();
    judge();
  } catch (error) {
    if (error instanceof Gone) return details.gone(box);
    consequences.textContent = error.message;
  }

  async function send(event) {
    event.preventDefault();
    if (submit.disabled) return;
    submit.disabled = true;
    progress.className = "progress";
    const started = performance.now();
    try {
      const finished = details.revoking(row, (words) => words && (progress.textContent = words));
      progress.textContent = "Revoking...";
      await post(`${pathOf(row)}/revoke`, { uid: row.uid });
      keep.textContent = "Close";
      submit.hidden = true;
      await finished;
      gone = true;
      const words = `Revoked in ${waited(started)}. No verifier accepts it any more.`;
      if (!box.made.open) return say(words);
      box.open(element("p", { role: "status" }, words), element("div", { class: "end" }, button("Done", box.close, { class: "primary" })));
      box.made.querySelector(".primary").focus();
    } catch (error) {
      if (error instanceof Gone) return details.gone(box);
      fail(progress, error.message);
      submit.hidden = false;
      judge();
    }
  }
}

function said(row, { mounted, gaps, retiring }) {
  const used = row.used ? `Used ${ago(row.used)}.` : "Never used.";
  const by = mounted.length ? ` Mounted by ${mounted.join(", ")}.` : "";
  const old = retiring ? ` ${plural(retiring, "old key")} go${retiring === 1 ? "es" : ""} too.` : "";
  return used + by + old + (gaps ? ` ${gaps}` : "");
}
